from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.config import Environ, check_settings
from llm_router.domain.quota import GUARD
from llm_router.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import Project


NAME = "API_KEY_gemini_key_01"


@pytest.fixture
def bare(project: Project) -> Project:
    """Return a project whose only key has no secret yet."""
    return project.write({"key_id": "gemini-key-01", "model_name": "gemini-1.5-pro"})


def secret(project: Project, **options: Any) -> str:
    return project.load(**options).deployments[0].key.secret.reveal()


def refuse(project: Project, **variables: Any) -> str:
    """Return the message about variables that are wrong."""
    project.write().env.update(variables)
    (finding,) = check_settings(project.path, env=project.env)
    with pytest.raises(ConfigError) as caught:
        project.load()
    assert str(caught.value) == str(finding)
    return str(finding)


def test_missing_secret(bare: Project) -> None:
    """The message about a missing secret names its variable and the remedy."""
    assert bare.refusal() == (
        f"keys[0] (gemini-key-01): {NAME} is not set: give it the secret of this key, in the "
        'environment or in .env, or set "active": false in this entry'
    )


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("your-key-here", "is a placeholder"),
        ("YOUR_API_KEY", "is a placeholder"),
        ("changeme", "is a placeholder"),
        ("<key>", "is a placeholder"),
        ("xxxxxxxx", "is a placeholder"),
        ("put-your-key-here", "is a placeholder"),
        ("two hunter2", "contains spaces, control characters or letters that no API key has"),
        ("hunter2\nhunter2", "contains spaces, control characters or letters that no API key has"),
        ("hünter2", "contains spaces, control characters or letters that no API key has"),
    ],
)
def test_unusable_secret(bare: Project, value: str, problem: str) -> None:
    """A value that cannot be a secret is rejected and not shown."""
    bare.env[NAME] = value
    message = bare.refusal()
    assert message.startswith(
        f"keys[0] (gemini-key-01): {NAME} in the environment {problem}: give it the secret"
    )
    assert "hunter2" not in message


@pytest.mark.parametrize("value", ["s", "AIza-short", "AQ.x", "sk-anything~at/all+=", " stripped \n"])
def test_any_secret(bare: Project, value: str) -> None:
    """A secret may have any prefix, and spaces around it are removed."""
    bare.env[NAME] = value
    assert secret(bare) == value.strip()


def test_secrets_not_required(bare: Project) -> None:
    """If secrets are not required, a missing one is empty."""
    assert secret(bare, secrets_required=False) == ""
    assert check_settings(bare.path, env={}, secrets_required=False) == ()


def test_process_environment(bare: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the process is read by default and never changed."""
    monkeypatch.setenv(NAME, "from-process")
    bare.dotenv.write_text("LLM_MAX_RETRIES=7\n")
    before = dict(os.environ)
    settings = bare.load(env=None)
    assert (settings.deployments[0].key.secret.reveal(), settings.max_retries) == ("from-process", 7)
    assert dict(os.environ) == before


def test_dotenv(bare: Project) -> None:
    """Secrets and settings are read from the .env beside the keys file, with quotes, comments and exports."""
    bare.dotenv.write_text(
        f"# keys\nexport {NAME}='from dotenv'\nLLM_MAX_RETRIES=5 # few\nEMPTY\n".replace("m d", "m-d")
    )
    settings = bare.load()
    assert settings.deployments[0].key.secret.reveal() == "from-dotenv"
    assert settings.max_retries == 5


def test_environment_wins(bare: Project) -> None:
    """The environment wins over .env, even with an empty value."""
    bare.dotenv.write_text(f"{NAME}=from-dotenv\nLLM_MAX_RETRIES=5\n")
    bare.env.update({NAME: "from-env", "LLM_MAX_RETRIES": ""})
    assert secret(bare) == "from-env"
    assert bare.load().max_retries == 3
    bare.env[NAME] = ""
    assert f"{NAME} in the environment is empty" in bare.refusal()


def test_dotenv_of_working_directory(bare: Project, tmp_path: Path) -> None:
    """If there is no .env beside the keys file, the one in the working directory is read."""
    (tmp_path / "elsewhere" / ".env").write_text(f"{NAME}=from-elsewhere\n")
    assert secret(bare) == "from-elsewhere"
    bare.dotenv.write_text(f"{NAME}=from-beside\n")
    assert secret(bare) == "from-beside"


def test_other_dotenv(bare: Project, tmp_path: Path) -> None:
    """Another file or no file can be chosen instead of .env; a chosen file must exist."""
    bare.dotenv.write_text(f"{NAME}=from-beside\n")
    (bare.path.parent / "prod.env").write_text(f"{NAME}=from-prod\n")
    assert secret(bare, env_file="prod.env") == "from-prod"
    assert secret(bare, env_file=bare.path.parent / "prod.env") == "from-prod"
    assert "API_KEY_gemini_key_01 is not set" in bare.refusal(env_file=None)
    missing = tmp_path / "missing.env"
    assert f"{missing}: does not exist: create it, or name another env_file" in bare.refusal(env_file=missing)


def test_unreadable_dotenv(bare: Project) -> None:
    """A .env that cannot be read is an error; it is not silently ignored."""
    bare.dotenv.write_bytes(b"\xff\xfe")
    assert f"{bare.dotenv}: is not UTF-8 text (byte 0): save it as UTF-8" in bare.refusal()


def test_place_of_a_problem(bare: Project) -> None:
    """The message about a wrong variable names the file that it comes from."""
    bare.dotenv.write_text(f"{NAME}=changeme\nLLM_MAX_WAIT_S=soon\n")
    message = bare.refusal()
    assert f"{NAME} in {bare.dotenv} is a placeholder" in message
    assert f"LLM_MAX_WAIT_S in {bare.dotenv}: must be a number of 0 or more; found 'soon'" in message


def test_defaults(project: Project) -> None:
    """With an empty environment, the settings have their documented defaults."""
    settings = project.write().load()
    assert (settings.max_retries, settings.base_backoff, settings.max_wait) == (3, 0.5, 0.0)
    assert settings.store_url is settings.base_url is None
    assert settings.deployments[0].quotas[0].guard == GUARD


def test_settings(project: Project) -> None:
    """Every setting is read and converted from its own unit."""
    project.write().env.update(
        LLM_MAX_RETRIES=" 0 ",
        LLM_BASE_BACKOFF_MS="12.5",
        LLM_MAX_WAIT_S="90",
        REDIS_URL="redis://localhost/1",
        GOOGLE_GEMINI_BASE_URL="http://127.0.0.1:8080",
    )
    settings = project.load()
    assert (settings.max_retries, settings.base_backoff, settings.max_wait) == (0, 0.0125, 90.0)
    assert settings.store_url == "redis://localhost/1"
    assert settings.base_url == "http://127.0.0.1:8080"


def test_store_url_wins(project: Project) -> None:
    """LLM_ROUTER_STORE wins over REDIS_URL, unless it is empty."""
    project.write().env.update(REDIS_URL="redis://r", LLM_ROUTER_STORE="sqlite:///state.db")
    assert project.load().store_url == "sqlite:///state.db"
    project.env["LLM_ROUTER_STORE"] = ""
    assert project.load().store_url == "redis://r"


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "On", ""])
def test_switch_on(project: Project, value: str) -> None:
    """The switch accepts the usual words for on."""
    project.write(project.entry("a"), project.entry("b")).env["LLM_MULTI_KEY_ROUTER_ENABLED"] = value
    assert len(project.load().deployments) == 2


@pytest.mark.parametrize("value", ["false", "False", "0", "no", "OFF"])
def test_switch_off(project: Project, value: str) -> None:
    """The switch accepts the usual words for off."""
    project.write(project.entry("a"), project.entry("b")).env["LLM_MULTI_KEY_ROUTER_ENABLED"] = value
    assert len(project.load().deployments) == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "LLM_MULTI_KEY_ROUTER_ENABLED",
            "maybe",
            "must be true or false (or 1, 0, yes, no, on, off); found 'maybe'",
        ),
        ("LLM_MAX_RETRIES", "three", "must be a whole number of 0 or more; found 'three'"),
        ("LLM_MAX_RETRIES", "-1", "must be a whole number of 0 or more; found '-1'"),
        ("LLM_MAX_RETRIES", "2.5", "must be a whole number of 0 or more; found '2.5'"),
        ("LLM_BASE_BACKOFF_MS", "500ms", "must be a number of 0 or more; found '500ms'"),
        ("LLM_BASE_BACKOFF_MS", "nan", "must be a number of 0 or more; found 'nan'"),
        ("LLM_MAX_WAIT_S", "inf", "must be a number of 0 or more; found 'inf'"),
        ("LLM_MAX_WAIT_S", "-1", "must be a number of 0 or more; found '-1'"),
        (
            "LLM_ROUTER_STORE",
            "memory",
            "must be the URL of a store, such as memory:// or redis://localhost:6379/0",
        ),
        (
            "REDIS_URL",
            "localhost",
            "must be the URL of a store, such as memory:// or redis://localhost:6379/0",
        ),
        (
            "GOOGLE_GEMINI_BASE_URL",
            "localhost:80",
            "must be a URL with http:// or https:// and a host; found 'localhost:80'",
        ),
        (
            "GOOGLE_GEMINI_BASE_URL",
            "http://[",
            "must be a URL with http:// or https:// and a host; found 'http://['",
        ),
    ],
)
def test_wrong_setting(project: Project, name: str, value: str, expected: str) -> None:
    """The message about a wrong setting gives its name, the value found and the values allowed."""
    assert refuse(project, **{name: value}) == f"{name} in the environment: {expected}"


@pytest.mark.parametrize("url", [":hunter2@localhost", "ftp://me:hunter2@host?key=hunter2", "hunter2"])
@pytest.mark.parametrize("name", ["REDIS_URL", "LLM_ROUTER_STORE"])
def test_no_password_in_messages(project: Project, name: str, url: str) -> None:
    """The message about a rejected URL does not show its password."""
    project.write().env.update({name: url, "GOOGLE_GEMINI_BASE_URL": "ftp://me:hunter2@host/?key=hunter2"})
    findings = check_settings(project.path, env=project.env)
    assert findings
    assert "hunter2" not in str(findings)


def test_environ_shows_nothing() -> None:
    """The repr of an environment shows no values."""
    environ = Environ({"API_KEY_a": "hunter2"})
    assert (repr(environ), dict(environ)) == ("Environ(1 variables)", {"API_KEY_a": "hunter2"})


KEY = "Qx7kZp93LmVt20WsRb81"  # no part of it may be shown


NO_SECRETS = [
    (f'"{KEY}"', "has a quotation mark at its end: remove the quotation marks"),
    (f"'{KEY}'", "has a quotation mark at its end: remove the quotation marks"),
    (f'{KEY}"', "has a quotation mark at its end: remove the quotation marks"),
    (f"`{KEY}", "has a quotation mark at its end: remove the quotation marks"),
    (f"“{KEY}”", "contains spaces, control characters or letters that no API key has"),
    (f"{KEY};", "ends with a semicolon or a comma: remove it"),
    (f"{KEY},", "ends with a semicolon or a comma: remove it"),
    (f'"{KEY}";', "has a quotation mark at its end: remove the quotation marks"),
    (f"{KEY},{KEY[::-1]}", "contains a comma or a semicolon: give each key an entry and a variable"),
    (f"{KEY}|{KEY[::-1]}", "contains a vertical bar: give each key an entry and a variable"),
    (f"%41{KEY[1:]}", "contains a character that is escaped by a percent sign"),
    (f"{KEY};{KEY[::-1]};{KEY}", "contains a comma or a semicolon: give each key an entry"),
    (f"{KEY}, {KEY[::-1]}", "contains spaces, control characters or letters that no API key has"),
    (f"https://example.com/?key={KEY}", "is a URL: give it the key alone"),
    (f"redis://:{KEY}@host", "is a URL: give it the key alone"),
    (f"{NAME}={KEY}", "has a name and = in front of the key: give it the key alone"),
    (f"GEMINI_API_KEY={KEY}", "has a name and = in front of the key: give it the key alone"),
    (f"key={KEY}", "has a name and = in front of the key: give it the key alone"),
    (f"export {NAME}={KEY}", "contains spaces, control characters or letters that no API key has"),
    (f"Bearer {KEY}", "contains spaces, control characters or letters that no API key has"),
    (f"{KEY}\n{KEY}", "contains spaces, control characters or letters that no API key has"),
    (f"{KEY}\t{KEY}", "contains spaces, control characters or letters that no API key has"),
    (f"{KEY}\x1b[0m", "contains spaces, control characters or letters that no API key has"),
    (f"{KEY}\u200b", "contains spaces, control characters or letters that no API key has"),
    (f"\ufeff{KEY}", "contains spaces, control characters or letters that no API key has"),
    (f"={KEY}", "has a = in front of the key: remove it"),
    (f"=={KEY}", "has a = in front of the key: remove it"),
    (f"key:{KEY}", "has a name and : in front of the key: give it the key alone"),
    (f"{NAME}:{KEY}", "has a name and : in front of the key: give it the key alone"),
    (f"x-goog-api-key:{KEY}", "has a name and : in front of the key: give it the key alone"),
    (f"gemini:AIza{KEY}", "has a name and : in front of the key: give it the key alone"),
    (f":AIza{KEY}", "has a name and : in front of the key: give it the key alone"),
    (f"${{{KEY}}}", "names a variable that nothing replaces: give it the key itself"),
    (f"prefix${{{KEY}}}", "names a variable that nothing replaces: give it the key itself"),
    (f"${{{KEY}:-}}", "names a variable that nothing replaces: give it the key itself"),
    (f"${KEY.replace('-', '_')}", "names a variable that nothing replaces: give it the key itself"),
    (f"%{KEY.replace('-', '_')}%", "names a variable that nothing replaces: give it the key itself"),
    (f"{{{{{KEY}}}}}", "is a placeholder"),
    (f"{KEY}\\n", "ends with the text of a line break: remove it"),
]


def test_a_secret_that_cannot_be_one(bare: Project) -> None:
    """Loading and checking name the variable and the mistake, and show no character of the value."""
    for value, problem in NO_SECRETS:
        bare.env[NAME] = value
        message = bare.refusal()
        assert message.startswith(f"keys[0] (gemini-key-01): {NAME} in the environment {problem}"), value
        (finding,) = check_settings(bare.path, env=bare.env)
        assert (finding.level, str(finding)) == ("error", f"{bare.path}: {message}")
        assert not any(KEY[start : start + 3] in message for start in range(len(KEY) - 2))


@pytest.mark.parametrize(
    "value",
    [
        "AIzaSyA-1_b",
        "AQ.Ab8RN6L",
        "sk-proj-x_y",
        "ya29.a0Af/_-~",
        "abc==",
        "a+b/c=",
        "x:y",
        "{not-a-name",
        "ab$c",
        "10%_x",
    ],
)
def test_a_secret_that_may_be_one(bare: Project, value: str) -> None:
    """Whatever its prefix, its alphabet and its padding, what may be a key is one."""
    bare.env[NAME] = value
    assert secret(bare) == value
    assert check_settings(bare.path, env=bare.env) == ()


def test_secrets_of_keys_that_are_not_used(project: Project) -> None:
    """A wrong secret of an inactive key is no problem."""
    project.write(project.entry("a"), project.entry("b", active=False))
    project.env["API_KEY_b"] = f'"{KEY}"'
    assert check_settings(project.path, env=project.env) == ()


@pytest.mark.parametrize("line", [f'{NAME}="{KEY}";', f"export {NAME}='{KEY}' '", f'{NAME}="{KEY}'])
def test_a_line_of_dotenv_that_cannot_be_read(bare: Project, line: str) -> None:
    """A line that python-dotenv skips is named with its variable, so that it does not seem to be missing."""
    bare.dotenv.write_text(f"LLM_MAX_RETRIES=5\n{line}\n")
    message = bare.refusal()
    assert f"{NAME} is in line 2 of {bare.dotenv}, which cannot be read: write {NAME}=…" in message
    assert KEY not in message


# --- the store ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["REDIS_URL", "LLM_ROUTER_STORE"])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host", "no store has the URL scheme 'http'"),
        ("redis://", "names no host"),
        ("redis://host:port/0", "a port that is a number"),
        ("redis://host?nonsense=1", "check its options (nonsense)"),
        ("redis://host?shards=0", "shards must be a whole number"),
        ("memory://x", "takes nothing after it"),
        ("sqlite://state.sqlite3", "names no file"),
        ("sqlite:////tmp/a?b", "write ? as %3F"),
        ("unix://", "names no socket"),
    ],
)
def test_a_store_that_cannot_be_opened(project: Project, name: str, url: str, words: str) -> None:
    """A URL of a store that cannot be used is found when settings are loaded or checked."""
    message = refuse(project, **{name: url})
    assert message.startswith(f"{name} in the environment: ")
    assert words in message


def test_a_store_that_is_not_used(project: Project) -> None:
    """A store that another one, or the caller, takes the place of is not looked at."""
    project.write().env.update(LLM_ROUTER_STORE="memory://", REDIS_URL="redis://host:port")
    assert project.load().store_url == "memory://"
    project.env["LLM_ROUTER_STORE"] = "redis://host:port"
    assert project.load(store_needed=False).store_url == "redis://host:port"


def test_a_file_that_cannot_be_written(project: Project) -> None:
    """The file of a store must be one that can be made."""
    message = refuse(project, LLM_ROUTER_STORE=f"sqlite:///{project.path}/state.sqlite3")
    assert message == (
        "LLM_ROUTER_STORE in the environment: the file of the store cannot be used: "
        f"{str(project.path)!r} is not a directory"
    )


def test_a_relative_file_is_a_warning(project: Project) -> None:
    """A relative path means another file in another directory, which is probably a mistake."""
    project.write().env["LLM_ROUTER_STORE"] = "sqlite:///state.sqlite3"
    (finding,) = check_settings(project.path, env=project.env)
    assert finding.level == "warning"
    assert "write sqlite:////absolute/path" in finding.message
    project.env["LLM_ROUTER_STORE"] = f"sqlite:///{project.path.parent}/state.sqlite3"
    assert check_settings(project.path, env=project.env) == ()


def test_a_default_store_that_cannot_be_written(project: Project) -> None:
    """If no store is named, a check of the default one warns and says what to set."""
    project.write()
    default = f"sqlite:///{project.path}/state.sqlite3"
    (finding,) = check_settings(project.path, env=project.env, default_store=default)
    assert (finding.level, finding.where) == ("warning", "LLM_ROUTER_STORE")
    project.env["REDIS_URL"] = "redis://host"
    assert check_settings(project.path, env=project.env, default_store=default) == ()

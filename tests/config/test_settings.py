from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llm_router.config import Finding, Settings, check_settings, load_settings
from llm_router.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import Project


EXAMPLE = Path(__file__).parents[2] / "keys.json.example"
GUIDE = Path(__file__).with_name("guide-keys.json")
PASSWORD = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("path", "models", "learnt"),
    [
        (EXAMPLE, ("gemini-3.5-flash-lite", "gemini-3.8-flash", "gemini-pro-latest"), True),
        (GUIDE, ("gemini-2.0-flash-exp", "gemini-1.5-pro", "gemini-exp-1206"), False),
    ],
)
def test_example(path: Path, models: tuple[str, ...], learnt: bool) -> None:
    """The example, and the file of the users' guide unchanged, spread nine keys over three workloads.

    The guide's models have the limits of the built-in table; those of the example are learnt.
    """
    env = {f"API_KEY_gemini_key_{number:02}": f"fake-{number}" for number in range(1, 10)}
    assert check_settings(path, env=env, env_file=None) == ()
    settings = load_settings(path, env=env, env_file=None)
    assert len(settings.deployments) == 9
    assert {(deployment.workload, deployment.model) for deployment in settings.deployments} == set(
        zip(("light", "medium", "heavy"), models, strict=True)
    )
    assert all(len(deployment.quotas) == 3 for deployment in settings.deployments)
    assert {quota.adaptive for made in settings.deployments for quota in made.quotas} == {learnt}


def test_example_without_secrets() -> None:
    """The only problems of the example file without an environment are the missing secrets, one per key."""
    findings = check_settings(EXAMPLE, env={}, env_file=None)
    assert [finding.level for finding in findings] == ["error"] * 9
    assert findings[0].where == f"{EXAMPLE}: keys[0] (gemini-key-01)"
    assert findings[0].message.startswith("API_KEY_gemini_key_01 is not set")


def test_check_reports_everything(project: Project) -> None:
    """A check returns errors and warnings together, in order, and logs nothing."""
    project.write(project.entry("a"), project.entry("b", rpm=-1), models={"x": {"rpm": 1}, "y": {"rpm": 1}})
    findings = check_settings(str(project.path), env=project.env)
    assert [(finding.level, finding.where.removeprefix(f"{project.path}: ")) for finding in findings] == [
        ("error", "keys[1] (b): rpm"),
        ("warning", "models.x"),
        ("warning", "models.y"),
    ]


def test_check_of_a_missing_file(project: Project) -> None:
    """A check of a missing file returns its problem."""
    assert check_settings(project.path, env={}) == (
        Finding(
            "error",
            str(project.path),
            "does not exist: make it with `llm-router init`, or copy keys.json.example to it and enter your "
            "own keys",
        ),
    )


@pytest.mark.parametrize("guard", [-1, float("nan"), float("inf")])
def test_wrong_guard(project: Project, guard: float) -> None:
    """A guard that is not a number of seconds is rejected."""
    project.write()
    with pytest.raises(ConfigError, match="guard must be 0 s or more"):
        project.load(guard=guard)


def test_settings_hide_secrets(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """Neither settings nor logs show a secret or a password, and settings refuse to be pickled."""
    caplog.set_level(logging.DEBUG)
    project.write(models={"new": {"rpm": 1}}).env.update(
        REDIS_URL=f"redis://me:{PASSWORD}@localhost/0?password={PASSWORD}",
        GOOGLE_GEMINI_BASE_URL=f"http://me:{PASSWORD}@localhost/",
    )
    settings = project.load()
    secret = settings.deployments[0].key.secret.reveal()
    for text in (repr(settings), str(settings), caplog.text):
        assert secret not in text
        assert PASSWORD not in text
    assert "store_url='redis://***@localhost/0?***'" in repr(settings)
    assert caplog.records
    with pytest.raises(TypeError):
        pickle.dumps(settings)


def test_tracebacks_hide_secrets(project: Project) -> None:
    """A traceback with locals shows no secret of environment, .env or file, and the error has no context."""
    project.write(project.entry("a"), project.entry("b", api_key=PASSWORD, rpm=-1, active="x"))
    project.dotenv.write_text(f"API_KEY_c={PASSWORD}\nREDIS_URL=redis://:{PASSWORD}@localhost\n")
    secret = project.env["API_KEY_a"]
    with pytest.raises(ConfigError) as caught:
        project.load()
    assert caught.value.__context__ is None
    assert caught.value.__traceback__ is not None
    # Without the frame of this test, whose locals contain the secrets.
    shown = "".join(
        traceback.TracebackException(
            ConfigError, caught.value, caught.value.__traceback__.tb_next, capture_locals=True
        ).format()
    )
    assert "load_settings" in shown
    assert "report = " in shown
    assert secret not in shown
    assert PASSWORD not in shown


def test_settings_by_hand() -> None:
    """Settings can be constructed without a file."""
    assert Settings(()).workloads == ("light", "medium", "heavy")


def test_default_path(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, keys.json in the working directory is loaded."""
    project.write()
    monkeypatch.chdir(project.path.parent)
    assert len(load_settings(env=project.env).deployments) == 1
    project.path.unlink()
    with pytest.raises(ConfigError, match=r"^keys\.json: does not exist"):
        load_settings(env=project.env)

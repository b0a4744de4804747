from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.config import check_settings

if TYPE_CHECKING:
    from tests.config.conftest import Project


LIMIT = (
    'must be a whole number of 0 or more (at most 1000000000000000), "learn", or null for unlimited; found '
)


def test_plain_form(project: Project) -> None:
    """The shortest entry gives one deployment with the limits of the built-in table."""
    entry = project.entry(
        "gemini-key-01",
        provider="gemini",
        model_name="gemini-2.0-flash-exp",
        tags={"workload": "light", "priority": 1},
    )
    settings = project.write(entry).load()
    (deployment,) = settings.deployments
    assert deployment.id == "gemini-key-01/gemini-2.0-flash-exp"
    assert (deployment.workload, deployment.priority, deployment.weight) == ("light", 1, 1.0)
    assert (deployment.key.provider, deployment.key.project) == ("gemini", "gemini-key-01")
    assert deployment.key.secret.reveal() == project.env["API_KEY_gemini_key_01"]
    assert settings.workloads == ("light", "medium", "heavy")
    assert settings.warnings == ()


def test_missing_file(project: Project) -> None:
    """The message about a missing file names what makes one."""
    words = "make it with `llm-router init`, or copy keys.json.example to it and enter your own keys"
    assert project.refusal() == f"does not exist: {words}"


def test_unreadable_file(project: Project) -> None:
    """The message about an unreadable file gives the system's reason."""
    project.path.mkdir()
    assert "cannot be read (Is a directory): make it a file that this process may read" in project.refusal()


def test_not_utf8(project: Project) -> None:
    """A file in another encoding is rejected with the remedy."""
    project.path.write_bytes('{"keys": "ü"}'.encode("latin-1"))
    assert project.refusal() == "is not UTF-8 text (byte 10): save it as UTF-8"


def test_byte_order_mark(project: Project) -> None:
    """The byte order mark that some editors write is accepted."""
    project.write()
    project.path.write_bytes(b"\xef\xbb\xbf" + project.path.read_bytes())
    assert len(project.load().deployments) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"keys": [\n  {"key_id" "a"}\n]}',
            "is not JSON (line 2, column 13: Expecting ':' delimiter)",
        ),
        ("", "is not JSON (line 1, column 1: Expecting value)"),
        ('{"keys": NaN}', "is not JSON: NaN, Infinity"),
        ('{"keys": ' + "9" * 5000 + "}", "is not JSON: NaN, Infinity and numbers of thousands of digits"),
        ("[" * 100_000, "is nested too deeply: write it like keys.json.example"),
        ("[]", 'must be an object, {"keys": [...]}; found a list at the top'),
        ('"keys"', "must be an object, {\"keys\": [...]}; found 'keys' at the top"),
        ("{}", "keys: is missing: add a list of keys, as in keys.json.example"),
        ('{"keys": []}', "keys: is an empty list: add an item"),
        ('{"keys": {}}', "keys: must be a list in brackets; found an object"),
        ('{"keys": ["k1"]}', "keys[0]: must be an object in braces; found 'k1'"),
        ('{"keys": [null]}', "keys[0]: must be an object in braces; found null"),
        ('{"keys": [], "keys": []}', "keys: appears twice: keep one"),
    ],
)
def test_wrong_form(project: Project, text: str, message: str) -> None:
    """A file that is not a list of keys is rejected with the place and the remedy."""
    project.path.write_text(text)
    assert message in project.refusal()


WRONG_FIELDS: list[tuple[Any, str]] = [
    ({"prioritty": 1}, "prioritty: unknown field 'prioritty': use one of 'active'"),
    ({"model": "x"}, "model: unknown field 'model': write \"model_name\""),
    (
        {"models": [{"model_name": "m", "model": "x"}]},
        "models[0].model: unknown field 'model': write \"model_name\"",
    ),
    ({"workload": "light"}, "workload: unknown field 'workload': put it into \"tags\""),
    (
        {"models": [{"model_name": "x", "priority": 1}]},
        "priority: unknown field 'priority': put it into \"tags\"",
    ),
    (
        {"tags": {"Workload": "light"}},
        "tags.Workload: unknown field 'Workload': did you mean 'workload'?",
    ),
    ({"limits": {"rps": 1}}, "limits.rps: unknown field 'rps': did you mean 'rpm'?"),
    ({"active": "yes"}, "active: must be true or false, without quotes; found 'yes'"),
    ({"active": 1}, "active: must be true or false; found 1"),
    ({"project": 7}, "project: must be a string; found 7"),
    ({"project": " "}, "project: is empty: give it a name, or remove the field"),
    ({"project": "a\nb"}, "project: must be a name without control characters"),
    ({"project": "\ud800"}, "project: must be a name without control characters"),
    (
        {"model_name": " gemini"},
        "model_name: must be a name without control characters and without spaces",
    ),
    ({"model_name": ["a"]}, "model_name: must be a string; found a list"),
    ({"tags": []}, "tags: must be an object in braces; found a list"),
    ({"tags": {"priority": True}}, "tags.priority: must be a whole number of 0 or more"),
    ({"tags": {"priority": "1"}}, "found '1': write it without quotes"),
    ({"tags": {"priority": 1.0}}, "found 1.0: write 1"),
    ({"tags": {"priority": -1}}, "tags.priority: must be a whole number of 0 or more"),
    ({"tags": {"weight": 0}}, "tags.weight: must be a number above 0; found 0"),
    ({"tags": {"weight": True}}, "tags.weight: must be a number above 0; found true"),
    ({"tags": {"workload": "hevy"}}, "tags.workload: 'hevy' is not known: did you mean 'heavy'?"),
    ({"tags": {"workload": "q"}}, "'q' is not known: use one of 'heavy', 'light', 'medium'"),
    ({"provider": "gemeni"}, "provider: 'gemeni' is not known: did you mean 'gemini'?"),
    ({"limits": None}, 'limits: must be an object in braces, or "learn"; found null'),
    ({"limits": "learned"}, "limits: must be an object in braces, or \"learn\"; found 'learned'"),
    ({"limits": {"rpm": -1}}, f"limits.rpm: {LIMIT}-1"),
    ({"limits": {"rpm": True}}, f"limits.rpm: {LIMIT}true"),
    ({"tpm": 1e6}, f"tpm: {LIMIT}1000000.0: write 1000000"),
    ({"rpd": "50"}, f"rpd: {LIMIT}'50': write it without quotes"),
    ({"tpd": 10**16}, f"tpd: {LIMIT}10000000000000000"),
    ({"rpm": 1, "limits": {"rpm": 1}}, "rpm: appears both in limits and beside it: keep one"),
    ({"models": []}, "models: is an empty list: add an item"),
    ({"models": "gemini-1.5-pro"}, "models: must be a list in brackets; found 'gemini-1.5-pro'"),
    ({"models": [3]}, "models[0]: must be the name of a model, or an object in braces; found 3"),
    ({"models": [{}]}, "models[0].model_name: is missing: add it"),
    ({"models": ["any"]}, "models[0].model_name: 'any' is a placeholder"),
    (
        {"models": [{"model_name": "m", "rmp": 1}]},
        "models[0].rmp: unknown field 'rmp': did you mean 'rpm'?",
    ),
    ({"models": ["m"], "model_name": "m"}, "models: appears together with model_name: keep one of them"),
]


def test_wrong_entry(project: Project) -> None:
    """The message about a wrong entry gives the file, the entry, the field, the value and the remedy."""
    for fields, message in WRONG_FIELDS:
        refusal = project.write(project.entry("k0"), project.entry("k-1", **fields)).refusal()
        assert refusal.startswith("keys[1] (k-1): ")
        assert message in refusal


@pytest.mark.parametrize(
    "name",
    [
        "any",
        "ANY",
        "*",
        "model",
        "your-model",
        "YOUR_MODEL_NAME",
        "TODO",
        "<model>",
        "{{ model }}",
        "...",
        "xxx",
    ],
)
def test_placeholder_model(project: Project, name: str) -> None:
    """A placeholder is rejected as a model."""
    message = project.write(project.entry(model_name=name)).refusal()
    assert message.startswith(
        f"keys[0] (k1): model_name: {name!r} is a placeholder: write the name of a model"
    )


def test_empty_model(project: Project) -> None:
    """An empty name is rejected as a model."""
    message = project.write(project.entry(model_name="")).refusal()
    assert message == "keys[0] (k1): model_name: is empty: give it a name, or remove the field"


def test_no_model(project: Project) -> None:
    """An entry without a model is rejected."""
    message = project.write({"key_id": "k1"}).refusal()
    assert message == "keys[0] (k1): model_name: is missing: add it, or a list of models"


@pytest.mark.parametrize("key_id", [None, 7, "", "a\tb"])
def test_wrong_key_id(project: Project, key_id: int | str | None) -> None:
    """An entry is rejected if its key_id is not a name that can be shown."""
    assert "keys[0]" in (message := project.write(project.entry() | {"key_id": key_id}).refusal())
    assert "key_id: " in message


def test_no_key_id(project: Project) -> None:
    """An entry without a key_id is rejected."""
    message = project.write({"model_name": "m"}).refusal()
    assert message == "keys[0]: key_id: is missing: add it"


def test_repeated_field(project: Project) -> None:
    """A repeated field is rejected, since one of its values would be lost."""
    project.write()
    text = project.path.read_text().replace('"key_id": "k1"', '"key_id": "k1", "rpm": 1, "rpm": 2')
    project.path.write_text(text)
    assert project.refusal() == "keys[0] (k1): rpm: appears twice: keep one"


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"workloads": []}, "workloads: is an empty list: add an item"),
        ({"workloads": "light"}, "workloads: must be a list in brackets; found 'light'"),
        ({"workloads": ["a", "a"]}, "workloads[1]: 'a' appears twice: keep one"),
        ({"workloads": ["a", 1]}, "workloads[1]: must be a name without spaces around it; found 1"),
        ({"model": {}}, "model: unknown field 'model': did you mean 'models'?"),
        ({"models": []}, "models: must be an object in braces; found a list"),
        ({"models": {"m": 3}}, "models.m: must be an object in braces; found 3"),
        ({"models": {"any": {}}}, "models: 'any' is a placeholder: write the name of a model"),
        ({"models": {"m": {"rpm": -2}}}, f"models.m.rpm: {LIMIT}-2"),
        ({"models": {"m": {"workload": "w"}}}, "models.m.workload: 'w' is not known: use one of 'heavy'"),
        (
            {"models": {"m": {"refill": "daily"}}},
            "models.m.refill: 'daily' is not known: use one of 'rolling'",
        ),
        (
            {"models": {"m": {"burst": 1}}},
            'models.m.burst: needs a steady refill: add "refill": "steady"',
        ),
        (
            {"models": {"m": {"refill": "steady", "burst": 0}}},
            "models.m.burst: must be a whole number of 1 or",
        ),
        (
            {"models": {"m": {"refill": "steady", "burst": 9, "rpm": 8}}},
            "models.m.burst: must be between 1 and rpm, which is 8; found 9: lower it",
        ),
        ({"models": {"m": {"rpd": 8, "window": 60}}}, "models.m.window: unknown field 'window': use one of"),
    ],
)
def test_wrong_top(project: Project, top: dict[str, Any], message: str) -> None:
    """The message about a problem outside the keys gives the place and the remedy."""
    assert message in project.write(**top).refusal()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"refill": "steady", "burst": 1, "tpm": 8},
            "models.m.burst: is a number of requests a minute, but no rpm is stated: add rpm, or remove the",
        ),
        (
            {"refill": "steady", "rpd": 8, "tpd": 9},
            "models.m.refill: is of the quotas of a minute, but none is stated (a day's come back",
        ),
    ],
)
def test_a_refill_that_no_quota_has(project: Project, model: dict[str, Any], message: str) -> None:
    """It is refused unless some entry states what it is of."""
    models = {"m": model}
    assert message in project.write(project.entry(model_name="m"), models=models).refusal()
    assert project.write(project.entry(model_name="m", rpm=1), models=models).load()


def test_every_problem_at_once(project: Project) -> None:
    """All problems of the environment and the file are reported at once."""
    project.env["LLM_MAX_RETRIES"] = "many"
    message = project.write(
        project.entry("a", active=1), project.entry("b", rpm=-1), {"key_id": "c", "model_name": "m"}
    ).refusal()
    assert message.startswith("4 problems in the configuration:\n  LLM_MAX_RETRIES in the environment: ")
    for place in ("keys[0] (a): active: ", "keys[1] (b): rpm: ", "keys[2] (c): API_KEY_c is not set: "):
        assert f"\n  {project.path}: {place}" in message


def test_many_problems(project: Project) -> None:
    """Of many problems, the message lists the first ten and says how to see the others."""
    message = project.write(*(project.entry(f"k{number}", rpm=-1) for number in range(30))).refusal()
    assert len(message.splitlines()) == 12
    assert message.endswith("… and 20 more: llm-router check lists them all")
    assert len(check_settings(project.path, env=project.env)) == 30


def test_several_models(project: Project) -> None:
    """A key may serve several models, whose own tags and limits override those of the entry."""
    items = [
        "gemini-2.0-flash-exp",
        {"model_name": "m", "tags": {"workload": "heavy", "priority": 0}, "limits": {"rpm": 3}},
    ]
    entry = project.entry(models=items, tags={"priority": 4, "weight": 2}, rpd=9)
    plain, own = project.write(entry).load().deployments
    assert (plain.workload, plain.priority, plain.weight) == ("light", 4, 2.0)
    assert (own.workload, own.priority, own.weight) == ("heavy", 0, 2.0)
    assert plain.key is own.key
    assert project.quotas(0) == {"rpm": 15, "tpm": 1_000_000, "rpd": 9}
    assert project.quotas(1) == {"rpm": 3, "rpd": 9}


def test_item_goes_before_entry(project: Project) -> None:
    """An item of models overrides its entry, since it is more specific."""
    entry = project.entry(models=[{"model_name": "m", "rpm": 3}, "n"], rpm=5, rpd=9)
    settings = project.write(entry).load()
    assert project.quotas(0) == {"rpm": 3, "rpd": 9}
    assert project.quotas(1) == {"rpm": 5, "rpd": 9}
    assert not [warning for warning in settings.warnings if "rpm" in warning]


@pytest.mark.parametrize("field", ["api_key", "apiKey", "key", "secret", "access_token", "GEMINI_API_KEY"])
def test_secret_field(project: Project, field: str) -> None:
    """A field meant for a secret is rejected and its value not shown, whatever it looks like."""
    message = project.write(project.entry("k-1", **{field: "hunter2"})).refusal()
    assert message.startswith(f"keys[0] (k-1): {field}: secrets do not belong in this file")
    assert "set API_KEY_k_1 in the environment or in .env" in message
    assert "hunter2" not in message


LOOKALIKE = "AIzaSyFAKE-fake_FAKE-fake_FAKE-fake_123"
NEW_LOOKALIKE = "AQ.Ab8FAKE-fake_FAKE-fake_FAKE-fake_123"


@pytest.mark.parametrize(
    "entry",
    [
        {"key_id": "S", "model_name": "m"},
        {"key_id": "k", "model_name": "S"},
        {"key_id": "k", "model_name": "m", "provider": "S"},
        {"key_id": "k", "model_name": "m", "project": "S"},
        {"key_id": "k", "model_name": "m", "rpm": "S"},
        {"key_id": "k", "model_name": "m", "tags": {"workload": "S"}},
        {"key_id": "k", "model_name": "m", "tags": {"priority": ["S"]}},
        {"key_id": "k", "model_name": "m", "tags": "S"},
        {"key_id": "k", "model_name": "m", "note": {"deep": [{"er": "S"}]}},
        {"key_id": "k", "model_name": "m", "S": 1},
        {"key_id": "k", "models": ["S"]},
        {"key_id": "k", "models": [{"model_name": "m", "x": "S"}]},
        {"key_id": "k", "models": "S"},
        "S",
    ],
)
def test_secret_anywhere(project: Project, entry: dict[str, Any] | str) -> None:
    """Anything that looks like an API key is rejected wherever it is, and not shown."""
    for secret in (LOOKALIKE, NEW_LOOKALIKE, f"  {LOOKALIKE}", f"Bearer {NEW_LOOKALIKE}"):
        text = json.dumps({"keys": [entry]}).replace('"S"', json.dumps(secret))
        project.path.write_text(text)
        message = project.refusal(secrets_required=False)
        assert "secrets do not belong in this file: remove it and set API_KEY_" in message
        assert "FAKE" not in message
        for finding in check_settings(project.path, env=project.env):
            assert "FAKE" not in str(finding)
            assert "FAKE" not in repr(finding)


@pytest.mark.parametrize("top", [{"models": {"S": {}}}, {"workloads": ["S"]}, {"S": {}}, {"models": "S"}])
def test_secret_beside_keys(project: Project, top: dict[str, Any]) -> None:
    """A secret at the top level of the file is rejected, too."""
    project.write(**json.loads(json.dumps(top).replace("S", LOOKALIKE)))
    message = project.refusal()
    assert "secrets do not belong in this file" in message
    assert "FAKE" not in message


def test_secret_of_the_environment(project: Project) -> None:
    """A secret of the environment is rejected in the file even if it does not look like an API key."""
    entry = project.entry()
    entry["project"] = project.env["API_KEY_k1"]
    message = project.write(entry).refusal()
    assert message.startswith("keys[0] (k1): project: secrets do not belong in this file")


def test_secret_in_broken_json(project: Project) -> None:
    """The message about a syntax error does not quote the text around it."""
    project.path.write_text(f'{{"keys": [{{"api_key": "{LOOKALIKE}}}]}}')
    assert "FAKE" not in project.refusal()


def test_odd_names_are_spelt_out(project: Project) -> None:
    """A message is one printable line, whatever the names of fields."""
    odd: dict[str, Any] = {"\x1b[31m\n\ud800": 1}
    message = project.write(project.entry(**odd)).refusal()
    assert message.isprintable()
    assert r"\x1b[31m\n\ud800: unknown field" in message


def test_secret_inside_a_value(project: Project) -> None:
    """A secret of the environment is masked in messages even as part of a longer value."""
    entry = project.entry()
    entry["tags"] = {"workload": f"x{project.env['API_KEY_k1']}"}
    message = project.write(entry).refusal()
    assert message.startswith("keys[0] (k1): tags.workload: 'x***' is not known")

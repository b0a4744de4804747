from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from click.testing import Result

from llm_router.testing import GeminiEmulator

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer

SUMMARY = "3 keys in 3 projects" + "".join(
    f"; {workload} unlimited requests a minute, unlimited a day" for workload in ("light", "medium", "heavy")
)
UNLIMITED = "; unlimited is what is null, or left out beside other limits, until a refusal names it"
SUMMARY += UNLIMITED


def test_a_good_configuration_is_0(run: Callable[..., Result], emulator: GeminiEmulator) -> None:
    """A check without problems ends with 0 and with what is allowed, and sends nothing."""
    result = run("check")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["keys.json: no problems found", SUMMARY]
    assert emulator.requests == 0


def test_every_error_is_listed(
    run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All problems are listed at once, and the exit code is 2."""
    monkeypatch.delenv("API_KEY_key_light")
    keys = json.loads((home / "keys.json").read_text())
    keys["keys"][1]["limits"]["rpm"] = -1
    (home / "other.json").write_text(json.dumps(keys))
    result = run("check", "other.json")
    assert result.exit_code == 2
    *findings, summary = result.stdout.splitlines()
    assert all(line.startswith("error: ") for line in findings)
    assert any("API_KEY_key_light" in line for line in findings)
    assert any("rpm" in line for line in findings)
    assert summary == f"other.json: {len(findings)} errors, 0 warnings"
    assert run("check", "--keys", "other.json").stdout == result.stdout
    monkeypatch.setenv("LLM_ROUTER_KEYS", "other.json")
    assert run("check").stdout == result.stdout
    assert run("check", "keys.json").stdout.splitlines()[-1].startswith("keys.json: ")


def test_warnings_alone_are_0(run: Callable[..., Result], home: Path) -> None:
    """Warnings do not make the check fail."""
    keys = json.loads((home / "keys.json").read_text())
    keys["models"] = {"misspelt": {"rpm": 1}}
    (home / "keys.json").write_text(json.dumps(keys))
    result = run("check", "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert result.exit_code == 0
    assert finding["level"] == "warning"
    assert finding.keys() == {"level", "where", "message"}


def test_a_missing_file_is_2(run: Callable[..., Result]) -> None:
    """A missing file is a problem."""
    result = run("check", "nowhere.json")
    assert result.exit_code == 2
    assert "nowhere.json" in result.stdout


@pytest.mark.slow
def test_a_server_that_evicts_is_a_warning(
    run: Callable[..., Result],
    redis_server: RedisServer,
    servers_module: ModuleType,
    home: Path,
    emulator: GeminiEmulator,
) -> None:
    """The store of the environment, or of .env, is asked for its advice; one that is away has none."""
    password = "a-password-of-the-store"
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("requirepass", password)
    url = redis_server.url.replace("://", f"://:{password}@")
    (home / ".env").write_text(f"LLM_ROUTER_STORE={url}\n")
    result = run("check", "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["level"], finding["where"]) == (0, "warning", "store")
    assert "maxmemory-policy volatile-lru" in finding["message"]
    result = run("check")
    warning, summary, _ = result.stdout.splitlines()
    assert warning.startswith("warning: store: the Redis server at 127.0.0.1")
    assert "noeviction" in warning
    assert password not in result.output
    assert summary == "keys.json: 0 errors, 1 warning"
    with servers_module.running(next(iter(servers_module.find_servers().values()))) as other:
        (home / ".env").write_text(f"LLM_ROUTER_STORE={other.url}\n")
        assert run("check").stdout.startswith("keys.json: no problems found\n")
    assert run("check").stdout.startswith("keys.json: no problems found\n")
    assert emulator.requests == 0


def test_what_may_not_be_meant_is_a_warning(run: Callable[..., Result], home: Path) -> None:
    """Names, limits, projects and variables that work, and are probably mistakes; then what is allowed."""
    limits = {"rpm": 15, "rpd": 500}
    names = {"models": ["gemini-3.8-falsh", "models/gemini-3.5-flash-lite"], "limits": limits}
    light = {"models": ["gemini-3.5-flash-lite"], "tags": {"workload": "light"}}
    heavy = {"models": ["gemini-pro-latest", "my-own"], "tags": {"workload": "heavy"}}
    write = (home / "keys.json").write_text
    write(
        json.dumps(
            {
                "keys": [
                    {"key_id": "k-1", **names},
                    {"key_id": "k-2", **light, "limits": {"rpm": 1500, "rpd": None}},
                    {"key_id": "k-3", **heavy, "project": "p"},
                    {"key_id": "k-4", **light, "project": "q", "limits": {"rpm": 0, "rpd": 7}},
                    {"key_id": "k-5", **light, "project": "r", "active": False},
                ]
            }
        )
    )
    secrets = [f"API_KEY_k_{number}=Qx7{number}kZp93LmVt20WsRb81\n" for number in range(1, 6)]
    (home / ".env").write_text("".join(secrets) + "API_KEY_k-3=Qx7-a\nAPI_KEY_old=Qx7-b\n")
    result = run("check")
    assert result.exit_code == 0
    assert "Qx7" not in result.output
    *warnings, last, summary = result.stdout.splitlines()
    expected = """
        keys[0] (k-1): models[1].model_name: models/ before a name means nothing: write 'gemini-3.5-flash
        keys[0] (k-1): models[0]: model 'gemini-3.8-falsh' is not a known one: did you mean 'gemini-3.8-f
        keys[3] (k-4): models[0]: rpm: is 0, so nothing is ever sent to 'gemini-3.5-flash-lite' with this key
        keys: 2 keys name no project (k-1, k-2), so each counts as a project of its own; if they share one, 2
        API_KEY_k-3 in .env: belongs to no entry of the keys file: call it API_KEY_k_3, or remove it
        API_KEY_old in .env: belongs to no entry of the keys file: add an entry for the key, or remove it"""
    for line, words in zip(warnings, expected.strip().splitlines(), strict=True):
        assert line.removeprefix("warning: ").removeprefix("keys.json: ").startswith(words.strip())
    assert last == "keys.json: 0 errors, 6 warnings"
    assert summary == (
        "4 keys in 4 projects, 1 key not in use; light 1,500 requests a minute, unlimited a day; medium 30 "
        "requests a minute, 1,000 a day; heavy to be learnt; limits to be learnt for gemini-pro-latest, "
        "my-own" + UNLIMITED
    )
    workloads = json.loads(run("check", "--json").stdout)["summary"]["workloads"]
    assert workloads["light"]["limits"] == {"rpm": 1500, "rpd": 0}
    assert workloads["heavy"]["limits_unknown_for"] == ["gemini-pro-latest", "my-own"]


def test_what_is_all_to_be_learnt_is_summed_up_too(run: Callable[..., Result], home: Path) -> None:
    """A workload of which no limit is stated has no sum, but it is there."""
    stated = {"model_name": "gemini-3.8-flash", "limits": {"rpm": 5, "rpd": 20}}
    learnt = {"model_name": "my-own", "tags": {"workload": "heavy"}, "limits": "learn"}
    (home / "keys.json").write_text(json.dumps({"keys": [{"key_id": "k-1", "models": [stated, learnt]}]}))
    (home / ".env").write_text("API_KEY_k_1=Qx71kZp93LmVt20WsRb81\n")
    assert run("check").stdout.splitlines()[-1] == (
        "1 key in 1 project; medium 5 requests a minute, 20 a day; heavy to be learnt; "
        "limits to be learnt for my-own"
    )


def test_what_serves_no_workload_is_summed_up_by_model(run: Callable[..., Result], home: Path) -> None:
    """A prompt of a workload never goes to a model of embeddings or images, so it adds nothing to one."""
    limits = {"rpm": 100, "rpd": 1000}
    models = ["gemini-3.8-flash", "gemini-embedding-001", "gemini-3.1-flash-image"]
    keys = [
        {"key_id": f"k-{each}", "project": f"p{each}", "models": models, "limits": limits} for each in "12"
    ]
    (home / "keys.json").write_text(json.dumps({"keys": keys}))
    (home / ".env").write_text("API_KEY_k_1=Qx71kZp93LmVt20WsRb81\nAPI_KEY_k_2=Qx72kZp93LmVt20WsRb81\n")
    assert run("check").stdout.splitlines()[-1] == (
        "2 keys in 2 projects; medium 200 requests a minute, 2,000 a day; gemini-embedding-001 200 requests "
        "a minute, 2,000 a day; gemini-3.1-flash-image 200 requests a minute, 2,000 a day"
    )
    summary = json.loads(run("check", "--json").stdout)["summary"]
    assert summary["workloads"].keys() == {"medium"}
    assert summary["other_models"]["gemini-embedding-001"]["limits"] == {"rpm": 200, "rpd": 2000}

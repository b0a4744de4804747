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


def test_a_good_configuration_is_0(run: Callable[..., Result], emulator: GeminiEmulator) -> None:
    """A check without problems ends with 0 and sends nothing."""
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, "keys.json: no problems found\n")
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


def test_warnings_alone_are_0(run: Callable[..., Result], home: Path) -> None:
    """Warnings do not make the check fail."""
    keys = json.loads((home / "keys.json").read_text())
    keys["models"] = {"misspelt": {"rpm": 1}}
    (home / "keys.json").write_text(json.dumps(keys))
    result = run("check", "--json")
    (finding,) = json.loads(result.stdout)
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
    (finding,) = json.loads(result.stdout)
    assert (result.exit_code, finding["level"], finding["where"]) == (0, "warning", "store")
    assert "maxmemory-policy volatile-lru" in finding["message"]
    result = run("check")
    warning, summary = result.stdout.splitlines()
    assert warning.startswith("warning: store: the Redis server at 127.0.0.1")
    assert "noeviction" in warning
    assert password not in result.output
    assert summary == "keys.json: 0 errors, 1 warnings"
    with servers_module.running(next(iter(servers_module.find_servers().values()))) as other:
        (home / ".env").write_text(f"LLM_ROUTER_STORE={other.url}\n")
        assert run("check").stdout == "keys.json: no problems found\n"
    assert run("check").stdout == "keys.json: no problems found\n"
    assert emulator.requests == 0

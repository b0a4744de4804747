from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llm_router import Router
from llm_router.config import load_settings
from llm_router.domain.status import DEPRECATED
from llm_router.emulator import Fault
from llm_router.errors import StoreUnavailableError
from llm_router.stores.memory import MemoryStore
from llm_router.testing import GeminiEmulator


def test_a_line_for_every_key(run: Callable[..., Result]) -> None:
    """Without a terminal, statuses are aligned columns under a head, followed by the health."""
    result = run("status")
    assert result.exit_code == 0
    head, *rows, health = result.stdout.splitlines()
    assert head.split()[:4] == ["key", "model", "project", "workload"]
    assert [row.split()[0] for row in rows] == ["key-light", "key-medium", "key-heavy"]
    assert rows[0][head.index("state") :].startswith("ready")
    assert health.startswith("healthy: 3 of 3 keys active")


def test_json_has_health_and_keys(run: Callable[..., Result]) -> None:
    """The JSON has the health and the status of every key."""
    result = run("status", "--json")
    found = json.loads(result.stdout)
    assert found["health"]["healthy"] is True
    assert [key["key_id"] for key in found["keys"]] == ["key-light", "key-medium", "key-heavy"]
    assert not DEPRECATED.intersection(found["keys"][0])
    assert found["keys"][0]["limits"] == {"rpm": None, "tpm": None, "rpd": None, "tpd": None}


def test_an_inactive_key_is_shown(run: Callable[..., Result], home: Path) -> None:
    """A key that is switched off is listed as inactive."""
    keys = json.loads((home / "keys.json").read_text())
    keys["keys"][2]["active"] = False
    (home / "keys.json").write_text(json.dumps(keys))
    result = run("status")
    assert "inactive" in result.stdout
    assert "2 of 3 keys active" in result.stdout


@pytest.mark.slow
def test_statuses_send_nothing(run: Callable[..., Result], emulator: GeminiEmulator) -> None:
    """Printing statuses sends no request."""
    run("status")
    assert emulator.requests == 0


@pytest.mark.slow
def test_a_terminal_shows_a_table(watch: Callable[..., tuple[Any, str]]) -> None:
    """On a terminal, the table is drawn."""
    code, text = watch("status")
    assert code == 0
    assert "key-heavy" in text
    assert "─" in text


def test_a_narrow_terminal_shows_lines(
    watch: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 60 columns no line is longer, and each key has its state and its workload."""
    monkeypatch.setenv("COLUMNS", "60")
    code, text = watch("status")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 60
    assert "key-heavy  model-h  ready" in text
    assert "heavy, priority 1" in text


def test_a_store_that_does_not_answer_is_1(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store does not answer, the health says so, and the exit code is 1."""

    async def snapshot(*args: Any) -> None:
        raise StoreUnavailableError("the store is away")

    monkeypatch.setattr(MemoryStore, "snapshot", snapshot)
    result = run("status", "--store", "memory://")
    assert result.exit_code == 1
    assert result.stdout.startswith("not healthy: ")
    assert "MemoryStore does not answer" in result.stdout
    assert "the store is away" in result.stderr


@pytest.mark.slow
def test_counts_outlive_a_command(run: Callable[..., Result], home: Path) -> None:
    """The statuses of a command include the sends of earlier ones, since they share a file of the user."""
    keys = json.loads((home / "keys.json").read_text())
    keys["keys"][0]["limits"] = {"rpm": None, "tpm": None, "rpd": 50}
    (home / "keys.json").write_text(json.dumps(keys))
    for _ in range(2):
        assert run("send", "x", "--workload", "light").exit_code == 0
    found = json.loads(run("status", "--json").stdout)
    day = found["keys"][0]["limits"]["rpd"]
    assert (day["used"], day["limit"], day["remaining"]) == (2, 50, 48)
    assert not DEPRECATED.intersection(day)
    assert (found["keys"][0]["today"]["requests"], len(found["keys"][0]["days"])) == (2, 1)
    shown = run("status", "--days", "35").stdout
    assert f"{found['keys'][0]['today']['day']}  key-light  model-l  2 " in shown
    assert "key-heavy  model-h" not in shown
    assert run("status", "--days", "36").exit_code == 2
    assert found["health"]["store"] == "SQLiteStore"
    assert (home / "state" / "llm_router" / "state.sqlite3").exists()


def test_what_failed_elsewhere_is_shown(run: Callable[..., Result], emulator: GeminiEmulator) -> None:
    """A command that has sent nothing shows the failures that another process met."""
    emulator.inject(Fault.status(400), times=1, model="model-l")
    assert run("send", "x", "--workload", "light", "--fallback", "none").exit_code == 1
    assert "key-light failed" not in run("status").stdout  # a wrong request is no fault of the key
    emulator.inject(Fault.status(404), times=1, model="model-l")
    assert run("send", "x", "--workload", "light", "--fallback", "none").exit_code == 1
    assert " ago, model-l: 404 the model does not exist" in run("status").stdout
    failures = {row["key_id"]: row["failures"] for row in json.loads(run("status", "--json").stdout)["keys"]}
    assert [failure["code"] for failure in failures["key-light"]] == [404]
    assert failures["key-heavy"] == []


async def _cached(url: str, store: str) -> None:
    settings = load_settings(Path("keys.json"))
    async with Router.from_settings(settings, base_url=url, store=store, cache=store) as router:
        for _ in range(3):
            assert (await router.send("again", workload="light", max_output_tokens=5)).success
            await asyncio.gather(*router._cache._keeping)  # type: ignore[union-attr]


def test_what_a_cache_saved_is_shown(
    run: Callable[..., Result], home: Path, emulator: GeminiEmulator
) -> None:
    """That of another program that keeps it beside the quotas, in words, in JSON, and in `top`."""
    store = f"sqlite:///{home}/state.sqlite3"
    assert json.loads(run("status", "--store", store, "--json").stdout)["health"]["cache"] is None
    asyncio.run(_cached(emulator.url, store))
    assert emulator.requests == 1
    saved = json.loads(run("status", "--store", store, "--json").stdout)["health"]["cache"]
    assert (saved["requests"], saved["tokens"] > 0) == (2, True)
    words = f"the cache saved 2 requests, {saved['tokens']} tokens"
    assert words in run("status", "--store", store).stdout.splitlines()
    assert words in run("top", "--store", store).stdout.splitlines()

"""Routers made from keys.json, .env and the environment."""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from pathlib import Path

import pytest

import llm_router.default_router
from llm_router import ConfigError, Router, RouterClosedError, get_key_manager, get_request_router
from llm_router.testing import FakeProvider


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    entry = {"key_id": "k-1", "provider": "gemini", "model_name": "gemini-2.0-flash-exp"}
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [entry | {"tags": {"workload": "light", "priority": 1}}]}))
    return path


SECRET = "AIza-that-must-never-be-shown"
ENV = {"API_KEY_k_1": SECRET}


async def test_a_router_from_files(keys: Path) -> None:
    """A router has the built-in limits of a known model and the settings of the environment."""
    env = ENV | {"LLM_MAX_WAIT_S": "0", "LLM_ROUTER_STORE": "memory://"}
    async with Router.from_config(keys, env=env, provider=FakeProvider()) as router:
        assert (await router.send("x", workload="light")).success
        status = (await router.get_all_key_statuses())[0]
    assert (status["rpm_usage"], status["rpd_usage"]) == ("1/15", "1/1500")


async def test_options_win_over_the_environment(keys: Path) -> None:
    """Options passed by the program override the environment."""
    env = ENV | {"LLM_MAX_RETRIES": "7", "LLM_ROUTER_STORE": "nonsense://"}
    async with Router.from_config(
        keys, env=env, store="memory://", max_retries=1, provider=FakeProvider()
    ) as router:
        assert router._sender.policy.max_retries == 1


def test_errors_name_the_file_and_show_no_secret(keys: Path) -> None:
    """The error about a wrong setting names it, and its traceback with locals shows no key."""
    with pytest.raises(ConfigError, match="LLM_MAX_RETRIES") as caught:
        Router.from_config(keys, env=ENV | {"LLM_MAX_RETRIES": "many"})
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    router_frames = [line for line in frames.format() if "llm_router" in line]
    assert router_frames
    assert SECRET not in "".join(router_frames)


def test_an_unknown_store_is_reported_without_its_password(keys: Path) -> None:
    """Only the scheme of a rejected store URL is shown, since the rest may contain a password."""
    with pytest.raises(ConfigError, match="nonsense") as caught:
        Router.from_config(keys, env=ENV | {"LLM_ROUTER_STORE": "nonsense://user:hunter2@host"})
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def shared(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("API_KEY_k_1", SECRET)
    monkeypatch.setenv("LLM_ROUTER_STORE", "memory://")
    monkeypatch.setattr(llm_router.default_router, "_default", None)
    return keys


async def test_the_process_shares_one_router(shared: Path) -> None:
    """All callers get the same router and key manager until the router is closed."""
    router = get_request_router()
    assert get_request_router() is router
    assert get_key_manager() is router.keys
    assert [s["key_id"] for s in await get_key_manager().get_all_key_statuses()] == ["k-1"]
    await router.aclose()
    with pytest.raises(RouterClosedError):
        await router.send("x")
    assert get_request_router() is not router
    await get_request_router().aclose()


async def test_the_routers_of_other_loops_go_by_what_was_reloaded(
    shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The default router reads its files again; those that other loops get later begin with that."""
    monkeypatch.setenv("LLM_ROUTER_STORE", f"sqlite:///{tmp_path}/state.sqlite3")
    router = get_request_router()
    await router.health_check()
    shared.write_text(shared.read_text().replace("k-1", "k-2"))
    monkeypatch.setenv("API_KEY_k_2", SECRET)
    assert (await router.reload()).added == ("k-2/gemini-2.0-flash-exp",)
    shared.unlink()

    async def elsewhere() -> str:
        async with get_request_router() as other:
            return (await other.get_all_key_statuses())[0]["key_id"]

    assert await asyncio.to_thread(asyncio.run, elsewhere()) == "k-2"
    await router.aclose()


def test_a_child_process_gets_a_router_of_its_own(shared: Path) -> None:
    """A forked child gets its own router."""
    router = get_request_router()
    child = os.fork()
    if child == 0:
        os._exit(0 if get_request_router() is not router else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(router.aclose())


def test_another_keys_file_can_be_named(
    shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """LLM_ROUTER_KEYS chooses the keys file."""
    monkeypatch.setenv("LLM_ROUTER_KEYS", str(tmp_path / "elsewhere.json"))
    with pytest.raises(ConfigError, match=r"elsewhere\.json"):
        get_request_router()

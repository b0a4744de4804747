"""``llm-router keys``: lift, disable, enable."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result

from llm_router.emulator import Fault, GeminiEmulator
from llm_router.errors import StoreUnavailableError
from llm_router.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer


@pytest.mark.slow
def test_a_disabled_key_stays_out_until_it_is_enabled(run: Callable[..., Result]) -> None:
    """Each command is a process of its own: the store remembers. It is told what was done."""
    result = run("keys", "disable", "key-light", "--reason", "to be rotated")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "disabled: key-light"
    assert result.stdout.splitlines()[-1].endswith("disabled: to be rotated")
    assert "disabled: to be rotated" in run("status").stdout
    assert "1 disabled" in run("status").stdout
    assert json.loads(run("send", "x", "--workload", "light", "--json").stdout)["key_id"] != "key-light"
    result = run("keys", "enable", "key-light")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "enabled: key-light")
    assert result.stdout.splitlines()[-1].endswith("ready")
    assert json.loads(run("send", "x", "--workload", "light", "--json").stdout)["key_id"] == "key-light"


@pytest.mark.slow
def test_a_lifted_key_is_tried_again(run: Callable[..., Result], emulator: GeminiEmulator) -> None:
    """A model that did not exist is used at once after a lift."""
    emulator.inject(Fault.status(404), times=1, model="model-l")
    assert json.loads(run("send", "x", "--workload", "light", "--json").stdout)["key_id"] != "key-light"
    assert "quarantined" in run("status").stdout.splitlines()[1]
    result = run("keys", "lift", "key-light", "--model", "model-l")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "lifted: key-light/model-l")
    assert json.loads(run("send", "x", "--workload", "light", "--json").stdout)["key_id"] == "key-light"


@pytest.mark.slow
def test_a_record_that_cannot_be_read_is_named_and_lifted(
    run: Callable[..., Result], redis_server: RedisServer
) -> None:
    """The status says which it is and what to do; doing it mends it."""
    with redis_server.client() as client:
        client.set("{llm_router}:scope:model:gemini:key-light:model-l:3", "secret content")
    store = ("--store", redis_server.url)
    result = run("status", *store)
    command = "llm-router keys lift key-light --model model-l"
    assert "key-light/model-l: unreadable record of 'model:gemini:key-light:model-l'" in result.stderr
    assert result.stderr.splitlines()[0].endswith(command)
    assert "secret content" not in result.output
    result = run(*command.split()[1:], *store)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "lifted: key-light/model-l")
    assert "unreadable" not in run("status", *store).output


@pytest.mark.slow
def test_json_has_the_statuses_afterwards(run: Callable[..., Result]) -> None:
    """Of everything that the change concerns."""
    [status] = json.loads(run("keys", "disable", "key-light", "--model", "model-l", "--json").stdout)
    assert (status["key_id"], status["model"], status["disabled"]) == ("key-light", "model-l", True)
    [status] = json.loads(run("keys", "lift", "key-light", "--json").stdout)
    assert status["disabled"] is True
    [status] = json.loads(run("keys", "enable", "key-light", "--model", "model-l", "--json").stdout)
    assert (status["disabled"], status["reason"]) == (False, None)


@pytest.mark.slow
def test_what_stays_disabled_is_said(run: Callable[..., Result]) -> None:
    """A lift does not enable, and enabling a key does not enable a model of it."""
    run("keys", "disable", "key-light", "--model", "model-l")
    for command in ("lift", "enable"):
        result = run("keys", command, "key-light")
        assert result.exit_code == 0
        assert "still disabled" in result.stderr
    assert run("keys", "enable", "key-light", "--model", "model-l").stderr == ""


def test_a_model_of_a_disabled_key_is_not_said_to_be_of_use(run: Callable[..., Result]) -> None:
    """Enabling the one leaves the other disabled; what remains is named, with the command that ends it."""
    run("keys", "disable", "key-light")
    result = run("keys", "enable", "key-light", "--model", "model-l")
    assert result.stdout.splitlines()[0] == "enabled: key-light/model-l, but not all of it can be used"
    assert result.stderr == "the key key-light itself is still disabled: llm-router keys enable key-light\n"
    run("keys", "disable", "key-light", "--model", "model-l")
    result = run("keys", "enable", "key-light")
    assert "key-light/model-l is still disabled by itself" in result.stderr
    assert result.stderr.endswith("llm-router keys enable key-light --model model-l\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["lift", "disable", "enable"])
def test_a_mistake_is_2_and_names_what_there_is(run: Callable[..., Result], command: str) -> None:
    """A key or model that is not configured, and a store that no other process would see."""
    for arguments, words in (
        (("key-lihgt",), "did you mean 'key-light'"),
        (("key-light", "--model", "model-x"), "'model-l'"),
        (("key-light", "--store", "memory://"), "no other process would notice"),
        ((), "KEY"),
    ):
        result = run("keys", command, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr


def test_a_store_that_does_not_answer_is_1(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was changed then, and nothing is said to be."""

    async def cool_down(*args: Any) -> None:
        raise StoreUnavailableError("the store is away")

    monkeypatch.setattr(SQLiteStore, "cool_down", cool_down)
    result = run("keys", "disable", "key-light")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the store is away" in result.stderr


def test_help_lists_the_commands(run: Callable[..., Result]) -> None:
    """Also where no command is given."""
    for arguments in (("keys", "--help"), ("keys",)):
        result = run(*arguments)
        text = result.stdout + result.stderr
        assert all(command in text for command in ("lift", "disable", "enable"))


ASKED = """
import asyncio, sys
from llm_router import Router

async def main():
    async with Router.from_config("keys.json", store=sys.argv[1]) as router:
        for _ in sys.stdin:
            response = await router.send("x", workload="light", fallback="none")
            print("answered" if response.success else type(response.error).__name__, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_lift_in_one_process_a_send_in_the_other(
    run: Callable[..., Result], home: Path, emulator: GeminiEmulator
) -> None:
    """What a command lifts or switches reaches a running program at its very next send."""
    store = f"sqlite:///{home}/state.sqlite3"
    emulator.inject(Fault.status(404), times=1, model="model-l")
    program = subprocess.Popen(
        [sys.executable, "-c", ASKED, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with program:
        question, answer = program.stdin, program.stdout
        assert question is not None
        assert answer is not None

        def send() -> str:
            question.write("\n")
            question.flush()
            return answer.readline().strip()

        assert [send(), send()] == ["QuotaExhaustedError"] * 2  # quarantined, so it is asked once
        for command, outcome in (
            ("lift", "answered"),
            ("disable", "QuotaExhaustedError"),
            ("enable", "answered"),
        ):
            assert run("keys", command, "key-light", "--store", store).exit_code == 0
            assert send() == outcome
        question.close()
        assert program.wait(20) == 0
    assert emulator.requests == 3

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result

from llm_router import Router
from llm_router.cli.attempts import Attempts
from llm_router.emulator import Fault, QuotaSpec
from llm_router.testing import FakeProvider, GeminiEmulator, ManualClock
from tests.conftest import Pools


def test_prints_the_answer_alone(run: Callable[..., Result]) -> None:
    """Without a terminal, a send prints the answer and nothing else."""
    result = run("send", "hello there", "--workload", "heavy")
    assert result.exit_code == 0
    assert result.stdout == "[model-h] echo: hello there\n"
    assert result.stderr == ""


def test_json_is_the_whole_response(run: Callable[..., Result]) -> None:
    """The JSON of a response has its text, its model and key, and its usage."""
    result = run("send", "hello", "--model", "model-m", "--json", "--max-output-tokens", 100)
    answer = json.loads(result.stdout)
    assert answer["text"] == "[model-m] echo: hello"
    assert (answer["success"], answer["error"], answer["retry_after_seconds"]) == (True, None, None)
    assert (answer["model"], answer["key_id"], answer["workload"]) == ("model-m", "key-medium", "medium")
    assert answer["usage"]["input_tokens"] > 0
    assert answer["attempts"] == 1
    assert answer["latency_seconds"] > 0


def test_a_dash_reads_standard_input(run: Callable[..., Result]) -> None:
    """The prompt - is read from standard input."""
    result = run("send", "-", "--workload", "light", input="from a pipe")
    assert result.stdout == "[model-l] echo: from a pipe\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failure_is_1(run: Callable[..., Result], emulator: GeminiEmulator, as_json: bool) -> None:
    """A send that fails is reported on stderr or in the JSON."""
    emulator.inject(Fault.status(400))
    result = run("send", "hello", *(["--json"] if as_json else []))
    assert result.exit_code == 1
    if as_json:
        answer = json.loads(result.stdout)
        assert (answer["success"], answer["text"]) == (False, None)
        assert answer["error"]["type"] == "ProviderError"
        assert answer["error"]["message"]
    else:
        assert result.stdout == ""
        assert result.stderr.startswith("llm-router: ")


def test_no_quota_is_reported(run: Callable[..., Result], home: Path, emulator: GeminiEmulator) -> None:
    """A send for which no deployment has quota fails with the error that says so."""
    for model in ("model-l", "model-m", "model-h"):
        emulator.set_quota(model, QuotaSpec(rpm=0))
    result = run("send", "hello", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "QuotaExhaustedError"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("send",), "PROMPT"),
        (("send", "x", "--workload", "nope"), "unknown workload 'nope'"),
        (("send", "x", "--model", "nope"), "'nope'"),
        (("send", ""), "prompt is empty"),
        (("send", "x", "--max-output-tokens", 0), "max-output-tokens"),
        (("send", "x", "--timeout", 0), "timeout"),
        (("send", "x", "--max-wait", -1), "max-wait"),
        (("send", "x", "--keys", "nowhere.json"), "nowhere.json"),
        (("send", "x", "--store", "nope://"), "nope"),
        (("send", "x", "--frobnicate"), "--frobnicate"),
    ],
)
def test_wrong_usage_is_2(
    run: Callable[..., Result], emulator: GeminiEmulator, args: tuple[Any, ...], words: str
) -> None:
    """Wrong usage or configuration is reported on stderr, and nothing is sent."""
    result = run(*args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert emulator.requests == 0


def test_a_missing_secret_is_2(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message about a missing secret names its variable."""
    monkeypatch.delenv("API_KEY_key_light")
    result = run("send", "x")
    assert result.exit_code == 2
    assert "API_KEY_key_light" in result.stderr


@pytest.mark.slow
def test_the_environment_names_the_keys_file(
    run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLM_ROUTER_KEYS takes the place of --keys."""
    (home / "keys.json").rename(home / "others.json")
    assert run("send", "x").exit_code == 2
    monkeypatch.setenv("LLM_ROUTER_KEYS", "others.json")
    assert run("send", "x").exit_code == 0


def test_a_terminal_also_shows_the_source(watch: Callable[..., tuple[Any, str]]) -> None:
    """On a terminal, the answer is followed by the model, the key, the time and the tokens."""
    code, text = watch("send", "hello \x1b[31mred", "--workload", "light")
    assert code == 0
    assert "[model-l] echo: hello [31mred" in text
    assert "model-l · key-light" in text


@pytest.mark.slow
def test_the_fallback_and_the_attempts(
    run: Callable[..., Result], emulator: GeminiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -v each attempt is told on standard error; with --json it is in the record."""
    monkeypatch.setenv("LLM_BASE_BACKOFF_MS", "1")
    emulator.inject(Fault.status(503), times=1, model="model-l")
    result = run("send", "x", "--workload", "light", "-v")
    assert (result.exit_code, result.stdout.endswith("echo: x\n")) == (0, True)
    first, second = (line for line in result.stderr.splitlines() if not line.startswith("waited "))
    assert first.startswith("1. model-l · key-light · ")
    assert "503" in first
    assert second.endswith(" s · answered")
    emulator.inject(Fault.status(404), times=1, model="model-h")
    result = run("send", "x", "--workload", "heavy", "--fallback", "none", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["attempts"]) == (1, 1)
    [attempt] = found["attempt_log"]
    assert (attempt["key_id"], attempt["model"], attempt["error"]["type"]) == (
        "key-heavy",
        "model-h",
        "ProviderError",
    )
    assert attempt["latency_seconds"] >= 0
    assert (attempt["priority"], attempt["passed_over"], attempt["tokens"] > 0) == (1, [], True)
    assert 0.0 < attempt["headroom"] <= 1.0
    assert "unknown fallback 'far'" in run("send", "x", "--fallback", "far").stderr
    result = run("compare", "x", "-v")
    assert "medium: 1. model-m · key-medium" in result.stderr


def test_with_v_the_answer_is_shown_as_it_comes(
    run: Callable[..., Result], emulator: GeminiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece is shown before the rest exists, attempts in lines of their own; a break ends it."""
    prompt, shown = "one two three four five six", list[str]()

    def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
        while not shown and not emulator.holding:  # the rest does not exist yet
            time.sleep(0.001)
        emulator.release()  # now that there is something to read, it may come
        shown.append(f"{'! ' if err else ''}{text}{chr(10) if nl else '|'}")

    emulator.inject(Fault.stream_hang(), times=1)
    with monkeypatch.context() as patch:
        patch.setattr(typer, "echo", echo)
        assert run("send", prompt, "--workload", "light", "-v", "--timeout", 60).exit_code == 0
    *pieces, end, attempt = shown
    assert len(pieces) > 1
    assert "".join(pieces).replace("|", "") == f"[model-l] echo: {prompt}"
    assert (end, attempt.startswith("! 1. model-l · key-light · ")) == ("\n", True)
    emulator.inject(Fault.stream_drop())
    result = run("send", prompt, "--workload", "light", "-v")
    assert result.exit_code == 1
    assert result.stdout.startswith("[model-l] e")
    assert result.stdout.endswith("\n")
    assert "1. model-l · key-light · " in result.stderr
    assert result.stderr.splitlines()[-1].startswith("llm-router: ")


async def test_attempts_and_waits_are_told(pools: Pools, clock: ManualClock) -> None:
    """A wait that came to an attempt or a failure is told, and what became of each attempt."""
    told: list[str] = []
    provider = FakeProvider([asyncio.Event()], clock=clock)
    observers = [Attempts(told.append, lambda event: event.metadata["line"])]
    async with Router([pools.one(rpm=1)], provider=provider, clock=clock, observers=observers) as router:
        sends = [
            asyncio.create_task(
                router.send("x", max_wait=wait, timeout=None, metadata={"line": f"line {number}"})
            )
            for number, wait in enumerate((1.0, 100.0, 110.0), 1)
        ]
        await clock.advance(70.0)
        for send in sends:
            send.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
    assert told == [
        "line 2: waited 60.3 s for quota",
        "line 2: 1. model-a · key-1 · 0.00 s · answered",
        "line 3: waited 60.3 s for quota",  # and was told then that it cannot be served in time
        "line 1: 1. model-a · key-1 · 70.00 s · given up",
    ]

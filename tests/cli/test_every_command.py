"""What every command does alike: on terminals of two widths, piped, and when Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llm_router.cli.app import app
from llm_router.emulator import Fault
from llm_router.testing import GeminiEmulator
from tests.cli.conftest import Terminal, keys_file

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

COMMANDS: list[tuple[tuple[str, ...], str]] = [
    (("send", "hello", "--workload", "light"), "[model-l] echo: hello"),
    (("batch", "in.jsonl", "-o", "out.jsonl"), "2 answered, 0 failed"),
    (("compare", "hello"), "[model-h] echo: hello"),
    (("explain", "hello"), "would be sent through key-"),
    (("status", "--days", "2"), "healthy: 3 of 3 keys active"),
    (("top", "--store", "memory://"), "llm-router top"),
    (("check", "--online"), "3 keys in 3 projects"),
    (("plan", "--rpm", "10", "--hours", "0.1"), "requests"),
    (("keys", "list"), "key-light"),
    (("keys", "limits", "key-light"), "configured"),
    (("keys", "test"), "alive"),
    (("keys", "disable", "key-light", "--reason", "rotation"), "rotation"),
    (("keys", "enable", "key-light"), "ready"),
    (("keys", "lift", "key-light"), "ready"),
    (("tokens", "add", "bob", "--rpm", "5"), "llmr"),
    (("tokens", "list"), "bob"),
    (("demo", "--prompts", "6"), "6 of 6 prompts answered"),
]
"""Every command that ends by itself, and what it says. Those that serve or ask have terminal tests of their
own; ``top`` ends by itself only when piped."""

SENTENCES = ("check", "demo", "plan")
"""Commands that print sentences, which a terminal may break."""


@pytest.fixture
def pool(home: Path, emulator: GeminiEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys with limits, and the input of a batch."""
    (home / "keys.json").write_text(keys_file(20))
    (home / "in.jsonl").write_text(2 * (json.dumps({"prompt": "x"}) + "\n"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))


@pytest.mark.slow
@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal(
    watch: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Each says what it is to, draws nothing wider than the terminal, and leaves the cursor visible."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for args, words in COMMANDS:
        if args[0] == "top":
            continue
        code, text = watch(*args)
        shown = ESCAPES.sub("", text)
        assert (code, words in shown) == (0, True), (args, shown)
        assert text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l"), args
        if args[0] not in SENTENCES:
            assert max(map(len, re.split(r"[\r\n]+", shown))) <= columns, (args, shown)


@pytest.mark.slow
@pytest.mark.usefixtures("pool")
def test_piped(run: Callable[..., Result]) -> None:
    """Each says the same without a terminal, where nothing is drawn or coloured."""
    for args, words in COMMANDS:
        result = run(*args)  # which looks for escapes and secrets
        assert (result.exit_code, words in result.stdout) == (0, True), (args, result.stdout, result.stderr)
        assert not set("━│─╭") & set(result.stdout), args


@contextlib.contextmanager
def interrupted_once(holding: Callable[[], int]) -> Iterator[None]:
    """Press Ctrl-C, as it were, as soon as a request hangs inside the block."""
    is_over = threading.Event()

    def press() -> None:
        while not is_over.wait(0.002):
            if holding():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=press)
    thread.start()
    yield
    is_over.set()
    thread.join()


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(
    "args",
    [
        ("send", "hello"),
        ("send", "hello", "-v"),
        ("compare", "hello"),
        ("keys", "test"),
        ("check", "--online"),
        ("batch", "in.jsonl", "-o", "out.jsonl", "--json"),
    ],
)
def test_ctrl_c_while_a_request_hangs(
    run: Callable[..., Result], emulator: GeminiEmulator, args: tuple[str, ...]
) -> None:
    """It ends at once with 130 and one line, without a traceback, though the provider does not answer."""
    emulator.inject(Fault.hang(), methods=None)
    give_up = time.monotonic() + 10
    while emulator.holding:  # those of an earlier test
        assert time.monotonic() < give_up
        time.sleep(0.002)
    with interrupted_once(lambda: emulator.holding):
        result = run(*args)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("llm-router: interrupted")
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(
    ("args", "place"),
    [
        (("explain", "hello"), "llm_router.cli.explain.open_router"),
        (("status",), "llm_router.cli.status.open_router"),
        (("plan", "--rpm", "10"), "llm_router.planning.simulation._binding"),
        (("demo", "--prompts", "6"), "llm_router.cli.demo.prompts_for"),
        (("keys", "disable", "key-light"), "llm_router.cli.keys.open_router"),
        (("keys", "limits", "key-light"), "llm_router.cli.keys_limits.open_router"),
        (("keys", "list"), "llm_router.cli.keys_list.examine"),
        (("top", "--store", "memory://"), "llm_router.cli.top.open_router"),
    ],
)
def test_ctrl_c_at_work(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], place: str
) -> None:
    """Pressed in the midst of what it does, Ctrl-C ends every other command in the same way."""
    module, _, name = place.rpartition(".")
    work = getattr(importlib.import_module(module), name)

    def pressed(*given: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return work(*given, **options)

    monkeypatch.setattr(place, pressed)
    result = run(*args)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "llm-router: interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("args", [("serve", "--port", "0"), ("emulator", "--port", "0")])
def test_ctrl_c_ends_a_server_on_its_terminal(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    """It says where it listens and how to end it; Ctrl-C then ends it with 0, without a word of complaint."""
    monkeypatch.setenv("COLUMNS", "80")
    server = terminal(*args)
    server.read_until("Ctrl-C")
    [url, *_] = re.findall(r"http://127\.0\.0\.1:\d+", server.shown)
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{url}/healthz", timeout=20):
        pass  # whatever it says, it has begun to serve
    server.answer("", "\x03")
    assert server.close() == 0
    assert "Traceback" not in server.shown


def test_no_command_is_left_out() -> None:
    """A new command gets its line above, or a terminal test of its own."""
    elsewhere = {"init", "serve", "emulator"}
    named = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    assert named == elsewhere | {args[0] for args, _ in COMMANDS} - {"keys", "tokens"}

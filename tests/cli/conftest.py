"""Fixtures that run the command line in this process, in a child process and on a terminal."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

import llm_router
from llm_router.cli.app import app
from llm_router.emulator import GeminiEmulator, QuotaSpec

KEYS = {"key-light": "light", "key-medium": "medium", "key-heavy": "heavy"}
MODELS = {"light": "model-l", "medium": "model-m", "heavy": "model-h"}
SECRETS = {f"API_KEY_{name.replace('-', '_')}": f"AIzaSy-test-secret-of-{name}" for name in KEYS}


IN_A_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'llm_router', *sys.argv[1:]])"
)


def keys_file(rpm: int | None = None) -> str:
    return json.dumps(
        {
            "keys": [
                {
                    "key_id": name,
                    "provider": "gemini",
                    "model_name": MODELS[workload],
                    "tags": {"workload": workload},
                    "limits": {"rpm": rpm, "tpm": None, "rpd": None},
                }
                for name, workload in KEYS.items()
            ]
        }
    )


@pytest.fixture(scope="session", autouse=True)
def _built_once() -> Iterator[None]:
    """Build the commands once, as a process does, instead of for every run: that takes 30 ms."""
    build = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", build)
        patch.setattr("typer.testing._get_command", build, raising=False)
        yield


@pytest.fixture(scope="session")
def served() -> Iterator[GeminiEmulator]:
    """An emulator in a thread, shared by all tests of the command line."""
    with GeminiEmulator(
        keys={secret: name for name, secret in zip(KEYS, SECRETS.values(), strict=True)}
    ).run_in_thread() as emulator:
        yield emulator


@pytest.fixture
def emulator(served: GeminiEmulator) -> Iterator[GeminiEmulator]:
    """The emulator, without counts, faults or quotas."""
    served.reset()
    yield served
    served.release()
    served.reset()
    for model in MODELS.values():
        served.set_quota(model, QuotaSpec())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: GeminiEmulator) -> Path:
    """A working directory with a keys file, and the secrets in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("LLM_ROUTER_KEYS", "LLM_ROUTER_STORE", "REDIS_URL", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator.url)
    monkeypatch.setenv("PYTHONPATH", str(Path(llm_router.__file__).parents[1]))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "keys.json").write_text(keys_file())
    return tmp_path


def no_secret(*texts: str) -> None:
    for secret in SECRETS.values():
        assert not any(secret in text for text in texts)


@pytest.fixture
def run(home: Path) -> Callable[..., Result]:
    """Run a command in this process; its output may contain neither a secret nor an escape code."""

    def run(*args: object, input: str | bytes | None = None) -> Result:  # noqa: A002 - as subprocess calls it
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        no_secret(result.stdout, result.stderr)
        assert "\x1b" not in result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command in a child process."""
    with contextlib.ExitStack() as stack:

        def start(*args: object, **options: Any) -> subprocess.Popen[str]:
            child = subprocess.Popen(
                [sys.executable, "-m", "llm_router", *map(str, args)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            return child

        yield start


@pytest.fixture
def watch(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str]]:
    """Run a command in this process on a terminal; return its exit code and its output."""

    def watch(*args: object) -> tuple[Any, str]:
        master, slave = pty.openpty()
        drawn = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):  # which ends the input of a terminal
                while data := os.read(master, 65536):
                    drawn.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        with os.fdopen(slave, "w", encoding="utf-8") as screen, monkeypatch.context() as patch:
            patch.setenv("TERM", "xterm-256color")
            patch.setattr(sys, "stdout", screen)
            with pytest.raises(SystemExit) as ended:
                app([str(arg) for arg in args])
        reader.join()
        os.close(master)
        text = drawn.decode()
        no_secret(text)
        return ended.value.code, text

    return watch


class Terminal:
    """A command in a child process, on a terminal of its own, so that echo and Ctrl-C are real."""

    def __init__(self, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.shown = ""
        self._seen = 0
        self.child = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, *args], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)

    def read_until(self, words: str) -> None:
        """Read on until these words have come, since those that were waited for last."""
        deadline = time.monotonic() + 20
        while (place := self.shown.find(words, self._seen)) < 0:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            try:
                more = os.read(self.master, 65536).decode() if ready else ""
            except OSError:  # which ends the input of a terminal
                more = ""
            assert more, f"{words!r} does not come; shown: {self.shown!r}"
            self.shown += more
        self._seen = place + len(words)

    def answer(self, question: str, text: str) -> None:
        self.read_until(question)
        os.write(self.master, text.encode())

    def close(self) -> int:
        code = self.child.wait(20)
        os.close(self.master)
        return code


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    """Run a command on a terminal of its own, which the test reads and types on."""
    with contextlib.ExitStack() as stack:

        def terminal(*args: str) -> Terminal:
            command = Terminal(*args)
            stack.callback(command.child.kill)
            return command

        yield terminal

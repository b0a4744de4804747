from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llm_router.config.proposals import models_shown

TODAYS = {"gemini-3.5-flash-lite": "light", "gemini-3.8-flash": "medium", "gemini-pro-latest": "heavy"}

pytestmark = pytest.mark.slow


@pytest.fixture
def serve(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Any]:
    """Start the emulator command; return the child and the lines up to the last export."""

    def serve(*args: Any, exports: int = 1) -> Any:
        child = start("emulator", *args)
        assert child.stdout is not None
        return child, [child.stdout.readline().strip() for _ in range(1 + exports)]

    return serve


def test_runs_until_ctrl_c(
    serve: Callable[..., Any], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator prints its URL and how to use it, answers as any model, lists today's, and ends with 0."""
    child, (words, export) = serve("--port", 0)
    url = export.removeprefix("export GOOGLE_GEMINI_BASE_URL=")
    assert url in words
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    assert run("send", "hello", "--workload", "light").stdout == "[model-l] echo: hello\n"
    made = run("init", "made.json", "--yes", input="AIzaSy-made-up\n")
    lines = ["gemini-key-01: alive, 3 models", f"models: {models_shown(TODAYS)}"]
    assert (made.exit_code, made.stdout.splitlines()[:2]) == (0, lines)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (0, "", "")


def test_a_keys_file_gives_keys_and_limits(
    serve: Callable[..., Any], run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a keys file, the emulator makes up missing secrets, lists its models and accepts no other keys."""
    monkeypatch.delenv("API_KEY_key_light")
    child, (_, base, secret) = serve("--keys", "keys.json", "--speed", "60", exports=2)
    name, _, value = secret.removeprefix("export ").partition("=")
    assert name == "API_KEY_key_light"
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", base.partition("=")[2])
    monkeypatch.setenv(name, value)
    assert run("send", "hello", "--model", "model-l").exit_code == 0
    assert "key-light: alive, is served 3 models" in run("check", "--online").stdout
    monkeypatch.setenv(name, "AIza-of-another-key")
    assert run("compare", "hello", "--json").exit_code == 1
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=10)
    assert "AIza" not in out


def test_faults_go_wrong_as_often_as_asked(
    serve: Callable[..., Any], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request has a fault without a share, and fails by it."""
    _, (_, export) = serve("--fault", "503:0.000001", "--fault", "400")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", export.removeprefix("export GOOGLE_GEMINI_BASE_URL="))
    result = run("send", "hello", "--json")
    assert result.exit_code == 1
    assert "INVALID_ARGUMENT" in result.stdout


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("503:nan", "'nan' is no share"),
        ("503:2.0", "'2.0' is no share"),
        ("503:0", "'0' is no share"),
        ("503:", "'' is no share"),
        ("hang:often", "'often' is no share"),
        ("999", "'999' is no fault"),
        ("200", "'200' is no fault"),
        ("sleep:0.1", "'sleep' is no fault"),
        ("", "'' is no fault"),
    ],
)
def test_a_fault_that_is_none_is_2(run: Callable[..., Result], fault: str, words: str) -> None:
    """The message names it, and what can be written."""
    result = run("emulator", "--fault", fault)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert f"--fault {fault!r}" in result.stderr


def test_a_port_that_is_taken_is_2(run: Callable[..., Result]) -> None:
    """A port in use is reported in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("emulator", "--port", port)
    assert result.exit_code == 2
    assert f"port {port}" in result.stderr

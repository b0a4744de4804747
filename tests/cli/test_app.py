from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import llm_router
from llm_router.domain.version import installed_version

COMMANDS = ("demo", "send", "batch", "compare", "status", "check", "emulator", "keys")


def test_help_lists_every_command(run: Callable[..., Result]) -> None:
    """The help lists the commands and the exit codes."""
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in COMMANDS)
    assert "Exit codes" in result.stdout


def test_no_command_is_wrong_usage(run: Callable[..., Result]) -> None:
    """Without a command, the help is printed, and the exit code is that of wrong usage or of help."""
    result = run()
    assert result.exit_code in (0, 2)
    assert "Usage" in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run: Callable[..., Result], command: str) -> None:
    """Every command has a help text."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"{command} " in result.stdout


def test_an_unknown_command_is_wrong_usage(run: Callable[..., Result]) -> None:
    """An unknown command is reported on stderr, with exit code 2."""
    result = run("frobnicate")
    assert result.exit_code == 2
    assert "frobnicate" in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_help_is_light(home: Path) -> None:
    """Printing the help imports neither the SDK nor a web server."""
    heavy = ("google.genai", "aiohttp", "httpx", "redis", "uvicorn", "starlette")
    code = (
        "import sys\n"
        "from llm_router.cli import main\n"
        "sys.argv = ['llm-router', '--help']\n"
        "try: main()\n"
        f"finally: sys.stderr.write(repr([name for name in {heavy!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "batch" in done.stdout
    assert done.stderr == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(home: Path, missing: str) -> None:
    """Without the extra, the command says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from llm_router.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    complaint = f"the command line needs {missing}: pip install 'llm-quota-router[cli]'"
    assert done.stderr == f"llm-router: {complaint}\n"


@pytest.mark.slow
def test_a_child_process_prints_plain_text(start: Callable[..., subprocess.Popen[str]]) -> None:
    """The module can be run, and its piped output has no escape codes."""
    child = start("status")
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    assert "key-light" in out
    assert "\x1b" not in out


def test_the_version_is_printed(run: Callable[..., Result]) -> None:
    """--version prints the version that the library has, and no command is needed."""
    result = run("--version")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"llm-router {llm_router.__version__}\n"


@pytest.mark.parametrize(
    ("installed", "version"),
    [
        ({"llm-quota-router": "1.2", "llm-router": "0.1"}, "1.2"),
        ({"llm-router": "0.1"}, "0.1"),
        ({}, "0+unknown"),
    ],
)
def test_the_version_is_that_of_the_distribution(
    monkeypatch: pytest.MonkeyPatch, installed: Any, version: str
) -> None:
    """The version is read from the distribution, from its former name, or not known in a bare checkout."""

    def find(name: str) -> Any:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", find)
    assert installed_version() == version


@pytest.mark.slow
def test_the_version_is_looked_up_when_asked_for() -> None:
    """Importing the library reads no metadata; a name that the library does not have is still an error."""
    code = (
        "import sys, llm_router\n"
        "before = 'importlib.metadata' in sys.modules\n"
        "print(before, llm_router.__version__, hasattr(llm_router, 'nonsense'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", installed_version(), "False"]

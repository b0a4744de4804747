from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = ("demo", "send", "batch", "compare", "status", "check", "emulator")


def test_help_lists_every_command(run):
    """Help names the commands and the exit codes."""
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in COMMANDS)
    assert "Exit codes" in result.stdout


def test_no_command_is_wrong_usage(run):
    """Without a command there is help, and the exit code of wrong usage or of help."""
    result = run()
    assert result.exit_code in (0, 2)
    assert "Usage" in result.stdout + result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run, command):
    """Every command explains itself."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"{command} " in result.stdout


def test_an_unknown_command_is_wrong_usage(run):
    """An unknown command is told on stderr, with 2."""
    result = run("frobnicate")
    assert result.exit_code == 2
    assert "frobnicate" in result.stderr
    assert result.stdout == ""


def test_help_is_light(home):
    """Neither the SDK nor a web server is imported for help."""
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


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(home, missing):
    """Without the extra the command says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from llm_router.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    complaint = f"the command line needs {missing}: pip install 'llm-quota-router[cli]'"
    assert done.stderr == f"llm-router: {complaint}\n"


def test_a_child_process_prints_plain_text(start):
    """The module can be run, and what it pipes has no escape code."""
    child = start("status")
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    assert "key-light" in out
    assert "\x1b" not in out

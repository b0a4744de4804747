"""Shell completion, which is typer's own: that it is there, under a fixed name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

BASH = shutil.which("bash")


def python_m(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -m llm_router`` with additions to the environment."""
    return subprocess.run(
        [sys.executable, "-m", "llm_router"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """The script for a shell calls the command by its name."""
    monkeypatch.setenv("_LLM_ROUTER_COMPLETE", f"source_{shell}")
    script = run().stdout
    assert "llm-router" in script
    assert f"_LLM_ROUTER_COMPLETE=complete_{shell}" in script


@pytest.mark.slow
def test_the_module_completes_commands(home: Path) -> None:
    """The name that completion goes by is the same for ``python -m llm_router``."""
    done = python_m(
        {"_LLM_ROUTER_COMPLETE": "complete_bash", "COMP_WORDS": "llm-router s", "COMP_CWORD": "1"}
    )
    assert (done.stdout.split(), done.stderr) == (["send", "status", "serve"], "")


def test_options_are_completed(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of a command are completed, too."""
    monkeypatch.setenv("_LLM_ROUTER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "llm-router batch --")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert {"--output", "--workload", "--concurrency", "--keys", "--store"} <= set(run().stdout.split())


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_completes_once_it_is_installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What --install-completion writes makes bash complete a command; --show-completion prints the same."""
    monkeypatch.setenv("HOME", str(home))
    command = home / "llm-router"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llm_router "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(home), prepend=os.pathsep)
    script = (
        "llm-router --install-completion >&2; llm-router --show-completion\n"
        "source ~/.bashrc; COMP_WORDS=(llm-router em); COMP_CWORD=1\n"
        "_llm_router_completion llm-router; echo; echo ${COMPREPLY[@]}\n"
    )
    assert BASH is not None
    done = subprocess.run(
        [BASH, "--noprofile", "--norc"], input=script, capture_output=True, text=True, timeout=60, check=True
    )
    shown, _, completed = done.stdout.strip().rpartition("\n")
    assert completed == "emulator"
    assert shown.strip() == (home / ".bash_completions" / "llm-router.sh").read_text().strip()

"""The examples run offline, exactly as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

SCRIPTS = {
    "quickstart": "heavy → gemini-3.8-flash",
    "blocking": "key-1 has 6 requests left this minute",
    "three_agents": "debugger (gemini-pro-latest",
    "custom_strategy": "paid, paid",
    "custom_store": "refused only-key",
    "streaming": "after 4 messages",
    "drop_in_client": "429: none of 2 deployments has room",
    "tools": "vectors of gemini-embedding-001",
    "observability": "tokens: {'acme': ",
}
"""The examples to run with Python, and what each prints."""

SUITES = {"custom_store", "testing_your_program"}
"""The examples to run with pytest."""


def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_example_runs(name: str, tmp_path: Path) -> None:
    """An example succeeds, prints what it should, and causes no warning."""
    done = run("-W", "error", EXAMPLES / f"{name}.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert SCRIPTS[name] in done.stdout
    assert "secret" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SUITES))
def test_example_passes(name: str) -> None:
    """The tests in an example pass."""
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / f"{name}.py")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_every_example_is_tested() -> None:
    """A new example must be added above."""
    assert SCRIPTS.keys() | SUITES == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_listed(path: Path) -> None:
    """The README of the examples names each of them, and how to run it."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"[{path.name}]({path.name})" in readme
    runner = "python" if path.stem in SCRIPTS else "pytest"
    assert f"`{runner} examples/{path.name}`" in readme

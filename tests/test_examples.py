"""The examples run offline, as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("quickstart", "heavy → gemini-1.5-pro"),
        ("three_agents", "debugger (gemini-exp-1206"),
        ("custom_strategy", "paid, paid"),
        ("custom_store", "refused only-key"),
        ("streaming", "after 4 messages"),
    ],
)
def test_example_runs(name, says, tmp_path):
    """An example ends well, says what it should, and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert "secret" not in done.stdout


def test_every_example_is_tested():
    """A new example must be added above."""
    parameters = test_example_runs.pytestmark[0].args[1]
    assert {f"{name}.py" for name, _ in parameters} == {path.name for path in EXAMPLES.glob("*.py")}


def test_the_custom_store_passes_the_contract():
    """The example's own test class is a way to run the contract, and it passes."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "custom_store.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout

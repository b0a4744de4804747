"""Frameworks on google-genai work over the drop-in client, unmodified: the examples for them, as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_router.emulator import GeminiEmulator

EXAMPLES = Path(__file__).parents[2] / "examples" / "frameworks"

FRAMEWORKS = {
    "with_google_adk": ("google.adk", 'google-adk: [gemini-3.8-flash] echo: [{"result": 5}]', 2),
    "with_instructor": ("instructor", "instructor: Ship(name='text', launched=1)", 1),
    "with_langchain": ("langchain_google_genai", "langchain: Ship(name='text', launched=1)", 2),
    "with_llama_index": ("llama_index", "llama-index: [gemini-3.8-flash] echo: Name a famous ship.", 2),
    "with_pydantic_ai": ("pydantic_ai", "pydantic-ai: Ship(name='text', launched=1)", 1),
}
"""The examples: the package that each needs, what it prints, and how many requests it makes."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FRAMEWORKS))
def test_a_framework(name: str, tmp_path: Path) -> None:
    """Each request of its goes through the pool of a keys file."""
    package, expected, requests = FRAMEWORKS[name]
    if importlib.util.find_spec(package.partition(".")[0]) is None or not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed: several frameworks need google-genai 2, see .ci/run")
    entry = {"model_name": "gemini-3.8-flash", "limits": {"rpm": 10}}
    keys = [{"key_id": f"key-{number}", **entry} for number in (1, 2)]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}), encoding="utf-8")
    with GeminiEmulator(keys={"secret-one": "one", "secret-two": "two"}).run_in_thread() as emulator:
        env = {
            **os.environ,
            "API_KEY_key_1": "secret-one",
            "API_KEY_key_2": "secret-two",
            "GOOGLE_GEMINI_BASE_URL": emulator.url,
        }
        script = [sys.executable, str(EXAMPLES / f"{name}.py")]
        done = subprocess.run(
            script, capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == expected
        assert (emulator.accepted, emulator.refused) == (requests, 0)


def test_every_example_is_tested() -> None:
    """A new one must be added above; each is short, and the README of the examples names it."""
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(FRAMEWORKS)
    for path in EXAMPLES.glob("*.py"):
        assert f"[{path.name}](frameworks/{path.name})" in readme
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 20

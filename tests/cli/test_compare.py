from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llm_router.emulator import Fault
from llm_router.testing import GeminiEmulator

MODELS = {"light": "model-l", "medium": "model-m", "heavy": "model-h"}


def test_every_workload_answers(run: Callable[..., Result]) -> None:
    """The answer of each workload is shown with its model and key."""
    result = run("compare", "hello")
    assert result.exit_code == 0
    for workload, model in MODELS.items():
        assert f"== {workload}: {model} · key-{workload} · " in result.stdout
        assert f"[{model}] echo: hello\n" in result.stdout


def test_json_is_one_object(run: Callable[..., Result]) -> None:
    """The JSON has the answers by workload, in order."""
    result = run("compare", "hello", "--json")
    answers = json.loads(result.stdout)
    assert list(answers) == list(MODELS)
    assert {name: answer["model"] for name, answer in answers.items()} == MODELS
    assert all(answer["usage"]["total_tokens"] > 0 for answer in answers.values())


def test_one_failure_is_1(run: Callable[..., Result], emulator: GeminiEmulator) -> None:
    """If one workload fails, the others are shown, and none of them answers for it."""
    emulator.inject(Fault.status(400), model="model-m")
    result = run("compare", "hello", "--json")
    assert result.exit_code == 1
    answers = json.loads(result.stdout)
    assert [answer["success"] for answer in answers.values()] == [True, False, True]
    assert answers["medium"]["error"]["type"] == "ProviderError"


def test_a_workload_without_keys_is_left_out(run: Callable[..., Result], home: Path) -> None:
    """Workloads that no key serves are left out."""
    keys = json.loads((home / "keys.json").read_text())
    keys["keys"].pop()
    (home / "keys.json").write_text(json.dumps(keys))
    assert list(json.loads(run("compare", "hello", "--json").stdout)) == ["light", "medium"]


@pytest.mark.slow
def test_a_terminal_shows_them_side_by_side(watch: Callable[..., tuple[Any, str]]) -> None:
    """On a terminal, the answers are columns of one table."""
    code, text = watch("compare", "hello")
    assert code == 0
    assert any(
        all(f"[{model}] echo: hello" in line for model in MODELS.values()) for line in text.splitlines()
    )

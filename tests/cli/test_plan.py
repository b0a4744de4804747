"""The command ``llm-router plan``."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llm_router.testing import GeminiEmulator


def _keys(home: Path, rpm: int, rpd: int) -> None:
    keys = json.loads((home / "keys.json").read_text())
    for entry in keys["keys"]:
        entry["limits"] = {"rpm": rpm, "tpm": 100_000, "rpd": rpd}
    (home / "keys.json").write_text(json.dumps(keys))


@pytest.mark.slow
def test_a_plan_in_words(
    run: Callable[..., Result], home: Path, emulator: GeminiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how long requests wait and why, needs no secret, and sends nothing."""
    _keys(home, rpm=10, rpd=150)
    for name in ("API_KEY_key_light", "API_KEY_key_medium", "API_KEY_key_heavy"):
        monkeypatch.delenv(name, raising=False)
    traffic = home / "traffic.jsonl"
    lines = [{"at": number * 2, "workload": "light", "tokens": 100} for number in range(600)]
    traffic.write_text("\n".join(map(json.dumps, lines)))
    result = run("plan", str(traffic), "--target-p95", "30", "--max-wait", "120")
    assert result.exit_code == 1, result.output  # since some are not answered
    first, wait, *others = result.stdout.splitlines()
    assert first == "600 requests in 20 min on 3 projects: 150 have no answer within 120 s of waiting"
    assert wait.startswith("wait: p50 ")
    assert wait.endswith("p99 no answer")
    assert "answered by model-l: 150 (25%)" in others
    assert any(line.startswith("binds: rpd of model-l, full on ") for line in others)
    assert any(line.startswith("the day's quota of model-l ends after 15 min, at 00:15") for line in others)
    assert others[-1] == "for a p95 of 30 s: 3 more projects like that of key-light"
    assert emulator.requests == 0


def test_a_plan_as_json(run: Callable[..., Result], home: Path) -> None:
    """Everything is a number with its unit in its name; enough quota is exit code 0."""
    _keys(home, rpm=100, rpd=10_000)
    options = ("--rpm", "60", "--hours", "0.2", "--workload", "medium=0.7,heavy", "--target-p95", "0")
    result = run("plan", *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["requests"] == found["answered"] > 600
    assert found["wait_seconds"] == {"p50": 0.0, "p95": 0.0, "p99": 0.0, "longest": 0.0}
    assert sum(found["answered_by_model"].values()) == found["requests"]
    assert (found["projects"], found["binds"], found["day_spent"], found["limits_unknown"]) == (3, [], [], [])
    assert found["growth"] == {"target_p95_seconds": 0.0, "more_projects": 0, "like_key": "key-light"}


def test_wrong_usage(run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is named, with exit code 2 and nothing on standard output."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for options, named in (
        ((), "--rpm"),
        (("traffic.jsonl", "--rpm", "5"), "one of the two"),
        (("traffic.jsonl",), "traffic.jsonl"),
        (("--rpm", "5", "--workload", "light=much"), "'light=much'"),
        (("--rpm", "5", "--workload", "nothing"), "'nothing'"),
        (("--rpm", "nan"), "rpm"),
        (("--rpm", "5", "--png", "plan.png"), "llm-quota-router[plot]"),
    ):
        result = run("plan", *options)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert named in result.stderr


def test_limits_to_be_learnt(run: Callable[..., Result], home: Path) -> None:
    """Whoever has not stated limits is told that the plan does not know them."""
    keys = json.loads((home / "keys.json").read_text())
    del keys["keys"][0]["limits"]
    (home / "keys.json").write_text(json.dumps(keys))
    result = run("plan", "--rpm", "1", "--hours", "0.1")
    assert result.exit_code == 0, result.output
    assert "model-l: limits are to be learnt, and nothing refuses here" in result.stderr

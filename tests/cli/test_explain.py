"""The command ``llm-router explain``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llm_router.testing import GeminiEmulator


def limit(home: Path, rpm: int) -> None:
    keys = json.loads((home / "keys.json").read_text())
    for entry in keys["keys"]:
        entry["limits"] = {"rpm": rpm, "tpm": 1000, "rpd": None}
    (home / "keys.json").write_text(json.dumps(keys))


def test_a_line_for_every_candidate(run: Callable[..., Result]) -> None:
    """Candidates come in the order in which they would be asked, and the last line names the first."""
    result = run("explain", "one two three", "--workload", "medium")
    assert result.exit_code == 0
    head, *rows, verdict = result.stdout.splitlines()
    assert head.split() == [
        "tier", "rank", "key", "model", "workload", "priority", "left", "decision", "quotas"
    ]  # fmt: skip
    assert rows[0].split()[:3] == ["1", "1", "key-medium"]
    assert {tuple(row.split()[:2]) for row in rows[1:]} == {("2", "2"), ("2", "3")}
    assert rows[0][head.index("decision") :].split()[0] == "taken"
    assert rows[1][head.index("decision") :].startswith("has room")
    assert rows[0].endswith("no limits")
    assert verdict.startswith("would be sent through key-medium/model-m, reserving ")


@pytest.mark.slow
def test_nothing_is_sent_nor_counted(
    run: Callable[..., Result], home: Path, emulator: GeminiEmulator
) -> None:
    """Explaining sends no request, and takes no quota."""
    limit(home, 1)
    for _ in range(3):
        assert run("explain", "x").exit_code == 0
    assert emulator.requests == 0
    limits = [key["limits"]["rpm"] for key in json.loads(run("status", "--json").stdout)["keys"]]
    assert [(limit["used"], limit["limit"]) for limit in limits] == [(0, 1)] * 3


@pytest.mark.slow
def test_json_is_the_explanation(run: Callable[..., Result], home: Path) -> None:
    """The JSON has everything that the explanation has."""
    limit(home, 4)
    found = json.loads(run("explain", "x", "--model", "model-h", "--fallback", "model", "--json").stdout)
    assert (found["available"], found["retry_after_seconds"], found["left_out"]) == (True, 0.0, 0)
    assert (found["workload"], found["model"], found["fallback"]) == (None, "model-h", "model")
    [[candidate]] = [tier["candidates"] for tier in found["tiers"]]
    assert (candidate["key_id"], candidate["is_taken"], candidate["exclusion"]) == ("key-heavy", True, None)
    rpm = candidate["quotas"][0]
    assert abs(candidate["usable_at"] - time.time()) < 60
    assert (candidate["usable_in_seconds"], rpm["fits_in_seconds"], "resets_in" in rpm["status"]) == (
        0,
        0,
        False,
    )
    assert (rpm["metric"], rpm["fits"], rpm["status"]["limit"], rpm["status"]["source"]) == (
        "rpm",
        True,
        4,
        "configured",
    )


@pytest.mark.slow
def test_no_room_is_1(run: Callable[..., Result], home: Path) -> None:
    """If nothing has room now, each line says why and for how long, and the exit code is 1."""
    limit(home, 1)
    for _ in range(3):
        assert run("send", "x").exit_code == 0
    result = run("explain", "x")
    assert result.exit_code == 1
    _, *rows, verdict = result.stdout.splitlines()
    assert all(row.split()[6] == "0%" for row in rows)
    assert all("rpm has no room, for " in row and "rpm 1/1 (configured)" in row for row in rows)
    assert verdict.startswith("nothing has room now: retry in ")
    found = json.loads(run("explain", "x", "--json").stdout)
    assert found["available"] is False
    assert 0.0 < found["retry_after_seconds"] <= 60.3


@pytest.mark.slow
def test_waiting_that_does_not_help(run: Callable[..., Result], home: Path) -> None:
    """Where everything is out of use for good, waiting is not advised."""
    limit(home, 0)
    run("keys", "disable", "key-light", "--reason", "rotation")
    result = run("explain", "x")
    assert result.exit_code == 1
    assert "disabled: rotation" in result.stdout
    assert "rpm has no room, for good" in result.stdout
    assert result.stdout.splitlines()[-1] == "nothing has room, and waiting does not help"


def test_many_deployments(run: Callable[..., Result], home: Path) -> None:
    """What is left out of a long list is counted."""
    keys = json.loads((home / "keys.json").read_text())
    entry = keys["keys"][0]
    entry["models"] = [{"model_name": f"model-{number}"} for number in range(130)]
    del entry["model_name"]
    (home / "keys.json").write_text(json.dumps(keys))
    result = run("explain", "x")
    assert result.exit_code == 0
    assert "and 4 more deployments" in result.stdout


@pytest.mark.slow
def test_wrong_wishes_are_2(run: Callable[..., Result]) -> None:
    """An unknown workload, model or fallback is wrong usage."""
    for option, value in (("--workload", "tiny"), ("--model", "none"), ("--fallback", "perhaps")):
        result = run("explain", "x", option, value)
        assert result.exit_code == 2
        assert repr(value) in result.stderr


@pytest.mark.slow
def test_a_prompt_from_standard_input(run: Callable[..., Result]) -> None:
    """``-`` reads the prompt from standard input, as with send."""
    result = run("explain", "-", "--json", input="a long prompt " * 50)
    short = json.loads(run("explain", "x", "--json").stdout)
    tokens = json.loads(result.stdout)["tiers"][0]["candidates"][0]["tokens"]
    assert tokens > short["tiers"][0]["candidates"][0]["tokens"]


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_a_terminal_shows_a_table(
    watch: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """A table is drawn where it fits; on a narrower terminal each row has lines, and no word is lost."""
    monkeypatch.setenv("COLUMNS", str(columns))
    code, text = watch("explain", "x")
    assert code == 0
    assert ("─" in text) == (columns == 200)
    shown = text[: text.index("would be sent")]
    assert all(len(line.rstrip("\r")) <= columns for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).split("\n"))
    for words in ("key-heavy", "model-h", "has room", "no limits"):
        assert words in text

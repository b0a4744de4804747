from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llm_router.testing import GeminiEmulator


def test_a_good_configuration_is_0(run: Callable[..., Result], emulator: GeminiEmulator) -> None:
    """A check without problems ends with 0 and sends nothing."""
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, "keys.json: no problems found\n")
    assert emulator.requests == 0


def test_every_error_is_listed(
    run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All problems are listed at once, and the exit code is 2."""
    monkeypatch.delenv("API_KEY_key_light")
    keys = json.loads((home / "keys.json").read_text())
    keys["keys"][1]["limits"]["rpm"] = -1
    (home / "other.json").write_text(json.dumps(keys))
    result = run("check", "other.json")
    assert result.exit_code == 2
    *findings, summary = result.stdout.splitlines()
    assert all(line.startswith("error: ") for line in findings)
    assert any("API_KEY_key_light" in line for line in findings)
    assert any("rpm" in line for line in findings)
    assert summary == f"other.json: {len(findings)} errors, 0 warnings"


def test_warnings_alone_are_0(run: Callable[..., Result], home: Path) -> None:
    """Warnings do not make the check fail."""
    keys = json.loads((home / "keys.json").read_text())
    del keys["keys"][0]["limits"]
    (home / "keys.json").write_text(json.dumps(keys))
    result = run("check", "--json")
    (finding,) = json.loads(result.stdout)
    assert result.exit_code == 0
    assert finding["level"] == "warning"
    assert finding.keys() == {"level", "where", "message"}


def test_a_missing_file_is_2(run: Callable[..., Result]) -> None:
    """A missing file is a problem."""
    result = run("check", "nowhere.json")
    assert result.exit_code == 2
    assert "nowhere.json" in result.stdout

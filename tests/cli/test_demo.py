from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llm_router.testing import GeminiEmulator


@pytest.mark.slow
def test_every_prompt_is_answered_within_the_quotas(start: Callable[..., subprocess.Popen[str]]) -> None:
    """More prompts than the quota of a minute are all answered without a 429."""
    child = start("demo", "--json", "--prompts", 60)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    summary = json.loads(out)
    assert list(summary) == [
        "sent",
        "succeeded",
        "failed",
        "upstream_requests",
        "upstream_429",
        "by_model",
        "elapsed_seconds",
    ]
    assert (summary["sent"], summary["succeeded"], summary["failed"]) == (60, 60, 0)
    assert (summary["upstream_requests"], summary["upstream_429"]) == (60, 0)
    assert sum(summary["by_model"].values()) == 60
    assert len(summary["by_model"]) == 3
    assert summary["elapsed_seconds"] > 0


def test_piped_output_is_a_summary(run: Callable[..., Result]) -> None:
    """Without a terminal, the summary is printed as plain text."""
    result = run("demo", "--prompts", 6)
    assert result.exit_code == 0
    assert result.stdout.startswith("6 of 6 prompts answered in ")
    assert "refused 0 for quota (429)" in result.stdout


@pytest.mark.slow
def test_a_terminal_sees_keys_and_progress(
    watch: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal of 80 columns, keys, quotas and progress are drawn, and the summary comes at the end."""
    monkeypatch.setenv("COLUMNS", "80")
    code, text = watch("demo", "--prompts", 6)
    assert code == 0
    assert re.search(r"gemini-key-09 +gemini-pro-latest +heavy ", re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert "…" not in text
    assert "6 of 6 done, 0 in progress" in text
    assert "6 of 6 prompts answered in " in text


def test_real_secrets_and_servers_stay_out(
    run: Callable[..., Result], emulator: GeminiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secrets, proxies and servers of the environment are not used, even with one's own keys file."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("LLM_MULTI_KEY_ROUTER_ENABLED", "false")
    result = run("demo", "--prompts", 6, "--json", "--keys", "keys.json")
    assert json.loads(result.stdout)["succeeded"] == 6
    assert len(json.loads(result.stdout)["by_model"]) == 3
    assert emulator.requests == 0


def test_no_quota_at_all_is_2(run: Callable[..., Result], home: Path) -> None:
    """Keys without any quota are reported before anything is sent."""
    keys = json.loads((home / "keys.json").read_text())
    for key in keys["keys"]:
        key["limits"] = {"rpm": 0}
    (home / "keys.json").write_text(json.dumps(keys))
    result = run("demo", "--keys", "keys.json")
    assert result.exit_code == 2
    assert "no deployment has quota" in result.stderr

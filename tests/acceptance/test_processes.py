"""Several processes on the same keys share one quota, whatever store they use."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_router.emulator import GeminiEmulator, QuotaSpec

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")
PROCESSES = 4
KEYS = 20


@pytest.fixture(params=["redis", "sqlite"])
def store_url(request, tmp_path) -> str:
    """A store that processes can share: a real server, then a file."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.sqlite3'}"
    return request.getfixturevalue("redis_url")


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", WORKER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _send_from_four_processes(
    store_url: str, emulator: GeminiEmulator, *limits: str, kill: int = 0
) -> list[dict]:
    """Start four processes, let them send 300 requests each at once, and return what they report."""
    workers = [_start("--store", store_url, "--url", emulator.url, *limits) for _ in range(PROCESSES)]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n", worker.communicate(timeout=30)[1]
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        if kill:
            deadline = time.monotonic() + 30
            while emulator.requests < kill and time.monotonic() < deadline:
                time.sleep(0.001)
            workers[0].kill()
        reports = []
        for number, worker in enumerate(workers):
            out, err = worker.communicate(timeout=120)
            if kill and number == 0:
                continue
            assert worker.returncode == 0, err
            reports.append(json.loads(out))
        return reports
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_four_processes_accept_exactly_the_quota(store_url):
    """4 × 300 requests at once on 20 keys × 15 a minute: exactly 300 are accepted, without a 429."""
    emulator = GeminiEmulator(default_quota=QuotaSpec(rpm=15))
    with emulator.run_in_thread():
        reports = _send_from_four_processes(store_url, emulator, "--rpm", "15")
    assert (emulator.accepted, emulator.refused, emulator.requests) == (300, 0, 300)
    assert sum(report["succeeded"] for report in reports) == 300
    assert sum(report["refused"] for report in reports) == 900
    assert all(report["store_ok"] and not report["errors"] for report in reports)


def test_four_processes_keep_a_tight_token_quota(store_url):
    """Prompts of mixed size under TPM alone: no 429 upstream, and most of the quota is used."""
    limit = 4_000
    emulator = GeminiEmulator(default_quota=QuotaSpec(tpm=limit))
    with emulator.run_in_thread():
        reports = _send_from_four_processes(store_url, emulator, "--tpm", str(limit))
    assert emulator.refused == 0
    tokens = [counts.peak_tokens for counts in emulator.by_bucket.values()]
    assert len(tokens) == KEYS
    assert max(tokens) <= limit
    assert sum(tokens) > 0.5 * KEYS * limit
    assert all(report["store_ok"] for report in reports)


def test_a_killed_process_breaks_no_quota(store_url):
    """If one of the processes dies, fewer requests may be accepted, but never more."""
    emulator = GeminiEmulator(default_quota=QuotaSpec(rpm=15))
    with emulator.run_in_thread():
        reports = _send_from_four_processes(store_url, emulator, "--rpm", "15", kill=40)
    assert emulator.refused == 0
    assert 40 <= emulator.accepted <= 300
    assert max(counts.peak_requests for counts in emulator.by_bucket.values()) <= 15
    assert len(reports) == PROCESSES - 1
    assert all(report["store_ok"] and not report["errors"] for report in reports)

"""Several processes share one file, and the death of one does no harm."""

from __future__ import annotations

import pytest

from llm_router.domain.quota import Demand
from llm_router.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.slow


def run_together(children) -> list[list[int]]:
    """Let all of them start at the same time; return the numbers that each reports."""
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    reports = [child.communicate()[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    return [list(map(int, report)) for report in reports]


def test_four_processes_are_granted_exactly_the_limit(path, spawn):
    """20 keys × 15 requests a minute grant 300 of 1,200 requests, whichever process makes them."""
    children = [spawn("hammer", path, 20, 15, 10**6, 300) for _ in range(4)]
    assert sum(granted for granted, _ in run_together(children)) == 300


def test_four_processes_keep_a_token_limit(path, spawn):
    """With prompts of mixed size, grants fill the tight token quotas and never exceed them."""
    children = [spawn("hammer", path, 4, 10**6, 500, 100) for _ in range(4)]
    tokens = sum(tokens for _, tokens in run_together(children))
    assert 4 * (500 - 60) < tokens <= 4 * 500


async def test_a_killed_process_leaves_an_intact_file(path, spawn, query, pools):
    """After SIGKILL under load, every grant is counted, and there are never more than the limit."""
    child = spawn("endless", path, 400)
    reported = sum(int(child.stdout.readline()) for _ in range(100))
    child.kill()
    reported += sum(map(int, child.communicate()[0].split()))
    only = pools.one("model", key_id="key-0", rpm=400, tpm=10**9)
    store = SQLiteStore(path)
    [snapshot] = await store.snapshot([only])
    used = snapshot.quotas[0].used
    assert 100 <= reported <= used <= 400
    granted = 0
    while (await store.reserve(f"after-{granted}", [only], Demand(1, 1), 60.0)).deployment is not None:
        granted += 1
    await store.aclose()
    assert used + granted == 400
    assert query("PRAGMA integrity_check") == [("ok",)]


def test_a_fork_under_load_loses_nothing(path, spawn):
    """Parent and child both continue to use the same store object, and every request of both is counted."""
    answer, _ = spawn("fork", path).communicate()
    assert answer == f"{3 * (50 + 10 + 7)}\n"


def test_a_store_that_is_not_closed_does_not_delay_the_exit(path, spawn, open_reservations):
    """A program that forgets ``aclose`` ends anyway, without a warning, and nothing is lost."""
    child = spawn("leave-open", path)
    assert child.communicate()[0] == "done\n"
    assert child.returncode == 0
    assert len(open_reservations()) == 3
    assert not path.with_name("state.db-wal").exists()

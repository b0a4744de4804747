"""Several processes share one file, and no death of one harms it."""

from __future__ import annotations

from llm_router.domain.quota import Demand
from llm_router.stores.sqlite import SQLiteStore


def run_together(children) -> list[list[int]]:
    """Let all of them begin at once; return the numbers that each reports."""
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    reports = [child.communicate()[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    return [list(map(int, report)) for report in reports]


def test_four_processes_are_granted_exactly_the_limit(path, spawn):
    """20 keys × 15 requests a minute give 300 of 1,200 requests, whoever asks."""
    children = [spawn("hammer", path, 20, 15, 10**6, 300) for _ in range(4)]
    assert sum(granted for granted, _ in run_together(children)) == 300


def test_four_processes_keep_a_token_limit(path, spawn):
    """With prompts of mixed size, what is granted fills the tight token quotas and never exceeds them."""
    children = [spawn("hammer", path, 4, 10**6, 500, 100) for _ in range(4)]
    tokens = sum(tokens for _, tokens in run_together(children))
    assert 4 * (500 - 60) < tokens <= 4 * 500


async def test_a_killed_process_leaves_a_sound_file(path, spawn, query, pools):
    """After SIGKILL under load, all that was granted is counted, and never more than the limit."""
    child = spawn("endless", path, 400)
    told = sum(int(child.stdout.readline()) for _ in range(100))
    child.kill()
    told += sum(map(int, child.communicate()[0].split()))
    only = pools.one("model", key_id="key-0", rpm=400, tpm=10**9)
    store = SQLiteStore(path)
    [snapshot] = await store.snapshot([only])
    used = snapshot.quotas[0].used
    assert 100 <= told <= used <= 400
    granted = 0
    while (await store.reserve(f"after-{granted}", [only], Demand(1, 1), 60.0)).deployment is not None:
        granted += 1
    await store.aclose()
    assert used + granted == 400
    assert query("PRAGMA integrity_check") == [("ok",)]


def test_a_fork_amid_traffic_loses_nothing(path, spawn):
    """Parent and child both go on with the same store object, and every request of both is counted."""
    answer, _ = spawn("fork", path).communicate()
    assert answer == f"{3 * (50 + 10 + 7)}\n"


def test_a_store_that_is_not_closed_does_not_hold_up_the_end(path, spawn, open_reservations):
    """A program that forgets ``aclose`` ends all the same, without a warning, and nothing is lost."""
    child = spawn("leave-open", path)
    assert child.communicate()[0] == "done\n"
    assert child.returncode == 0
    assert len(open_reservations()) == 3
    assert not path.with_name("state.db-wal").exists()

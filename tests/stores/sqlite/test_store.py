"""What the SQLite store promises beyond the contract: durability, group commit and a clean shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from llm_router import Deployment, Key, RateLimitStore, Secret
from llm_router.domain.cooldown import LEARNT_FOR, Cooldown, LearntLimit
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.errors import ConfigError, StoreUnavailableError
from llm_router.stores import Decision
from llm_router.stores.sqlite import SQLiteStore, database, journal, worker
from llm_router.stores.sqlite.filelock import TurnLock
from llm_router.stores.sqlite.reservations import Reservation
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


DAY = 24 * 3600.0


def soon() -> float:
    return time.monotonic() + 10.0


@pytest.fixture
def before() -> set[threading.Thread]:
    """The threads of stores that tests in other files have dropped, and that have not ended yet."""
    return set(threading.enumerate())


def threads(before: set[threading.Thread]) -> int:
    """Return how many threads of stores there are that there were not before."""
    return sum(thread.name.startswith("llm_router-sqlite") for thread in {*threading.enumerate()} - before)


async def used(store: RateLimitStore, deployment: Deployment) -> list[int]:
    [snapshot] = await store.snapshot([deployment])
    return [quota.used for quota in snapshot.quotas]


async def reserve_many(
    store: RateLimitStore, deployment: Deployment, count: int, ttl: float = 60.0, prefix: str = "many"
) -> int:
    calls = (store.reserve(f"{prefix}-{n}", [deployment], Demand(1, 1), ttl) for n in range(count))
    return sum(decision.deployment is not None for decision in await asyncio.gather(*calls))


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of all connections opened from now on."""
    seen: list[str] = []

    def connect(*args: Any) -> sqlite3.Connection:
        connection = database.connect(*args)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(worker, "connect", connect)
    return seen


# --- durability ---------------------------------------------------------------------------------------


async def test_counts_cooldowns_and_learnt_limits_survive_a_restart(
    open_store: Callable[..., SQLiteStore], pools: Pools, clock: ManualClock
) -> None:
    """A store that opens the same file later knows everything that the first one knew."""
    deployment = pools.one(rpm=15, rpd=100, tpm=None)
    first = open_store()
    await reserve_many(first, deployment, 4)
    learnt = (
        LearntLimit(Metric.RPM, 9),
        LearntLimit(Metric.TPM, 50, LimitSource.INFERRED, raised=60, raise_after=20.0, replaces=0.0),
    )
    cooldown = Cooldown(deployment.model_scope, clock.time() + 30.0, "stated", learnt)
    await first.cool_down(cooldown)
    before = await first.snapshot([deployment])
    await first.aclose()
    second = open_store()
    assert await second.snapshot([deployment]) == before
    assert before[0].cooldown == cooldown
    assert [(quota.limit, quota.used) for quota in before[0].quotas] == [(9, 4), (100, 4), (50, 0)]


async def test_a_reservation_is_settled_by_a_store_that_never_saw_its_deployment(
    open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """After a restart an id is enough."""
    deployment = pools.one(rpm=15, tpm=1000, rpd=100)
    first = open_store()
    await first.reserve("a", [deployment], Demand(1, 100), 60.0)
    await first.reserve("b", [deployment], Demand(1, 100), 60.0)
    await first.aclose()
    second = open_store()
    await second.release("a")
    await second.settle("b", Demand(1, 140))
    assert await used(second, deployment) == [1, 140, 1]


async def test_a_steady_debt_survives_a_restart(
    open_store: Callable[..., SQLiteStore], pools: Pools, clock: ManualClock
) -> None:
    """Fractions of a request continue to drain from where they were."""
    quota = Quota(Metric.RPM, 60, Refill.STEADY, burst=7)
    deployment = pools.one(rpm=None)
    deployment = type(deployment)(deployment.key, "model", quotas=(quota,))
    first = open_store()
    assert await reserve_many(first, deployment, 10) == 7
    clock.shift(0.5)
    await first.snapshot([deployment])
    await first.release("many-0")
    [before] = await first.snapshot([deployment])
    await first.aclose()
    [after] = await open_store().snapshot([deployment])
    assert after == before


async def test_another_kind_of_refill_goes_on_from_what_was_taken(
    open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """What a rolling ledger counts is owed by a steady one; an old reservation gives nothing back there."""
    rolling = pools.one(key_id="key", rpm=15)
    steady = type(rolling)(
        rolling.key, rolling.model, quotas=(Quota(Metric.RPM, 15, Refill.STEADY, burst=2),)
    )
    first, second = open_store(), open_store()
    await reserve_many(first, rolling, 5)
    assert await used(second, steady) == [5]
    decision = await second.reserve("steady", [steady], Demand(), 60.0)
    assert decision.deployment is None
    await second.release("many-0")
    await first.release("many-1")
    assert await used(second, steady) == [5]


async def test_a_clock_that_is_behind_returns_nothing_early(
    open_store: Callable[..., SQLiteStore], pools: Pools, clock: ManualClock
) -> None:
    """A process whose clock lags takes from what the others left, and counts as coming after them."""
    deployment = pools.one(rpm=5)
    ahead, behind = open_store(), open_store(clock=ManualClock(clock.time() - 45.0))
    assert await reserve_many(ahead, deployment, 3) == 3
    assert await reserve_many(behind, deployment, 3, prefix="behind") == 2
    clock.shift(60.0)
    assert await reserve_many(ahead, deployment, 5, prefix="later") == 0
    clock.shift(0.3)
    assert await reserve_many(ahead, deployment, 9, prefix="last") == 5


async def test_a_deleted_file_is_created_again(path: Path, store: SQLiteStore, pools: Pools) -> None:
    """The store does not continue with a file that no other process can open any more."""
    deployment = pools.one(rpm=5)
    await reserve_many(store, deployment, 3)
    for file in path.parent.glob("state.db*"):
        file.unlink()
    assert await used(store, deployment) == [0]
    assert path.exists()


async def test_no_secret_reaches_the_file(path: Path, store: SQLiteStore, pools: Pools) -> None:
    """No file of the store contains the secret of a key."""
    deployment = pools.one(key_id="key")
    await store.reserve("id", [deployment], Demand(), 60.0)
    await store.cool_down(Cooldown(deployment.key_scope, float("inf"), "dead"))
    secret = deployment.key.secret.reveal().encode()
    files = list(path.parent.glob("state.db*"))
    assert len(files) == 7
    assert not any(secret in file.read_bytes() for file in files)


# --- group commit -------------------------------------------------------------------------------------


async def test_what_waits_together_is_committed_together(
    statements: list[str], store: SQLiteStore, pools: Pools
) -> None:
    """A hundred reserves at the same time take a few transactions, not a hundred."""
    await store.snapshot([])
    statements.clear()
    assert await reserve_many(store, pools.one(rpm=60), 100) == 60
    assert 1 <= statements.count("BEGIN IMMEDIATE") == statements.count("COMMIT") <= 4


@pytest.mark.slow
async def test_more_than_fits_into_one_transaction_is_answered(store: SQLiteStore, pools: Pools) -> None:
    """Several thousand calls at the same time are spread over transactions, in order."""
    deployment = pools.one(rpm=2500)
    decisions = await asyncio.gather(
        *(store.reserve(f"id-{n}", [deployment], Demand(), 60.0) for n in range(3000))
    )
    assert [decision.deployment is not None for decision in decisions] == [True] * 2500 + [False] * 500


async def test_what_was_committed_reaches_the_database_itself(
    path: Path, store: SQLiteStore, pools: Pools
) -> None:
    """The WAL is emptied regularly, not only when the store is closed."""
    deployment = pools.one(rpm=1000)
    for n in range(200):  # the number of transactions between two checkpoints
        await store.reserve(f"id-{n}", [deployment], Demand(), 60.0)
    # Nothing writes meanwhile: a checkpoint skips pages that are being changed, and then the database is only
    # consistent together with the WAL.
    await store.snapshot([])  # is answered after the checkpoint has begun
    _await_checkpoint()
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as without_wal:
        assert without_wal.execute("SELECT count(*) FROM journal").fetchone()[0] >= 200


def _await_checkpoint() -> None:
    for thread in threading.enumerate():
        if thread.name == "llm_router-sqlite-checkpoint":
            thread.join()


async def test_a_call_that_makes_no_sense_fails_alone(store: SQLiteStore, pools: Pools) -> None:
    """Calls in the same transaction take effect once, and the broken one not at all."""
    deployment = pools.one(rpm=5)
    await store.reserve("before", [deployment], Demand(), 60.0)
    good = store.reserve("good", [deployment], Demand(), 60.0)
    broken = store.reserve(
        "broken",
        [None],  # type: ignore[list-item]
        Demand(),
        60.0,
    )
    outcomes = await asyncio.gather(good, broken, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Decision, StoreUnavailableError]
    assert await used(store, deployment) == [2]
    await store.release("before")
    await store.release("good")
    assert await used(store, deployment) == [0]


async def test_a_transaction_that_fails_is_undone_as_a_whole(
    store: SQLiteStore, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its calls fail, each with an error of its own, and have taken nothing; the store still works."""
    deployment = pools.one(rpm=5)
    await store.reserve("before", [deployment], Demand(), 60.0)
    with monkeypatch.context() as patches:
        patches.setattr(journal.Journal, "append", Mock(side_effect=sqlite3.OperationalError("disk full")))
        calls = (store.reserve(name, [deployment], Demand(), 60.0) for name in ("one", "two"))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 2
    assert outcomes[0] is not outcomes[1]
    assert await used(store, deployment) == [1]
    await store.release("before")
    assert await used(store, deployment) == [0]


async def test_cancelled_callers_leave_nothing_behind(store: SQLiteStore, pools: Pools) -> None:
    """Reserves whose callers were cancelled take effect, and so do the releases after them."""
    deployment = pools.one(rpm=100)
    for n in range(30):
        task = asyncio.create_task(store.reserve(f"id-{n}", [deployment], Demand(), 60.0))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        releasing = asyncio.create_task(store.release(f"id-{n}"))
        await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.wait([releasing])
    assert await used(store, deployment) == [0]


# --- waiting ------------------------------------------------------------------------------------------


async def test_a_process_that_hangs_in_its_turn_costs_no_more_than_the_timeout(
    path: Path, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """A call fails if its turn does not come in time; when it comes, the store works."""
    store, deployment = open_store(timeout=0.05), pools.one(rpm=5)
    other = TurnLock(path)
    with other.turn(time.monotonic()):
        outcomes = await asyncio.gather(
            *(store.reserve(f"id-{n}", [deployment], Demand(), 60.0) for n in range(3)),
            return_exceptions=True,
        )
        assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
        assert "kept the turn" in str(outcomes[0])
    other.close()
    assert await used(store, deployment) == [0]


async def test_a_program_that_locks_the_database_costs_no_more_than_the_timeout(
    path: Path, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """The same for programs that do not take turns, such as a shell."""
    store, deployment = open_store(timeout=0.05), pools.one(rpm=5)
    await store.snapshot([deployment])
    shell = database.connect(path, "NORMAL", soon())
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match=r"locked.*let that program finish"):
        await store.reserve("id", [deployment], Demand(), 60.0)
    shell.execute("ROLLBACK")
    shell.close()
    assert await used(store, deployment) == [0]


@pytest.mark.slow
async def test_a_full_disk_is_reported_and_recovered_from(
    monkeypatch: pytest.MonkeyPatch, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """A commit without space takes nothing; when there is space again, the store works."""
    limits = iter([20])

    def connect(*args: Any) -> sqlite3.Connection:
        connection = database.connect(*args)
        for pages in limits:
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(worker, "connect", connect)
    store = open_store()
    deployment = pools.one(rpm=10_000)
    with pytest.raises(StoreUnavailableError, match=r"full.*free some space"):
        await reserve_many(store, deployment, 1000)
    assert await used(store, deployment) == [0]
    assert await reserve_many(store, deployment, 1000) == 1000


# --- start and shutdown -------------------------------------------------------------------------------


def test_two_event_loops_one_after_the_other(path: Path, pools: Pools) -> None:
    """A store outlives the event loop in which it was first used."""
    store = SQLiteStore(path)
    deployment = pools.one(rpm=5)
    assert asyncio.run(reserve_many(store, deployment, 3)) == 3

    async def rest() -> int:
        granted = await reserve_many(store, deployment, 3, prefix="rest")
        await store.aclose()
        return granted

    assert asyncio.run(rest()) == 2


def test_an_event_loop_that_ends_early_stops_nothing(path: Path, pools: Pools) -> None:
    """A call takes effect even if its loop is closed before the answer, and nothing breaks."""
    store = SQLiteStore(path)
    deployment = pools.one(rpm=5)
    turns = TurnLock(path)

    async def leave() -> asyncio.Task[Decision]:
        task = asyncio.create_task(store.reserve("id", [deployment], Demand(), 60.0))
        await asyncio.sleep(0)
        return task

    with turns.turn(soon()):
        assert asyncio.run(leave()).cancelled()
    turns.close()

    async def rest() -> list[int]:
        counts = await used(store, deployment)
        await store.aclose()
        return counts

    assert asyncio.run(rest()) == [1]


async def test_nothing_happens_before_the_first_call(
    path: Path, store: SQLiteStore, before: set[threading.Thread]
) -> None:
    """Creating a store neither touches the disk nor starts a thread."""
    assert threads(before) == 0
    await store.aclose()
    assert list(path.parent.iterdir()) == []


async def test_closing_finishes_earlier_calls(
    path: Path, store: SQLiteStore, pools: Pools, before: set[threading.Thread]
) -> None:
    """Calls made before ``aclose`` are answered, the thread is gone, and a second ``aclose`` is harmless."""
    pending = asyncio.create_task(reserve_many(store, pools.one(rpm=50), 100))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.gather(store.aclose(), store.aclose())
    await store.aclose()
    assert await pending == 50
    assert threads(before) == 0
    assert not path.with_name("state.db-wal").exists()


async def test_a_closed_store_opens_again(store: SQLiteStore, pools: Pools) -> None:
    """The next call after ``aclose`` opens the file again, after all earlier calls."""
    deployment = pools.one(rpm=5)
    reserving = asyncio.create_task(reserve_many(store, deployment, 3))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    assert await used(store, deployment) == [3]
    assert await reserving == 3
    await closing


@pytest.mark.slow
async def test_a_dropped_store_ends_its_thread(
    path: Path, pools: Pools, before: set[threading.Thread]
) -> None:
    """A store without references releases its file without being closed."""
    store = SQLiteStore(path)
    await store.snapshot([pools.one()])
    assert threads(before) == 1
    del store
    gc.collect()
    assert threads(before) == 0
    assert not path.with_name("state.db-wal").exists()


async def test_the_repr_names_the_file(path: Path, store: SQLiteStore) -> None:
    """The path distinguishes one store from another."""
    assert repr(store) == f"SQLiteStore({str(path)!r})"


# --- bounded state ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_journal")
async def test_reservations_that_expired_leave_the_file(
    store: SQLiteStore, open_reservations: Callable[[], set[str]], pools: Pools, clock: ManualClock
) -> None:
    """Reservations of processes that died are forgotten; those that may still be settled are kept."""
    deployment = pools.one(rpm=5000)
    await reserve_many(store, deployment, 1200, ttl=10.0)
    await reserve_many(store, deployment, 3, ttl=100.0, prefix="kept")
    assert len(open_reservations()) == 1203
    clock.shift(11.0)
    last = [f"last-{n}" for n in range(40)]
    for name in last:
        await store.reserve(name, [deployment], Demand(), 10.0)
    assert open_reservations() == {"kept-0", "kept-1", "kept-2", *last}


@pytest.mark.slow
@pytest.mark.usefixtures("short_journal")
async def test_reservations_that_expired_leave_the_memory(
    store: SQLiteStore, pools: Pools, clock: ManualClock
) -> None:
    """Many reservations that are never settled are dropped before the next sweep of everything."""
    deployment, demand = pools.one(rpm=5000), Demand(1, 1)
    for n in range(100):
        await store.reserve(f"id-{n}", [deployment], demand, 10.0 if n % 2 else 100.0)
    clock.shift(11.0)
    for n in range(100):
        await store.reserve(f"late-{n}", [deployment], Demand(1, 2), 10.0)
    kept = [each for each in gc.get_objects() if isinstance(each, Reservation) and each.demand is demand]
    assert len(kept) == 50


async def test_a_scope_that_was_unused_for_a_day_leaves_the_file(
    store: SQLiteStore, query: Callable[..., list[Any]], pools: Pools, clock: ManualClock
) -> None:
    """Keys that were removed from the configuration do not stay for ever; those in use do."""
    old, present = pools.one(rpm=5, rpd=5), pools.one(rpm=5, rpd=5)
    await reserve_many(store, old, 1)
    await store.release("many-0")
    for _ in range(4):
        clock.shift(DAY)
        await reserve_many(store, present, 1, prefix=str(clock.time()))
        rows = query("SELECT scope FROM ledgers ORDER BY id")
    assert rows == [(present.model_scope,)]
    assert await reserve_many(store, old, 9) == 5
    assert await used(store, present) == [1, 1]


async def test_cooldowns_and_learnt_limits_that_ended_leave_the_file(
    store: SQLiteStore, query: Callable[..., list[Any]], pools: Pools, clock: ManualClock
) -> None:
    """What has ended is deleted; a quarantine stays."""
    first, second = pools.one(), pools.one()
    await store.cool_down(
        Cooldown(first.model_scope, clock.time() + 5.0, "short", (LearntLimit(Metric.RPM, 3, raised=4),))
    )
    await store.cool_down(Cooldown(second.key_scope, float("inf"), "dead"))
    clock.shift(LEARNT_FOR + 61.0)
    await store.snapshot([first])
    assert query("SELECT scope FROM cooldown") == [(second.key_scope,)]
    assert query("SELECT * FROM learnt_limits") == []
    assert query("SELECT * FROM cooldown_limits") == []
    [snapshot] = await store.snapshot([first])
    assert (snapshot.cooldown, snapshot.quotas[0].limit) == (None, 15)


async def test_four_learnt_limits_take_less_than_200_bytes(
    store: SQLiteStore, query: Callable[..., list[Any]], clock: ManualClock
) -> None:
    """152 for each of 1,000 deployments, with the name of the scope (38) and what is free in the pages."""
    names = sorted((f"key-{n:04}" for n in range(1_000)), key=lambda name: name[::-1])
    scopes = [Deployment(Key(name, Secret("x")), "gemini-2.5-flash").model_scope for name in names]
    await store.snapshot([])
    [[before]] = query("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    for metric in Metric:
        limit = 1_000_000 if metric.counts_tokens else 1_000
        rises = LearntLimit(metric, limit, LimitSource.INFERRED, raised=limit * 2, raise_after=3600.0)
        await asyncio.gather(*(store.cool_down(Cooldown.learn(scope, rises)) for scope in scopes))
        clock.shift(1.0)
    [[after]] = query("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    assert query("SELECT count(*) FROM learnt_limits") == [(1_000,)]
    assert after - before < 200 * 1_000


@pytest.mark.usefixtures("short_journal")
async def test_a_request_leaves_no_row_behind(
    store: SQLiteStore,
    query: Callable[..., list[Any]],
    open_reservations: Callable[[], set[str]],
    pools: Pools,
) -> None:
    """After thousands of settled requests the file holds one row of ledgers and the last transactions."""
    deployment = pools.one(rpm=10_000)
    for batch in range(3):
        await reserve_many(store, deployment, 500, prefix=str(batch))
        await asyncio.gather(*(store.settle(f"{batch}-{n}", Demand(1, 2)) for n in range(500)))
    assert open_reservations() == set()
    assert query("SELECT count(*) FROM journal") == [(2,)]
    assert query("SELECT count(*) FROM ledgers") == [(1,)]


# --- the journal --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_journal_stays_short(
    store: SQLiteStore, query: Callable[..., list[Any]], pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its oldest rows are removed as new ones are added, a few at a time."""
    monkeypatch.setattr(journal, "_MAX_BYTES", 40_000)
    monkeypatch.setattr(journal, "_BYTES_AT_ONCE", 1)
    deployments = [pools.one(rpm=1000, rpd=5000) for _ in range(5)]
    counts = []
    for n in range(200):
        await store.reserve(f"id-{n}", [deployments[n % 5]], Demand(1, 1), 60.0)
        await store.settle(f"id-{n}", Demand(1, 1))
        counts += query("SELECT count(*) FROM journal")[0]
    assert 20 < counts[-1] == counts[150] < 80
    assert [await used(store, deployment) for deployment in deployments] == [[40, 40]] * 5


@pytest.mark.usefixtures("short_journal")
async def test_what_has_left_the_journal_is_in_the_tables(
    store: SQLiteStore, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """Counts and open reservations survive a restart, wherever they are stored."""
    first, second = pools.one(rpm=15), pools.one(rpm=15)
    await store.reserve("first", [first], Demand(1, 10), 60.0)
    for n in range(5):
        await store.reserve(f"second-{n}", [second], Demand(), 60.0)
    await store.aclose()
    other = open_store()
    assert (await used(other, first), await used(other, second)) == ([1], [5])
    await other.release("first")
    await other.release("second-0")
    await other.release("second-0")
    assert (await used(other, first), await used(other, second)) == ([0], [4])


@pytest.mark.slow
async def test_open_reservations_are_not_written_over_and_over(
    store: SQLiteStore,
    query: Callable[..., list[Any]],
    open_reservations: Callable[[], set[str]],
    pools: Pools,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While most reservations are still open the journal may grow; it becomes short when they expire."""
    monkeypatch.setattr(journal, "_MAX_BYTES", 40_000)
    monkeypatch.setattr(journal, "_BYTES_AT_ONCE", 4_000)
    deployment = pools.one(rpm=5000)
    written = 0
    for n in range(100):
        await reserve_many(store, deployment, 10, ttl=100.0, prefix=str(n))
        written += len(json.loads(query("SELECT opened FROM journal ORDER BY number DESC LIMIT 1")[0][0]))
    assert len(open_reservations()) == 1000 <= written < 1500
    clock.shift(101.0)
    for n in range(100):
        await store.release(f"0-{n}")
        await store.reserve(f"late-{n}", [deployment], Demand(), 1.0)
    assert query("SELECT sum(length(taken)) FROM journal")[0][0] < 20_000


async def test_a_process_that_missed_journal_rows_starts_over(
    open_store: Callable[..., SQLiteStore], pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still knows what the rows said that are gone."""
    first, second = pools.one(rpm=15), pools.one(rpm=15)
    sleeper, busy = open_store(), open_store()
    await sleeper.reserve("sleeper", [first], Demand(), 60.0)
    await sleeper.reserve("settled", [second], Demand(), 60.0)
    monkeypatch.setattr(journal, "_MAX_BYTES", 0)
    await busy.release("settled")
    for n in range(5):
        await busy.reserve(f"busy-{n}", [first], Demand(), 60.0)
    await busy.reserve("last", [second], Demand(), 60.0)
    await sleeper.release("settled")
    assert await used(sleeper, first) == [6]
    await sleeper.release("sleeper")
    assert (await used(busy, first), await used(busy, second)) == ([5], [1])


async def test_a_quota_that_was_read_before_its_first_use(
    open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """A process that saw that nothing was taken notices what another process takes first."""
    deployment = pools.one(rpm=5)
    ours, theirs = open_store(), open_store()
    assert await used(ours, deployment) == await used(theirs, deployment) == [0]
    assert await reserve_many(theirs, deployment, 3) == 3
    assert await reserve_many(ours, deployment, 3, prefix="ours") == 2
    assert await reserve_many(theirs, deployment, 3, prefix="theirs") == 0


async def test_what_one_process_settled_another_does_not_settle_again(
    open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """Not even the process that made the reservation and has it in memory."""
    deployment = pools.one(rpm=15)
    ours, theirs = open_store(), open_store()
    await reserve_many(ours, deployment, 2)
    await theirs.settle("many-0", Demand(3, 1))
    await ours.release("many-0")
    assert await used(ours, deployment) == [4]
    await theirs.release("many-1")
    await ours.settle("many-1", Demand(3, 1))
    assert await used(theirs, deployment) == [3]


async def test_a_deleted_scope_is_not_confused_with_a_later_one(
    open_store: Callable[..., SQLiteStore], pools: Pools, clock: ManualClock
) -> None:
    """A process that had it in memory notices, and new counts are kept separately."""
    old, new, present = pools.one(rpm=5, rpd=5), pools.one(rpm=5, rpd=5), pools.one(rpm=5)
    sleeper, sweeper = open_store(), open_store()
    await sleeper.reserve("old", [old], Demand(), 60.0)
    for _ in range(3):
        clock.shift(DAY)
        await reserve_many(sweeper, present, 1, prefix=str(clock.time()))
    await sweeper.reserve("new", [new], Demand(), 60.0)
    await sleeper.reserve("again", [old], Demand(), 60.0)
    await sleeper.reserve("more", [old], Demand(), 60.0)
    await sweeper.release("again")
    assert await used(sweeper, old) == await used(sleeper, old) == [1, 1]
    assert await used(sweeper, new) == await used(sleeper, new) == [1, 1]
    await sleeper.release("old")
    assert await used(sleeper, old) == [1, 1]


@pytest.mark.parametrize("timeout", [0, -1.0, math.inf, math.nan, "5", None, True])
def test_a_timeout_that_is_no_time_is_refused(timeout: Any, path: Path) -> None:
    """When the store is made, with the remedy, and not as an obscure error of the first call."""
    with pytest.raises(ConfigError, match=r"timeout .* above 0.*leave it out"):
        SQLiteStore(path, timeout=timeout)


@pytest.mark.slow
@pytest.mark.parametrize("is_other", [False, True])
async def test_many_abandoned_reservations_leave_within_a_minute(
    is_other: bool,
    open_store: Callable[..., SQLiteStore],
    open_reservations: Callable[[], set[str]],
    pools: Pools,
    clock: ManualClock,
) -> None:
    """File and memory, by one call a second, each of which does a bounded part of it; those alive stay."""
    deployment = pools.one(rpm=10**9)
    store = open_store(timeout=60.0)
    await store.reserve("live", [deployment], Demand(), 3_600.0)
    for start in range(0, 100_000, 10_000):
        names = (f"dead {n}" for n in range(start, start + 10_000))
        await asyncio.gather(*(store.reserve(name, [deployment], Demand(), 5.0) for name in names))
    assert len(open_reservations()) == 100_001
    clock.shift(5.0)
    if is_other:  # one that has read the file, but made none of them
        await store.aclose()
        store = open_store()
    most, before = 0, 100_001
    for number in range(60):
        await store.reserve(f"alive {number}", [deployment], Demand(), 3_600.0)
        left = len(open_reservations())
        most, before = max(most, before - left), left
        clock.shift(1.0)
    assert most < 20_000
    assert open_reservations() == {"live"} | {f"alive {number}" for number in range(60)}
    worker = store._worker
    assert worker is not None
    assert worker._state is not None
    assert len(worker._state._reservations._rows) == 61
    assert len(worker._state._reservations._known) == 60 + (not is_other)
    await store.settle("live", Demand(0, 0))
    assert open_reservations() == {f"alive {number}" for number in range(60)}


async def test_terms_that_an_earlier_version_accepted_are_read(
    open_store: Callable[..., SQLiteStore], query: Callable[..., list[Any]]
) -> None:
    """A window of a day, or a burst without a bucket, is left out of what a file tells about a quota."""
    quotas = Quota(Metric.RPM, 5), Quota(Metric.RPD, 9), Quota(Metric.TPD, 9, Refill.ROLLING)
    before = Deployment(Key("a", Secret("AIza-not-a-key")), "m", quotas=quotas)
    first = open_store()
    await first.reserve("a", [before], Demand(1, 1), 60.0)
    await first.aclose()
    query("UPDATE ledgers SET terms = replace(replace(terms, '60.0', '61.0'), 'null', '1')")
    store = open_store()
    await store.settle("a", Demand(1, 3))
    [snapshot] = await store.snapshot([before])
    assert [quota.used for quota in snapshot.quotas] == [1, 1, 3]

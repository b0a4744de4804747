"""Files that are deleted or replaced while stores have them open: nothing is granted twice because of it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Deployment, StoreUnavailableError
from llm_router.domain.quota import Demand
from llm_router.stores.base import QUIET, RECOUNT, Decision, ExternalStore, Taking
from llm_router.stores.sqlite import SQLiteStore, database, worker
from llm_router.stores.sqlite.database import checkpoint
from llm_router.stores.sqlite.databasefiles import DatabaseFiles
from llm_router.stores.sqlite.epoch import Epoch, Loss, settle_epoch
from llm_router.stores.sqlite.filelock import TurnLock
from llm_router.testing import ManualClock
from tests.stores.sqlite.child import deployments

if TYPE_CHECKING:
    from tests.conftest import Pools

_ids = itertools.count()

ALL = ["", "-wal", "-shm", "-turn", "-next", "-second", "-third"]
DELETED = {
    "the database": [""],
    "the database and its WAL": ["", "-wal", "-shm"],
    "everything": ALL,
}
COMPANIONS = {
    "the index": ["-shm"],
    "the WAL": ["-wal"],
    "both": ["-wal", "-shm"],
    "all but the database": ALL[1:],
}


async def reserve(store: SQLiteStore, *candidates: Deployment) -> Decision:
    return await store.reserve(f"r{next(_ids)}", candidates, Demand(), 600.0)


async def take(store: SQLiteStore, deployment: Deployment, count: int) -> float:
    """Reserve ``count`` times, remember the record as a caller does, and return when that began."""
    for _ in range(count):
        decision = await reserve(store, deployment)
        assert decision.deployment is deployment
        store.known[deployment.model_scope] = decision.since
    return decision.since


async def used(store: SQLiteStore, deployment: Deployment) -> int:
    [snapshot] = await store.snapshot([deployment])
    return snapshot.quotas[0].used


def delete(path: Path, suffixes: list[str]) -> None:
    for suffix in suffixes:
        path.with_name(path.name + suffix).unlink()


async def charge(store: SQLiteStore, deployment: Deployment, at: float, count: int, since: float) -> float:
    """Charge takings of one time that were counted in the record that began at ``since``."""
    counted = [Taking(at, Demand())] * count
    since = await store.charge(f"s{next(_ids)}", 1, deployment, [], counted, since)
    store.known[deployment.model_scope] = since
    return since


def test_a_sqlite_store_is_external(store: SQLiteStore) -> None:
    """It says so in the way that callers ask."""
    assert isinstance(store, ExternalStore)


@pytest.mark.parametrize("deleted", DELETED | COMPANIONS)
@pytest.mark.parametrize("moment", ["connect", "begin"])
async def test_files_that_are_deleted_while_they_are_opened_are_left(
    deleted: str,
    moment: str,
    path: Path,
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    clock: ManualClock,
    pools: Pools,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before it is noted which they were: at its next call, the store is on those that others use."""
    deployment = pools.one(rpm=20)
    opens = getattr(worker, moment)

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(worker, moment, opens)
        opened = opens(*args)
        for suffix in (DELETED | COMPANIONS)[deleted]:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return opened

    monkeypatch.setattr(worker, moment, interrupted)
    with contextlib.suppress(StoreUnavailableError):
        await reserve(store, deployment)
    second = open_store()
    for _ in range(2):
        for each in (second, store):
            with contextlib.suppress(StoreUnavailableError):  # once, of the database without its WAL
                await reserve(each, deployment)
        clock.shift(QUIET)
    for each in (second, store, second):
        decision = await reserve(each, deployment)
        assert decision.deployment is deployment
        assert await used(store, deployment) == await used(second, deployment)


@pytest.mark.parametrize("deleted", DELETED)
async def test_a_deleted_database_grants_nothing_before_it_is_charged(
    deleted: str,
    path: Path,
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    clock: ManualClock,
    pools: Pools,
) -> None:
    """Two stores find the same new file, and together never get more than the quota."""
    deployment, second = pools.one(rpm=20), open_store()
    before = await take(store, deployment, 8)
    assert await take(second, deployment, 6) == before
    start = clock.time()
    clock.shift(1.0)
    delete(path, DELETED[deleted])
    lost_at = clock.time()
    for each in (store, second):
        decision = await reserve(each, deployment)
        assert (decision.deployment, decision.lost) == (None, (deployment,))
        assert decision.reset_at == lost_at
        [refusal] = decision.refusals
        assert refusal.reason == RECOUNT
        assert refusal.retry_at == refusal.wake_at == lost_at + QUIET
    since = await charge(store, deployment, start, 8, before)
    assert since > before
    assert not (await reserve(store, deployment)).deployment  # still quiet
    clock.shift(QUIET)
    assert (await reserve(second, deployment)).lost == (deployment,)
    assert await charge(second, deployment, start, 6, before) == since
    assert await used(second, deployment) == 14
    granted = [(await reserve(each, deployment)).deployment for _ in range(10) for each in (store, second)]
    assert sum(each is not None for each in granted) == 6
    assert (await reserve(open_store(), deployment)).reset_at == lost_at


@pytest.mark.parametrize("deleted", COMPANIONS)
async def test_a_deleted_companion_loses_nothing(
    deleted: str,
    path: Path,
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    clock: ManualClock,
    pools: Pools,
) -> None:
    """What was committed is moved into the database; callers are told nevertheless."""
    deployment, second = pools.one(rpm=20), open_store()
    before = await take(store, deployment, 8)
    await take(second, deployment, 6)
    clock.shift(1.0)
    delete(path, COMPANIONS[deleted])
    assert (await reserve(second, deployment)).lost == (deployment,)
    for each, count in ((store, 8), (second, 6)):
        assert await used(each, deployment) == 14
        await charge(each, deployment, clock.time() - 1.0, count, before)
    clock.shift(QUIET)
    granted = [(await reserve(each, deployment)).deployment for _ in range(10) for each in (store, second)]
    assert sum(each is not None for each in granted) == 6
    await store.aclose()
    await second.aclose()
    assert await used(open_store(), deployment) == 20
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("deleted", [*COMPANIONS, *DELETED])
async def test_closing_after_files_were_deleted_leaves_those_of_others_alone(
    deleted: str,
    path: Path,
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    clock: ManualClock,
    pools: Pools,
) -> None:
    """A store that was idle since then takes nothing away from one that has gone on."""
    deployment, second = pools.one(rpm=20), open_store()
    await take(store, deployment, 5)
    await take(second, deployment, 1)
    delete(path, (COMPANIONS | DELETED)[deleted])
    await used(second, deployment)
    clock.shift(QUIET)
    second.known.clear()
    await take(second, deployment, 3)
    await store.aclose()
    third = open_store()
    assert await used(third, deployment) == (9 if deleted in COMPANIONS else 3)
    await take(second, deployment, 1)
    assert await used(third, deployment) == (10 if deleted in COMPANIONS else 4)


async def test_one_who_knew_nothing_makes_the_new_file(
    path: Path,
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    clock: ManualClock,
    pools: Pools,
) -> None:
    """The loss is noticed by those who had the old one, and what the other has taken is kept."""
    deployment = pools.one(rpm=20)
    before = await take(store, deployment, 8)
    delete(path, ALL)
    clock.shift(0.5)
    newcomer = open_store()
    newer = await take(newcomer, deployment, 3)
    assert newer > before
    start = clock.time()
    clock.shift(0.5)
    assert (await reserve(store, deployment)).lost == (deployment,)
    decision = await reserve(newcomer, deployment)
    assert (decision.lost, decision.reset_at) == ((deployment,), clock.time())
    clock.shift(QUIET)
    assert await used(newcomer, deployment) == 3
    await charge(newcomer, deployment, start, 3, newer)
    assert await used(newcomer, deployment) == 3


@pytest.mark.parametrize("keeps_wal", [False, True])
async def test_a_database_that_was_replaced_by_an_older_one(
    keeps_wal: bool, path: Path, store: SQLiteStore, clock: ManualClock, pools: Pools
) -> None:
    """Its callers charge all that they have taken, and the WAL of the other one is not mixed with it."""
    deployment = pools.one(rpm=20)
    await take(store, deployment, 2)
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    before = await take(store, deployment, 6)
    start = clock.time()
    clock.shift(1.0)
    os.replace(backup, path)  # noqa: PTH105
    if not keeps_wal:
        delete(path, ["-wal", "-shm"])
    assert (await reserve(store, deployment)).lost == (deployment,)
    assert await used(store, deployment) == 2
    await charge(store, deployment, start, 8, before)
    assert await used(store, deployment) == 10  # two count twice: a backup does not say when it was made
    clock.shift(QUIET)
    assert (await reserve(store, deployment)).deployment is deployment


async def test_a_settle_of_what_was_lost_changes_nothing(
    path: Path, store: SQLiteStore, clock: ManualClock, pools: Pools
) -> None:
    """Neither in the new file nor later."""
    deployment = pools.one(rpm=20, tpm=1_000)
    await store.reserve("old", [deployment], Demand(1, 100), 600.0)
    delete(path, ALL)
    await store.settle("old", Demand(1, 50))
    clock.shift(QUIET)
    await store.reserve("new", [deployment], Demand(1, 200), 600.0)
    await store.release("old")
    [snapshot] = await store.snapshot([deployment])
    assert [quota.used for quota in snapshot.quotas] == [1, 200]


async def test_a_settle_after_a_companion_was_deleted(path: Path, store: SQLiteStore, pools: Pools) -> None:
    """The reservation is still there, and is settled as ever."""
    deployment = pools.one(rpm=20, tpm=1_000)
    await store.reserve("old", [deployment], Demand(1, 100), 600.0)
    delete(path, ["-wal", "-shm"])
    await store.settle("old", Demand(1, 50))
    [snapshot] = await store.snapshot([deployment])
    assert [quota.used for quota in snapshot.quotas] == [1, 50]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 0)])
async def test_a_file_that_is_deleted_or_emptied_while_its_store_is_closed(
    harm: Callable[[Path], None], path: Path, store: SQLiteStore, clock: ManualClock, pools: Pools
) -> None:
    """The store object remembers that there was one."""
    deployment = pools.one(rpm=20)
    await take(store, deployment, 5)
    await store.aclose()
    clock.shift(5.0)
    harm(path)
    decision = await reserve(store, deployment)
    assert (decision.lost, decision.reset_at) == ((deployment,), clock.time())


async def test_charges_are_remembered_for_a_day(
    path: Path,
    store: SQLiteStore,
    clock: ManualClock,
    pools: Pools,
    query: Callable[..., list[object]],
) -> None:
    """Also by another process; after 25 hours they are swept."""
    deployment = pools.one(rpd=100)
    for _ in range(2):
        await store.charge("a", 10**30, deployment, [Taking(clock.time(), Demand())])
        assert await used(store, deployment) == 1
        await store.aclose()
    clock.shift(24.9 * 3600)
    await reserve(store, deployment)
    assert len(query("SELECT * FROM charges")) == 1
    clock.shift(0.2 * 3600)
    await reserve(store, deployment)
    assert query("SELECT * FROM charges") == []


async def test_advice_names_what_endangers_the_count(
    path: Path, store: SQLiteStore, open_store: Callable[..., SQLiteStore]
) -> None:
    """There is none for a store with default settings."""
    assert await store.advice() == []
    [advice] = await open_store(synchronous="OFF").advice()
    assert "power failure" in advice


def test_epochs_follow_from_what_is_known_and_found() -> None:
    """The rules by which a store takes the epoch in the file, or begins one."""
    now = 100_000_000
    found = Epoch(50.0)
    assert settle_epoch(None, 0.0, None, now) == Epoch(100.0)
    assert settle_epoch(None, 50.0, None, now) == Epoch(100.0, reset_at=100.0)
    assert settle_epoch(None, 0.0, Loss(kept=False), now) == Epoch(100.0, reset_at=100.0)
    assert settle_epoch(None, 200.0, None, now).since > 200.0
    assert settle_epoch(found, 0.0, Loss(kept=False), now) == Epoch(100.0, 50.0, -math.inf, 100.0)
    assert settle_epoch(found, 0.0, None, now) is found
    assert settle_epoch(found, 50.0, None, now) is found
    assert settle_epoch(found, 50.0, Loss(kept=True), now) == Epoch(100.0, 50.0, 100.0, 100.0)
    assert settle_epoch(found, 50.0, Loss(kept=False), now) == Epoch(100.0, 50.0, -math.inf, 100.0)
    assert settle_epoch(found, 40.0, Loss(kept=False), now) == Epoch(100.0, 50.0, 100.0, 100.0)
    assert settle_epoch(found, 60.0, None, now) == Epoch(100.0, 50.0, -math.inf, 100.0)
    noticed = Epoch(50.0, reset_at=50.0)
    assert settle_epoch(noticed, 40.0, Loss(kept=False), now) is noticed
    assert settle_epoch(noticed, 60.0, None, now).since == 100.0


def test_an_epoch_knows_what_it_may_have_lost() -> None:
    """Of the record before it what was counted after the gap began, of others everything."""
    takings = [Taking(at, Demand()) for at in (10.0, 20.0, 20.04, 30.0)]
    epoch = Epoch(40.0, 5.0, 20.05, 40.0)
    assert epoch.lost(takings, 40.0) == ()
    assert epoch.lost(takings, 5.0) == tuple(takings[2:])
    assert epoch.lost(takings, 4.0) == tuple(takings)
    assert epoch.quiet == (40_000_000, 41_000_000)
    assert Epoch(40.0).quiet == (0, 0)


@pytest.mark.parametrize("deleted", [*COMPANIONS, *DELETED])
async def test_a_directory_that_has_not_changed_for_long_is_trusted_until_it_does(
    deleted: str, path: Path, store: SQLiteStore, clock: ManualClock, pools: Pools
) -> None:
    """Then each turn looks at nothing but the directory, and notices what happens in it."""
    deployment = pools.one(rpm=20)
    await take(store, deployment, 1)
    long_ago = time.time() - 100.0
    os.utime(path.parent, (long_ago, long_ago))
    await take(store, deployment, 2)
    worker = store._worker
    assert worker is not None
    assert worker._turns.undisturbed
    delete(path, (COMPANIONS | DELETED)[deleted])
    assert (await reserve(store, deployment)).lost == (deployment,)
    assert not worker._turns.undisturbed


def test_a_deleted_turn_is_made_anew(tmp_path: Path) -> None:
    """After that, two exclude each other again."""
    first, second = TurnLock(tmp_path / "state.db"), TurnLock(tmp_path / "state.db")
    for lock in (first, second):
        with lock.turn(time.monotonic()):
            pass
    (tmp_path / "state.db-turn").unlink()
    with first.turn(time.monotonic()), pytest.raises(TimeoutError), second.turn(time.monotonic()):
        pass
    with second.turn(time.monotonic()):
        pass
    first.close()
    second.close()


@pytest.mark.slow
async def test_a_wal_deleted_under_another_process_is_not_read_by_its_index(
    path: Path, open_store: Callable[..., SQLiteStore], spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Whoever comes first makes new files, and says so to the process that holds the old ones."""
    child = spawn("hold", path)
    assert child.stdout is not None
    assert child.stdout.readline() == "holding\n"
    delete(path, ["-wal"])
    [limited] = deployments(1, 100, 10**9)
    [refusal] = (await reserve(open_store(), limited)).refusals
    assert refusal.reason == RECOUNT
    assert child.communicate("\n")[0] == "1\n"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_checkpoint_leaves_files_alone_that_are_not_those_opened(
    path: Path, store: SQLiteStore, pools: Pools
) -> None:
    """Else it would move pages of the new WAL to where the old index says."""
    await take(store, pools.one(rpm=20), 8)
    before = path.read_bytes()
    checkpoint(path, "NORMAL", lambda: False)
    assert path.read_bytes() == before
    checkpoint(path, "NORMAL", lambda: True)
    assert path.read_bytes() != before


@pytest.mark.parametrize("deleted", DELETED)
async def test_what_is_deleted_under_a_transaction_is_made_anew_by_the_next(
    deleted: str, path: Path, store: SQLiteStore, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls in it have taken no effect; their callers learn of the loss, not of the error."""
    deployment = pools.one(rpm=20)
    await take(store, deployment, 8)

    def begin(connection: sqlite3.Connection, deadline: float) -> None:
        monkeypatch.setattr(worker, "begin", database.begin)
        delete(path, DELETED[deleted])
        raise sqlite3.OperationalError("attempt to write a readonly database")  # as SQLite does, sometimes

    monkeypatch.setattr(worker, "begin", begin)
    decision = await reserve(store, deployment)
    assert (decision.deployment, decision.lost) == (None, (deployment,))
    [refusal] = decision.refusals
    assert refusal.reason == RECOUNT


async def test_an_error_while_all_files_are_there_is_not_retried(
    store: SQLiteStore, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is about something else."""
    deployment, tries = pools.one(rpm=20), 0
    await take(store, deployment, 8)

    def begin(connection: sqlite3.Connection, deadline: float) -> None:
        nonlocal tries
        tries += 1
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "begin", begin)
        with pytest.raises(StoreUnavailableError, match="disk I/O error"):
            await reserve(store, deployment)
    assert tries == 1
    assert await used(store, deployment) == 8


def test_a_rescue_waits_for_the_one_that_is_moving_the_same(tmp_path: Path) -> None:
    """Until that ends, the database is half old and half new."""
    answers = iter([(1, -1, -1), (1, -1, -1), (0, 7, 7)])

    class Busy:
        def execute(self, statement: str) -> Busy:
            return self

        def fetchone(self) -> tuple[int, int, int]:
            return next(answers)

    connection: Any = Busy()
    files = DatabaseFiles(tmp_path / "state.db")
    opened = ((1, 1), (1, 2), (1, 3))
    assert files.rescue(opened, connection, math.inf)
    assert not list(answers)
    answers = iter([(1, -1, -1)])
    assert not files.rescue(opened, connection, -math.inf)


@pytest.mark.slow
@pytest.mark.parametrize("deleted", [*COMPANIONS, *DELETED])
def test_processes_that_charge_never_exceed_the_quota(
    deleted: str, path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Whatever is deleted under three of them, again and again, while they take as much as they can.

    What is deleted in the midst of a call may be charged twice, so that less is granted, but not half of it.
    """
    children = [spawn("careful", path, 600) for _ in range(3)]
    for child in children:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    for round_ in range(3):
        time.sleep(0.3 + QUIET * bool(round_))
        for suffix in (COMPANIONS | DELETED)[deleted]:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    granted, charges = zip(*(map(int, child.communicate()[0].split()) for child in children), strict=True)
    assert all(charges)
    assert 300 <= sum(granted) <= 600

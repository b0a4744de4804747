"""Files that are deleted or damaged while they are in use: what was spent is not forgotten."""

from __future__ import annotations

import sqlite3
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand
from llm_router.stores.base import QUIET, ExternalStore
from llm_router.stores.sqlite import SQLiteStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.fleet import Fleet
else:
    from llm_router_tests_fleet import Fleet

LIMIT = 30


async def grants(store: SQLiteStore, limited: Deployment, tag: str) -> bool:
    return (await store.reserve(tag, [limited], Demand(1, 0), 60.0)).deployment is limited


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("suffix", ["", "-shm", "-wal", "-shm -wal", " -shm -wal"])
async def test_what_was_spent_counts_after_a_file_was_deleted(
    tmp_path: Path, clock: ManualClock, pools: Pools, processes: int, suffix: str
) -> None:
    """No window sees more than the limit, and what comes back is spent again within a minute."""
    limited, path = pools.one(rpm=LIMIT), tmp_path / "state.db"
    async with Fleet.opened(partial(SQLiteStore, path, clock=clock), processes, clock, limited) as fleet:
        await fleet.run(95)
        assert fleet.most_in(60.0) == LIMIT
        for each in suffix.split(" "):
            path.with_name(path.name + each).unlink()
        await fleet.run(200)
        assert fleet.most_in(60.0) == LIMIT
        assert fleet.since(clock.time() - 61.0) == LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("event", ["an older copy over it", "deleted rows"])
@pytest.mark.parametrize("idle", [False, True])
async def test_what_was_spent_counts_after_a_file_was_changed_in_its_place(
    tmp_path: Path, clock: ManualClock, pools: Pools, processes: int, event: str, *, idle: bool
) -> None:
    """Where the newest row is gone the file has lost something; those that idle notice it later."""
    limited, path = pools.one(rpm=LIMIT), tmp_path / "state.db"
    async with Fleet.opened(partial(SQLiteStore, path, clock=clock), processes, clock, limited) as fleet:
        await fleet.run(60)
        copies = {each: each.read_bytes() for each in tmp_path.glob("state.db*")}
        await fleet.run(35)
        if event == "deleted rows":
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript("DELETE FROM journal; DELETE FROM ledgers")
        else:
            for each, content in copies.items():
                with each.open("r+b") as file:
                    file.truncate(len(content))
                    file.write(content)
        await fleet.run(30, idle=fleet.stores[: processes // 2 if idle else 0])
        await fleet.run(200)
        assert fleet.most_in(60.0) == LIMIT
        assert fleet.since(clock.time() - 61.0) == LIMIT


async def test_a_new_file_grants_nothing_before_it_was_told(
    tmp_path: Path, clock: ManualClock, pools: Pools
) -> None:
    """It is quiet for a second for everybody, also for a process that has nothing to tell."""
    limited, path = pools.one(rpm=LIMIT), tmp_path / "state.db"
    first, second = (SQLiteStore(path, clock=clock) for _ in range(2))
    async with aclosing(first), aclosing(second):
        assert isinstance(first, ExternalStore)
        decision = await first.reserve("a", [limited], Demand(1, 0), 60.0)
        assert (decision.since, decision.reset_at) == (clock.time(), 0.0)
        first.known[limited.model_scope] = decision.since
        assert await grants(second, limited, "b")
        path.unlink()
        clock.shift(5.0)
        decision = await first.reserve("c", [limited], Demand(1, 0), 60.0)
        assert (decision.deployment, decision.lost, decision.reset_at) == (None, (limited,), clock.time())
        assert decision.refusals[0].retry_at == clock.time() + QUIET
        assert not await grants(second, limited, "d")
        clock.shift(QUIET)
        assert await grants(second, limited, "e")
        assert not await grants(first, limited, "f")
        await first.settle("a", Demand(5, 0))  # of the file that is gone
        [snapshot] = await second.snapshot([limited])
        assert [quota.used for quota in snapshot.quotas] == [1]


async def test_a_process_that_starts_later_is_told_of_the_loss(
    tmp_path: Path, clock: ManualClock, pools: Pools
) -> None:
    """It must be careful, too, until a window has passed."""
    limited, path = pools.one(rpm=LIMIT), tmp_path / "state.db"
    async with aclosing(SQLiteStore(path, clock=clock)) as first:
        assert await grants(first, limited, "a")
        path.unlink()
        assert not await grants(first, limited, "b")
        clock.shift(10.0)
        async with aclosing(SQLiteStore(path, clock=clock)) as late:
            decision = await late.reserve("c", [limited], Demand(1, 0), 60.0)
    assert (decision.deployment, decision.reset_at) == (limited, clock.time() - 10.0)


async def test_opening_a_file_again_loses_nothing(tmp_path: Path, clock: ManualClock, pools: Pools) -> None:
    """The epoch is that of the file."""
    limited, path = pools.one(rpm=LIMIT), tmp_path / "state.db"
    async with aclosing(SQLiteStore(path, clock=clock)) as store:
        assert await grants(store, limited, "a")
        clock.shift(30.0)
        await store.aclose()
        decision = await store.reserve("b", [limited], Demand(1, 0), 60.0)
        assert (decision.since, decision.reset_at) == (clock.time() - 30.0, 0.0)

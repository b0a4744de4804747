"""``closed`` is exact: after a loss nothing is taken until what was taken before has come back."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, Metric, Quota
from llm_router.domain.cooldown import LearntLimit
from llm_router.errors import StoreError
from llm_router.stores import Decision, Refusal
from llm_router.stores.base import RECOUNT
from llm_router.stores.failover import FailoverStore
from llm_router.stores.sqlite import SQLiteStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.fleet import Fleet
    from tests.stores.remote import OUTAGE, Remote, granted, settle_down, used
else:
    from llm_router_tests_fleet import Fleet
    from llm_router_tests_remote import OUTAGE, Remote, granted, settle_down, used

LIMIT = 12


class Forgetful(Remote):
    """A store that lost something at :attr:`reset_at`, and says so."""

    reset_at = 0.0

    async def reserve(self, *args: Any) -> Decision:
        decision = await super().reserve(*args)
        decision.reset_at = self.reset_at
        return decision


@pytest.fixture
def remote(clock: ManualClock) -> Forgetful:
    return Forgetful(clock)


@pytest.fixture
def front(remote: Forgetful, clock: ManualClock) -> FailoverStore:
    return FailoverStore(remote, clock=clock, policy="closed")


async def reasons(front: FailoverStore, *candidates: Deployment) -> list[str]:
    """Reserve, and return why that was refused."""
    decision = await front.reserve(f"reason-{id(candidates)}", candidates, Demand(1, 10), 60.0)
    assert decision.deployment is None
    return [refusal.reason for refusal in decision.refusals]


@pytest.mark.parametrize("is_alone", [False, True])
async def test_after_a_loss_nothing_is_taken_for_a_window(
    front: FailoverStore, remote: Forgetful, pools: Pools, clock: ManualClock, is_alone: bool
) -> None:
    """The grant that shows the loss is given back; a minute after the loss the whole limit is there."""
    limited = pools.one(rpm=20)
    assert await granted(front, limited, 2, "a") == 2
    clock.shift(1.0)
    lost_at = remote.reset_at = clock.time()
    clock.shift(2.0)
    if is_alone:
        remote.fail(OUTAGE)
        with pytest.raises(StoreError):
            await front.reserve("x", [limited], Demand(), 60.0)
        remote.fail(None)
        clock.shift(1.0)
        await front.snapshot([])
        await settle_down()
        assert front.trouble is None
    for name in ("b", "c"):
        decision = await front.reserve(name, [limited], Demand(1, 10), 60.0)
        assert (decision.deployment, decision.lost) == (None, ())
        [refusal] = decision.refusals
        assert (refusal.reason, refusal.deployment) == (RECOUNT, limited)
        assert refusal.retry_at == refusal.wake_at == pytest.approx(lost_at + 60.3)
    assert await used(remote, limited) == {"rpm": 2}
    clock.shift(lost_at + 60.2 - clock.time())
    assert await reasons(front, limited) == [RECOUNT]
    clock.shift(0.2)
    if is_alone:  # as after any outage, a share for a window
        assert await granted(front, limited, 1, "d") == 1
        clock.shift(60.4)
    assert await granted(front, limited, 30, "e") == 20
    await front.aclose()


async def test_a_probe_that_is_given_back_is_another_s(
    front: FailoverStore, remote: Forgetful, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the grant shows a loss, is only to look for one, or its caller is cancelled meanwhile."""
    short = Deployment(pools.one().key, "short", quotas=(Quota(Metric.RPM, 20, window=5.0),))
    free = pools.one(rpm=None)

    async def cool_down(deployment: Deployment) -> None:
        await remote.cool_down(Cooldown.lift(deployment.model_scope))
        half_open = Cooldown(deployment.model_scope, clock.time() + 1.0, "x", half_open=True, strikes=1)
        await remote.cool_down(half_open)
        clock.shift(1.0)

    async def is_due(deployment: Deployment) -> bool:
        await settle_down()
        [snapshot] = await remote.snapshot([deployment])
        return snapshot.cooldown is None

    await cool_down(short)
    remote.reset_at = clock.time()
    assert await reasons(front, short) == [RECOUNT]
    assert await is_due(short)
    await cool_down(free)
    await front._careful._look("look", [Refusal(free, "x", 0.0, 0.0, Cooldown.retry(free.key_scope))], 60.0)
    assert await is_due(free)
    for is_careful in (True, False):
        clock.shift(100.0)
        await cool_down(short)
        late = FailoverStore(remote, clock=clock, policy="local")
        late._shards.careful = is_careful
        monkeypatch.setattr(late._losses, "heed", lambda *_: asyncio.Event().wait())
        task = asyncio.create_task(late.reserve(f"cut {is_careful}", [short], Demand(1, 1), 60.0))
        await settle_down()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert await is_due(short)
        await late.aclose()
    await front.aclose()


async def test_a_loss_of_long_ago_stops_nobody(
    front: FailoverStore, remote: Forgetful, pools: Pools, clock: ManualClock
) -> None:
    """A process that starts later waits for what is left of the window, or not at all."""
    limited, other = pools.one(rpm=20), pools.one(rpm=20)
    remote.reset_at = clock.time() - 100.0
    assert await granted(front, limited, 30, "a") == 20
    late = FailoverStore(remote, clock=clock, policy="closed")
    remote.reset_at = clock.time() - 50.0
    assert await granted(late, other, 30, "b") == 0
    clock.shift(10.4)
    assert await granted(late, other, 30, "c") == 20


async def test_each_waits_for_its_own_window_and_the_unlimited_for_none(
    front: FailoverStore, remote: Forgetful, pools: Pools, clock: ManualClock
) -> None:
    """Where the first is refused another serves; of what has no quota, a limit that was learnt counts."""
    short = Deployment(pools.one().key, "short", quotas=(Quota(Metric.RPM, 20, window=5.0),))
    long, free, learnt = pools.one(rpm=20), pools.one(rpm=None), pools.one(rpm=None)
    await front.cool_down(Cooldown.learn(learnt.model_scope, LearntLimit(Metric.RPM, 4)))
    remote.reset_at = clock.time()
    assert await reasons(front, long, short) == [RECOUNT]  # the store grants the first, which is given back
    assert await reasons(front, short, long, learnt) == [RECOUNT] * 3
    decision = await front.reserve("a", [long, free], Demand(1, 10), 60.0)
    assert decision.deployment is free
    assert [refusal.reason for refusal in decision.refusals] == [RECOUNT]
    clock.shift(5.4)
    decision = await front.reserve("b", [long, short], Demand(1, 10), 60.0)
    assert decision.deployment is short
    assert [refusal.reason for refusal in decision.refusals] == [RECOUNT]
    await settle_down()
    await front.aclose()


async def test_a_second_loss_is_noticed_while_nothing_is_taken(
    front: FailoverStore, remote: Forgetful, pools: Pools, clock: ManualClock
) -> None:
    """The store is asked though the answer is known, takes nothing, and the window begins again."""
    limited = pools.one(rpm=20)
    assert await granted(front, limited, 2, "a") == 2
    remote.reset_at = clock.time()
    assert await granted(front, limited, 2, "b") == 0
    clock.shift(50.0)
    remote.reset_at = clock.time()
    assert await reasons(front, limited) == [RECOUNT]
    clock.shift(30.0)
    assert await granted(front, limited, 2, "c") == 0
    clock.shift(30.4)
    assert await granted(front, limited, 30, "d") == 20
    await front.aclose()


@pytest.mark.slow
@pytest.mark.parametrize(("deleted", "is_dead"), [("state.db", True), ("state.db-wal", False)])
async def test_no_window_sees_more_than_the_limit(
    tmp_path: Path, clock: ManualClock, pools: Pools, deleted: str, is_dead: bool
) -> None:
    """Though the process that took all of it died with the file, or idles and has not told it yet."""
    limited = Deployment(pools.one().key, "m", quotas=(Quota(Metric.RPM, LIMIT, window=10.0),))
    open_store = partial(SQLiteStore, tmp_path / "state.db", clock=clock)
    async with Fleet.opened(open_store, 4, clock, limited, "closed") as fleet:
        first, *others = fleet.stores
        await fleet.run(1)
        clock.shift(20.0)
        await fleet.run(LIMIT // 2, idle=others)
        assert fleet.most_in(10.0) == LIMIT
        (tmp_path / deleted).unlink()
        if is_dead:
            fleet.stores.remove(first)
        await fleet.run(9, idle=[first])
        await fleet.run(25)
        assert fleet.most_in(10.0) == LIMIT
        assert fleet.since(clock.time() - 11.0) == LIMIT

"""On its own a process takes its share of each limit and of the room that it saw, on top of what it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, Metric, Quota, Refill
from llm_router.stores import Decision
from llm_router.stores.base import Refusal
from llm_router.stores.failover import FailoverStore
from llm_router.stores.failover.rooms import Rooms
from llm_router.stores.failover.times import Times
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, Remote, granted, recover
else:
    from llm_router_tests_remote import OUTAGE, Remote, granted, recover


async def test_alone_what_was_spent_before_counts(front: FailoverStore, remote: Remote, pools: Pools) -> None:
    """A share of 20 is 5: two of them were spent through the store."""
    limited = pools.one(rpm=20)
    assert await granted(front, limited, 2, "a") == 2
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "b") == 3


async def test_alone_the_day_counts(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """What was spent hours ago counts against the day, and not against the minute."""
    limited = pools.one(rpm=400, rpd=40)
    assert await granted(front, limited, 7, "a") == 7
    clock.shift(3 * 3600.0)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "b") == 3


async def test_alone_only_a_share_of_the_room_is_taken(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Others had taken 30 of 40: a quarter of the room of 8 is 2, and the rest comes a minute later."""
    limited = pools.one(rpm=40)
    for n in range(30):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 60.0)
    assert await granted(front, limited, 2, "a") == 2
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "b") == 2
    clock.shift(60.4)
    assert await granted(front, limited, 20, "c") == 10


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("before", [0, 1])
async def test_a_refusal_shows_that_there_is_no_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, metric: Metric, before: int
) -> None:
    """A process that was refused takes nothing alone until a window or a day is over."""
    refill = Refill.DAILY if metric.is_daily else Refill.ROLLING
    limited = Deployment(pools.one().key, "m", "light", quotas=(Quota(metric, 40, refill),))
    assert await granted(front, limited, before, "a", 1) == before
    for n in range(40 - before):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 600.0)
    clock.shift(5.0)
    assert await granted(front, limited, 1, "b", 1) == 0
    clock.shift(5.0)
    assert await granted(front, limited, 1, "c", 1) == 0  # nothing has come back: as old as the first
    remote.fail(OUTAGE)
    clock.shift(55.0)
    assert await granted(front, limited, 9, "d", 1) == 0
    clock.shift(86_400.0 if metric.is_daily else 0.4)
    assert await granted(front, limited, 40, "e", 1) == 10


async def test_a_refusal_of_much_leaves_a_share_of_the_rest(
    front: FailoverStore, remote: Remote, pools: Pools
) -> None:
    """Less than 400 of 1,000 tokens were left: this process takes a quarter of 400 alone."""
    limited = pools.one(rpm=None, tpm=1_000)
    await remote.reserve("other", [limited], Demand(1, 700), 60.0)
    assert await granted(front, limited, 1, "a", 400) == 0
    remote.fail(OUTAGE)
    assert await granted(front, limited, 40, "b", 10) == 10


async def test_a_refusal_because_of_a_cooldown_shows_no_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """It says nothing of the quotas: the whole share is left."""
    limited = pools.one(rpm=40)
    await remote.cool_down(Cooldown(limited.model_scope, clock.time() + 5.0, "rests"))
    assert await granted(front, limited, 1, "a") == 0
    remote.fail(OUTAGE)
    assert await granted(front, limited, 40, "b") == 10


async def test_a_snapshot_shows_the_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Of each quota: 32 are left in the minute, but 20 in the day, of which 5 are a quarter."""
    limited = pools.one(rpm=40, rpd=60)
    assert await granted(front, limited, 1, "a") == 1
    for n in range(31):
        await remote.reserve(f"early{n}", [limited], Demand(1, 1), 60.0)
    clock.shift(120.0)
    for n in range(8):
        await remote.reserve(f"late{n}", [limited], Demand(1, 1), 60.0)
    await front.snapshot([limited])
    remote.fail(OUTAGE)
    assert await granted(front, limited, 40, "b") == 5
    await front.aclose()


async def test_what_a_store_shows_that_has_lost_something_is_not_believed(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Others may not have told it yet what they took; what was seen before counts for a window."""
    limited = pools.one(rpm=40)
    for n in range(36):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 600.0)
    assert await granted(front, limited, 1, "a") == 1
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "b") == 0
    remote.fail(None)
    for n in range(36):
        await remote.release(f"other{n}")
    await recover(front, remote, clock, limited)
    await front.snapshot([limited])
    assert await granted(front, limited, 1, "c") == 0
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "d") == 0
    clock.shift(60.4)
    assert await granted(front, limited, 40, "e") == 10


async def test_the_grant_that_shows_a_loss_shows_no_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others had taken is not in it, nor in a snapshot: what was shown before counts."""
    limited, reset_at, reserve = pools.one(rpm=40), clock.time(), remote.reserve
    for n in range(36):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 600.0)
    assert await granted(front, limited, 1, "a") == 1

    async def loses(*args: Any) -> Decision:
        decision = await reserve(*args)
        decision.reset_at = reset_at
        return decision

    for n in range(36):
        await remote.release(f"other{n}")
    monkeypatch.setattr(remote, "reserve", loses)
    clock.shift(1.0)
    await front.snapshot([limited])
    assert await granted(front, limited, 1, "b") == 1
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "c") == 0


def test_rooms_are_forgotten(pools: Pools) -> None:
    """A day after they were shown, or a longer window; and where the clock was set back behind them."""
    for forgets_after, window, is_kept in [
        (90_001.0, 0.0, False),
        (90_001.0, 1e6, True),
        (-1.0, 60.0, False),
        (0.0, 60.0, True),
    ]:
        clock, limited = ManualClock(100.0), pools.one(rpm=1)
        rooms = Rooms(Times(clock))
        rooms.note_refusals([Refusal(limited, "rpm", 170.0, 170.0)], Demand())
        clock._now += forgets_after
        rooms.forget(window)
        assert (rooms.get(Metric.RPM, limited.model_scope) is not None) is is_kept

"""The machine's clock is set while the store is away or not to be trusted: a window stays a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, Metric, Quota, Refill
from llm_router.domain.cooldown import LearntLimit
from llm_router.stores import Decision
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, Remote, granted, recover, settle_down, used
else:
    from llm_router_tests_remote import OUTAGE, Remote, granted, recover, settle_down, used

DAY, HOUR = 86_400.0, 3_600.0
STEPS = [DAY, -HOUR, 61.0]
DRIFTS = [0.9, -0.9]


@pytest.mark.parametrize("step", [*STEPS, *DRIFTS])
@pytest.mark.parametrize("refill", [Refill.ROLLING, Refill.DAILY])
async def test_during_an_outage_no_window_is_shorter_or_longer(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, step: float, refill: Refill
) -> None:
    """A share of 20 is 5: it is not taken twice, and a minute's is back after a minute of real time."""
    metric = Metric.RPD if refill is Refill.DAILY else Metric.RPM
    limited = Deployment(pools.one().key, "m", quotas=(Quota(metric, 20, refill),))
    assert await granted(front, limited, 2, "a") == 2
    remote.fail(OUTAGE)
    assert await granted(front, limited, 2, "b") == 2
    clock.jump(step)
    assert await granted(front, limited, 9, "c") == 1
    clock.jump(-step)
    assert await granted(front, limited, 9, "d") == 0
    clock.jump(step)
    clock.shift(59.0)
    assert await granted(front, limited, 9, "e") == 0
    if refill is Refill.ROLLING:
        clock.shift(1.4)
        assert await granted(front, limited, 9, "f") == 5
    if refill is Refill.DAILY:
        clock.shift(DAY)
        assert await granted(front, limited, 9, "f") == 5


@pytest.mark.parametrize("step", [*STEPS, *DRIFTS])
@pytest.mark.parametrize("jumps", ["before the return", "during the return", "after the return"])
async def test_the_caution_after_an_outage_lasts_for_a_window(
    front: FailoverStore,
    remote: Remote,
    pools: Pools,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    jumps: str,
    step: float,
) -> None:
    """What was taken alone is told at its own age, and no more than the share is taken for a minute."""
    limited = pools.one(rpm=20)
    assert await granted(front, limited, 1, "a") == 1
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "b") == 1
    clock.shift(10.0)
    if jumps == "before the return":
        clock.jump(step)
    if jumps == "during the return":
        charge = remote.charge

        async def slowly(*args: Any) -> float:
            monkeypatch.undo()
            clock.jump(step)
            return await charge(*args)

        monkeypatch.setattr(remote, "charge", slowly)
    await recover(front, remote, clock, limited)
    if jumps == "after the return":
        clock.jump(step)
    assert await granted(front, limited, 20, "c") == 3
    clock.shift(50.0)
    assert await granted(front, limited, 20, "d") == 2
    clock.shift(9.0)
    assert await granted(front, limited, 20, "e") == 0
    clock.shift(1.4)
    assert await granted(front, limited, 20, "f") > 3


@pytest.mark.parametrize("step", [*STEPS, *DRIFTS])
async def test_what_was_taken_alone_is_told_at_its_own_age(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, step: float
) -> None:
    """By the clock of the store, which was set as well: it comes back a minute after it was taken."""
    limited = pools.one(rpm=20)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 5, "a") == 5
    clock.shift(30.0)
    clock.jump(step)
    await recover(front, remote, clock, limited)
    assert await used(remote, limited) == {"rpm": 5}
    clock.shift(29.0)
    assert await used(remote, limited) == {"rpm": 5}
    clock.shift(0.4)
    assert await used(remote, limited) == {"rpm": 0}


@pytest.mark.parametrize("step", [*STEPS, *DRIFTS])
async def test_a_loss_is_not_older_than_the_last_grant_before_it(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, step: float
) -> None:
    """Another process noticed it before the clock was set: there is caution for a window."""
    limited, reserve = pools.one(rpm=20), remote.reserve
    assert await granted(front, limited, 1, "a") == 1
    clock.shift(5.0)
    lost_at = clock.time()
    clock.jump(step)

    async def loses(*args: Any) -> Decision:
        decision = await reserve(*args)
        decision.reset_at = lost_at
        return decision

    remote.reserve = loses  # type: ignore[method-assign]
    assert await granted(front, limited, 20, "b") == 4
    clock.jump(-step)
    assert await granted(front, limited, 20, "c") == 0
    clock.jump(step)
    clock.shift(66.0)
    assert await granted(front, limited, 40, "d") > 5  # more than a share
    await settle_down()


@pytest.mark.parametrize("step", STEPS)
async def test_the_room_that_was_shown_is_not_forgotten(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, step: float
) -> None:
    """Others had taken the whole minute, or all but 8 of the day: of which a quarter is this process's."""
    minute, day = pools.one(rpm=20), pools.one(rpm=None, rpd=40)
    for n in range(20):
        await remote.reserve(f"minute{n}", [minute], Demand(1, 1), 60.0)
    for n in range(32):
        await remote.reserve(f"day{n}", [day], Demand(1, 1), 60.0)
    assert await granted(front, minute, 1, "a") == 0
    await front.snapshot([day])
    remote.fail(OUTAGE)
    clock.jump(step)
    assert await granted(front, minute, 9, "b") == 0
    assert await granted(front, day, 9, "c") == 2
    clock.shift(60.4)
    assert await granted(front, minute, 9, "d") == 5


@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_cooldown_of_an_outage_lasts_no_longer_where_the_clock_was_set_back(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, is_alone: bool
) -> None:
    """It ends as much earlier by the corrected clock, here and in the store; one for ever is for ever."""
    limited, ill = pools.one(rpm=20), pools.one(rpm=20)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "a") == 1
    await front.cool_down(Cooldown(ill.model_scope, float("inf"), "is disabled"))
    await front.cool_down(Cooldown(limited.model_scope, clock.time() + 20.0, "rests"))
    clock.jump(DAY)
    clock.jump(-DAY - HOUR)
    await front.cool_down(Cooldown(limited.model_scope, clock.time() + 30.0, "rests longer"))
    if not is_alone:
        await recover(front, remote, clock, limited)
    assert await granted(front, limited, 1, "b") == 0
    clock.shift(31.0)
    assert await granted(front, limited, 1, "c") == 1
    assert await granted(front, ill, 1, "d") == 0


async def test_a_limit_that_was_learnt_alone_rises_when_it_was_to(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """However the clock was set before the store was told of it."""
    limited = pools.one(rpm=40)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "a") == 1
    rises = LearntLimit(Metric.RPM, 8, raised=16, raise_after=100.0)
    await front.cool_down(Cooldown.learn(limited.model_scope, rises))
    clock.jump(-HOUR)
    clock.shift(39.0)
    await recover(front, remote, clock, limited)
    [snapshot] = await remote.snapshot([limited])
    learnt = snapshot.quotas[0].learnt
    assert learnt is not None
    assert learnt.raise_at - learnt.learnt_at == pytest.approx(60.0)

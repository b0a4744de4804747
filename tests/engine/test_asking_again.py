"""What lacks quota for long is asked for again: another process may have seen to it that it has some."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llm_router import Demand, Deployment, MemoryStore, Router
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.kinds import Metric
from llm_router.domain.limits import LearntLimit
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]


def day_and_other(pools: Pools) -> list[Deployment]:
    """Return a deployment of which a day is to be spent, and the next best one."""
    day = pools.one(key_id="day", rpm=None, priority=0)
    return [day, pools.one(key_id="other", rpm=10_000, priority=1)]


async def spend_a_day(router: Router, store: MemoryStore, deployment: Deployment) -> None:
    """Have a router meet that a day of one of two deployments is spent."""
    await store.cool_down(Cooldown.learn(deployment.model_scope, LearntLimit(Metric.RPD, 3)))
    assert [(await router.send("x")).key_id for _ in range(4)] == ["day"] * 3 + ["other"]


async def is_used_within(router: Router, clock: ManualClock, seconds: float) -> bool:
    """Send every five seconds; return whether the deployment whose day was spent is used again."""
    for _ in range(int(seconds / 5.0)):
        await clock.advance(5.0)
        if (await router.send("x")).key_id == "day":
            return True
    return False


async def test_what_was_avoided_for_a_while_is_asked_for_again_afterwards(
    make_router: MakeRouter, clock: ManualClock, pools: Pools
) -> None:
    """A request under way failed, so that this process avoided it just when all were to be asked again."""
    store, [day, other] = MemoryStore(clock=clock), day_and_other(pools)
    router, elsewhere = make_router([day, other], store=store), make_router([day], store=store)
    await spend_a_day(router, store, day)
    await clock.advance(50.0)
    pool = router.keys.pool
    pool.avoid(pool.states[day], clock.time() + 30.0, "no route")
    assert not await is_used_within(router, clock, 40.0)
    await elsewhere.keys.forget_limits("day")
    assert await is_used_within(router, clock, 150.0)


async def test_a_clock_that_is_set_back_delays_no_look_while_others_have_room(
    make_router: MakeRouter, clock: ManualClock, pools: Pools
) -> None:
    """By what it was set back, three hours."""
    store, [day, other] = MemoryStore(clock=clock), day_and_other(pools)
    router, elsewhere = make_router([day, other], store=store), make_router([day], store=store)
    await spend_a_day(router, store, day)
    clock.jump(-3 * 3600.0)
    await elsewhere.keys.forget_limits("day")
    assert await is_used_within(router, clock, 150.0)


async def test_an_explanation_looks_at_what_is_asked_for_again(
    make_router: MakeRouter, clock: ManualClock, pools: Pools
) -> None:
    """Of 300 keys whose day is spent, one has a higher limit by now, and is among those that have their turn.

    Another one with room was known all the time.
    """
    store = MemoryStore(clock=clock)
    days = [pools.one(key_id=f"k{number}", rpm=None, priority=0) for number in range(300)]
    for each in days:
        await store.cool_down(Cooldown.learn(each.model_scope, LearntLimit(Metric.RPD, 1)))
        await store.reserve(each.id, [each], Demand(1, 1), 60.0)
        await store.settle(each.id, Demand(1, 1))
    async with make_router([*days, pools.one(key_id="other", rpm=1000, priority=1)], store=store) as router:
        assert (await router.send("x")).key_id == "other"
        before = await router.explain("x")
        seen = {each.key_id for tier in before.tiers for each in tier.candidates}
        raised = next(each for each in days[:128] if each.key.key_id not in seen)
        await store.cool_down(Cooldown.learn(raised.model_scope, LearntLimit(Metric.RPD, 100)))
        await clock.advance(61.0)
        explanation = await router.explain("x")
        [taken] = (each for tier in explanation.tiers for each in tier.candidates if each.is_taken)
        assert taken.key_id == (await router.send("x")).key_id

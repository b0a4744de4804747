"""How requests that come all at once approach a limit that has not been reached yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from llm_router import MemoryStore, ProviderError, Router
from llm_router.engine.slow_start import PATIENCE
from llm_router.testing import FakeProvider, ManualClock
from llm_router.testing.clock import settle

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]
Sends = list[asyncio.Task[object]]


@pytest.fixture
def provider(clock: ManualClock) -> FakeProvider:
    """A provider that thinks for longer than a test lasts."""
    return FakeProvider(clock=clock, delay=300.0)


def at_once(router: Router, count: int, max_wait: float = 60.0, **options: float) -> Sends:
    return [
        asyncio.create_task(router.send(f"{n}", max_wait=max_wait, timeout=900.0, **options))  # type: ignore[arg-type]
        for n in range(count)
    ]


async def pass_time(clock: ManualClock, seconds: float) -> None:
    """Let time pass in small steps: who waits in line asks one after the other."""
    for _ in range(round(seconds / 0.05)):
        await clock.advance(0.05)


async def end(*sends: asyncio.Task[object]) -> None:
    for send in sends:
        send.cancel()
    await asyncio.gather(*sends, return_exceptions=True)


async def test_half_of_a_limit_goes_at_once_and_then_a_quarter_in_a_second(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """A model that thinks for minutes is no reason to wait for longer than a refusal would take."""
    async with make_router([pools.one(rpm=60)]) as router:
        sends = at_once(router, 60)
        await settle()
        assert len(provider.calls) == 31  # the answer to the last one said that less than half is left
        await pass_time(clock, 1.5 * PATIENCE)
        assert len(provider.calls) == 46
        await pass_time(clock, PATIENCE)
        assert len(provider.calls) == 60
        await end(*sends)


async def test_each_answer_lets_another_one_go(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    gates = [asyncio.Event() for _ in range(31)]
    provider.delay = 0.0
    provider.script(*gates)
    async with make_router([pools.one(rpm=60)]) as router:
        sends = at_once(router, 60)
        await settle()
        provider.delay = 300.0
        for answered, gate in enumerate(gates[:5], start=1):
            gate.set()
            await settle()
            assert len(provider.calls) == 31 + answered
        await end(*sends)


async def test_a_limit_that_is_too_high_costs_one_refusal(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Of a burst of 60 on a limit that is 33 in truth; without more ado it would be 27."""
    gates = [asyncio.Event() for _ in range(33)]
    provider.delay = 0.0
    provider.script(*gates, ProviderError("exhausted", kind="quota", code=429, charged=False))
    async with make_router([pools.one(rpm=60)]) as router:
        sends = at_once(router, 60)
        await settle()
        for gate in gates[:10]:
            gate.set()
            await settle()
        assert len(provider.calls) == 34
        await pass_time(clock, 10.0)
        assert len(provider.calls) == 34
        await end(*sends)


async def test_once_it_was_reached_a_limit_is_used_at_once(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    provider.delay = 0.1
    async with make_router([pools.one(rpm=20)]) as router:
        sends = at_once(router, 20, max_wait=0.0)
        await clock.advance(61.0)
        assert all(send.done() for send in sends)
        provider.delay = 300.0
        sends = at_once(router, 20)
        await settle()
        assert len(provider.calls) == 40
        await end(*sends)


@pytest.mark.parametrize("max_wait", [0.0, 0.9])
async def test_a_request_that_does_not_wait_is_not_held_up(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools, max_wait: float
) -> None:
    async with make_router([pools.one(rpm=60)]) as router:
        sends = at_once(router, 60, max_wait=max_wait)
        await settle()
        assert len(provider.calls) == 60
        await end(*sends)


async def test_low_limits_and_unlimited_ones_are_not_approached_slowly(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    async with make_router([pools.one(key_id="low", rpm=7), pools.one("model-b", rpm=None)]) as router:
        sends = at_once(router, 107)
        await settle()
        assert len(provider.calls) == 107
        await end(*sends)


async def test_another_key_takes_what_one_does_not(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    async with make_router([pools.one(rpm=20), pools.one(rpm=20)]) as router:
        sends = at_once(router, 40)
        await settle()
        assert len(provider.calls) == 22
        await end(*sends)


async def test_it_is_no_reason_for_a_worse_deployment(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Neither for a key that comes later, nor for another model, however many are looked at."""
    pool = [pools.one(rpm=20, priority=1), *(pools.one(rpm=20, priority=2) for _ in range(9))]
    pool += [pools.one("model-b", rpm=20, workload="light") for _ in range(9)]
    async with make_router(pool) as router:
        sends = at_once(router, 20, model="model-a")  # type: ignore[arg-type]
        await pass_time(clock, 3.0 * PATIENCE)
        assert [call.key_id for call in provider.calls] == [pool[0].key.key_id] * 20
        sends += at_once(router, 1, model="model-a")  # type: ignore[arg-type]
        await settle()
        assert provider.calls[-1].key_id != pool[0].key.key_id
        await end(*sends)


async def test_keys_of_one_project_approach_its_limit_together(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    pool = [pools.one(rpm=20, project="p"), pools.one(rpm=20, project="p")]
    async with make_router(pool) as router:
        sends = at_once(router, 20)
        await settle()
        assert len(provider.calls) == 11
        await end(*sends)


async def test_two_routers_on_one_store_approach_it_together(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Each has at most a quarter on its way once half is used, whichever of them has used it."""
    store, pool = MemoryStore(clock=clock), [pools.one(rpm=60)]
    async with make_router(pool, store=store) as one, make_router(pool, store=store) as other:
        sends = [send for _ in range(30) for router in (one, other) for send in at_once(router, 1)]
        await settle()
        assert len(provider.calls) <= 33
        await end(*sends)


async def test_the_clock_may_be_set_back_meanwhile(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Nothing is held up for longer than a second at a time."""
    async with make_router([pools.one(rpm=60)]) as router:
        sends = at_once(router, 46)
        await settle()
        clock.jump(-3_600.0)
        await pass_time(clock, 1.5 * PATIENCE)
        assert len(provider.calls) == 46
        await end(*sends)


async def test_urgent_requests_go_first_of_those_that_are_held_up(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    async with make_router([pools.one(rpm=20)]) as router:
        sends = at_once(router, 11)
        await settle()
        sends += [
            asyncio.create_task(router.send(urgency, max_wait=60.0, timeout=900.0, urgency=urgency))  # type: ignore[arg-type]
            for urgency in ["batch"] * 6 + ["interactive"] * 5
        ]
        await pass_time(clock, 1.5 * PATIENCE)
        told = [str(call.request.contents) for call in provider.calls[11:]]
        assert told.count("interactive") >= 4
        await end(*sends)

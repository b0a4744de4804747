"""The throttle, which bounds the calls per second."""

from __future__ import annotations

import asyncio

import pytest

from llm_router.engine.throttle import Throttle


@pytest.mark.parametrize(("per_second", "at_once"), [(3.0, 3), (1.0, 1), (0.5, 1)])
async def test_no_more_calls_at_once_than_a_second_allows(per_second, at_once):
    """As many calls as a second allows go out at once; the next one waits."""
    throttle = Throttle(per_second)
    calls = [asyncio.create_task(throttle.wait()) for _ in range(at_once + 2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert sum(call.done() for call in calls) == at_once
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_router_throttles_its_calls(make_router, provider, pools):
    """A throttled router sends no faster, however much quota there is, and loses nothing."""
    async with make_router([pools.one(rpm=None)], max_requests_per_second=4) as router:
        tasks = [asyncio.create_task(router.send("x")) for _ in range(9)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(provider.calls) == 4
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await router.health_check())["healthy"]


def test_a_throttle_serves_one_event_loop_after_another():
    """A limiter belongs to one event loop; a throttle does not."""
    throttle = Throttle(2.0)
    for _ in range(2):
        asyncio.run(throttle.wait())

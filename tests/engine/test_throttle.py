"""The throttle, which bounds the calls per second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import QuotaExhaustedError, Response, Router
from llm_router.engine.throttle import Throttle
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


@pytest.mark.parametrize(("per_second", "at_once"), [(3.0, 3), (1.0, 1), (0.5, 1)])
async def test_no_more_calls_at_once_than_a_second_allows(per_second: float, at_once: int) -> None:
    """As many calls as a second allows go out at once; the next one waits."""
    throttle = Throttle(per_second)
    calls = [asyncio.create_task(throttle.wait()) for _ in range(at_once + 2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert sum(call.done() for call in calls) == at_once
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_router_throttles_its_calls(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
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


def test_a_throttle_serves_one_event_loop_after_another() -> None:
    """A limiter belongs to one event loop; a throttle does not."""
    throttle = Throttle(2.0)
    for _ in range(2):
        asyncio.run(throttle.wait())


async def test_a_turn_that_comes_too_late_is_not_waited_for() -> None:
    """The answer is when it would have come, counting those that wait; and nothing was taken."""
    throttle = Throttle(0.2)
    assert await throttle.wait(0.0) == 0.0
    for _ in range(2):
        assert await throttle.wait(4.0) == pytest.approx(5.0, abs=0.5)
    first = asyncio.create_task(throttle.wait(6.0))
    await asyncio.sleep(0)
    assert await throttle.wait(9.0) == pytest.approx(10.0, abs=0.5)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await throttle.wait(4.0) == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({"max_wait": 0, "timeout": 1}, False),
        ({"max_wait": 2, "timeout": 2}, False),
        ({"max_wait": 0, "timeout": 6}, True),
        ({"max_wait": 6, "timeout": 1}, True),
        ({"timeout": None}, True),
        ({}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_send_is_told_at_once_when_its_turn_comes_too_late(
    make_router: Callable[..., Router],
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    options: Any,
    waits: bool,
    streamed: bool,
) -> None:
    """It waits for its turn within its max_wait and timeout, and not at all if that is too late."""

    async def send() -> Response:
        if not streamed:
            return await router.send("x", **options)
        async with router.stream("x", **options) as stream:
            return await stream.collect()

    async with make_router([pools.one(rpm=None)], max_requests_per_second=0.2) as router:
        assert (await router.send("x")).success
        task = asyncio.create_task(send())
        await clock.advance(0)
        assert task.done() is not waits
        assert len(provider.calls) == 1
        if waits:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            error = task.result().error
            assert isinstance(error, QuotaExhaustedError)
            assert "max_requests_per_second" in str(error)
            assert error.retry_after == pytest.approx(5.0, abs=0.5)

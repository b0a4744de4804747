"""The throttle, which bounds the calls per second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import QuotaExhaustedError, Response, Router, RouterClosedError
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


async def test_turns_come_in_order_and_at_the_rate(clock: ManualClock) -> None:
    """Those that wait are let through one by one, first come, first served; one that leaves makes room."""
    throttle = Throttle(2.0, clock)
    passed: list[int] = []

    async def call(number: int) -> None:
        assert await throttle.wait() == 0.0
        passed.append(number)

    calls = [asyncio.create_task(call(number)) for number in range(6)]
    await clock.advance(0)
    assert passed == [0, 1]
    await clock.advance(0.51)
    assert passed == [0, 1, 2]
    calls[3].cancel()
    await clock.advance(1.0)
    assert passed == [0, 1, 2, 4, 5]
    assert clock.pending == 0


@pytest.mark.parametrize("per_second", [0.1, 0.7, 1.0, 2.5, 30.0])
async def test_the_rate_is_kept_over_time(clock: ManualClock, per_second: float) -> None:
    """In any time there are no more calls than the rate allows beyond the first burst, and hardly fewer."""
    throttle = Throttle(per_second, clock)
    calls = [asyncio.create_task(throttle.wait()) for _ in range(100)]
    await clock.advance(20 / per_second)
    done = sum(call.done() for call in calls)
    assert 20 <= done <= 21 + max(per_second, 1.0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert clock.pending == 0


async def test_a_turn_that_comes_too_late_is_not_waited_for(clock: ManualClock) -> None:
    """The answer is when it would have come, counting those that wait; and nothing was taken."""
    throttle = Throttle(0.2, clock)
    assert await throttle.wait(0.0) == 0.0
    assert await throttle.wait(4.9) == pytest.approx(5)
    first = asyncio.create_task(throttle.wait(5.1))
    await clock.advance(1)
    assert await throttle.wait(8.9) == pytest.approx(9)
    await clock.advance(4.1)
    assert first.result() == 0.0


async def test_a_turn_that_came_to_a_cancelled_call_is_given_back(clock: ManualClock) -> None:
    """A call that is cancelled at the moment of its turn leaves it to the next."""
    throttle = Throttle(1.0, clock)
    await throttle.wait()
    call = asyncio.create_task(throttle.wait())
    await clock.advance(0)
    clock.shift(1.1)  # its turn has come, and its task has not run yet
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await throttle.wait(0.0) == 0.0


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
        await clock.advance(5.1)
        response = task.result()
        assert response.success is waits
        if not waits:
            assert isinstance(response.error, QuotaExhaustedError)
            assert "max_requests_per_second" in str(response.error)
            assert response.retry_after == pytest.approx(5)
        assert len(provider.calls) == 1 + waits


async def test_closing_ends_the_wait_for_a_turn(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """What waits for its turn when the router is closed is told so at once, and not sent."""
    router = make_router([pools.one(rpm=None)], max_requests_per_second=0.01)
    await router.send("x")
    task = asyncio.create_task(router.send("x", max_wait=1_000))
    await clock.advance(1)
    await router.aclose()
    with pytest.raises(RouterClosedError):
        await task
    assert len(provider.calls) == 1

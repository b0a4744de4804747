"""Limits of time on an injected clock."""

from __future__ import annotations

import asyncio
import math

import pytest

from llm_router.domain.clock import sleep
from llm_router.engine.timing import TimeLimit


async def _limited(clock, seconds, work):
    with TimeLimit(clock, seconds) as limit:
        await sleep(clock, work)
    return limit.expired


@pytest.mark.parametrize(
    ("seconds", "work", "expired"), [(5, 4.9, False), (5, 5.1, True), (math.inf, 900, False)]
)
async def test_a_limit_cuts_at_its_time(clock, seconds, work, expired):
    """What takes longer is cut short and told; what does not is left alone; no timer stays."""
    task = asyncio.create_task(_limited(clock, seconds, work))
    await clock.advance(1_000)
    assert task.result() is expired
    assert clock.pending == 0


async def test_a_limit_in_the_past_cuts_at_the_first_await(clock):
    """No time left means that the first suspension is the last."""
    task = asyncio.create_task(_limited(clock, -1.0, 10))
    await clock.advance(0)
    assert task.result() is True


async def test_a_cancellation_from_elsewhere_passes_through(clock):
    """Only the limit's own cancellation is swallowed."""
    task = asyncio.create_task(_limited(clock, 5, 10))
    await clock.advance(1)
    task.cancel()
    await clock.advance(0)
    assert task.cancelled()


async def test_both_at_once_is_a_cancellation(clock):
    """If the limit fires and the task is cancelled too, the caller's wish goes first."""
    task = asyncio.create_task(_limited(clock, 5, 10))
    await clock.advance(1)
    task.cancel()
    clock.shift(5)
    await clock.advance(0)
    assert task.cancelled()


async def test_limits_nest(clock):
    """The inner limit ends the inner block only."""

    async def nested():
        with TimeLimit(clock, 100) as outer:
            with TimeLimit(clock, 5) as inner:
                await sleep(clock, 10)
            await sleep(clock, 10)
        return inner.expired, outer.expired, asyncio.current_task().cancelling()

    task = asyncio.create_task(nested())
    await clock.advance(50)
    assert task.result() == (True, False, 0)


async def test_errors_of_the_block_pass_through(clock):
    """A limit swallows nothing but its own cancellation."""
    with pytest.raises(KeyError), TimeLimit(clock, 5):
        raise KeyError
    assert clock.pending == 0

"""Time limits on an injected clock."""

from __future__ import annotations

import asyncio
import math

import pytest

from llm_router.domain.clock import sleep
from llm_router.engine.timing import Deadlines
from llm_router.testing import ManualClock


async def _limited(
    clock: ManualClock, seconds: float, work: float, deadlines: Deadlines | None = None
) -> bool:
    with (deadlines or Deadlines(clock)).limit(seconds) as limit:
        await sleep(clock, work)
    return limit.expired


@pytest.mark.parametrize(
    ("seconds", "work", "expired"), [(5, 4.9, False), (5, 5.1, True), (math.inf, 900, False)]
)
async def test_a_limit_cuts_at_its_time(
    clock: ManualClock, seconds: float, work: float, expired: bool
) -> None:
    """Work that takes longer is cut short and reported; other work is left alone; no timer stays."""
    task = asyncio.create_task(_limited(clock, seconds, work))
    await clock.advance(1_000)
    assert task.result() is expired
    assert clock.pending == 0


async def test_a_limit_in_the_past_cuts_at_the_first_await(clock: ManualClock) -> None:
    """If no time is left, the first suspension is the last."""
    task = asyncio.create_task(_limited(clock, -1.0, 10))
    await clock.advance(0)
    assert task.result() is True


async def test_a_cancellation_from_elsewhere_passes_through(clock: ManualClock) -> None:
    """Only the limit's own cancellation is swallowed."""
    task = asyncio.create_task(_limited(clock, 5, 10))
    await clock.advance(1)
    task.cancel()
    await clock.advance(0)
    assert task.cancelled()


async def test_both_at_once_is_a_cancellation(clock: ManualClock) -> None:
    """If the limit expires and the task is cancelled too, the cancellation wins."""
    task = asyncio.create_task(_limited(clock, 5, 10))
    await clock.advance(1)
    task.cancel()
    clock.shift(5)
    await clock.advance(0)
    assert task.cancelled()


async def test_limits_nest(clock: ManualClock) -> None:
    """An inner limit ends the inner block only."""

    async def nested() -> tuple[bool, bool, int]:
        deadlines = Deadlines(clock)
        with deadlines.limit(100) as outer:
            with deadlines.limit(5) as inner:
                await sleep(clock, 10)
            await sleep(clock, 10)
        task = asyncio.current_task()
        assert task is not None
        return inner.expired, outer.expired, task.cancelling()

    task = asyncio.create_task(nested())
    await clock.advance(50)
    assert task.result() == (True, False, 0)


async def test_errors_of_the_block_pass_through(clock: ManualClock) -> None:
    """A limit swallows nothing but its own cancellation, and is no longer watched afterwards."""
    deadlines = Deadlines(clock)
    with pytest.raises(KeyError), deadlines.limit(5):
        raise KeyError
    await clock.advance(5)
    assert clock.pending == 0


@pytest.mark.slow
async def test_a_thousand_limits_share_a_timer(clock: ManualClock) -> None:
    """Each limit is kept, in whatever order they end; the timer goes when none needs it."""
    deadlines = Deadlines(clock)
    seconds = [((7 * n) % 1000 + 1) / 10 for n in range(1000)]
    tasks = [asyncio.create_task(_limited(clock, each, 50.05, deadlines)) for each in seconds]
    await clock.advance(0)
    assert clock.pending == len(tasks) + 1
    await clock.advance(50)
    assert [task.done() for task in tasks] == [each <= 50 for each in seconds]
    await clock.advance(1)
    assert [task.result() for task in tasks] == [each <= 50 for each in seconds]
    await clock.advance(50)
    assert clock.pending == 0


async def test_limits_that_were_left_are_forgotten(clock: ManualClock) -> None:
    """Limits that were left are dropped long before their end, and their tasks with them."""
    deadlines = Deadlines(clock)
    still_open = asyncio.create_task(_limited(clock, 3_600, 10_000, deadlines))
    await clock.advance(0)
    for _ in range(10_000):
        with deadlines.limit(600) as limit:
            pass
    assert len(deadlines._heap) < 200
    assert limit._task is None
    await clock.advance(3_600)
    assert still_open.result() is True


async def test_short_limits_do_not_wait_for_long_ones(clock: ManualClock) -> None:
    """A limit that ends before the timer fires resets it."""
    deadlines = Deadlines(clock)
    long = asyncio.create_task(_limited(clock, 60, 1_000, deadlines))
    await clock.advance(1)
    short = asyncio.create_task(_limited(clock, 2, 1_000, deadlines))
    await clock.advance(2)
    assert (short.done(), long.done()) == (True, False)
    await clock.advance(57)
    assert long.result() is True


class _SetBack(ManualClock):
    """A clock that can be set back; its timers run on, as those of an event loop do."""

    by = 0.0

    def time(self) -> float:
        return super().time() - self.by


async def test_a_clock_that_is_set_back_delays_a_limit_once() -> None:
    """A limit does not last an hour longer because the clock was set back by an hour."""
    clock = _SetBack()
    deadlines = Deadlines(clock)
    task = asyncio.create_task(_limited(clock, 5, 10_000, deadlines))
    await clock.advance(1)
    clock.by = 3600
    await clock.advance(4)
    assert not task.done()
    await clock.advance(5)
    assert task.result() is True


def test_deadlines_outlive_their_event_loop() -> None:
    """A limit whose event loop was closed is forgotten, and those of the next loop are kept."""
    clock = ManualClock()
    deadlines = Deadlines(clock)
    first = asyncio.new_event_loop()
    abandoned = first.create_task(_limited(clock, 5, 10, deadlines))
    first.run_until_complete(asyncio.sleep(0))
    first.close()
    abandoned._log_destroy_pending = False  # type: ignore[attr-defined] # it is meant to be pending

    async def again() -> bool:
        task = asyncio.create_task(_limited(clock, 5, 10, deadlines))
        await clock.advance(5)
        return task.result()

    assert asyncio.run(again()) is True

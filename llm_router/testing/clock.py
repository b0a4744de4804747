"""Clocks for tests and demonstrations: one that stands still and one that runs fast."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import TYPE_CHECKING

from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_router.domain.clock import Timer

__all__ = ["ManualClock", "ScaledClock"]


class _ManualTimer:
    """A call scheduled on a :class:`ManualClock`."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


class ManualClock:
    """A clock that moves only when a test moves it.

    Args:
        start: Its first time, in seconds since the Unix epoch.
    """

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start
        self._jumped = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def time(self) -> float:
        """Return the clock's time, in seconds since the Unix epoch."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds by which the clock was moved since some moment; jumps do not count."""
        return self._now - self._jumped

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` once the clock has moved ``delay`` seconds."""
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (self._now + delay, next(self._order), timer))
        return timer

    def shift(self, seconds: float) -> None:
        """Move the clock without running any task; due timers fire in order."""
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            due, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, due)
            timer.fire()
        self._now = max(self._now, until)

    def jump(self, seconds: float) -> None:
        """Set the clock forward or back, as a correction does; pending timers keep the time they had left."""
        self._now += seconds
        self._jumped += seconds
        self._timers = [(due + seconds, order, timer) for due, order, timer in self._timers]

    async def advance(self, seconds: float) -> None:
        """Move the clock; after each timer that fires, run all tasks until every one of them waits."""
        until = self._now + seconds
        await settle()
        while self._timers and self._timers[0][0] <= until:
            due, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, due)
            timer.fire()
            await settle()
        self._now = max(self._now, until)
        await settle()

    @property
    def pending(self) -> int:
        """The number of timers that have not fired or been cancelled."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    def __repr__(self) -> str:
        return f"ManualClock({self._now!r})"


async def settle() -> None:
    """Run all tasks until every one of them waits."""
    await checkpoint()
    await wait_all_tasks_blocked()


class ScaledClock:
    """The machine's clock, running ``speed`` times as fast from the moment it is made.

    With a speed of 30 a minute's quota comes back after two seconds, in the router and in the emulator, if
    both are given the same clock.
    """

    def __init__(self, speed: float) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be above 0, not {speed!r}")
        self.speed = speed
        self._started_at = time.time()
        self._started = time.monotonic()

    def time(self) -> float:
        """Return the clock's time, in seconds since the Unix epoch."""
        return self._started_at + (time.monotonic() - self._started) * self.speed

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop once ``delay`` of this clock's seconds have passed."""
        return asyncio.get_running_loop().call_later(delay / self.speed, callback)

    def __repr__(self) -> str:
        return f"ScaledClock(speed={self.speed!r})"

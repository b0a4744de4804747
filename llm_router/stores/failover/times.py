"""The time by which a process keeps its own books: corrections of the machine's clock do not move it."""

from __future__ import annotations

from collections.abc import Callable

from llm_router.domain.clock import Clock, Timer, monotonic

__all__ = ["STEP", "FrozenOffsetClock", "Times"]

STEP = 1.0
"""Seconds beyond which a clock was set, and does not merely drift."""


class Times:
    """The steady time of a clock, and how far the time of day is ahead of it.

    What this process took, when it was told something, and until when it is cautious are steady times:
    however the clock is set, a window is a window. The store, and what it says, goes by the time of day.

    Args:
        clock: The source of both. One without ``monotonic`` has one time only, which may go back.

    Attributes:
        now: Returns the steady time, in seconds since any moment.
        wall: Returns the time of day, in seconds since the Unix epoch.
    """

    def __init__(self, clock: Clock) -> None:
        self.now: Callable[[], float] = monotonic(clock)
        self.wall: Callable[[], float] = clock.time
        self._clock = clock

    def ahead(self) -> float:
        """Return what is to be added to a steady time to get the time of day, in seconds."""
        now = self.now()  # first: if this thread is held up now, what was taken comes back later, not earlier
        return self.wall() - now

    def steady(self, moment: float) -> float:
        """Return the steady time of a time of day."""
        return moment - self.ahead()

    def fixed(self) -> FrozenOffsetClock:
        """Return a clock that shows the time of day now, and stays as far ahead of the steady time."""
        return FrozenOffsetClock(self._clock, self.now, self.ahead())


class FrozenOffsetClock:
    """A clock that goes on steadily when the machine's clock is set.

    Args:
        clock: Wakes sleepers.
        now: Returns the steady time.
        ahead: What is added to it, in seconds.
    """

    def __init__(self, clock: Clock, now: Callable[[], float], ahead: float) -> None:
        self.ahead = ahead
        self.call_later: Callable[[float, Callable[[], object]], Timer] = clock.call_later
        self._now = now

    def time(self) -> float:
        """Return the time in seconds since the Unix epoch, as it was when this clock was made."""
        return self._now() + self.ahead

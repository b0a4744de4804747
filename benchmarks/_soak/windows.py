"""How a provider counts: exactly, by sliding windows and by days in Los Angeles."""

from __future__ import annotations

import math
from collections import deque
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

__all__ = ["MINUTE", "PacificDay", "SlidingWindow", "next_midnight"]

MINUTE = 60.0
_PACIFIC = ZoneInfo("America/Los_Angeles")


def next_midnight(now: float) -> float:
    """Return the first midnight in Los Angeles after ``now``, both in seconds since the epoch."""
    today = datetime.fromtimestamp(now, _PACIFIC).replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow = (today.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=_PACIFIC)
    return tomorrow.timestamp()


class SlidingWindow:
    """Amounts taken in the last ``length`` seconds: each counts until exactly that long after it was taken.

    The times of successive calls must not decrease.
    """

    def __init__(self, length: float = MINUTE) -> None:
        self._length = length
        self._taken: deque[tuple[float, int]] = deque()
        self._total = 0

    def used(self, now: float) -> int:
        """Return how much the window holds at ``now``."""
        taken = self._taken
        while taken and taken[0][0] + self._length <= now:
            self._total -= taken.popleft()[1]
        return self._total

    def take(self, now: float, amount: int) -> None:
        """Count ``amount``, whether or not there is room."""
        self._taken.append((now, amount))
        self._total += amount

    def free_at(self, now: float, limit: int, amount: int) -> float:
        """Return when ``amount`` fits under ``limit`` if nothing else is taken; infinity for never."""
        excess = self.used(now) + amount - limit
        if excess <= 0:
            return now
        for at, part in self._taken:
            excess -= part
            if excess <= 0:
                return at + self._length
        return math.inf


class PacificDay:
    """An amount taken since the last midnight in Los Angeles. Times must not decrease."""

    def __init__(self) -> None:
        self._ends = -math.inf
        self._total = 0

    def used(self, now: float) -> int:
        """Return how much was taken on the day of ``now``."""
        if now >= self._ends:
            self._ends, self._total = next_midnight(now), 0
        return self._total

    def take(self, now: float, amount: int) -> None:
        """Count ``amount``, whether or not there is room."""
        self.used(now)
        self._total += amount

    def free_at(self, now: float, limit: int, amount: int) -> float:
        """Return when ``amount`` fits under ``limit`` if nothing else is taken; infinity for never."""
        if self.used(now) + amount <= limit:
            return now
        return self._ends if amount <= limit else math.inf

"""A quota that comes back drop by drop."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_router.domain.calendar import NEVER, microseconds
from llm_router.domain.quota import Quota

__all__ = ["SteadyLedger"]

_EPSILON = 1e-6
"""Tokens by which a steady bucket may be overdrawn, so that rounding refuses nothing that fits."""


class SteadyLedger:
    """A small bucket that refills drop by drop.

    It holds a debt that drains at a constant rate. In any window the bucket gives at most its capacity and
    what drains meanwhile; the rate is chosen so that the whole parts of the two never exceed the limit.

    A mark is how much had ever been taken, the taking included. What was taken since then bounds what the
    debt is worth without it: part of the taking may have drained already and must not be given back twice.

    Dump: the debt (a float), the moment at which it was that, and how much was ever taken.
    """

    __slots__ = ("_at", "_debt", "_rate", "_total", "capacity", "limit")

    def __init__(self, quota: Quota, limit: int) -> None:
        self._debt = 0.0
        self._at = 0
        self._total = 0
        self.configure(quota, limit)

    def configure(self, quota: Quota, limit: int) -> None:
        """Go on under another limit or capacity, keeping the debt."""
        self.limit = limit
        self.capacity = min(quota.capacity, limit)
        # One more than limit - capacity: a window without the guard then still drains less than that.
        spread = limit - self.capacity + (1 if quota.guard > 0 else 0)
        self._rate = max(spread, 1) / microseconds(quota.window + quota.guard)

    @property
    def taken(self) -> int:
        """What was used when something was taken or corrected last."""
        return math.ceil(self._debt - _EPSILON)

    def _drained(self, now: int) -> float:
        return max(0.0, self._debt - (now - self._at) * self._rate) if now > self._at else self._debt

    def _drain(self, now: int) -> None:
        self._debt = self._drained(now)
        self._at = max(now, self._at)

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else the moment it will, or NEVER."""
        excess = self._drained(now) + amount - self.capacity
        if excess <= _EPSILON:
            return now
        if amount > self.capacity:
            return NEVER
        # Half of what is allowed for rounding, so that it is not refused again when the moment has come.
        return max(now, self._at) + math.ceil((excess - _EPSILON / 2) / self._rate)

    def take(self, amount: int, now: int) -> int:
        """Take ``amount`` and return its mark."""
        self._drain(now)
        self._debt += amount
        self._total += amount
        return self._total

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark``; what has drained since then is not given back again."""
        self._drain(now)
        if change > 0:
            self._debt += change
            self._total += change
        elif mark <= self._total:
            self._debt = max(self._debt + change, min(self._debt, self._total - mark))

    def used(self, now: int) -> int:
        """Return the debt, in whole requests or tokens, rounded up."""
        return math.ceil(self._drained(now) - _EPSILON)

    def resets_at(self, now: int) -> int:
        """Return when the bucket is full again."""
        debt = self._drained(now)
        return max(now, self._at) + math.ceil(debt / self._rate) if debt > 0.0 else now

    def dump(self) -> list[float]:
        """Return the debt, the moment of it and how much was ever taken."""
        return [self._debt, self._at, self._total]

    def load(self, state: Sequence[float]) -> None:
        """Take over the debt that another ledger dumped."""
        debt, at, total = state
        self._debt, self._at, self._total = float(debt), int(at), int(total)

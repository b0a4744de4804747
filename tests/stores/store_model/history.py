"""Everything ever taken from one quota, and what follows from it: the naive half of the store model."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Protocol
from zoneinfo import ZoneInfo

from llm_router.domain.quota import Quota, Refill

__all__ = ["History", "make_history", "micros"]

_LARGE = 240
"""Limits above which a store may return the takings of one slice together."""

_FUZZ = Fraction(1, 100_000)
"""Tokens by which the fractions of a steady quota may be off."""


def micros(seconds: float) -> int:
    """Convert seconds to whole microseconds."""
    return round(seconds * 1e6)


class History(Protocol):
    """Everything taken from one quota. Times are in microseconds; a range is what a store may answer."""

    def see(self, quota: Quota) -> None:
        """Note the terms that apply from now on."""

    def take(self, amount: int, now: int) -> int:
        """Record a taking and return its number."""
        ...

    def correct(self, taking: int, change: int, now: int) -> None:
        """Record a change to a taking."""

    def used_range(self, quota: Quota, limit: int, now: int) -> tuple[int, int]:
        """Return how much may be reported as used."""
        ...

    def may_fit(self, quota: Quota, limit: int, amount: int, now: int) -> bool:
        """Return whether a store may grant ``amount``."""
        ...

    def room_range(self, quota: Quota, limit: int, amount: int, now: int) -> tuple[float, float]:
        """Return when a store may say that ``amount`` fits."""
        ...

    def reset_range(self, quota: Quota, limit: int, now: int) -> tuple[float, float]:
        """Return when a store may say that everything is back."""
        ...

    def check_minute(self, quota: Quota, limit: int, now: int) -> None:
        """Raise AssertionError if the last minute holds more than the limit."""


class _Takings:
    """The takings from a quota: when each was made, and every change to it in the order of the calls."""

    def __init__(self) -> None:
        self.moments: list[int] = []
        self.changes: list[tuple[int, int, int]] = []
        self.overdrawn = False

    def see(self, quota: Quota) -> None:
        pass

    def take(self, amount: int, now: int) -> int:
        self.moments.append(now)
        self.changes.append((now, len(self.moments) - 1, amount))
        return len(self.moments) - 1

    def correct(self, taking: int, change: int, now: int) -> None:
        self.changes.append((now, taking, change))
        self.overdrawn = self.overdrawn or change > 0

    def amounts(self) -> list[tuple[int, int]]:
        """Return the time of each taking and what it amounts to after every change."""
        totals = [0] * len(self.moments)
        for _, taking, change in self.changes:
            totals[taking] += change
        return list(zip(self.moments, totals, strict=True))

    def check_minute(self, quota: Quota, limit: int, now: int) -> None:
        span = micros(quota.window)
        if quota.refill is Refill.STEADY:
            span -= span // 500_000  # what a millionth of a token, the least rounding, is worth
        total = sum(amount for moment, amount in self.amounts() if now - span < moment <= now)
        assert self.overdrawn or total <= max(limit, self._ever), (total, limit)

    _ever = 0


class _Rolling(_Takings):
    """Each taking counts for window plus guard, and up to a slice of the window longer for a large limit."""

    def __init__(self) -> None:
        super().__init__()
        self.slice = 0

    def see(self, quota: Quota) -> None:
        self._ever = max(self._ever, quota.limit)
        if quota.limit > _LARGE:
            self.slice = micros(quota.window) // _LARGE

    def _used(self, quota: Quota, now: int, longer: int = 0) -> int:
        span = micros(quota.window + quota.guard) + longer
        return sum(amount for moment, amount in self.amounts() if moment + span > now)

    def used_range(self, quota: Quota, limit: int, now: int) -> tuple[int, int]:
        return self._used(quota, now), self._used(quota, now, self.slice)

    def may_fit(self, quota: Quota, limit: int, amount: int, now: int) -> bool:
        return self._used(quota, now) + amount <= limit

    def room_range(self, quota: Quota, limit: int, amount: int, now: int) -> tuple[float, float]:
        if amount > limit:
            return math.inf, math.inf
        if self._used(quota, now, self.slice) + amount <= limit:
            return now, now
        span = micros(quota.window + quota.guard)
        moments = sorted(
            {now, *(m + span for m in self.moments), *(m + span + self.slice for m in self.moments)}
        )
        moments = [moment for moment in moments if moment >= now]
        first = next(at for at in moments if self._used(quota, at) + amount <= limit)
        last = next(at for at in moments if self._used(quota, at, self.slice) + amount <= limit)
        return first, last

    def reset_range(self, quota: Quota, limit: int, now: int) -> tuple[float, float]:
        span = micros(quota.window + quota.guard)
        ends = [moment + span for moment, amount in self.amounts() if amount]
        return max([now, *ends]), max([now, *(end + self.slice for end in ends if end + self.slice > now)])


class _Steady(_Takings):
    """A queue of takings that drains from its front, replayed from the beginning in exact fractions."""

    def see(self, quota: Quota) -> None:
        self._ever = max(self._ever, quota.limit)

    @staticmethod
    def _capacity(quota: Quota, limit: int) -> int:
        return min(quota.capacity, limit)

    def _rate(self, quota: Quota, limit: int) -> Fraction:
        drops = max(1, limit - self._capacity(quota, limit) + (1 if quota.guard else 0))
        return Fraction(drops, micros(quota.window + quota.guard))

    def _debt(self, quota: Quota, limit: int, now: int) -> Fraction:
        rate = self._rate(quota, limit)
        queue: list[tuple[int, Fraction]] = []  # the number of a taking, and what is left of it
        at = 0
        for moment, taking, change in self.changes:
            queue, at = _drained(queue, (moment - at) * rate), moment
            if change >= 0:
                queue.append((taking, Fraction(change)))
            else:  # what has drained of it is not given back
                queue = [
                    (number, max(Fraction(0), left + change) if number == taking else left)
                    for number, left in queue
                ]
        return sum((left for _, left in _drained(queue, (now - at) * rate)), Fraction(0))

    def used_range(self, quota: Quota, limit: int, now: int) -> tuple[int, int]:
        debt = self._debt(quota, limit, now)
        return max(0, math.ceil(debt - _FUZZ)), math.ceil(debt + _FUZZ)

    def may_fit(self, quota: Quota, limit: int, amount: int, now: int) -> bool:
        return self._debt(quota, limit, now) + amount <= self._capacity(quota, limit) + _FUZZ

    def room_range(self, quota: Quota, limit: int, amount: int, now: int) -> tuple[float, float]:
        if amount > self._capacity(quota, limit):
            return math.inf, math.inf
        excess = self._debt(quota, limit, now) + amount - self._capacity(quota, limit)
        rate = self._rate(quota, limit)
        first, last = ((excess - _FUZZ) / rate, (excess + _FUZZ) / rate)
        return max(now, now + math.floor(first)), now if excess <= 0 else now + math.ceil(last)

    def reset_range(self, quota: Quota, limit: int, now: int) -> tuple[float, float]:
        debt, rate = self._debt(quota, limit, now), self._rate(quota, limit)
        return max(now, now + math.floor((debt - _FUZZ) / rate)), now + math.ceil((debt + _FUZZ) / rate)


def _drained(queue: list[tuple[int, Fraction]], drains: Fraction) -> list[tuple[int, Fraction]]:
    """Return what is left of each taking after something has drained from the front of a queue."""
    rest = []
    for number, left in queue:
        drained = min(left, drains)
        drains -= drained
        if left > drained:
            rest.append((number, left - drained))
    return rest


class _Daily(_Takings):
    """Each taking counts on the day it was made and on the day it may have arrived."""

    def check_minute(self, quota: Quota, limit: int, now: int) -> None:
        pass

    def _used(self, quota: Quota, now: int) -> int:
        today = _day(quota, now)
        return sum(amount for moment, amount in self.amounts() if today in _days(quota, moment))

    def used_range(self, quota: Quota, limit: int, now: int) -> tuple[int, int]:
        return self._used(quota, now), self._used(quota, now)

    def may_fit(self, quota: Quota, limit: int, amount: int, now: int) -> bool:
        totals = dict.fromkeys([_day(quota, now), *_days(quota, now)], amount)
        for moment, taken in self.amounts():
            for day in _days(quota, moment):
                if day in totals:
                    totals[day] += taken
        return max(totals.values()) <= limit

    def room_range(self, quota: Quota, limit: int, amount: int, now: int) -> tuple[float, float]:
        if amount > limit:
            return math.inf, math.inf
        moment = now
        while not self.may_fit(quota, limit, amount, moment):
            moment = _midnight_after(quota, moment)
        return moment, moment

    def reset_range(self, quota: Quota, limit: int, now: int) -> tuple[float, float]:
        moment = now
        while self._used(quota, moment):
            moment = _midnight_after(quota, moment)
        return moment, moment


def _day(quota: Quota, moment: int) -> int:
    zone = ZoneInfo(quota.timezone)
    exact = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment)
    return exact.astimezone(zone).date().toordinal()


def _days(quota: Quota, moment: int) -> set[int]:
    return {_day(quota, moment), _day(quota, moment + micros(quota.guard))}


def _midnight_after(quota: Quota, moment: int) -> int:
    """Find the first microsecond of the next day by bisection, using nothing of the time zone but dates."""
    today = _day(quota, moment)
    low, high = moment, moment + 50 * 3_600_000_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _day(quota, middle) == today else (low, middle)
    return high


def make_history(quota: Quota) -> History:
    """Return an empty history for the way ``quota`` refills."""
    match quota.refill:
        case Refill.ROLLING:
            return _Rolling()
        case Refill.STEADY:
            return _Steady()
        case Refill.DAILY:
            return _Daily()

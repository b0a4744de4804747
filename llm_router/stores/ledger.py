"""The arithmetic of one quota: what is taken, what fits, and when it comes back.

Pure Python without I/O or locks, for stores that decide in Python. Times are whole microseconds since the
Unix epoch, so that every store, whatever its language, reckons alike; :data:`NEVER` stands for a moment that
does not come.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Protocol
from zoneinfo import ZoneInfo

from llm_router.domain.quota import Quota, Refill

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EXACT_LIMIT",
    "MOST_ENTRIES",
    "NEVER",
    "SLICES",
    "DailyLedger",
    "Ledger",
    "RollingLedger",
    "SteadyLedger",
    "make_ledger",
    "microseconds",
    "midnights",
    "seconds",
]

NEVER = 1 << 62
"""Later than every moment, in microseconds."""

EXACT_LIMIT = 240
"""Rolling quotas up to this limit keep every taking apart."""

SLICES = 240
"""Above it, takings within window/SLICES of each other come back together, when the last of them does."""

MOST_ENTRIES = 2 * SLICES
"""Entries above which those that were given back whole are swept out, lest many releases pile up."""

_NO_ENTRY = array("q", (-NEVER, 0, -NEVER))

_EPSILON = 1e-6
"""Tokens by which a steady bucket may be overdrawn, so that rounding refuses nothing that fits."""


def microseconds(moment: float) -> int:
    """Convert seconds since the epoch (possibly infinite) to the microseconds of a ledger."""
    return round(moment * 1e6) if -math.inf < moment < math.inf else (NEVER if moment > 0 else -NEVER)


def seconds(moment: int) -> float:
    """Convert a ledger's microseconds to seconds since the epoch; :data:`NEVER` becomes infinity."""
    return moment / 1e6 if moment < NEVER else math.inf


class Ledger(Protocol):
    """One quota's book. ``amount`` is in requests or tokens, ``now`` and every moment in microseconds.

    A taking is named by a *mark*, a plain integer that means the same to a ledger loaded elsewhere. The mark
    of an amount of 0, which takes nothing, is asked for by ``take(0, now)``: what was used may be more.
    """

    limit: int
    """Requests or tokens per window."""

    capacity: int
    """The most that can be taken at once: the limit, but for a steady ledger."""

    @property
    def taken(self) -> int:
        """What is used, told without work: exact right after a ``take``, later rather too much.

        So where ``taken + amount <= capacity``, the amount fits, and ``room_at`` need not be asked.
        """
        ...

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else the moment it will if nobody takes more, or NEVER."""
        ...

    def take(self, amount: int, now: int) -> int:
        """Take ``amount``, which fits, and return the mark by which it can be corrected."""
        ...

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark`` by ``change``, as if it had been taken so.

        Nothing ever falls below zero, and a mark that is of no consequence any more changes nothing.
        """
        ...

    def used(self, now: int) -> int:
        """Return what is taken and has not come back; more than the limit after a correction upwards."""
        ...

    def resets_at(self, now: int) -> int:
        """Return when all of it is back if nobody takes more; ``now`` when nothing is taken."""
        ...

    def configure(self, quota: Quota, limit: int) -> None:
        """Go on under other limits, keeping what is taken."""
        ...

    def dump(self) -> list[float]:
        """Return the state as plain numbers (integers but for a steady debt), for :meth:`load`."""
        ...

    def load(self, state: Sequence[float]) -> None:
        """Take over the state that a ledger of the same kind dumped.

        Raises:
            ValueError, OverflowError: The state makes no sense.
        """
        ...


class RollingLedger:
    """Every taking comes back one window (and the guard) after it was made.

    An entry is ``last, amount, first``: the moments of the last and first taking merged into one, and what
    they took together. Both moments rise strictly from entry to entry. There are never more than about
    :data:`MOST_ENTRIES` of them. A mark is a moment: the ``first`` of the entry that it was put into.

    The newest entry is kept in attributes: at a large limit it is all that most takings touch. The older ones
    lie flat in an array, 24 bytes each.

    Dump: ``last, amount, first`` of each entry in turn, oldest first.
    """

    __slots__ = (
        "_amount",
        "_first",
        "_idle_until",
        "_last",
        "_older",
        "_resolution",
        "_span",
        "capacity",
        "limit",
        "taken",
    )

    def __init__(self, quota: Quota, limit: int) -> None:
        self._older = array("q")
        self._last, self._amount, self._first = _NO_ENTRY
        self.taken = 0
        self.configure(quota, limit)

    def configure(self, quota: Quota, limit: int) -> None:
        """Go on under another limit or window, keeping what is taken."""
        self.limit = self.capacity = limit
        self._span = microseconds(quota.window + quota.guard)
        self._resolution = 0 if limit <= EXACT_LIMIT else microseconds(quota.window) // SLICES
        self._idle_until = -NEVER  # nothing comes back before then; it may be told too early

    def _expire(self, now: int) -> None:
        """Forget what has come back."""
        older, horizon, end = self._older, now - self._span, 0
        while end < len(older) and older[end] <= horizon:
            self.taken -= older[end + 1]
            end += 3
        if end:
            del older[:end]
        if older:
            self._idle_until = older[0] + self._span
        elif self._last > horizon:
            self._idle_until = self._last + self._span
        else:
            self.taken -= self._amount
            self._last, self._amount, self._first = _NO_ENTRY
            self._idle_until = NEVER

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else the moment it will, or NEVER."""
        if now >= self._idle_until:
            self._expire(now)
        excess = self.taken + amount - self.limit
        if excess <= 0:
            return now
        if amount > self.limit:
            return NEVER
        entries = self._entries()
        for last, taken in zip(entries[::3], entries[1::3], strict=True):
            excess -= taken
            if excess <= 0:
                return last + self._span
        raise AssertionError("the entries of a rolling ledger do not add up to what it says is used")

    def take(self, amount: int, now: int) -> int:
        """Take ``amount`` and return its mark."""
        if now >= self._idle_until:
            self._expire(now)
        if now < self._last:  # noqa: PLR1730 - a third of the time of max()
            now = self._last  # a clock set back must not bring anything back early
        first = self._first
        if now - first <= self._resolution:
            self._last = now
            self._amount += amount
            self.taken += amount
            return first
        if amount:
            self._begin(amount, now)
        return now

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark``, unless it has come back already."""
        if now >= self._idle_until:
            self._expire(now)
        if self._first <= mark <= self._last:
            change = max(change, -self._amount)
            self._amount += change
            self.taken += change
            return
        older = self._older
        end = 3 * bisect_right(older[2::3], mark)  # of the last entry that begins at the mark or before
        if end and mark <= older[end - 3]:
            change = max(change, -older[end - 2])
            older[end - 2] += change
            self.taken += change
        elif change > 0:  # the taking was one of 0, or was given back whole and swept out
            self._insert(mark, change, now)

    def _insert(self, mark: int, amount: int, now: int) -> None:
        """Put in a taking that has no entry, merging it where it would be by now."""
        entries = self._entries()
        end = 3 * bisect_right(entries[2::3], mark)
        if not end and mark <= now - self._span:
            return
        crowded = len(entries) > 3 * MOST_ENTRIES
        if end and (mark - entries[end - 1] <= self._resolution or crowded):
            entries[end - 3] = mark
            entries[end - 2] += amount
        else:
            entries[end:end] = array("q", (mark, amount, mark))
        self.taken += amount
        self._go_on(entries)

    def _entries(self) -> array[int]:
        """Return all entries, flat, oldest first."""
        newest = () if self._first == -NEVER else (self._last, self._amount, self._first)
        return self._older + array("q", newest)

    def _go_on(self, entries: array[int]) -> None:
        """Take over ``entries``."""
        self._last, self._amount, self._first = entries[-3:] or _NO_ENTRY
        self._older = entries[:-3]
        self._idle_until = -NEVER

    def _begin(self, amount: int, now: int) -> None:
        """Begin an entry, and sweep those that were given back whole if there are too many."""
        older = self._older
        if self._first == -NEVER:
            self._idle_until = now + self._span
        else:
            older.extend((self._last, self._amount, self._first))
        self._last, self._amount, self._first = now, amount, now
        self.taken += amount
        if len(older) >= 3 * MOST_ENTRIES:
            used = (older[start : start + 3] for start in range(0, len(older), 3) if older[start + 1])
            self._older = array("q", chain.from_iterable(used))

    def used(self, now: int) -> int:
        """Return what is taken and has not come back."""
        if now >= self._idle_until:
            self._expire(now)
        return self.taken

    def resets_at(self, now: int) -> int:
        """Return when all of it is back."""
        if now >= self._idle_until:
            self._expire(now)
        entries = self._entries()
        newest_first = zip(entries[-3::-3], entries[-2::-3], strict=True)
        return next((last + self._span for last, taken in newest_first if taken), now)

    def dump(self) -> list[float]:
        """Return the entries, flat, oldest first."""
        return [*self._entries()]

    def load(self, state: Sequence[float]) -> None:
        """Take over the entries that another ledger dumped."""
        if len(state) % 3:
            raise ValueError(f"{len(state)} numbers are no entries of three")
        self._go_on(array("q", map(int, state)))
        self.taken = sum(self._entries()[1::3])


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


class DailyLedger:
    """Everything comes back at midnight in the provider's time zone.

    What is taken within the guard before midnight may be counted by the provider on either side of it, and
    so counts here on both. A mark is the moment of the taking.

    Dump: what is taken today, how much of it counts tomorrow, and the midnights before and after.
    """

    __slots__ = ("_carry", "_ends", "_guard", "_starts", "_zone", "capacity", "limit", "taken")

    def __init__(self, quota: Quota, limit: int) -> None:
        self.taken = self._carry = 0
        self._starts = self._ends = 0
        self.configure(quota, limit)

    def configure(self, quota: Quota, limit: int) -> None:
        """Go on under another limit, keeping what is taken."""
        self.limit = self.capacity = limit
        self._guard = microseconds(quota.guard)
        self._zone = quota.timezone

    def _roll(self, now: int) -> None:
        if now < self._ends:
            return
        starts, ends, _ = midnights(now, self._zone)
        # Only what was taken right before *this* midnight can count on this side of it.
        self.taken = self._carry if starts == self._ends else 0
        self._carry = 0
        self._starts, self._ends = starts, ends

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else the moment it will, or NEVER."""
        if now >= self._ends:
            self._roll(now)
        if self.taken + amount <= self.limit and self._carry + amount <= self.limit:
            return now
        if amount > self.limit:
            return NEVER
        if self._carry + amount <= self.limit:
            return self._ends
        return midnights(self._ends, self._zone)[1]

    def take(self, amount: int, now: int) -> int:
        """Take ``amount`` and return its mark."""
        if now >= self._ends:
            self._roll(now)
        self.taken += amount
        if now >= self._ends - self._guard:
            self._carry += amount
        return now if now >= self._starts else self._starts  # noqa: FURB136 - a third of the time of max()

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark``, on each side of midnight that it counts on."""
        self._roll(now)
        if mark >= self._starts - self._guard:
            self.taken = max(0, self.taken + change)
        if mark >= self._ends - self._guard:
            self._carry = max(0, self._carry + change)

    def used(self, now: int) -> int:
        """Return what is taken today."""
        if now < self._ends:
            return self.taken
        return self._carry if midnights(now, self._zone)[0] == self._ends else 0

    def resets_at(self, now: int) -> int:
        """Return the midnight at which all of it is back; ``now`` when nothing is taken."""
        self._roll(now)
        if not self.taken:
            return now
        return midnights(self._ends, self._zone)[1] if self._carry else self._ends

    def dump(self) -> list[float]:
        """Return today's count, what of it counts tomorrow, and the midnights before and after."""
        return [self.taken, self._carry, self._starts, self._ends]

    def load(self, state: Sequence[float]) -> None:
        """Take over the count that another ledger dumped."""
        self.taken, self._carry, self._starts, self._ends = map(int, state)


def make_ledger(quota: Quota, limit: int | None = None) -> Ledger:
    """Open an empty book for ``quota``, under ``limit`` instead of its own where one is given."""
    limit = quota.limit if limit is None else limit
    match quota.refill:
        case Refill.ROLLING:
            return RollingLedger(quota, limit)
        case Refill.STEADY:
            return SteadyLedger(quota, limit)
        case Refill.DAILY:
            return DailyLedger(quota, limit)


def midnights(now: int, timezone: str) -> tuple[int, int, int]:
    """Return the midnight before (or at) ``now`` in ``timezone``, the next, and the one after that."""
    zone = ZoneInfo(timezone)
    today = datetime.fromtimestamp(now / 1e6, zone).date().toordinal()
    return _midnight(today, timezone), _midnight(today + 1, timezone), _midnight(today + 2, timezone)


@lru_cache(maxsize=64)
def _midnight(ordinal: int, timezone: str) -> int:
    # Local midnight by wall clock: a day has 23 or 25 hours when the clocks change.
    start = datetime.min.replace(tzinfo=ZoneInfo(timezone)) + timedelta(days=ordinal - 1)
    return microseconds(start.timestamp())

"""A quota of which each taking comes back by itself."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain

from llm_router.domain.calendar import NEVER, microseconds
from llm_router.domain.quota import Quota

__all__ = ["EXACT_LIMIT", "MOST_ENTRIES", "SLICES", "RollingLedger"]

EXACT_LIMIT = 240
"""Rolling quotas up to this limit keep every taking apart."""

SLICES = 240
"""Above it, takings within window/SLICES of each other come back together, when the last of them does."""

MOST_ENTRIES = 2 * SLICES
"""Entries above which those that were given back whole are swept out, lest many releases pile up."""

_NO_ENTRY = -NEVER, 0, -NEVER


class RollingLedger:
    """Every taking comes back one window (and the guard) after it was made.

    An entry is ``last, amount, first``: the moments of the last and first taking merged into one, and what
    they took together. Both moments rise strictly from entry to entry. There are never more than about
    :data:`MOST_ENTRIES` of them. A mark is a moment: the ``first`` of the entry that it was put into.

    The newest entry is kept in attributes: at a large limit it is all that most takings touch. The older ones
    lie flat in an array, 24 bytes each. They are doubles (exact for whole microseconds until the year 2255)
    because that is what a file holds: hundreds of entries are then written by copying memory.

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
        self._older = array("d")
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
            self.taken -= int(older[end + 1])
            end += 3
        if end:
            del older[:end]
        if older:
            self._idle_until = int(older[0]) + self._span
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
        older = self._older
        for start in range(0, len(older), 3):
            excess -= int(older[start + 1])
            if excess <= 0:
                return int(older[start]) + self._span
        if excess <= self._amount:
            return self._last + self._span
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
            change = max(change, -int(older[end - 2]))
            older[end - 2] += change
            self.taken += change
        elif change > 0:  # the taking was one of 0, or was given back whole and swept out
            self._insert(mark, change, now)

    def _insert(self, mark: int, amount: int, now: int) -> None:
        """Put in a taking that has no entry, merging it where it would be by now."""
        entries = self.dump()
        end = 3 * bisect_right(entries[2::3], mark)
        if not end and mark <= now - self._span:
            return
        crowded = len(entries) > 3 * MOST_ENTRIES
        if end and (mark - entries[end - 1] <= self._resolution or crowded):
            entries[end - 3] = mark
            entries[end - 2] += amount
        else:
            entries[end:end] = array("d", (mark, amount, mark))
        self.taken += amount
        self._go_on(entries)

    def _go_on(self, entries: array[float]) -> None:
        """Take over ``entries``."""
        self._last, self._amount, self._first = map(int, entries[-3:] or _NO_ENTRY)
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
            self._older = array("d", chain.from_iterable(used))

    def used(self, now: int) -> int:
        """Return what is taken and has not come back."""
        if now >= self._idle_until:
            self._expire(now)
        return self.taken

    def resets_at(self, now: int) -> int:
        """Return when all of it is back."""
        if now >= self._idle_until:
            self._expire(now)
        entries = self.dump()
        newest_first = zip(entries[-3::-3], entries[-2::-3], strict=True)
        return next((int(last) + self._span for last, taken in newest_first if taken), now)

    def dump(self) -> array[float]:
        """Return the entries, flat, oldest first."""
        newest = () if self._first == -NEVER else (self._last, self._amount, self._first)
        return self._older + array("d", newest)

    def load(self, state: Sequence[float]) -> None:
        """Take over the entries that another ledger dumped."""
        if len(state) % 3 or not math.isfinite(sum(state)):
            raise ValueError(f"these {len(state)} numbers are no entries of three")
        self._go_on(array("d", state))
        self.taken = int(sum(state[1::3]))

"""The three kinds of ledger, one for each way a quota refills: rolling, steady, daily."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import chain

from llm_router.domain.calendar import NEVER, microseconds, midnights
from llm_router.domain.quota import Quota
from llm_router.stores.ledger.base import Ledger

__all__ = ["EXACT_LIMIT", "MAX_ENTRIES", "SLICES", "DailyLedger", "RollingLedger", "SteadyLedger"]

EXACT_LIMIT = 240
"""Rolling quotas up to this limit keep every taking in an entry of its own."""

SLICES = 240
"""Above it, takings within window/SLICES of each other share an entry and come back with the last of them."""

MAX_ENTRIES = 2 * SLICES
"""Entries above which those given back completely are swept out, so that releases do not pile up; and the
most holes of a steady ledger."""

_NO_ENTRY = -NEVER, 0, -NEVER

_AHEAD = -1.0
"""The times in place of which a dump says by how much the ledger is ahead."""

_NEAR = 3600_000_000
"""Microseconds by which a clock may be set back over midnight without returning to the day before: which of
the two days it really is remains open, so that what is taken counts for the new one."""

_EPSILON = 1e-6
"""Tokens by which a steady bucket may be overdrawn, so that rounding refuses nothing that fits."""


class _Clock:
    """The time of a ledger, which goes on where it was when the machine's clock is set back.

    While the clock shows less than the ledger has seen, the ledger is *ahead* of it by a fixed time, so that
    nothing comes back early. If the clock then shows more than the ledger has seen, it was corrected, and the
    two agree again; or it only went on while nobody asked, which looks the same. So what was taken comes back
    within two windows of the first call, and within one if there is another call while the clock is behind,
    or if it was set back by more than a window.

    By how much it is ahead is part of what is dumped: of two processes that share a ledger, one would take
    for older than it is what the other, whose ledger agrees with the clock again, has taken since.
    """

    __slots__ = ("_ahead", "_seen", "moved", "successor")

    def __init__(self) -> None:
        self._ahead = 0
        self._seen = 0  # while it is ahead
        self.moved = False
        self.successor: Ledger | None = None

    def _follow(self, now: int, newest: int) -> int:
        """Return the time of a ledger that knows of something at ``newest`` when the clock shows ``now``."""
        seen = max(self._seen, newest) if self._ahead else newest
        self._ahead = max(self._ahead, seen - now) if now < seen else 0
        self._seen = now + self._ahead
        return self._seen


class RollingLedger(_Clock):
    """Every taking comes back one window plus the guard after it was made.

    An entry is ``last, amount, first``: the times of the last and the first taking merged into it, and what
    they took together. Both times increase strictly from entry to entry. There are never many more than
    :data:`MAX_ENTRIES` entries. A mark is a time: the ``first`` of the entry that the taking went into; for a
    taking of nothing, which goes into none, the time at which it was made.

    The newest entry is kept in attributes: at a large limit, most takings touch nothing else. The older ones
    lie flat in an array, 24 bytes each. They are doubles (exact for whole microseconds until the year 2255)
    because that is what a file holds: hundreds of entries are then written by copying memory.

    Dump: ``last, amount, first`` of each entry in turn, oldest first; before them, while it is ahead of the
    clock, -1, by how much, and -1: to earlier versions an entry that has come back.
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
        super().__init__()
        self.configure(quota, limit)

    def configure(self, quota: Quota, limit: int) -> None:
        """Continue under another limit or window, keeping what is taken."""
        self.limit = self.capacity = limit
        self._span = microseconds(quota.window + quota.guard)
        self._resolution = 0 if limit <= EXACT_LIMIT else microseconds(quota.window) // SLICES
        self._idle_until = -NEVER  # nothing comes back before then; may be too early

    def _expire(self, now: int) -> None:
        """Drop what has come back."""
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
            self.taken = 0
            self._last, self._amount, self._first = _NO_ENTRY
            self._idle_until = NEVER

    def _see(self, now: int) -> int:
        """Drop what has come back; return the ledger's time, ``now`` if the clock was not set back."""
        if self._ahead or now < self._last:
            now = self._follow(now, self._last)
        if now >= self._idle_until:
            self._expire(now)
        if self._ahead:
            if self._first == -NEVER:
                now, self._ahead = now - self._ahead, 0
            else:
                self._idle_until = -NEVER
        return now

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else when it will, or NEVER."""
        if now >= self._idle_until or now < self._last:
            now = self._see(now)
        excess = self.taken + amount - self.limit
        if excess <= 0:
            return now - self._ahead
        if amount > self.limit:
            return NEVER
        older = self._older
        for start in range(0, len(older), 3):
            excess -= int(older[start + 1])
            if excess <= 0:
                return int(older[start]) + self._span - self._ahead
        # Beyond 2**53, far above every limit, the amounts are rounded, and may not add up to what is taken.
        return self._last + self._span - self._ahead

    def take(self, amount: int, now: int) -> int:
        """Take ``amount`` and return its mark."""
        if now >= self._idle_until or now < self._last:
            now = self._see(now)
        if not amount:
            return now
        first = self._first
        if now - first <= self._resolution:
            self._last = now
            self._amount += amount
            self.taken += amount
            return first
        self._begin(amount, now)
        return now

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark``, unless it has come back already."""
        if now >= self._idle_until or now < self._last:
            now = self._see(now)
        self._change(mark, change, now)

    def charge(self, amount: int, at: int, now: int) -> None:
        """Count what was taken at ``at``, in the entry where it would be by now."""
        time = self._see(now) if now >= self._idle_until or now < self._last else now
        mark = min(at, now) + time - now
        if amount <= 0 or mark <= time - self._span:
            return
        if mark <= self._last or len(self._older) >= 3 * MAX_ENTRIES:
            self._change(mark, amount, time)
        elif mark - self._first <= self._resolution:  # the newest: those of one process come in order
            self._last = mark
            self._amount += amount
            self.taken += amount
        else:
            self._begin(amount, mark)

    def _change(self, mark: int, change: int, now: int) -> None:
        if self._first <= mark <= self._last:
            change = max(change, -self._amount)
            self._amount += change
            self.taken += change
            return
        older = self._older
        end = 3 * bisect_right(older[2::3], mark)  # end of the last entry that starts at or before the mark
        if end and mark <= older[end - 3]:
            change = max(change, -int(older[end - 2]))
            older[end - 2] += change
            self.taken += change
        elif change > 0:  # it took nothing, or was given back completely and swept out
            self._insert(mark, change, now)

    def _insert(self, mark: int, amount: int, now: int) -> None:
        """Insert a taking that has no entry, merging it into the entry where it would be by now."""
        entries = self._entries()
        end = 3 * bisect_right(entries[2::3], mark)
        if not end and mark <= now - self._span:
            return
        crowded = len(entries) >= 3 * MAX_ENTRIES
        if crowded:
            entries = _without_empty(entries)
            end = 3 * bisect_right(entries[2::3], mark)
            crowded = len(entries) >= 3 * MAX_ENTRIES
        if crowded and not end:  # it comes back with the first entry, later than it would alone
            entries[1] += amount
            entries[2] = mark
        elif end and (mark - entries[end - 1] <= self._resolution or crowded):
            entries[end - 3] = mark
            entries[end - 2] += amount
        else:
            entries[end:end] = array("d", (mark, amount, mark))
        self.taken += amount
        self._go_on(entries)

    def _go_on(self, entries: array[float]) -> None:
        """Replace the entries."""
        self._last, self._amount, self._first = map(int, entries[-3:] or _NO_ENTRY)
        self._older = entries[:-3]
        self._idle_until = -NEVER

    def _begin(self, amount: int, now: int) -> None:
        """Begin an entry, and sweep out those given back completely if there are too many."""
        older = self._older
        if self._first == -NEVER:
            self._idle_until = now + self._span
        else:
            older.extend((self._last, self._amount, self._first))
        self._last, self._amount, self._first = now, amount, now
        self.taken += amount
        if len(older) >= 3 * MAX_ENTRIES:
            self._older = _without_empty(older)

    def used(self, now: int) -> int:
        """Return what is taken and has not come back."""
        if now >= self._idle_until or now < self._last:
            now = self._see(now)
        return self.taken

    def resets_at(self, now: int) -> int:
        """Return when all of it is back."""
        if now >= self._idle_until or now < self._last:
            now = self._see(now)
        entries = self._entries()
        newest_first = zip(entries[-3::-3], entries[-2::-3], strict=True)
        resets_at = next((int(last) + self._span for last, taken in newest_first if taken), now)
        return resets_at - self._ahead

    def taken_since(self, _since: int, now: int) -> tuple[int, int]:
        """Return what may still count, and when the newest of it was taken."""
        return self.used(now), min(now, self._last)

    def dump(self) -> array[float]:
        """Return the entries, flat, oldest first, and by how much it is ahead of the clock."""
        ahead = array("d", (_AHEAD, self._ahead, _AHEAD)) if self._ahead else array("d")
        return ahead + self._entries()

    def _entries(self) -> array[float]:
        newest = () if self._first == -NEVER else (self._last, self._amount, self._first)
        return self._older + array("d", newest)

    def load(self, state: Sequence[float]) -> None:
        """Replace the entries with those that another ledger dumped."""
        if len(state) % 3 or not math.isfinite(sum(state)):
            raise ValueError(f"these {len(state)} numbers are not entries of three")
        self._ahead = self._seen = 0
        if len(state) and state[0] == _AHEAD:
            self._ahead, state = int(state[1]), state[3:]
        self._go_on(array("d", state))
        self.taken = int(sum(state[1::3]))


def _without_empty(entries: array[float]) -> array[float]:
    used = (entries[start : start + 3] for start in range(0, len(entries), 3) if entries[start + 1])
    return array("d", chain.from_iterable(used))


class SteadyLedger(_Clock):
    """A small bucket that refills at a constant rate.

    It holds a debt that drains at that rate. In any window the bucket grants at most its capacity plus what
    drains meanwhile; the rate is chosen so that the whole parts of the two never exceed the limit.

    Everything ever taken lies on a line from 0 to the total, and drains from its beginning. A taking ends at
    its mark, which is the total that it made. What is given back of it before it has drained is a *hole*: the
    debt is what lies above the point up to which the line has drained, less the holes above that point. So
    exactly what has not drained of a taking is given back, in whatever order, and never twice.

    Dump: the debt (a float), when it had that value, the total ever taken, and the start and the end of each
    hole, lowest first; before these, while it is ahead of the clock, twice by how much, below 0: to earlier
    versions a hole that has drained.
    """

    __slots__ = (
        "_at",
        "_debt",
        "_ends",
        "_point",
        "_rate",
        "_span",
        "_starts",
        "_total",
        "capacity",
        "limit",
    )

    def __init__(self, quota: Quota, limit: int) -> None:
        self._debt = 0.0
        self._at = 0
        self._total = 0
        self._starts: list[float] = []  # of the holes
        self._ends: list[float] = []
        self._point = 0.0  # up to which the line has drained, while there are holes
        super().__init__()
        self.configure(quota, limit)

    def configure(self, quota: Quota, limit: int) -> None:
        """Continue under another limit or capacity, keeping the debt."""
        self.limit = limit
        self.capacity = min(quota.capacity, limit)
        # One more than limit - capacity: a window without the guard still drains less than that.
        spread = limit - self.capacity + (1 if quota.guard > 0 else 0)
        self._span = microseconds(quota.window + quota.guard)
        self._rate = max(spread, 1) / self._span

    @property
    def taken(self) -> int:
        """What was used after the last taking or correction."""
        return math.ceil(self._debt - _EPSILON)

    def _drained(self, now: int) -> float:
        if self._ahead or now < self._at:
            now = self._follow(now, self._at)
        return max(0.0, self._debt - (now - self._at) * self._rate)

    def _drain(self, now: int) -> None:
        before = self._debt
        self._debt = self._drained(now)
        if not self._debt:
            self._ahead = 0
        self._at = now + self._ahead
        if self._starts:
            self._rise(before - self._debt)

    def _rise(self, amount: float) -> None:
        """Let an amount of the line drain, and drop the holes that it has passed."""
        point, passed = self._point + amount, 0
        for start, end in zip(self._starts, self._ends, strict=True):
            if start > point:
                break
            point += end - start
            passed += 1
        self._point = point
        self._drop(passed if self._debt else len(self._starts))

    def _drop(self, count: int) -> None:
        """Forget the lowest holes."""
        del self._starts[:count], self._ends[:count]

    def _give_back(self, low: float, high: float) -> None:
        """Make a hole from ``low``, or the point that has drained, to ``high``."""
        if not self._starts:
            self._point = self._total - self._debt
        low = max(low, self._point)
        if low >= high:
            return
        starts, ends, given = self._starts, self._ends, high - low
        first, after = bisect_left(ends, low), bisect_right(starts, high)
        for hole in range(first, after):
            given -= max(0.0, min(ends[hole], high) - max(starts[hole], low))
        if first < after:
            low, high = min(low, starts[first]), max(high, ends[after - 1])
        starts[first:after], ends[first:after] = [low], [high]
        self._debt = max(0.0, self._debt - given)
        if len(starts) > MAX_ENTRIES:  # as if the lowest one had drained: less of it is given back
            self._point += ends[0] - starts[0]
            self._drop(1)
        if not self._debt:
            self._drop(len(starts))

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else when it will, or NEVER."""
        excess = self._drained(now) + amount - self.capacity
        if excess <= _EPSILON:
            return now
        if amount > self.capacity:
            return NEVER
        # Only half of what is allowed for rounding, so that it is not refused again at that time.
        return now + math.ceil((excess - _EPSILON / 2) / self._rate)

    def take(self, amount: int, now: int) -> int:
        """Take ``amount`` and return its mark."""
        self._drain(now)
        self._debt += amount
        self._total += amount
        return self._total

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark``; what has drained since is not given back again."""
        self._drain(now)
        if change > 0:
            self._debt += change
            self._total += change
        elif mark <= self._total and (self._starts or mark > self._total - self._debt):
            self._give_back(mark + change, mark)

    def charge(self, amount: int, at: int, now: int) -> None:
        """Count what was taken at ``at`` as owed now: what would have drained since is not known."""
        if amount > 0 and at > now - self._span:
            self.take(amount, now)

    def used(self, now: int) -> int:
        """Return the debt, in whole requests or tokens, rounded up."""
        return math.ceil(self._drained(now) - _EPSILON)

    def resets_at(self, now: int) -> int:
        """Return when the bucket is full again."""
        debt = self._drained(now)
        return now + math.ceil(debt / self._rate) if debt > 0.0 else now

    def taken_since(self, since: int, now: int) -> tuple[int, int]:
        """Return the most that can have been taken since a time, and when the newest of it was taken."""
        at = min(now, self._at)
        if at <= since:
            return 0, at
        return math.ceil(min(self._total, self._debt + self._rate * (at - since)) - _EPSILON), at

    def dump(self) -> list[float]:
        """Return the debt, when it had that value, the total ever taken, and the holes."""
        ahead = [-float(self._ahead)] * 2 if self._ahead else []
        holes = zip(self._starts, self._ends, strict=True)
        return [self._debt, self._at, self._total, *ahead, *chain.from_iterable(holes)]

    def load(self, state: Sequence[float]) -> None:
        """Replace the debt with one that another ledger dumped."""
        debt, at, total, *holes = state
        self._debt, self._at, self._total = float(debt), int(at), int(total)
        self._ahead = self._seen = 0
        if holes and holes[0] < 0:
            self._ahead, holes = -int(holes[0]), holes[2:]
        self._starts, self._ends = holes[::2], holes[1::2]
        point, left = float(total), self._debt  # down the line until the debt is used up
        passed = len(holes) // 2
        for start, end in zip(reversed(self._starts), reversed(self._ends), strict=True):
            if point - end >= left:
                break
            point, left, passed = start, left - (point - end), passed - 1
        self._point = point - left
        self._drop(passed)


class DailyLedger:
    """Everything comes back at midnight in the provider's time zone.

    The provider may count what is taken within the guard before midnight on either side of it, so it counts
    on both sides here. A mark is the time of the taking.

    Dump: what is taken today, how much of it counts tomorrow, and the midnights before and after.
    """

    __slots__ = (
        "_carry",
        "_ends",
        "_guard",
        "_starts",
        "_zone",
        "capacity",
        "limit",
        "moved",
        "successor",
        "taken",
    )

    def __init__(self, quota: Quota, limit: int) -> None:
        self.moved = False
        self.successor: Ledger | None = None
        self.taken = self._carry = 0
        self._starts = self._ends = 0
        self.configure(quota, limit)

    def configure(self, quota: Quota, limit: int) -> None:
        """Continue under another limit, keeping what is taken."""
        self.limit = self.capacity = limit
        self._guard = microseconds(quota.guard)
        self._zone = quota.timezone

    def _roll(self, now: int) -> None:
        """Begin the day of ``now``, unless it is the present one."""
        if self._starts <= now < self._ends:
            return
        starts, ends, _ = midnights(now, self._zone)
        if now < self._starts:  # the clock was set back
            if self._starts - now <= _NEAR:
                return
            self._carry = self.taken if now >= ends - self._guard else 0
            self._starts, self._ends = starts, ends
            self.moved = True
            return
        # Only what was taken right before *this* midnight can count on this side of it.
        self.taken = self._carry if starts == self._ends else 0
        self._carry = 0
        self._starts, self._ends = starts, ends

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else when it will, or NEVER."""
        if not self._starts <= now < self._ends:
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
        if not self._starts <= now < self._ends:
            self._roll(now)
        self.taken += amount
        if now >= self._ends - self._guard:
            self._carry += amount
        return now if now >= self._starts else self._starts  # noqa: FURB136 - a third of the time of max()

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark``, on each side of midnight on which it counts."""
        self._roll(now)
        if mark >= self._ends:  # it was taken before the clock was set back, and counts today
            mark = self._starts
        if mark >= self._starts - self._guard:
            self.taken = max(0, self.taken + change)
        if mark >= self._ends - self._guard:
            self._carry = max(0, self._carry + change)

    def charge(self, amount: int, at: int, now: int) -> None:
        """Count what was taken at ``at``, if it was today, on each side of midnight on which it counts."""
        self._roll(now)
        # Where the clock was set back over midnight by a little, what counts now is of either day.
        starts = self._starts if self._starts <= now else midnights(now, self._zone)[0]
        if amount > 0 and at >= starts - self._guard:
            self.taken += amount
            if min(at, now) >= self._ends - self._guard:
                self._carry += amount

    def used(self, now: int) -> int:
        """Return what is taken today."""
        self._roll(now)
        return self.taken

    def resets_at(self, now: int) -> int:
        """Return the midnight at which all of it is back; ``now`` when nothing is taken."""
        self._roll(now)
        if not self.taken:
            return now
        return midnights(self._ends, self._zone)[1] if self._carry else self._ends

    def taken_since(self, _since: int, now: int) -> tuple[int, int]:
        """Return what is taken today, as if it had been taken now."""
        return self.used(now), now

    def dump(self) -> list[float]:
        """Return what is taken today, how much of it counts tomorrow, and the midnights before and after."""
        return [self.taken, self._carry, self._starts, self._ends]

    def load(self, state: Sequence[float]) -> None:
        """Replace the counts with those that another ledger dumped."""
        self.taken, self._carry, self._starts, self._ends = map(int, state)

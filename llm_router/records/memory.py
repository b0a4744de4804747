"""The record store of one process: everything is in dictionaries, and nothing survives it."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import attrs

from llm_router.domain.calendar import microseconds, seconds
from llm_router.domain.clock import Clock, SystemClock
from llm_router.records.base import Bounds, Record
from llm_router.records.entries import (
    BoundsOf,
    added,
    amounts_of,
    conflict,
    counts_in,
    limit_of,
    name_of,
    prefix_of,
    ttl_of,
    version_of,
)

__all__ = ["MemoryRecords"]


class MemoryRecords:
    """Keeps records in the memory of this process; see :class:`RecordStore`. Nothing in it ever waits.

    Args:
        bounds: The bounds of each space; those of :class:`Bounds` for others.
        clock: The source of time; the machine's clock by default.

    Raises:
        ConfigError: The bounds make no sense.
    """

    def __init__(self, *, bounds: Mapping[str, Bounds] | None = None, clock: Clock | None = None) -> None:
        self._bounds = BoundsOf(bounds)
        self._clock = clock or SystemClock()
        self._spaces: dict[str, _Space] = {}

    async def get(self, space: str, name: str) -> Record | None:
        """Return a record; see :class:`RecordStore`."""
        kept = self._space(self._bounds.records(space)).get(name_of(name), self._now())
        return None if kept is None else Record(kept.data, kept.version, seconds(kept.expires))

    async def put(self, space: str, name: str, data: bytes, *, ttl: float, version: int | None = None) -> int:
        """Keep a record; see :class:`RecordStore`."""
        there, now = self._space(self._bounds.records(space)), self._now()
        data = self._bounds.check_size(space, name_of(name), data)
        expected, lasts = version_of(version), ttl_of(ttl)
        kept = there.get(name, now)
        present = 0 if kept is None else kept.version
        if expected not in (None, present):
            raise conflict(space, expected or 0, present)
        return there.put(name, data, now, lasts)

    async def delete(self, space: str, name: str) -> None:
        """Forget a name; see :class:`RecordStore`."""
        for there in (self._bounds.records(space), self._bounds.counts(space)):
            self._space(there).forget(name_of(name))

    async def names(self, space: str, prefix: str = "", *, limit: int = 100) -> list[str]:
        """Return the names of records; see :class:`RecordStore`."""
        found = self._space(self._bounds.records(space)).find(prefix_of(prefix), limit_of(limit), self._now())
        return [name for name, _ in found]

    async def add(
        self, space: str, name: str, amounts: Mapping[str, int], *, ttl: float
    ) -> Mapping[str, int]:
        """Add to counts; see :class:`RecordStore`."""
        place, now = self._bounds.counts(space), self._now()
        there, amounts, lasts = self._space(place), amounts_of(amounts), ttl_of(ttl)
        kept = there.get(name_of(name), now)
        text = added(b"" if kept is None else kept.data, amounts)
        there.put(name, self._bounds.check_size(place, name, text), now, lasts)
        return counts_in(text)

    async def counts(
        self, space: str, prefix: str = "", *, limit: int = 10_000
    ) -> Mapping[str, Mapping[str, int]]:
        """Return counts; see :class:`RecordStore`."""
        found = self._space(self._bounds.counts(space)).find(prefix_of(prefix), limit_of(limit), self._now())
        return {name: counts_in(text) for name, text in found}

    async def aclose(self) -> None:
        """Do nothing: the records stay."""

    def _space(self, place: str) -> _Space:
        found = self._spaces.get(place)
        if found is None:
            found = self._spaces[place] = _Space(self._bounds.of(place))
        return found

    def _now(self) -> int:
        return microseconds(self._clock.time())

    def __repr__(self) -> str:
        return "MemoryRecords()"


@attrs.frozen
class _Kept:
    data: bytes
    version: int
    expires: int
    size: int


class _Space:
    """What one space holds. Times are in microseconds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one put longest ago first
        self._ends: list[tuple[int, int, str]] = []  # a heap: when, version, name; also of what was replaced
        self._size = 0
        self._version = 0

    def get(self, name: str, now: int) -> _Kept | None:
        kept = self._kept.get(name)
        return kept if kept is not None and kept.expires > now else None

    def put(self, name: str, data: bytes, now: int, lasts: int) -> int:
        self.forget(name)
        self._version = max(self._version + 1, now)
        kept = self._kept[name] = _Kept(data, self._version, now + lasts, len(data) + len(name.encode()))
        self._size += kept.size
        heapq.heappush(self._ends, (kept.expires, kept.version, name))
        self._tidy(now)
        return kept.version

    def forget(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self._size -= kept.size

    def find(self, prefix: str, limit: int, now: int) -> Iterator[tuple[str, bytes]]:
        for name, kept in reversed(self._kept.items()):
            if kept.expires > now and name.startswith(prefix):
                yield name, kept.data
                limit -= 1
                if not limit:
                    return

    def _tidy(self, now: int) -> None:
        """Forget what has expired, and what is too much; keep no more ends than twice the records."""
        while self._ends and self._ends[0][0] <= now:
            _, version, name = heapq.heappop(self._ends)
            kept = self._kept.get(name)
            if kept is not None and kept.version == version:
                self.forget(name)
        while len(self._kept) > self._bounds.records or self._size > self._bounds.size:
            self.forget(next(iter(self._kept)))
        if len(self._ends) > 2 * len(self._kept) + 64:
            self._ends = [(kept.expires, kept.version, name) for name, kept in self._kept.items()]
            heapq.heapify(self._ends)

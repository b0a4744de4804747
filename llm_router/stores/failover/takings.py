"""What this process took itself, as far as it still counts: the store may fail, or forget it.

Times are steady ones (see :class:`~llm_router.stores.failover.times.Times`), in seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, MutableMapping

import attrs

from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Demand
from llm_router.stores.base import Decision
from llm_router.stores.failover.records import Entry, Record, Told, excess, record_of
from llm_router.stores.failover.times import Times

__all__ = ["OpenReservation", "OwnTakings"]

_HEED_EVERY, _SWEEP_EVERY = 1.0, 60.0
_SET_BACK = 1.0
"""Seconds by which time may go back unnoticed."""

_NOTHING = Demand(0, 0)


@attrs.define(eq=False)  # made for every request, hence not frozen
class OpenReservation:
    """A reservation that is neither settled nor released yet.

    Attributes:
        record: Where it counts.
        entry: The entry that holds it.
        demand: What it took.
        made: When.
        expires: When it is forgotten.
        in_store: Whether the store made it.
        since: Which record of the store counted it; see :attr:`Record.since`.
        alone: The quotas of this process alone that hold it as well, or None.
    """

    record: Record
    entry: Entry
    demand: Demand
    made: float
    expires: float
    in_store: bool
    since: float
    alone: object | None


class OwnTakings:
    """The ledger of what this process took through a store, or while it did without.

    Args:
        known: Where to keep the beginning of each record of the store that counts something of this process;
            see :class:`~llm_router.stores.base.ExternalStore`.
        times: The source of time.

    Attributes:
        seen: The time of the last :meth:`heed`.
        due: When the next one is due, unless time goes back.
    """

    def __init__(self, known: MutableMapping[Scope, float], times: Times) -> None:
        self.known = known
        self._times = times
        self._records: dict[Scope, Record] = {}
        self._open: dict[str, OpenReservation] = {}
        self.seen = self.due = 0.0
        self._ends: list[tuple[float, Scope]] = []
        self._swept_at = 0.0

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._records.values()))

    @property
    def longest_window(self) -> float:
        """Seconds of the longest window of what was taken, with the guard."""
        return max((record.window for record in self._records.values()), default=0.0)

    def get(self, scope: Scope) -> Record | None:
        """Return the record of a model's scope, if anything was taken there."""
        return self._records.get(scope)

    def heed(self, now: float) -> None:
        """Forget what has come back by now."""
        if now < self.seen - _SET_BACK:
            self._set_back(now)
        self.seen, self.due = now, now + _HEED_EVERY
        ends = self._ends
        while ends and ends[0][0] <= now:
            _, scope = heapq.heappop(ends)
            record = self._records[scope]
            live_until = record.live_until()
            if live_until > now:
                heapq.heappush(ends, (live_until, scope))
                continue
            record.is_watched = False
            self.known.pop(scope, None)
            record.prune(now)
            if not record.entries:
                del self._records[scope]
        if not self._swept_at <= now < self._swept_at + _SWEEP_EVERY:
            self._swept_at = now
            for key in [key for key, made in self._open.items() if made.expires <= now]:
                del self._open[key]
        if ends:
            self.due = min(self.due, ends[0][0])

    def note_grant(
        self,
        reservation_id: str,
        decision: Decision,
        demand: Demand,
        ttl: float,
        now: float,
        *,
        in_store: bool,
        shows_room: bool = True,
        alone: object | None = None,
    ) -> None:
        """Note that a reserve was granted, by the store or without it.

        Args:
            reservation_id: Its id.
            decision: The grant.
            demand: What it took.
            ttl: Seconds after which it expires.
            now: When it was made.
            in_store: Whether the store made it.
            shows_room: Whether the store can be trusted to know what others took.
            alone: The quotas of this process alone that hold it as well, or None.
        """
        deployment = decision.deployment
        assert deployment is not None  # noqa: S101 - a grant names it
        scope = deployment.model_scope
        record = self._records.get(scope)
        if record is None:
            record = self._records[scope] = record_of(deployment, self._times)
        entry = record.add(demand, now, counted=in_store)
        if in_store:
            if shows_room:
                record.headroom, record.daily_headroom = decision.headroom, decision.daily_headroom
                record.told_at = now
            if decision.since != record.since or scope not in self.known:
                self.counted_in(record, decision.since)
        made = OpenReservation(record, entry, demand, now, now + ttl, in_store, record.since, alone)
        self._open[reservation_id] = made
        if not record.is_watched:
            record.is_watched = True
            heapq.heappush(self._ends, (record.live_until(), scope))

    def counted_in(self, record: Record, since: float) -> None:
        """Note which record of the store counts what this one holds."""
        record.since = since
        if since and record.deployment.quotas:  # without quotas the store need not keep the record
            self.known[record.deployment.model_scope] = since

    def close(self, reservation_id: str, used: Demand) -> OpenReservation | None:
        """Note what a reservation really used; return the reservation, or None if it is not known.

        What it used more than the store was told of is kept as missing where the store counted it already.
        """
        made = self._open.pop(reservation_id, None)
        if made is None:
            return None
        requests, tokens = used.requests - made.demand.requests, used.tokens - made.demand.tokens
        if requests == 0 and tokens == 0:
            return made
        record = made.record
        if made.entry.counted and (not made.in_store or made.since != record.since):
            more = excess(used, made.demand)  # it was charged at its estimate while it was under way
            if more != _NOTHING:
                record.add_missing(more, made.made, max(self.seen, made.made))
        else:
            made.entry.change(requests, tokens)
            if requests < 0 and not record.holds_something():  # the store may have dropped the record
                self.known.pop(record.deployment.model_scope, None)
        return made

    @property
    def open_reservations(self) -> int:
        """How many reservations are neither settled nor released."""
        return len(self._open)

    def split(self, record: Record, now: float) -> tuple[Told, Told]:
        """Return the entries that the store has not counted, and those that it has; seal the last one."""
        record.prune(now)
        record.newest = None
        entries = record.held()
        return (
            tuple(each for each in entries if not each[0].counted),
            tuple(each for each in entries if each[0].counted),
        )

    def _set_back(self, now: float) -> None:
        self._ends.clear()
        for scope, record in self._records.items():
            record.clamp(now)
            record.is_watched = True
            self._ends.append((record.live_until(), scope))
        heapq.heapify(self._ends)
        for made in self._open.values():
            if made.made > now:
                made.expires += now - made.made
                made.made = now

"""What was taken from one model, and when, as far as it still counts.

Times are steady ones (see :class:`~llm_router.stores.failover.times.Times`), in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import attrs

from llm_router.domain.calendar import microseconds, midnights, seconds
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import MINUTE, Demand, Refill
from llm_router.stores.base import Taking
from llm_router.stores.failover.times import Times

__all__ = ["Charge", "Entry", "Record", "Told", "cautious_for", "excess", "record_of", "takings"]

_SLICES = 240
"""Parts of a window; takings in the same part share an entry."""

_MAX_ENTRIES = 480
"""Entries of one record, beyond which older ones are joined."""

_SHARE_OF_WINDOW = 0.99
"""How much of a window a record is looked for in the store after a taking: there it lives for a little longer
than the window."""

_NOTHING = Demand(0, 0)


@attrs.define(eq=False)
class Entry:
    """Takings that lie close together; they count from the last one.

    Attributes:
        began: When the first was made.
        at: When the last was made.
        requests: The requests of all of them.
        tokens: The tokens of all of them.
        counted: Whether the store counted them.
        joined: The entry that holds them now, if it is another one.
    """

    began: float
    at: float
    requests: int
    tokens: int
    counted: bool
    joined: Entry | None = None

    def change(self, requests: int, tokens: int) -> None:
        """Change the amounts, wherever they are now; never below 0."""
        entry = self
        while entry.joined is not None:
            entry = entry.joined
        entry.requests = max(entry.requests + requests, 0)
        entry.tokens = max(entry.tokens + tokens, 0)


Told = tuple[tuple[Entry, Demand], ...]
"""Entries, and what each held when the store was told of it."""


@attrs.frozen
class Charge:
    """What the store is to count, or was asked to count without an answer.

    Attributes:
        sequence: Its number, by which the store recognises it.
        missing: What it was never told of, and as what it was told.
        counted: What it counted once.
        since: In which of its records.
    """

    sequence: int
    missing: Told
    counted: Told
    since: float


@attrs.define(eq=False)
class Record:
    """What was taken from one (provider, project, model).

    Attributes:
        deployment: One of its deployments.
        times: The source of time: days go by the time of day.
        window: Seconds of its longest rolling or steady window, with the guard; at least a minute.
        zones: The time zones of its daily quotas.
        since: When the record of the store began that counted the entries; 0 if none did.
        headroom: What the last grant of the store said of the quotas of a window; see :class:`Decision`.
        daily_headroom: What it said of the daily ones.
        told_at: When it said so.
        entries: The takings, oldest first.
        newest: The last entry, while it may grow.
        charge: What is being charged, or was without an answer.
        is_watched: Whether its end is watched for.
    """

    deployment: Deployment
    times: Times
    window: float
    zones: frozenset[str]
    since: float = 0.0
    headroom: float = 1.0
    daily_headroom: float = 1.0
    told_at: float = -math.inf
    entries: deque[Entry] = attrs.field(factory=deque)
    newest: Entry | None = None
    charge: Charge | None = None
    is_watched: bool = False
    _slice: float = attrs.field(init=False)
    # The latest start of today in the zones, and the earliest end, in seconds since the epoch.
    _day: tuple[float, float] = (0.0, 0.0)

    def __attrs_post_init__(self) -> None:
        self._slice = self.window / _SLICES

    def add(self, demand: Demand, now: float, *, counted: bool) -> Entry:
        """Note what was taken now; return the entry that holds it."""
        entry = self.newest
        if entry is None or entry.counted is not counted or now - entry.began > self._slice:
            entry = self._append(Entry(now, now, 0, 0, counted), now)
        entry.at = now
        entry.requests += demand.requests
        entry.tokens += demand.tokens
        return entry

    def add_missing(self, demand: Demand, at: float, now: float) -> None:
        """Note what the store was not told of a taking."""
        self._append(Entry(at, at, demand.requests, demand.tokens, counted=False), now)

    def tell_rest(self, entry: Entry, told: Demand, now: float) -> None:
        """Note as missing by how much an entry has grown since the store was told of it."""
        more = excess(Demand(entry.requests, entry.tokens), told)
        if more != _NOTHING:
            entry.requests, entry.tokens = entry.requests - more.requests, entry.tokens - more.tokens
            self.add_missing(more, entry.at, now)

    def live_until(self) -> float:
        """Return when the last taking has come back, or a little earlier."""
        if not self.entries:
            return -math.inf
        at = max(entry.at for entry in self.entries)
        until = at + self.window * _SHARE_OF_WINDOW
        return max(until, self._today(at)[1] - 1.0) if self.zones else until

    def holds_something(self) -> bool:
        """Return whether anything was taken that was not given back."""
        return any(entry.requests or entry.tokens for entry in self.entries)

    def held(self) -> list[tuple[Entry, Demand]]:
        """Return the entries that hold something, oldest first, with what they hold now."""
        entries = ((each, Demand(each.requests, each.tokens)) for each in self.entries)
        return [(entry, held) for entry, held in entries if held != _NOTHING]

    def is_missing(self) -> bool:
        """Return whether there is something that the store has not counted."""
        return any(not entry.counted and (entry.requests or entry.tokens) for entry in self.entries)

    def prune(self, now: float) -> None:
        """Forget what has come back."""
        since = now - self.window
        if self.zones:
            # Within the guard after midnight what was taken just before it still counts.
            since = min(since, self._today(now)[0] - self.window)
        while self.entries and self.entries[0].at <= since:
            self.entries.popleft()

    def clamp(self, now: float) -> None:
        """Let nothing lie in the future: the clock was set back."""
        for entry in self.entries:
            entry.began, entry.at = min(entry.began, now), min(entry.at, now)
        self.told_at = min(self.told_at, now)
        self._day = (0.0, 0.0)

    def _append(self, entry: Entry, now: float) -> Entry:
        self.newest = entry
        self.prune(now)
        if len(self.entries) >= _MAX_ENTRIES and self.charge is None:
            self._join()
        self.entries.append(entry)
        return entry

    def _join(self) -> None:
        """Join neighbours in the older half."""
        joined: deque[Entry] = deque()
        for number, entry in enumerate(self.entries):
            last = joined[-1] if joined else None
            if (
                last is None
                or number % 2 == 0
                or number > _MAX_ENTRIES / 2
                or last.counted is not entry.counted
            ):
                joined.append(entry)
            else:
                entry.began, last.joined = last.began, entry
                entry.requests += last.requests
                entry.tokens += last.tokens
                joined[-1] = entry
        self.entries = joined

    def _today(self, at: float) -> tuple[float, float]:
        """Return when the day of a time began, and when it ends, as the clock shows the days now."""
        ahead = self.times.ahead()
        moment = at + ahead
        if not self._day[0] <= moment < self._day[1]:
            days = [midnights(microseconds(moment), zone) for zone in self.zones]
            self._day = max(seconds(day[0]) for day in days), min(seconds(day[1]) for day in days)
        return self._day[0] - ahead, self._day[1] - ahead


def excess(used: Demand, told: Demand) -> Demand:
    """Return by how much one demand is larger than another, at least 0 of each."""
    return Demand(max(used.requests - told.requests, 0), max(used.tokens - told.tokens, 0))


def takings(entries: Iterable[tuple[Entry, Demand]], ahead: float) -> list[Taking]:
    """Return entries as a store takes them, whose clock is so many seconds ahead of the steady time."""
    return [Taking(entry.at + ahead, used) for entry, used in entries]


def _longest_window(deployment: Deployment) -> float:
    """Return the seconds of the longest window of a deployment, with the guard; 0 without one."""
    return max(
        (quota.window + quota.guard for quota in deployment.quotas if quota.refill is not Refill.DAILY),
        default=0.0,
    )


def cautious_for(deployment: Deployment) -> float:
    """Return for how many seconds others may not have told yet what they took of a deployment."""
    return _longest_window(deployment) or MINUTE


def record_of(deployment: Deployment, times: Times) -> Record:
    """Return an empty record of the model of a deployment."""
    zones = {quota.timezone for quota in deployment.quotas if quota.refill is Refill.DAILY}
    return Record(deployment, times, max(_longest_window(deployment), MINUTE), frozenset(zones))

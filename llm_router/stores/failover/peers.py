"""The processes that share a store: this one's name, how many there are, and which share each has."""

from __future__ import annotations

import logging
import math
import os
import secrets
from typing import Literal
from zlib import crc32

import attrs

from llm_router.domain.clock import Clock, monotonic
from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Quota, Refill
from llm_router.stores.base import ExternalStore, Ranking, RateLimitStore, Standing

__all__ = ["LocalShare", "Part", "Peers"]

_log = logging.getLogger("llm_router")

LocalShare = float | Literal["auto"]
"""The share of every quota that a process takes alone: above 0 and at most 1, or ``"auto"``."""

_FIRST_ANNOUNCEMENT, _LAST_ANNOUNCEMENT = 1.0, 10.0

_COUNTS_FOR = 60.0
"""Seconds for which a count is believed: as long as a process counts after its announcement."""


@attrs.frozen
class Part:
    """What this process may take of every quota alone.

    Attributes:
        share: Its share, above 0 and at most 1.
        standing: Its place among the processes that divide every quota, or None if each takes a fixed share.
    """

    share: float
    standing: Standing | None = None

    def of(self, quota: Quota, scope: Scope) -> Quota:
        """Return its part of a quota of a model's scope.

        What is divided is divided into whole requests or tokens, so that the parts of all are the whole. If
        there are fewer than processes, the ranks decide who has one: for each scope in another way.
        """
        if self.standing is None:
            return _cut(quota, self.share)
        steady = quota.refill is Refill.STEADY
        whole = quota.capacity if steady else quota.limit
        among = min(self.standing.count, max(whole, 1))
        limit = _whole_part(quota.limit, among, self.standing, scope)
        capacity = _whole_part(whole, among, self.standing, scope)
        burst = max(1, min(limit, capacity)) if steady else None
        return attrs.evolve(quota, limit=limit, burst=burst)


def _whole_part(amount: int, among: int, standing: Standing, scope: Scope) -> int:
    """Return the part of an amount that is divided among the first so many processes."""
    whole, rest = divmod(amount, among)
    if standing.rank is None:
        return whole if among == standing.count else 0
    place = (standing.rank + crc32(scope.encode())) % standing.count
    return whole + (place < rest) if place < among else 0


def _cut(quota: Quota, share: float) -> Quota:
    """Return a share of a quota; less than one request per window becomes one in a longer window."""
    limit = quota.limit * share
    if limit >= 1 or quota.limit == 0:
        whole = int(limit)
        burst = None if quota.burst is None else max(1, min(whole, int(quota.burst * share)))
        return attrs.evolve(quota, limit=whole, burst=burst)
    stretched = quota.window if quota.refill is Refill.DAILY else quota.window / limit
    return attrs.evolve(quota, limit=1, window=stretched, burst=None)


class Peers:
    """The processes of a store, this one among them, as the store counts them.

    Times are steady ones, in seconds (see :class:`~llm_router.stores.failover.times.Times`).

    Args:
        store: The store; one that is no :class:`ExternalStore` counts nothing.
        share: The share of each process, or ``"auto"`` for one over their number.
        first_share: The share while their number is not known. If it was known earlier, the share is not
            above what it was then.
        clock: The source of time.
    """

    def __init__(self, store: RateLimitStore, share: LocalShare, first_share: float, clock: Clock) -> None:
        self._store = store if isinstance(store, ExternalStore) else None
        self._share = share
        self._first_share = first_share
        self._now = monotonic(clock)
        self._process, self._name = os.getpid(), _new_name()
        self._standing, self._counted_at = Standing(0), -math.inf
        self._ranked_at = self._back_at = self._names_again_at = -math.inf
        self._advised = False
        self._announce_at, self._announce_every = -math.inf, _FIRST_ANNOUNCEMENT

    @property
    def name(self) -> str:
        """The name of this process; a fork is another one."""
        if self._process != os.getpid():
            self._process, self._name = os.getpid(), _new_name()
        return self._name

    @property
    def share(self) -> float:
        """The share of every quota that this process may take alone."""
        return self.part.share

    @property
    def part(self) -> Part:
        """What this process may take of every quota alone."""
        if self._share != "auto":
            return Part(self._share)
        if not self._standing.count:
            return Part(self._first_share)
        count, rank = self._standing.count, self._standing.rank
        if not 0.0 <= self._now() - self._counted_at <= _COUNTS_FOR:
            count = max(count, math.ceil(1.0 / self._first_share))
        return Part(1.0 / count, Standing(count, rank))

    def is_due(self, now: float) -> bool:
        """Return whether this process should announce itself, which it is taken to do then."""
        # A time further ahead than the interval was set before the clock was set back.
        if self._store is None or self._announce_at - _LAST_ANNOUNCEMENT <= now < self._announce_at:
            return False
        if now - self._announce_at > _COUNTS_FOR:
            self._announce_every = _FIRST_ANNOUNCEMENT
        self._announce_at = now + self._announce_every
        self._announce_every = min(2 * self._announce_every, _LAST_ANNOUNCEMENT)
        return True

    async def announce(self) -> None:
        """Announce this process, and count the others.

        Raises:
            StoreError: The store failed.
        """
        if self._store is not None:
            began = self._now()
            if isinstance(self._store, Ranking):
                standing = await self._store.standing(self.name)
            else:
                standing = Standing(await self._store.announce(self.name))
            # Where processes come back together, or the store has lost their names, the first ones do not see
            # the others at once: a smaller number is believed after a minute.
            if not 0.0 <= began - self._counted_at <= _COUNTS_FOR:
                self._ranked_at = self._back_at = began
            is_old = not 0.0 <= began - self._ranked_at <= _COUNTS_FOR
            is_more = standing.count >= self._standing.count
            if began < self._names_again_at:  # others have not announced themselves again yet
                is_old, is_more = False, is_more and self._standing.count > 0
            if is_old or is_more:
                self._standing, self._ranked_at = standing, began
            self._counted_at = began

    def names_were_lost(self, at: float) -> None:
        """Note that the store lost the names of the processes: what it counts says nothing for a while.

        Nor does what it counted before, if this process had just begun to announce itself.
        """
        self._names_again_at = at + _LAST_ANNOUNCEMENT
        if self._now() < self._names_again_at and at < self._back_at + _LAST_ANNOUNCEMENT:
            self._standing = Standing(0)

    async def warn_once(self) -> None:
        """Log what in the setup of the store endangers the count, the first time.

        Raises:
            StoreError: The store failed.
        """
        if self._store is not None and not self._advised:
            self._advised = True
            for advice in await self._store.advice():
                _log.warning("%s", advice)


def _new_name() -> str:
    return secrets.token_hex(8)

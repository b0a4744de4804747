"""The processes that share a store: this one's name, how many there are, and which share each has."""

from __future__ import annotations

import logging
import math
import os
import secrets
from typing import Literal

from llm_router.domain.clock import Clock
from llm_router.stores.base import ExternalStore, RateLimitStore

__all__ = ["LocalShare", "Peers"]

_log = logging.getLogger("llm_router")

LocalShare = float | Literal["auto"]
"""The share of every quota that a process takes alone: above 0 and at most 1, or ``"auto"``."""

_FIRST_ANNOUNCEMENT, _LAST_ANNOUNCEMENT = 1.0, 10.0

_COUNTS_FOR = 60.0
"""Seconds for which a count is believed: as long as a process counts after its announcement."""


class Peers:
    """The processes of a store, this one among them, as the store counts them.

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
        self._clock = clock
        self._process, self._name = os.getpid(), _new_name()
        self._count, self._counted_at = 0, -math.inf
        self._advised = False
        self._announce_at, self._announce_every = 0.0, _FIRST_ANNOUNCEMENT

    @property
    def name(self) -> str:
        """The name of this process; a fork is another one."""
        if self._process != os.getpid():
            self._process, self._name = os.getpid(), _new_name()
        return self._name

    @property
    def share(self) -> float:
        """The share of every quota that this process may take alone."""
        if self._share != "auto":
            return self._share
        if not self._count:
            return self._first_share
        share = 1.0 / self._count
        is_known = 0.0 <= self._clock.time() - self._counted_at <= _COUNTS_FOR
        return share if is_known else min(share, self._first_share)

    def is_due(self, now: float) -> bool:
        """Return whether this process should announce itself, which it is taken to do then."""
        # A time further ahead than the interval was set before the clock was set back.
        if self._store is None or self._announce_at - _LAST_ANNOUNCEMENT <= now < self._announce_at:
            return False
        self._announce_at = now + self._announce_every
        self._announce_every = min(2 * self._announce_every, _LAST_ANNOUNCEMENT)
        return True

    async def announce(self) -> None:
        """Announce this process, and count the others.

        Raises:
            StoreError: The store failed.
        """
        if self._store is not None:
            began = self._clock.time()
            self._count, self._counted_at = await self._store.announce(self.name), began

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

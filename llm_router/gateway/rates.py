"""How many requests each token has made in the last minute, over all processes of a gateway."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping

from llm_router.domain.clock import Clock
from llm_router.engine.resources import CALLERS
from llm_router.errors import StoreError
from llm_router.records.base import RecordStore

__all__ = ["TokenRates"]

_log = logging.getLogger("llm_router")

_MINUTE = 60
_KEPT = 180.0
"""Seconds for which a minute's count is kept."""


class TokenRates:
    """Counts the requests of tokens, so that no 60 s ever hold more than a token allows.

    Each second has a count in a record of its minute. While the record store fails, this process alone
    counts, and allows its part.

    Args:
        records: Where the counts are kept.
        part: Among how many processes a limit is divided while they share nothing.
        shares: Whether they share the record store.
        clock: Where time comes from.
    """

    def __init__(self, records: RecordStore, part: int, clock: Clock, *, shares: bool) -> None:
        self._records = records
        self._part = part
        self._shares = shares
        self._clock = clock
        self._alone: dict[str, deque[float]] = {}

    async def take(self, owner: str, rpm: int) -> float:
        """Count a request; or return in how many seconds there may be room, and count none."""
        limit = rpm if self._shares else max(rpm // self._part, 1)
        try:
            return await self._take(owner, limit)
        except StoreError as error:
            _log.debug("the requests of a token are counted in this process alone: %s", error)
            return self._take_alone(owner, max(rpm // self._part, 1))

    async def _take(self, owner: str, limit: int) -> float:
        now = self._clock.time()
        minute, second = divmod(int(now), _MINUTE)
        name, before = f"{owner}/{minute}", f"{owner}/{minute - 1}"
        present, past = await asyncio.gather(
            self._records.add(CALLERS, name, {str(second): 1}, ttl=_KEPT),
            self._records.add(CALLERS, before, {str(second): 0}, ttl=_KEPT),  # to read one name
        )
        counted = _by_second(past, (minute - 1) * _MINUTE)
        counted |= _by_second(present, minute * _MINUTE)
        counted = {at: count for at, count in counted.items() if at >= int(now) - _MINUTE}
        if sum(counted.values()) <= limit:
            return 0.0
        await self._records.add(CALLERS, name, {str(second): -1}, ttl=_KEPT)
        return max(min(counted) + _MINUTE + 1 - now, 0.001)

    def _take_alone(self, owner: str, limit: int) -> float:
        now = self._clock.time()
        calls = self._alone.setdefault(owner, deque())
        while calls and not now - _MINUTE < calls[0] <= now:
            calls.popleft()
        if len(calls) >= limit:
            return max(calls[0] + _MINUTE - now, 0.001)
        calls.append(now)
        return 0.0


def _by_second(counts: Mapping[str, int], begin: int) -> dict[int, int]:
    return {begin + int(second): count for second, count in counts.items() if count > 0}

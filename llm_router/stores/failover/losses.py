"""What to do when a store has lost something: charge it again, and be cautious until others have done so."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from llm_router.domain.deployment import Deployment
from llm_router.errors import StoreError
from llm_router.stores.base import Decision
from llm_router.stores.failover.books import Books
from llm_router.stores.failover.shards import Shard, Shards
from llm_router.stores.failover.telling import Teller

__all__ = ["Losses", "tells_of_loss"]


class Losses:
    """Notices in replies that the store has lost something.

    Args:
        shards: Its shards.
        books: What this process took from it.
        teller: Charges it again.
        start: Lets work go on in the background.
    """

    def __init__(
        self,
        shards: Shards,
        books: Books,
        teller: Teller,
        start: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._shards = shards
        self._books = books
        self._teller = teller
        self._start = start

    async def heed(self, decision: Decision, candidates: Sequence[Deployment]) -> None:
        """Charge again what the store lost, and be cautious for a window if that was more than a record.

        Raises:
            StoreError: The store failed.
        """
        shard = self._shards.of(decision.deployment or candidates[0])
        if decision.reset_at != shard.reset_at:
            shard.reset_at = decision.reset_at
            if decision.reset_at:
                self._begin_caution(shard)
                self._start(self._charge_all(shard))
        own = self._books.own
        for deployment in decision.lost:
            record = own.get(deployment.model_scope)
            if record is None:
                own.known.pop(deployment.model_scope, None)
            else:
                await self._teller.charge(record)

    def _begin_caution(self, shard: Shard) -> None:
        books = self._books
        shard.lost_at = self._lost_at(shard)
        self._shards.trust_no_more(shard, shard.lost_at, books.times.now(), books.own.longest_window)
        books.peers.names_were_lost(shard.lost_at)
        shard.alone = None  # with what was taken up to now

    def _lost_at(self, shard: Shard) -> float:
        """Return the steady time of a loss: not before the last grant of the shard, which knew of none.

        A clock that was set since then would make it as old as it was moved.
        """
        times, own = self._books.times, self._books.own
        told_at = (record.told_at for record in self._shards.records_in(shard, own))
        return min(max(times.steady(shard.reset_at), *told_at, -math.inf), times.now())

    async def _charge_all(self, shard: Shard) -> None:
        """Charge what this process took from every deployment of a shard that has lost something."""
        for record in self._shards.records_in(shard, self._books.own):
            if shard.trouble is None:
                with suppress(StoreError):  # it is charged when it is asked for, or when the store answers
                    await self._teller.charge(record)


def tells_of_loss(decision: Decision, shard: Shard) -> bool:
    """Return whether a reply says that the store lost something, which this process did not know."""
    return bool(decision.reset_at) and decision.reset_at != shard.reset_at

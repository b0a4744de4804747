"""What a store is to be told when it answers again: takings, settlements and cooldowns."""

from __future__ import annotations

import logging
from contextlib import suppress

from llm_router.domain.quota import Demand
from llm_router.errors import StoreCorruptError
from llm_router.stores.base import RateLimitStore
from llm_router.stores.failover.books import Books
from llm_router.stores.failover.cooldowns import UntoldCooldowns
from llm_router.stores.failover.records import Record
from llm_router.stores.failover.shards import Shard, Shards
from llm_router.stores.failover.takings import OpenReservation
from llm_router.stores.failover.telling import Teller

__all__ = ["Backlog"]

_log = logging.getLogger("llm_router")


class Backlog:
    """What a store has not been told yet. What it cannot read is told once, and holds up nothing else.

    Args:
        store: The store.
        shards: Its shards.
        books: What this process took from it.
        teller: Tells it.

    Attributes:
        cooldowns: Those to tell.
    """

    def __init__(self, store: RateLimitStore, shards: Shards, books: Books, teller: Teller) -> None:
        self.cooldowns = UntoldCooldowns(books.times)
        self._store = store
        self._shards = shards
        self._books = books
        self._teller = teller
        self._unsettled: dict[str, tuple[OpenReservation, Demand]] = {}

    @property
    def settlements(self) -> int:
        """How many reservations of the store it is to settle."""
        return len(self._unsettled)

    def add_settlement(self, reservation_id: str, made: OpenReservation, used: Demand) -> None:
        """Note what a reservation of the store really used."""
        self._unsettled[reservation_id] = made, used

    async def tell(self, shard: Shard) -> None:
        """Tell a shard what was spent, and the store which cooldowns began, until nothing is left to tell.

        Cooldowns may belong to any shard: they are told when the last one answers.

        Raises:
            StoreError: The store failed.
        """
        while untold := self._untold_records(shard):
            for record in untold:
                try:
                    await self._teller.charge(record)
                except StoreCorruptError as error:  # of this one alone
                    _log.debug("what was spent on %s could not be told: %s", record.deployment.id, error)
                    for entry in record.entries:
                        entry.counted = True
        await self._settle(shard.number)
        if not any(each.trouble is not None for each in self._shards if each is not shard):
            await self._tell_cooldowns()

    async def tell_rest(self) -> None:
        """Tell what single calls could not, though the store answers.

        Raises:
            StoreError: The store failed.
        """
        await self._settle(None)
        await self._tell_cooldowns()

    async def _settle(self, shard: int | None) -> None:
        for key, (made, used) in list(self._unsettled.items()):
            if shard is None or self._shards.number_of(made.record.deployment) == shard:
                with suppress(StoreCorruptError):  # of this one alone, which the store can settle no more
                    await self._teller.settle(key, made, used)
                self._unsettled.pop(key, None)

    async def _tell_cooldowns(self) -> None:
        while (untold := self.cooldowns.first()) is not None:
            with suppress(StoreCorruptError):  # of this one alone, whose place holds something else
                await self._store.cool_down(untold.as_of_now(self._books.times))
                self._books.limits.told(untold.cooldown)
            self.cooldowns.told(untold)

    def _untold_records(self, shard: Shard) -> list[Record]:
        return [each for each in self._shards.records_in(shard, self._books.own) if each.is_missing()]

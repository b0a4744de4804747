"""Tell a store what this process took: what it has not counted, and again what it has lost."""

from __future__ import annotations

import itertools

from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand
from llm_router.stores.base import RateLimitStore, Taking
from llm_router.stores.failover.peers import Peers
from llm_router.stores.failover.records import Charge, Record, excess, takings
from llm_router.stores.failover.takings import OpenReservation, OwnTakings
from llm_router.stores.failover.times import Times

__all__ = ["Teller"]


class Teller:
    """Charges a store for what this process took. Every method may raise a :class:`StoreError`.

    Args:
        store: The store.
        own: What this process took.
        peers: Knows the name of this process.
        times: The source of time.
    """

    def __init__(self, store: RateLimitStore, own: OwnTakings, peers: Peers, times: Times) -> None:
        self._store = store
        self._own = own
        self._peers = peers
        self._times = times
        self._sequence = itertools.count(1)

    async def charge(self, record: Record) -> None:
        """Tell the store what it has not counted, and let it count again what it has lost."""
        charge = record.charge
        if charge is None:
            missing, counted = self._own.split(record, self._times.now())
            charge = record.charge = Charge(next(self._sequence), missing, counted, record.since)
        # One that got no answer may have been counted: it is repeated as it was.
        ahead = self._times.ahead()
        since = await self._store.charge(
            self._peers.name,
            charge.sequence,
            record.deployment,
            takings(charge.missing, ahead),
            takings(charge.counted, ahead),
            charge.since,
        )
        if record.charge is charge:  # else another task has told it as well
            record.charge = None
            for entry, used in (*charge.missing, *charge.counted):
                entry.counted = True
                record.tell_rest(entry, used, self._times.now())
            self._own.counted_in(record, since)

    async def probe(self, sample: Deployment) -> None:
        """Write something to the shard of a deployment: it may answer, and yet be read-only or full.

        Under another name: a charge that is to be repeated has a lower sequence, and would count no more.
        """
        await self._store.charge(f"{self._peers.name}-probe", next(self._sequence), sample, ())

    async def settle(self, reservation_id: str, made: OpenReservation, used: Demand) -> None:
        """Settle a reservation that the store made before it failed; charge the rest if it has expired."""
        if self._times.now() < made.expires:
            await self._store.settle(reservation_id, used)
            return
        source, deployment = f"{self._peers.name}-late", made.record.deployment
        rest = Taking(made.made + self._times.ahead(), excess(used, made.demand))
        await self._store.charge(source, next(self._sequence), deployment, [rest])

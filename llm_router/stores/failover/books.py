"""What this process knows of a store: its own takings, and what the store has shown it."""

from __future__ import annotations

import attrs

from llm_router.domain.clock import Clock
from llm_router.stores.base import ExternalStore, RateLimitStore
from llm_router.stores.failover.alone import Alone
from llm_router.stores.failover.cooldowns import KnownCooldowns
from llm_router.stores.failover.limits import KnownLimits
from llm_router.stores.failover.peers import LocalShare, Peers
from llm_router.stores.failover.rooms import Rooms
from llm_router.stores.failover.shards import Shard
from llm_router.stores.failover.takings import OwnTakings
from llm_router.stores.failover.times import Times

__all__ = ["Books"]


@attrs.frozen
class Books:
    """What this process knows of a store.

    Attributes:
        times: The source of time.
        own: What this process took.
        rooms: The room that refusals and snapshots showed.
        cooldowns: What cools down.
        limits: What was learnt of limits.
        peers: The processes that share the store.
    """

    times: Times
    own: OwnTakings
    rooms: Rooms
    cooldowns: KnownCooldowns
    limits: KnownLimits
    peers: Peers

    @classmethod
    def of(cls, store: RateLimitStore, share: LocalShare, first_share: float, clock: Clock) -> Books:
        """Return empty books of a store; see :class:`Peers` for the shares."""
        times = Times(clock)
        own = OwnTakings(store.known if isinstance(store, ExternalStore) else {}, times)
        peers = Peers(store, share, first_share, clock)
        return cls(times, own, Rooms(times), KnownCooldowns(times), KnownLimits(), peers)

    def alone(self, shard: Shard) -> Alone:
        """Return the quotas of this process in a shard that it cannot reach, or not trust."""
        if shard.alone is None or shard.alone.was_set:
            self.limits.forget(self.times.wall())
            cooldowns, learnt = self.cooldowns.in_force(), self.limits.learnt
            shard.alone = Alone(self.peers.part, self.own, self.rooms, self.times, learnt, cooldowns)
        return shard.alone

"""The Redis store, as the rest of the library sees it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, MutableMapping, Sequence

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.numbers import real, shown
from llm_router.domain.quota import Demand
from llm_router.errors import ConfigError
from llm_router.stores.base import Decision, DeploymentSnapshot, Standing, Taking
from llm_router.stores.redis.batch import Batcher, Server, decide
from llm_router.stores.redis.client import (
    Address,
    BorrowedClient,
    SharedClient,
    address_of,
    connect,
    read_url,
)
from llm_router.stores.redis.keys import key_names
from llm_router.stores.redis.scripts import Client, load_script
from llm_router.stores.redis.sharding import Lanes, Sharding, lane_of, requested_shards, take_snapshot
from llm_router.stores.redis.wire import Announce, Charge, Encoder, Reserve, Settle

__all__ = ["RedisStore"]

_NOTHING = Demand(0, 0)

_LONGEST_TIMEOUT = 366 * 86_400.0

_LANES = 2
"""Batchers of one loop, so that the server runs one batch while the next is made.

With several shards each has one: they run at the same time anyway, and fuller batches are cheaper.
"""


class RedisStore:
    """Keeps the state on a Redis or Valkey server, for all processes and machines that use the namespace.

    All operations requested while a script call is under way go into the next one: when there is nothing else
    to do an operation costs one round trip, and under load hundreds share one. Each reservation takes one of
    two lanes, chosen by its id, so that two calls may be under way at once while the operations on one id
    keep their order. Time is the server's.

    Usable from several event loops, one after the other or at once, and after a fork: each has its own
    connections, which are closed by :meth:`aclose` or when the loop shuts down.

    Every method may raise :class:`~llm_router.errors.StoreUnavailableError` (no answer within ``timeout``, no
    connection, or the server refuses) and :class:`~llm_router.errors.StoreCorruptError` (the keys hold
    something else). An operation that timed out takes no effect later. Nothing is retried.

    A record that holds something else, or the format of another version, refuses the deployments that need it
    and fails what would change it; nothing else. A lift of its scope (:meth:`Cooldown.lift`) begins it anew,
    as one that was lost.

    With ``shards=n`` the projects are spread over n hash tags, and so over the nodes of a cluster, by a hash
    that is the same everywhere. Each shard has batches of its own, so that all shards run at the same time.
    A reserve whose candidates lie in several shards goes through them run by run, in order: the candidates
    that follow one another in one shard are one atomic step, and the first grant ends it. No quota is ever
    broken, but room that appears in an earlier run meanwhile goes unnoticed. A key's cooldown goes to every
    shard. All processes of a namespace must use the same number; changing it forgets what was counted.

    Args:
        url_or_client: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+cluster://`` or
            ``rediss+cluster://``, with user, password and database as redis-py reads them, and possibly
            ``?shards=n``; or a ``redis.asyncio`` client, which one event loop uses as it is and which is not
            closed.
        namespace: Separates several routers on one server; part of every key.
        clock: The source of time; by default the server's clock, which all processes share.
        timeout: Seconds within which every call answers or raises (plus ``GRACE``, 0.5 s, once, if the event
            loop was blocked). A reserve asks no further shard after that time, and so takes at most twice as
            long.
        shards: The number of shards, 1 to 256; by default the number in the URL, or 1.

    Raises:
        ConfigError: The URL cannot be used, the namespace is empty, or ``timeout`` or ``shards`` is not such
            a number.
    """

    def __init__(
        self,
        url_or_client: str | Client,
        *,
        namespace: str = "llm_router",
        clock: Clock | None = None,
        timeout: float = 2.0,
        shards: int | None = None,
    ) -> None:
        seconds = real(timeout)
        if not 0.0 < seconds <= _LONGEST_TIMEOUT:
            raise ConfigError(
                f"timeout must be a number of seconds above 0 (at most {_LONGEST_TIMEOUT:.0f}), "
                f"not {shown(timeout)}"
            )
        self._target = read_url(url_or_client) if isinstance(url_or_client, str) else url_or_client
        address, in_url = address_of(url_or_client), None
        if isinstance(self._target, Address):
            address, in_url = self._target.name, self._target.shards
        self._namespace = namespace
        self._address = address
        self._sharding = Sharding(requested_shards(shards, in_url), seconds, address)
        self.known: MutableMapping[Scope, float] = {}
        """See :class:`~llm_router.stores.base.ExternalStore`."""
        self._servers = [
            Server(
                address,
                seconds,
                load_script(),
                Encoder(names, self.known),
                clock,
                shard=None if self.shards == 1 else number,
            )
            for number, names in enumerate(key_names(namespace, self.shards))
        ]
        self._lanes: dict[asyncio.AbstractEventLoop, Lanes] = {}
        self._process = os.getpid()
        self._inherited: list[object] = []

    @property
    def shards(self) -> int:
        """The number of shards; see :class:`~llm_router.stores.base.Sharded`."""
        return self._sharding.shards

    def shard_of(self, deployment: Deployment) -> int:
        """Return the shard of ``deployment``; see :class:`~llm_router.stores.base.Sharded`."""
        return self._sharding.of(deployment)

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve on the server; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        lanes = self._lanes_of(loop)
        if len(lanes) > 1:
            return await self._sharding.reserve(lanes, reservation_id, candidates, demand, ttl)
        operation = Reserve(loop.create_future(), reservation_id, candidates, demand, ttl)
        return await decide(lane_of(lanes[0], reservation_id), operation)

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Replace the estimate of a reservation by what was used; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        lanes = self._lanes_of(loop)
        if len(lanes) > 1:
            return await self._sharding.settle(lanes, reservation_id, used)
        operation = Settle(loop.create_future(), reservation_id, used)
        lane_of(lanes[0], reservation_id).add(operation)
        return await operation.future

    async def release(self, reservation_id: str) -> None:
        """Give back everything a reservation took; see :class:`RateLimitStore`."""
        await self.settle(reservation_id, _NOTHING)

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),
        since: float = 0.0,
    ) -> float:
        """Count what was taken without asking, or was lost; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        operation = Charge(loop.create_future(), source, sequence, deployment, missing, counted, since)
        self._lanes_of(loop)[self.shard_of(deployment)][0].add(operation)
        return await operation.future

    async def announce(self, source: str) -> int:
        """Record that a process is alive; see :class:`~llm_router.stores.base.ExternalStore`."""
        return (await self.standing(source)).count

    async def standing(self, source: str) -> Standing:
        """Record that a process is alive; see :class:`~llm_router.stores.base.Ranking`.

        Of more than 1,000 processes none has a rank.
        """
        loop = asyncio.get_running_loop()
        operation = Announce(loop.create_future(), source)
        self._lanes_of(loop)[0][0].add(operation)
        return await operation.future

    async def advice(self) -> list[str]:
        """Return a warning if the server may evict keys, and so forget what was spent.

        A server that does not tell its settings is taken to be well. Of a cluster, each node that has a shard
        is asked.
        """
        lanes = self._lanes_of(asyncio.get_running_loop())
        policies = await asyncio.gather(*(lane[0].eviction_policy() for lane in lanes))
        return [
            f"the Redis server at {self._address} evicts keys when its memory is full "
            f"(maxmemory-policy {policy}), and with them what was spent, so that limits may be exceeded: "
            "set maxmemory-policy to noeviction, or use another server"
            for policy in dict.fromkeys(policies)
            if policy not in (None, "noeviction")
        ]

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool a scope down; see :class:`RateLimitStore`.

        A quarantine is forgotten when nothing has changed in its scope for a year.
        """
        await self._sharding.cool_down(self._lanes_of(asyncio.get_running_loop()), cooldown)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state of ``deployments``; see :class:`RateLimitStore`. Of none: check every shard."""
        lanes = self._lanes_of(asyncio.get_running_loop())
        if len(lanes) > 1:
            return await self._sharding.snapshot(lanes, deployments)
        return await take_snapshot(lanes[0][0], deployments)

    async def aclose(self) -> None:
        """Wait for the calls under way in this event loop and close its connections. May be called twice."""
        if self._process == os.getpid():
            lanes = self._lanes.pop(asyncio.get_running_loop(), ())
            await asyncio.gather(*(lane.aclose() for shard in lanes for lane in shard))

    def _lanes_of(self, loop: asyncio.AbstractEventLoop) -> Lanes:
        lanes = self._lanes.get(loop)
        if lanes is None or self._process != os.getpid():
            lanes = self._open(loop)
        return lanes

    def _open(self, loop: asyncio.AbstractEventLoop) -> Lanes:
        if self._process != os.getpid():
            # The connections belong to the parent. They are kept, because closing them would disturb it.
            self._inherited.append(self._lanes)
            self._lanes = {}
            self._process = os.getpid()
        for gone in [other for other in self._lanes if other.is_closed()]:
            del self._lanes[gone]
        lanes = self._lanes[loop] = tuple(self._open_lanes())
        return lanes

    def _open_lanes(self) -> Iterator[tuple[Batcher, ...]]:
        """Open the lanes of each shard in turn."""
        lanes = range(_LANES if self.shards == 1 else 1)
        if isinstance(self._target, Address):
            shared = SharedClient(connect(self._target))
            for server in self._servers:
                yield tuple(Batcher(shared.share(), server, owned=True) for _ in lanes)
        else:
            client = BorrowedClient(self._target)
            for server in self._servers:
                yield tuple(Batcher(client, server, owned=False) for _ in lanes)

    def __repr__(self) -> str:
        shards = f", shards={self.shards}" if self.shards > 1 else ""
        return f"RedisStore({self._address!r}, namespace={self._namespace!r}{shards})"

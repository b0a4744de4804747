"""The Redis store: what the rest of the library sees of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand
from llm_router.stores.base import Decision, DeploymentSnapshot
from llm_router.stores.redis.batch import Batcher, Server
from llm_router.stores.redis.client import Address, SharedClient, address_of, connect, read_url
from llm_router.stores.redis.keys import key_names
from llm_router.stores.redis.scripts import Client, load_script
from llm_router.stores.redis.sharding import Lanes, Sharding, lane_of, look, shards_wanted
from llm_router.stores.redis.wire import Encoder, Reserve, Settle

__all__ = ["RedisStore"]

_NOTHING = Demand(0, 0)

_LANES = 2
"""Batchers of one loop, so that the server works on one batch while the next is made.

With several shards each has one: they are at work at once anyway, and fuller batches are cheaper.
"""


class RedisStore:
    """Keeps the state on a Redis or Valkey server, for all processes and machines that use the namespace.

    All operations that are asked for while a script call is under way go into the next one: a call costs one
    round trip when there is nothing else to do, and hundreds share one under load. Reservations take one of
    two lanes by their id, so that two calls may be under way at once and those of one id keep their order.
    Time is the server's.

    Usable from several event loops, one after the other or at once, and after a fork: each has its own
    connections, which are closed by :meth:`aclose` or when the loop shuts down.

    Every method may raise :class:`~llm_router.errors.StoreUnavailableError` (no answer within ``timeout``, no
    connection, a server that refuses) and :class:`~llm_router.errors.StoreCorruptError` (something else lies
    under the keys). An operation that timed out takes no effect later. Nothing is tried twice.

    With ``shards=n`` the projects are spread over n hash tags, and so over the nodes of a cluster, by a hash
    that is the same everywhere. Each shard has batches of its own, so that all of them are at work at once.
    A reserve whose candidates lie in several shards takes them run by run, in their order: those that follow
    one another in one shard are one atomic step, the first that is granted ends it; no quota is ever broken,
    but room that appears in an earlier run meanwhile is not seen. A key's cooldown is told to every shard.
    All processes of a namespace must agree in the number: to change it is to forget what was counted.

    Args:
        url_or_client: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+cluster://`` or
            ``rediss+cluster://``, with user, password and database in it as redis-py reads them, and perhaps
            ``?shards=n``; or a ``redis.asyncio`` client, which is used as it is by one event loop and not
            closed.
        namespace: What keeps several routers on one server apart; a part of every key.
        clock: Where time comes from; the server's by default, which all processes share.
        timeout: Seconds within which every method answers or raises, of an event loop that runs: if it comes
            late to the deadline, another ``GRACE`` (0.5 s) is granted to see what has arrived meanwhile. A
            reserve asks no further shard after them, and so takes at most twice as long.
        shards: How many shards, 1 to 256; by default what the URL says, or 1.

    Raises:
        ConfigError: The URL cannot be used, the namespace is empty, or ``shards`` is no such number.
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
        self._target = read_url(url_or_client) if isinstance(url_or_client, str) else url_or_client
        address, told = address_of(url_or_client), None
        if isinstance(self._target, Address):
            address, told = self._target.name, self._target.shards
        self._namespace = namespace
        self._address = address
        self._sharding = Sharding(shards_wanted(shards, told), timeout, address)
        self._servers = [
            Server(address, timeout, load_script(), Encoder(names), clock)
            for names in key_names(namespace, self.shards)
        ]
        self._lanes: dict[asyncio.AbstractEventLoop, Lanes] = {}
        self._process = os.getpid()
        self._inherited: list[object] = []

    @property
    def shards(self) -> int:
        """How many shards there are; see :class:`~llm_router.stores.base.Sharded`."""
        return self._sharding.shards

    def shard_of(self, deployment: Deployment) -> int:
        """Return the shard that ``deployment`` lies in; see :class:`~llm_router.stores.base.Sharded`."""
        return self._sharding.of(deployment)

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Take ``demand`` from the first candidate with room; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        lanes = self._lanes_of(loop)
        if len(lanes) > 1:
            return await self._sharding.reserve(lanes, reservation_id, candidates, demand, ttl)
        operation = Reserve(loop.create_future(), reservation_id, candidates, demand, ttl)
        lane_of(lanes[0], reservation_id).add(operation)
        return await operation.future

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Correct a reservation to what was really used; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        lanes = self._lanes_of(loop)
        if len(lanes) > 1:
            return await self._sharding.settle(lanes, reservation_id, used)
        operation = Settle(loop.create_future(), reservation_id, used)
        lane_of(lanes[0], reservation_id).add(operation)
        return await operation.future

    async def release(self, reservation_id: str) -> None:
        """Give back all that a reservation took; see :class:`RateLimitStore`."""
        await self.settle(reservation_id, _NOTHING)

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Put a scope aside; see :class:`RateLimitStore`.

        A quarantine is forgotten when nobody has changed anything of its scope for a year.
        """
        await self._sharding.cool_down(self._lanes_of(asyncio.get_running_loop()), cooldown)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Tell the state of ``deployments``; see :class:`RateLimitStore`. Of none: ask every shard."""
        lanes = self._lanes_of(asyncio.get_running_loop())
        if len(lanes) > 1:
            return await self._sharding.snapshot(lanes, deployments)
        return await look(lanes[0][0], deployments)

    async def aclose(self) -> None:
        """Wait for what is under way in this event loop, and close its connections. May be called twice."""
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
            # The connections are the parent's. They are kept, for to close them would disturb it.
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
            for server in self._servers:
                yield tuple(Batcher(self._target, server, owned=False) for _ in lanes)

    def __repr__(self) -> str:
        shards = f", shards={self.shards}" if self.shards > 1 else ""
        return f"RedisStore({self._address!r}, namespace={self._namespace!r}{shards})"

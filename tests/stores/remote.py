"""A store outside this process that fails as it is told, and what tests of the failover store do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llm_router import Cooldown, Demand, Deployment, MemoryStore
from llm_router.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from llm_router.stores import Decision, DeploymentSnapshot
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

__all__ = ["OUTAGE", "TIMEOUT", "Remote", "granted", "recover", "settle_down", "used"]

OUTAGE = StoreUnavailableError("cannot be reached")
TIMEOUT = StoreTimeoutError("no answer within 2 s")


class Remote(MemoryStore):
    """A store outside this process, as others see it, that fails as it is told."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.known: dict[Any, float] = {}
        self.peers = 1
        self.reads: StoreError | None = None
        self.writes: StoreError | None = None
        self.once: list[StoreError] = []
        self.calls: list[str] = []

    def _answer(self, name: str, failure: StoreError | None) -> None:
        self.calls.append(name)
        if self.once:
            raise self.once.pop(0)
        if failure is not None:
            raise type(failure)(*failure.args)

    def fail(self, failure: StoreError | None) -> None:
        """Fail at every call from now on; None: at none."""
        self.reads = self.writes = failure

    async def reserve(self, *args: Any) -> Decision:
        self._answer("reserve", self.writes)
        return await super().reserve(*args)

    async def settle(self, *args: Any) -> None:
        self._answer("settle", self.writes)
        await super().settle(*args)

    async def charge(self, *args: Any) -> float:
        self._answer("charge", self.writes)
        return await super().charge(*args)

    async def cool_down(self, cooldown: Cooldown) -> None:
        self._answer("cool_down", self.writes)
        await super().cool_down(cooldown)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        self._answer("snapshot", self.reads)
        return await super().snapshot(deployments)

    async def announce(self, source: str) -> int:
        self._answer("announce", self.writes)
        return self.peers

    async def advice(self) -> list[str]:
        return []


async def settle_down() -> None:
    """Let what runs in the background run."""
    for _ in range(30):
        await asyncio.sleep(0)


async def granted(
    store: FailoverStore, deployment: Deployment, count: int, tag: str, tokens: int = 10
) -> int:
    """Reserve ``count`` times; return how often that was granted."""
    decisions = [
        await store.reserve(f"{tag}{n}", [deployment], Demand(1, tokens), 600.0) for n in range(count)
    ]
    return sum(decision.deployment is deployment for decision in decisions)


async def recover(store: FailoverStore, remote: Remote, clock: ManualClock, deployment: Deployment) -> None:
    """Let the store answer again, and the front notice it, a second later."""
    remote.fail(None)
    clock.shift(1.0)
    await store.snapshot([deployment])
    await settle_down()
    assert store.trouble is None


async def used(store: MemoryStore, deployment: Deployment) -> dict[str, int]:
    [snapshot] = await store.snapshot([deployment])
    return {quota.metric.value: quota.used for quota in snapshot.quotas}

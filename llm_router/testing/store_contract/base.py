"""What the parts of the store contract share: the hooks, and short functions to build what they need."""

from __future__ import annotations

import itertools
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import GUARD, MINUTE, Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret

if TYPE_CHECKING:
    from llm_router.domain.clock import Clock
    from llm_router.stores.base import Decision, QuotaSnapshot, RateLimitStore
    from llm_router.testing.clock import ManualClock

__all__ = [
    "MS",
    "SECRET",
    "SPAN",
    "START",
    "ContractBase",
    "close",
    "deployment",
    "grants",
    "move_to",
    "quotas_of",
    "reserve",
    "rpd",
    "rpm",
    "set_back",
    "steady",
    "tpm",
    "used",
]

START = 1_800_041_000.25
"""What the clocks of most tests show at first: an ordinary late morning in California."""

SPAN = MINUTE + GUARD
"""Seconds after which a rolling quota returns what was taken."""

MS = 0.001

SECRET = "this-is-the-credential"  # noqa: S105 - tests search for it
"""The credential of every deployment of the contract."""

_ids = itertools.count()


class ContractBase:
    """The hooks through which the contract gets a store."""

    def open_store(self, clock: Clock) -> AbstractAsyncContextManager[RateLimitStore]:
        """Open a store on empty state, with ``clock`` as its only source of time. Must be overridden."""
        raise NotImplementedError("override open_store(clock), which opens your store")

    def second_store(
        self,
        store: RateLimitStore,
        clock: Clock,  # noqa: ARG002 - for overrides
    ) -> AbstractAsyncContextManager[RateLimitStore]:
        """Open another handle on the state of ``store``, as a second process would; by default itself."""
        return nullcontext(store)


def rpm(limit: int, guard: float = GUARD) -> Quota:
    """Make a rolling quota of requests per minute."""
    return Quota(Metric.RPM, limit, guard=guard)


def tpm(limit: int, guard: float = GUARD) -> Quota:
    """Make a rolling quota of tokens per minute."""
    return Quota(Metric.TPM, limit, guard=guard)


def rpd(limit: int, timezone: str = "America/Los_Angeles") -> Quota:
    """Make a daily quota of requests."""
    return Quota(Metric.RPD, limit, Refill.DAILY, timezone=timezone)


def steady(metric: Metric, limit: int, burst: int | None = None, guard: float = GUARD) -> Quota:
    """Make a steady quota per minute."""
    return Quota(metric, limit, Refill.STEADY, burst=burst, guard=guard)


def deployment(
    *quotas: Quota,
    key: str = "key",
    model: str = "model",
    project: str = "",
    provider: str = "gemini",
    priority: int = 1,
    weight: float = 1.0,
) -> Deployment:
    """Make a deployment with ``quotas``."""
    credential = Key(key, Secret(SECRET), provider, project)
    return Deployment(credential, model, priority=priority, quotas=quotas, weight=weight)


async def reserve(
    store: RateLimitStore,
    *candidates: Deployment,
    requests: int = 1,
    tokens: int = 0,
    ttl: float = 600.0,
    reservation_id: str | None = None,
) -> Decision:
    """Reserve from the first of ``candidates`` with room, with a new id."""
    reservation_id = reservation_id or f"reservation-{next(_ids)}"
    return await store.reserve(reservation_id, candidates, Demand(requests, tokens), ttl)


async def grants(store: RateLimitStore, candidate: Deployment, requests: int = 1, tokens: int = 0) -> bool:
    """Try to take from ``candidate``; return whether that was granted."""
    return (await reserve(store, candidate, requests=requests, tokens=tokens)).deployment is candidate


async def quotas_of(store: RateLimitStore, candidate: Deployment) -> dict[Metric, QuotaSnapshot]:
    """Return the snapshot of each quota of ``candidate``."""
    [snapshot] = await store.snapshot([candidate])
    return {quota.metric: quota for quota in snapshot.quotas}


async def used(store: RateLimitStore, candidate: Deployment) -> list[int]:
    """Return what is used of each quota of ``candidate``, in order."""
    return [quota.used for quota in (await quotas_of(store, candidate)).values()]


def move_to(clock: ManualClock, moment: float) -> None:
    """Move ``clock`` forward to ``moment``."""
    clock.shift(moment - clock.time())


def set_back(clock: ManualClock, moment: float) -> None:
    """Set ``clock`` to an earlier time, as a correction of the machine's clock does."""
    clock._now = moment  # noqa: SLF001 - a manual clock only moves forward


def close(moment: float, expected: float) -> bool:
    """Return whether two times are the same, to the microseconds that a store keeps."""
    return moment == expected or abs(moment - expected) <= 2e-6

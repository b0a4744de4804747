"""A daily quota in Redis is kept aside while it refills in another way."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from llm_router import RateLimitStore
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend

TTL = 86_400.0
_ids = itertools.count()


def deployment(refill: Refill) -> Deployment:
    return Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=(Quota(Metric.TPM, 100, refill),))


async def grants(store: RateLimitStore, limited: Deployment, tokens: int) -> bool:
    decision = await store.reserve(f"r{next(_ids)}", [limited], Demand(1, tokens), TTL)
    return decision.deployment is not None


async def used(store: RateLimitStore, limited: Deployment) -> int:
    [snapshot] = await store.snapshot([limited])
    return snapshot.quotas[0].used


async def test_the_count_of_a_day_goes_on_when_it_is_asked_for_again(redis_backend: Backend) -> None:
    """What was taken while the quota refilled in another way counts for the day, too, as it was settled."""
    clock = ManualClock(1_800_041_000.25)
    daily, rolling = deployment(Refill.DAILY), deployment(Refill.ROLLING)
    async with redis_backend.open(clock) as store:
        assert await grants(store, daily, tokens=40)
        clock.shift(120.0)
        assert await grants(store, rolling, tokens=20)
        await store.reserve("more", [rolling], Demand(1, 10), TTL)
        clock.shift(1.0)
        await store.settle("more", Demand(1, 15))
        clock.shift(300.0)
        assert await used(store, rolling) == 0
        assert await used(store, daily) == 75
        assert [await grants(store, daily, tokens=tokens) for tokens in (26, 25)] == [False, True]
        clock.shift(86_400.0)
        assert await used(store, daily) == 0

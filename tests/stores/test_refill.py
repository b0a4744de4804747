"""Quotas whose refill changes, in every store: what was taken before still counts."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import RateLimitStore
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend

START = 1_800_041_000.25
"""Late morning in California."""

CHANGES = list(itertools.permutations(Refill, 2))
PAIRS = list(itertools.combinations(Refill, 2))
TTL = 86_400.0
_ids = itertools.count()


def deployment(refill: Refill, limit: int = 10, metric: Metric = Metric.RPM) -> Deployment:
    quota = Quota(metric, limit, refill, burst=limit if refill is Refill.STEADY else None)
    return Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=(quota,))


@asynccontextmanager
async def opened(backend: Any, clock: ManualClock) -> AsyncIterator[Any]:
    async with backend.open(clock) as store:

        async def grants(limited: Deployment, requests: int = 1, tokens: int = 0) -> bool:
            demand = Demand(requests, tokens)
            return (await store.reserve(f"r{next(_ids)}", [limited], demand, TTL)).deployment is not None

        yield store, grants


async def used(store: RateLimitStore, limited: Deployment) -> int:
    [snapshot] = await store.snapshot([limited])
    return snapshot.quotas[0].used


@pytest.mark.parametrize(("before", "after"), CHANGES)
async def test_a_change_keeps_what_was_taken(store_backend: Backend, before: Refill, after: Refill) -> None:
    """What is left of the limit is granted, and no more; in the end all of it comes back."""
    clock = ManualClock(START)
    async with opened(store_backend, clock) as (store, grants):
        one, other = deployment(before), deployment(after)
        assert all([await grants(one) for _ in range(6)])
        assert await used(store, other) == 6
        assert await used(store, one) == 6  # a look at it changes nothing
        assert [await grants(other) for _ in range(5)] == [True] * 4 + [False]
        clock.shift(86_400.0)
        assert await used(store, other) == 0
        assert await grants(other)


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_two_that_take_turns_share_the_limit(
    store_backend: Backend, one: Refill, other: Refill
) -> None:
    """Two configurations that ask in turn get what one would get, also after minutes."""
    clock = ManualClock(START)
    async with opened(store_backend, clock) as (_, grants):
        for minute in range(3):
            turns = [await grants(deployment(refill)) for _ in range(20) for refill in (one, other)]
            assert sum(turns) <= 10
            assert sum(turns) == 10 or minute > 0
            clock.shift(60.3)


async def test_no_window_is_exceeded_by_a_change(store_backend: Backend) -> None:
    """A saturating caller whose configuration changes every few seconds: at most the limit in any minute."""
    clock = ManualClock(START)
    rolling, steady = deployment(Refill.ROLLING, 30), deployment(Refill.STEADY, 30)
    granted = []
    async with opened(store_backend, clock) as (_, grants):
        for step in range(400):
            if await grants(steady if step // 9 % 2 else rolling):
                granted.append(clock.time())
            clock.shift(0.7)
    assert max(sum(first <= moment < first + 60.0 for moment in granted) for first in granted) <= 30
    assert len(granted) >= 45


@pytest.mark.parametrize(("before", "after"), CHANGES)
async def test_a_reservation_from_before_the_change(
    store_backend: Backend, before: Refill, after: Refill
) -> None:
    """What it used less is not given back; what it used more counts from its settle."""
    clock = ManualClock(START)
    async with opened(store_backend, clock) as (store, grants):
        one, other = deployment(before, 100, Metric.TPM), deployment(after, 100, Metric.TPM)
        for name in ("less", "more"):
            await store.reserve(name, [one], Demand(1, 20), TTL)
        assert await grants(other, tokens=10)
        await store.settle("less", Demand(1, 5))
        assert await used(store, other) == 50
        await store.settle("more", Demand(1, 45))
        assert await used(store, other) == 75

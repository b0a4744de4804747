"""Arguments that make no sense, in the stores of this machine: nothing stays of them, others are served."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.stores.base import Taking
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend

START = 1_800_041_000.25
WEEK = 7 * 86_400.0
QUOTAS = (Quota(Metric.RPM, 100), Quota(Metric.TPM, 100, Refill.STEADY), Quota(Metric.TPD, 100, Refill.DAILY))
LIMITED = Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=QUOTAS)

pytestmark = pytest.mark.parametrize("store_backend", ["memory", "sqlite"], indirect=True)


@pytest.mark.parametrize("ttl", [math.inf, math.nan, 1e300, 10**400, -math.inf, -1.0, 0])
async def test_any_lifetime_is_one(store_backend: Backend, ttl: Any) -> None:
    """At most a week; what it took is kept."""
    clock = ManualClock(START)
    async with store_backend.open(clock) as store:
        await store.reserve("odd", [LIMITED], Demand(1, 40), ttl)
        clock.shift(WEEK)
        await store.reserve("other", [LIMITED], Demand(1, 40), 60.0)
        await store.release("odd")
        [snapshot] = await store.snapshot([LIMITED])
        assert [quota.used for quota in snapshot.quotas] == [1, 40, 40]


@pytest.mark.parametrize("amount", [10**15, 10**400, math.inf, 1e300])
async def test_any_amount_is_counted(store_backend: Backend, amount: Any) -> None:
    """It closes its quota for a while, and is gone afterwards; others are served."""
    clock = ManualClock(START)
    other = Deployment(Key("b", Secret("AIza-not-a-key")), "flash", quotas=QUOTAS)
    async with store_backend.open(clock) as store:
        for number in range(20):
            await store.charge("a", number, LIMITED, [Taking(clock.time(), Demand(amount, 1))])
        await store.reserve("odd", [other], Demand(1, 1), 60.0)
        outcomes = await asyncio.gather(
            store.settle("odd", Demand(amount, 1)),
            store.reserve("good", [LIMITED, other], Demand(0, 1), 60.0),
        )
        assert outcomes[1].deployment is LIMITED
        for limited in (LIMITED, other):
            [refusal] = (await store.reserve("more", [limited], Demand(1, 1), 60.0)).refusals
            assert refusal.reason == "rpm"
            assert refusal.retry_at <= START + 61.0
        clock.shift(61.0)
        for limited in (LIMITED, other):
            [snapshot] = await store.snapshot([limited])
            assert snapshot.quotas[0].used == 0
            assert (await store.reserve("after", [limited], Demand(1, 1), 60.0)).deployment is limited


@pytest.mark.parametrize("amount", [-5, -(10**400), -math.inf, math.nan])
async def test_nothing_is_given_back_by_taking_less_than_nothing(store_backend: Backend, amount: Any) -> None:
    """It counts as nothing."""
    async with store_backend.open(ManualClock(START)) as store:
        await store.reserve("one", [LIMITED], Demand(1, 40), 60.0)
        await store.reserve("odd", [LIMITED], Demand(1, amount), 60.0)
        await store.charge(
            "a", 1, LIMITED, [Taking(START, Demand(1, amount)), Taking(math.nan, Demand(1, 1))]
        )
        await store.settle("odd", Demand(1, amount))
        [snapshot] = await store.snapshot([LIMITED])
        assert [quota.used for quota in snapshot.quotas] == [3, 40, 40]


async def test_text_that_cannot_be_written_fails_alone(store_backend: Backend) -> None:
    """Or does not fail at all."""
    async with store_backend.open(ManualClock(START)) as store:
        calls = [store.reserve(f"r{n}", [LIMITED], Demand(1, 1), 60.0) for n in range(5)]
        calls.insert(2, store.charge("\ud800", 1, LIMITED, []))  # type: ignore[arg-type]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(outcome, Exception) for outcome in outcomes) <= 1
        [snapshot] = await store.snapshot([LIMITED])
        assert [quota.used for quota in snapshot.quotas] == [5, 5, 5]

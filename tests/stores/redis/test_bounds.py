"""What is stored in Redis stays small, and what is abandoned there is found in time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.stores.base import Standing
from llm_router.stores.redis import RedisStore
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer

pytestmark = pytest.mark.slow

START = 1_800_041_000.25
SPAN = 60.3
HASH = "{llm_router}:reservations:3"
METRICS = tuple(Metric)


def deployment(*quotas: Quota) -> Deployment:
    return Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=quotas)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [240, 1_000_000])
async def test_takings_of_nothing_that_grow_later_share_entries(
    server: RedisServer, limit: int, newest_first: bool
) -> None:
    """More than a thousand, settled upwards in either order: the entries are bounded, and nothing is lost."""
    clock = ManualClock(START)
    limited = deployment(Quota(Metric.TPM, limit))
    names = [f"r{n}" for n in range(1_200)]
    async with aclosing(RedisStore(server.url, clock=clock, timeout=20)) as store:
        for name in names:
            await store.reserve(name, [limited], Demand(1, 0), 600.0)
            clock.shift(0.01)
        for name in reversed(names) if newest_first else names:
            await store.settle(name, Demand(1, 1))
        [snapshot] = await store.snapshot([limited])
        assert snapshot.quotas[0].used == 1_200
        with server.client() as client:
            [key] = client.scan_iter("*scope*")
            assert client.strlen(key) < 480 * 24 + 500
        clock.shift(START + SPAN - 0.001 - clock.time())
        [snapshot] = await store.snapshot([limited])
        assert snapshot.quotas[0].used == 1_200
        clock.shift(30.0 + 0.252)
        [snapshot] = await store.snapshot([limited])
        assert snapshot.quotas[0].used == 0


async def test_many_abandoned_reservations_are_swept_within_a_minute(server: RedisServer) -> None:
    """By the calls of others, one a second, each of which does a bounded part of it."""
    clock = ManualClock(START)
    limited = deployment(Quota(Metric.RPD, 10**9, Refill.DAILY))
    async with aclosing(RedisStore(server.url, clock=clock, timeout=20)) as store:
        for start in range(0, 100_000, 5_000):
            names = (f"dead {n}" for n in range(start, start + 5_000))
            await asyncio.gather(*(store.reserve(name, [limited], Demand(), 5.0) for name in names))
        clock.shift(5.0)
        with server.client() as client:
            assert client.hlen(HASH) == 100_000
            client.config_resetstat()
            for number in range(40):
                before = client.hlen(HASH)
                await store.reserve(f"alive {number}", [limited], Demand(), 600.0)
                assert before - client.hlen(HASH) <= 5_000
                clock.shift(1.0)
            assert client.hlen(HASH) == 40


async def test_a_sweep_goes_on_after_the_clock_was_set_back(server: RedisServer) -> None:
    """What expired while it was ahead is found, and what was to be done next is not put off for a day."""
    clock = ManualClock(START + 86_400.0)
    limited = deployment(Quota(Metric.RPD, 10**9, Refill.DAILY))
    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        for number in range(100):
            await store.reserve(f"ahead {number}", [limited], Demand(), 30.0)
        clock._now = START
        for number in range(40):
            await store.reserve(f"alive {number}", [limited], Demand(), 600.0)
            clock.shift(1.0)
    with server.client() as client:
        assert client.hlen(HASH) == 40


async def test_a_thousand_processes_are_ranked_and_more_are_counted(server: RedisServer) -> None:
    """To rank one takes a look at all of them, which would keep other callers waiting."""
    async with aclosing(RedisStore(server.url, clock=ManualClock(START))) as store:
        await asyncio.gather(*(store.announce(f"{n:04}") for n in range(1_000)))
        assert await store.standing("0007") == Standing(1_000, 7)
        assert await store.standing("more") == Standing(1_001, None)


@pytest.mark.parametrize(("metrics", "most"), [(METRICS[:2], 200), (METRICS, 300)])
async def test_learnt_limits_take_little_of_a_record(
    server: RedisServer, metrics: tuple[Metric, ...], most: int
) -> None:
    """Two that rise by themselves take 138 bytes of the record that is there anyway, four 276."""
    clock = ManualClock(START)
    limited = deployment(Quota(Metric.RPM, 10))
    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        await store.reserve("r", [limited], Demand(1, 1), 600.0)
        with server.client() as client:
            [key] = client.scan_iter("*scope*")
            before = client.strlen(key)
            for metric in metrics:
                limit = 1_000_000 if metric.counts_tokens else 1_000
                rises = LearntLimit(metric, limit, LimitSource.INFERRED, raised=limit * 2, raise_after=3600.0)
                await store.cool_down(Cooldown.learn(limited.model_scope, rises))
            assert client.strlen(key) - before < most
            assert list(client.scan_iter("*scope*")) == [key]

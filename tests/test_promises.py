"""Promises that only show over many sends, or many shapes of them."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_router import Deployment, Key, Metric, Quota, Reply, Request, Router, Secret
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


NAMES = st.text(min_size=1, max_size=12).filter(str.strip)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(NAMES, min_size=1, max_size=6, unique=True),
    models=st.lists(NAMES, min_size=1, max_size=3, unique=True),
)
def test_any_id_works(ids: list[str], models: list[str]) -> None:
    """Whatever characters an id or a model has, each deployment has its own quota, kept exactly."""

    async def run() -> None:
        pool = [
            Deployment(Key(key_id, Secret("s")), model, "light", quotas=(Quota(Metric.RPM, 2),))
            for key_id in ids
            for model in models
        ]
        provider = FakeProvider()
        async with Router(pool, provider=provider, clock=ManualClock()) as router:
            wanted = 2 * len(pool)
            responses = [await router.send("x") for _ in range(wanted + 3)]
            assert sum(response.success for response in responses) == wanted
            used = [(call.key_id, call.model) for call in provider.calls]
            assert all(used.count((d.key.key_id, d.model)) == 2 for d in pool)

    asyncio.run(run())


async def test_no_send_within_the_quota_fails(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Concurrent sends of mixed size that use up the quota exactly are all served."""
    chance = random.Random(3)
    deployments = [pools.one(rpm=10, tpm=10 * 40) for _ in range(30)]
    async with make_router(deployments) as router:
        sizes = [chance.choice([1, 5, 40]) for _ in range(300)]
        responses = await asyncio.gather(*(router.send("w " * size) for size in sizes))
    assert all(response.success for response in responses)
    assert len(provider.calls) == 300


@pytest.mark.parametrize("limit", [1, 2, 3, 15, 60])
async def test_a_limit_admits_exactly_so_many(
    make_router: Callable[..., Router],
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    limit: int,
) -> None:
    """Neither one less nor one more, for callers one by one and at once, in this minute and in the next."""
    async with make_router([pools.one(rpm=limit)]) as router:
        for burst in range(4):
            if burst % 2:
                responses = [await router.send("x") for _ in range(limit + 3)]
            else:
                responses = await asyncio.gather(*(router.send("x") for _ in range(limit + 3)))
            assert [each.success for each in responses] == [True] * limit + [False] * 3
            assert len(provider.calls) == limit * (burst + 1)
            await clock.advance(61)


@pytest.mark.slow
async def test_a_storm_keeps_every_limit(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Under random bursts of mixed sizes, waits and cancellations no 60 s ever hold too much."""
    chance = random.Random(5)
    deployments = [pools.one(rpm=6, tpm=120) for _ in range(4)]
    tasks: list[asyncio.Task[Any]] = []
    async with make_router(deployments, base_backoff=0.2) as router:
        provider.delay = 0.4
        for _ in range(60):
            for _ in range(chance.randrange(6)):
                words = "w " * chance.randrange(1, 60)
                tasks.append(asyncio.create_task(router.send(words, max_wait=chance.choice([0, 5, 90]))))
            if tasks and chance.random() < 0.3:
                chance.choice(tasks).cancel()
            await clock.advance(chance.uniform(0, 9))
        await clock.advance(300)
        assert all(task.done() for task in tasks)
        assert "0 reservations" in repr(router.keys.store)
        assert (await router.health_check())["waiting"] == 0
    assert clock.pending == 0
    for key in {call.key_id for call in provider.calls}:
        calls = [
            (call.at, len(call.request.contents.split())) for call in provider.calls if call.key_id == key
        ]
        for at, _ in calls:
            span = [words for when, words in calls if at <= when <= at + 60.0]
            assert len(span) <= 6
            assert sum(span) <= 120


@pytest.mark.slow
async def test_memory_is_flat(make_router: Callable[..., Router], pools: Pools, clock: ManualClock) -> None:
    """After warm-up a send leaves nothing behind, whether it is served or refused."""

    async def sends(count: int) -> None:
        for number in range(count):
            await router.send("x", max_wait=0)
            if number % 50 == 49:
                clock.shift(61)

    async with make_router(pools.many(5, rpm=5), provider=_Forgetful()) as router:
        await sends(2_000)
        gc.collect()
        before = len(gc.get_objects())
        await sends(4_000)
        gc.collect()
        assert len(gc.get_objects()) - before < 100


class _Forgetful(FakeProvider):
    """A provider that keeps no log of its calls."""

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        self.calls.clear()
        return await super().generate(deployment, request, dispatched)

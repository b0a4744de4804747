"""How requests start slowly where a limit is configured that nothing has proven yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from llm_router import Deployment, MemoryStore, Metric, ProviderError, Quota, Refill, Request, Router
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.limits import LearntLimit
from llm_router.engine.index import PROVEN
from llm_router.engine.slow_start import unproven_below
from llm_router.providers.base import Reply
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]
RPM, TPM = Metric.RPM, Metric.TPM


class Answering(FakeProvider):
    """A provider that counts what arrives, and answers or refuses all of it when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = 0
        self.refuses = False
        self.answers = asyncio.Event()

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        self.arrived += 1
        dispatched()
        await self.answers.wait()
        if self.refuses:
            raise ProviderError("exhausted", kind="quota", code=429, charged=False)
        return await super().generate(deployment, request, lambda: None)


@pytest.fixture
def answering() -> Answering:
    return Answering()


def sends(router: Router, count: int, max_wait: float = 30.0) -> list[asyncio.Task[object]]:
    return [asyncio.create_task(router.send("x", max_wait=max_wait)) for _ in range(count)]


async def leave(tasks: list[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ((Quota(RPM, 60),), 0.5),
        ((Quota(TPM, 9), Quota(RPM, 20)), 0.25),  # fifteen may always go at once
        ((Quota(RPM, 15),), PROVEN),
        ((Quota(RPM, 60, adaptive=True),), PROVEN),
        ((Quota(RPM, 60, Refill.STEADY),), PROVEN),
        ((Quota(RPM, 10**15),), PROVEN),
        ((Quota(TPM, 60),), PROVEN),
    ],
)
def test_half_of_a_configured_limit_may_go_at_once(
    pools: Pools, quotas: tuple[Quota, ...], expected: float
) -> None:
    """Small limits, those that are to be learnt, and no limits need no slow start."""
    deployment = Deployment(pools.one().key, "m", "light", quotas=quotas)
    assert unproven_below(deployment) == expected


async def test_what_follows_is_spaced_until_it_is_proven(
    make_router: MakeRouter, answering: Answering, pools: Pools, clock: ManualClock
) -> None:
    """Half a limit at once and the rest within two seconds; the next minute nothing waits any more."""
    async with make_router([pools.one(rpm=60)], provider=answering) as router:
        tasks = sends(router, 60)
        await clock.advance(0)
        assert answering.arrived == 31
        await clock.advance(1.0)
        assert 40 <= answering.arrived <= 50
        await clock.advance(1.5)
        assert answering.arrived == 60
        answering.answers.set()
        await clock.advance(61.0)
        assert all(task.done() for task in tasks)
        tasks = sends(router, 60)
        await clock.advance(0)
        assert answering.arrived == 120
        await asyncio.gather(*tasks)


async def test_an_answer_proves_what_was_granted_before_it(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Requests that follow an answer need not wait at all, one by one or together."""
    async with make_router([pools.one(rpm=60), pools.one(rpm=60)]) as router:
        for _ in range(70):
            assert (await router.send("x")).success
        responses = await asyncio.gather(*(router.send("x") for _ in range(52)))
    assert sum(response.success for response in responses) == 50


async def test_a_refusal_ends_the_slow_start(
    make_router: MakeRouter, answering: Answering, pools: Pools, clock: ManualClock
) -> None:
    """What waits goes by the limit that was found."""
    async with make_router([pools.one(rpm=60)], provider=answering, max_retries=0) as router:
        tasks = sends(router, 60)
        await clock.advance(0.1)
        assert answering.arrived < 35
        answering.refuses = True
        answering.answers.set()
        await clock.advance(0)
        assert all(task.done() for task in tasks)
        await leave(tasks)


@pytest.mark.parametrize("tokens", [1, 5_000])
async def test_a_limit_that_is_known_is_used_at_once(
    make_router: MakeRouter,
    answering: Answering,
    pools: Pools,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
) -> None:
    """One that was stated, by whatever process, and one of tokens where these are scarcer than requests."""
    store, deployment = MemoryStore(clock=clock), pools.one(rpm=60, tpm=250_000)
    monkeypatch.setattr(answering, "estimate_tokens", lambda _: tokens)
    if tokens == 1:
        await store.cool_down(Cooldown.learn(deployment.model_scope, LearntLimit(RPM, 50)))
    async with make_router([deployment], provider=answering, store=store) as router:
        tasks = sends(router, 50)
        await clock.advance(0)
        assert answering.arrived == 50
        answering.answers.set()
        await asyncio.gather(*tasks)


async def test_who_may_not_wait_does_not(
    make_router: MakeRouter, answering: Answering, pools: Pools, clock: ManualClock
) -> None:
    """Nothing is spaced that cannot wait for two seconds: ``max_wait`` bounds all waiting."""
    async with make_router([pools.one(rpm=60)], provider=answering) as router:
        tasks = [*sends(router, 45, max_wait=0.0), *sends(router, 15, max_wait=1.9)]
        await clock.advance(0)
        assert answering.arrived == 60
        await leave(tasks)


async def test_who_waits_may_leave(
    make_router: MakeRouter, answering: Answering, pools: Pools, clock: ManualClock
) -> None:
    """Those behind who leaves move up, and no turn is lost."""
    async with make_router([pools.one(rpm=60)], provider=answering) as router:
        tasks = sends(router, 40)
        await clock.advance(0)
        waiting = [task for task in tasks if not task.done()][31:35]
        await leave(waiting)
        await clock.advance(0.5)
        assert answering.arrived == 36
        answering.answers.set()
        await clock.advance(1.0)
        assert sum(task.done() and not task.cancelled() for task in tasks) == 36

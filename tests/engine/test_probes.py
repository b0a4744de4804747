"""The one request that goes first after a verdict: what it may find out, and what others do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, MemoryStore, ProviderError, Router
from llm_router.emulator import Fault
from llm_router.errors import InvalidRequestError
from llm_router.testing import FakeProvider, GeminiEmulator, ManualClock
from llm_router.testing.clock import settle

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]

MISSING = ProviderError("models/model-a is not found", kind="model", code=404)
LADDER = (300.0, 1_800.0)
"""Seconds after which such a model is tried again."""


async def _quarantine(router: Router, provider: FakeProvider, clock: ManualClock, strikes: int = 1) -> None:
    """Have the only model called missing so many times, and wait until it may be tried again."""
    for seconds in LADDER[:strikes]:
        provider.script(MISSING)
        assert not (await router.send("x")).success
        clock.shift(seconds)


async def _cancelled(router: Router, clock: ManualClock) -> None:
    task = asyncio.create_task(router.send("x"))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _timed_out(router: Router, clock: ManualClock) -> None:
    task = asyncio.create_task(router.send("x", timeout=5.0))
    await settle()
    await clock.advance(5.0)
    assert not (await task).success


async def _failed(router: Router, clock: ManualClock) -> None:
    assert not (await router.send("x")).success


async def _rejected(router: Router, clock: ManualClock) -> None:
    with pytest.raises(InvalidRequestError):
        await router.send("x")


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (asyncio.Event(), _cancelled),
        (asyncio.Event(), _timed_out),
        (ProviderError("The prompt is wrong.", kind="request", code=400), _failed),
        (ProviderError("no answer", kind="network", charged=False), _failed),
        (InvalidRequestError("This cannot be built."), _rejected),
    ],
    ids=["cancelled", "timed-out", "wrong-request", "unreachable", "unbuildable"],
)
async def test_a_probe_that_finds_nothing_out_is_followed_by_the_next_request(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools, answer: Any, ends: Any
) -> None:
    """At once, as the next probe: the strikes are kept."""
    async with make_router([pools.one()], max_retries=0) as router:
        await _quarantine(router, provider, clock, 2)
        provider.script(answer)
        await ends(router, clock)
        clock.shift(0.5)  # as long as this process avoids what it could not reach
        provider.script(MISSING)
        response = await router.send("x")
        assert (response.attempts, response.retry_after) == (1, 7_200.0)


async def test_one_that_is_cancelled_late_makes_no_room_for_another(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Another one has gone first meanwhile, and the verdict it brought stays."""
    async with make_router([pools.one()]) as router:
        await _quarantine(router, provider, clock)
        provider.script(asyncio.Event())
        task = asyncio.create_task(router.send("x", timeout=None))
        await settle()
        clock.shift(60)
        provider.script(MISSING)
        assert (await router.send("x")).retry_after == LADDER[1]
        task.cancel()
        await asyncio.wait([task])
        assert (await router.send("x")).attempts == 0


async def test_a_stream_that_is_left_early_has_found_out_enough(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Its first piece is an answer: the verdict ends, and so does an outage of the model."""
    busy = ProviderError("The model is overloaded.", kind="server", code=503)
    async with make_router(pools.many(3), max_retries=0) as router:
        provider.script(busy, times=3)
        for _ in range(3):
            assert not (await router.send("x")).success
        clock.shift(4.0)
        async with router.stream("a story") as stream:
            async for _ in stream:
                break
        gate = asyncio.Event()
        provider.script(gate, times=3)
        tasks = [asyncio.create_task(router.send("x")) for _ in range(3)]
        await settle()
        assert len({call.key_id for call in provider.calls[-3:]}) == 3
        gate.set()
        assert all([(await task).success for task in tasks])


async def test_those_that_wait_go_on_when_the_probe_is_answered(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Not only when the next probe would be due, a minute after the first."""
    gate = asyncio.Event()
    async with make_router([pools.one()]) as router:
        await _quarantine(router, provider, clock)
        provider.script(gate)
        tasks = [asyncio.create_task(router.send("x", max_wait=90.0)) for _ in range(4)]
        await clock.advance(10.0)
        assert len(provider.calls) == 2
        gate.set()
        await clock.advance(1.0)
        assert all(task.done() and task.result().success for task in tasks)


async def test_those_that_wait_hear_of_a_lift_from_the_next_call_of_the_store(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Whoever makes it: a request of the same process that goes elsewhere will do."""
    store = MemoryStore(clock=clock)
    ours = [pools.one(key_id="ours"), pools.one("model-b", key_id="free")]
    async with make_router(ours, store=store) as router, make_router(ours, store=store) as other:
        await router.send("x", model="model-b")
        provider.script(MISSING, key_id="ours")
        assert not (await router.send("x", model="model-a", fallback="none")).success
        task = asyncio.create_task(router.send("x", model="model-a", fallback="none", max_wait=900.0))
        await settle()
        await other.keys.lift("ours")
        await settle()
        assert not task.done()
        await router.send("x", model="model-b")
        await settle()
        assert task.done()


async def test_an_answer_that_takes_no_quota_ends_no_refusal_of_quota(
    clock: ManualClock, pools: Pools
) -> None:
    """Tokens may be counted all the time: afterwards it is still one request that goes first."""
    async with (
        GeminiEmulator() as emulator,
        Router([pools.one()], base_url=emulator.url, clock=clock, max_retries=0) as router,
    ):
        emulator.inject(Fault.bare_429())
        assert not (await router.send("x")).success
        clock.shift(61.0)
        for _ in range(2):
            assert await router.count_tokens("x")
        responses = await asyncio.gather(*(router.send("x") for _ in range(3)))
        assert [response.attempts for response in responses] == [1, 0, 0]
        assert responses[0].retry_after is not None
        assert responses[0].retry_after > 80.0


async def test_an_answer_that_takes_no_quota_ends_no_outage(clock: ManualClock, pools: Pools) -> None:
    """A model that counts tokens may be too busy to answer."""
    async with (
        GeminiEmulator() as emulator,
        Router(pools.many(3), base_url=emulator.url, clock=clock, max_retries=0) as router,
    ):
        emulator.inject(Fault.status(503))
        for _ in range(3):
            assert not (await router.send("x")).success
        clock.shift(1.0)
        for _ in range(2):
            assert await router.count_tokens("x")
        cooling = [status["in_cooldown"] for status in await router.get_all_key_statuses()]
        assert sum(cooling) == 2


async def test_one_that_waits_for_less_than_a_minute_waits_for_the_answer_to_a_probe(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Here and in another process: that it may take a minute is no reason to give up at once."""
    store, pool = MemoryStore(clock=clock), [pools.one()]
    gate = asyncio.Event()
    async with make_router(pool, store=store) as router, make_router(pool, store=store) as other:
        provider.script(MISSING)
        assert not (await router.send("x")).success
        assert not (await other.send("x")).success  # so that it has met the quarantine
        clock.shift(300.0)
        provider.script(gate)
        probe = asyncio.create_task(router.send("x"))
        await settle()
        tasks = [asyncio.create_task(each.send("x", max_wait=10.0)) for each in (router, other)]
        await clock.advance(2.0)
        assert len(provider.calls) == 2
        assert not any(task.done() for task in tasks)
        gate.set()
        await clock.advance(3.5)
        assert probe.done()
        assert all(task.done() and task.result().success for task in tasks)


async def test_one_that_waits_for_a_probe_gives_up_when_its_time_is_over(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    async with make_router([pools.one()]) as router:
        await _quarantine(router, provider, clock)
        provider.script(asyncio.Event())
        probe = asyncio.create_task(router.send("x"))
        await settle()
        task = asyncio.create_task(router.send("x", max_wait=10.0))
        await clock.advance(8.0)
        assert not task.done()
        await clock.advance(2.1)
        assert task.done()
        assert task.result().retry_after
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)


async def test_a_cooldown_that_was_imposed_anew_is_no_probe(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """Who cannot be served in time is told at once."""
    async with make_router([pools.one()], max_retries=0) as router:
        await _quarantine(router, provider, clock, 2)
        provider.script(MISSING)
        assert not (await router.send("x")).success
        response = await router.send("x", max_wait=10.0)
        assert response.retry_after == pytest.approx(7_200.0, abs=1.0)


async def test_a_probe_that_is_under_way_brings_no_quota_back(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """Who never has room for another reason is told so, whatever becomes of the probe."""
    store, deployment = MemoryStore(clock=clock), pools.one(rpm=9, tpm=20)
    async with make_router([deployment], store=store) as router:
        now = clock.time()
        await store.cool_down(
            Cooldown(deployment.model_scope, now + 5.0, "spent", half_open=True, strikes=1, since=now)
        )
        assert not (await router.send("x")).success
        clock.shift(5.0)
        await store.reserve("a probe", [deployment], Demand(1, 1), 60.0)
        assert (await router.send("x")).retry_after == pytest.approx(1.0)
        assert (await router.send("word " * 60)).retry_after is None

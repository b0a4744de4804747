"""Promises that the modules of the engine keep together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from llm_router import (
    Deployment,
    Key,
    LeastLoaded,
    MemoryStore,
    Metric,
    ProviderError,
    Quota,
    QuotaExhaustedError,
    Refill,
    Reply,
    Request,
    RoundRobin,
    Router,
    Secret,
    SelectionStrategy,
    Usage,
)
from llm_router.domain.quota import Demand
from llm_router.engine.pool import Pool
from llm_router.stores.base import Decision, Refusal
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]


def deployment(key_id: str, rpm: int = 15, provider: str = "gemini", priority: int = 1) -> Deployment:
    """Make a deployment."""
    key = Key(key_id, Secret(f"secret-of-{key_id}"), provider)
    return Deployment(key, "model", "light", priority=priority, quotas=(Quota(Metric.RPM, rpm),))


def failure(kind: str, *, code: int | None = None, charged: bool = True) -> ProviderError:
    """Make a failure."""
    return ProviderError("it failed", kind=kind, code=code, charged=charged)


class PausingStore(MemoryStore):
    """A store that acts at once, and answers when the test lets it.

    Attributes:
        pause: What the next reserve waits for, if it is set.
        settling: What every settle waits for, if it is set.
    """

    pause: asyncio.Event | None = None
    settling: asyncio.Event | None = None
    ttl = 0.0

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.ttl = ttl
        decision = await super().reserve(reservation_id, candidates, demand, ttl)
        pause, self.pause = self.pause, None
        if pause is not None:
            await pause.wait()
        return decision

    async def settle(self, reservation_id: str, used: Demand) -> None:
        if self.settling is not None:
            await self.settling.wait()
        await super().settle(reservation_id, used)


async def test_quota_of_a_cancelled_reserve_is_used(make_router: MakeRouter, clock: ManualClock) -> None:
    """What a cancelled reserve gives back is used at once."""
    store = PausingStore(clock=clock)
    async with make_router([deployment("k", rpm=5)], store=store) as router:
        for _ in range(4):
            assert (await router.send("x")).success
        store.pause = asyncio.Event()
        cancelled = asyncio.create_task(router.send("x"))
        await clock.advance(0)
        waiting = asyncio.create_task(router.send("x", max_wait=100))
        await clock.advance(1)
        cancelled.cancel()
        await clock.advance(1)
        assert cancelled.cancelled()
        assert waiting.result().success


async def test_quota_of_a_cancelled_release_is_used(make_router: MakeRouter, clock: ManualClock) -> None:
    """What an attempt gives back while it is cancelled is used at once."""
    store = PausingStore(clock=clock)
    provider = FakeProvider([failure("network", charged=False)], clock=clock, delay=1.0)
    router = make_router([deployment("k", rpm=1)], store=store, provider=provider, max_retries=0)
    cancelled = asyncio.create_task(router.send("x"))
    await clock.advance(0.5)
    store.settling = gate = asyncio.Event()
    waiting = asyncio.create_task(router.send("x", max_wait=100))
    await clock.advance(0.6)
    cancelled.cancel()
    gate.set()
    for _ in range(2):
        await clock.advance(1)
    assert cancelled.cancelled()
    assert waiting.result().success


async def test_quota_that_comes_back_while_a_refusal_is_under_way_is_used(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """Whoever gave it back could not tell of it those who had not heard yet that there was none."""
    store = PausingStore(clock=clock)
    provider = FakeProvider([failure("network", charged=False)], clock=clock, delay=1.0)
    router = make_router([deployment("k", rpm=1)], store=store, provider=provider, max_retries=0)
    unsent = asyncio.create_task(router.send("x"))
    await clock.advance(0.5)
    store.pause = hear = asyncio.Event()
    waiting = asyncio.create_task(router.send("x", max_wait=100))
    await clock.advance(0.6)
    assert unsent.done()
    hear.set()
    for _ in range(2):
        await clock.advance(1)
    assert waiting.result().success


async def test_tokens_that_come_back_wake_who_waits_for_them_on_another_key(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """The keys of one project share them; those of a day were waited for until midnight."""
    quotas = (Quota(Metric.TPD, 100, Refill.DAILY),)
    keys = [Key(name, Secret(f"secret-of-{name}"), project="p") for name in ("one", "two")]
    pool = [
        Deployment(key, "model", workload, quotas=quotas)
        for key, workload in zip(keys, ("light", "heavy"), strict=True)
    ]
    provider = FakeProvider([Reply("y", usage=Usage(1, 1))], clock=clock, delay=2.0)
    async with make_router(pool, provider=provider, max_wait=90_000.0) as router:
        first = asyncio.create_task(router.send("word " * 60, workload="light", fallback="none"))
        await clock.advance(0.5)
        second = asyncio.create_task(router.send("word " * 60, workload="heavy", fallback="none"))
        await clock.advance(1.0)
        assert router.keys.selector.waiting == 1
        await clock.advance(4.0)
        assert first.result().success
        assert second.result().success


async def test_a_quarantined_candidate_keeps_its_reason(make_router: MakeRouter, clock: ManualClock) -> None:
    """A shorter cooldown that comes later does not hide it."""
    provider = FakeProvider(clock=clock, delay=1.0)
    late = ProviderError("it failed", kind="quota", code=429, retry_delay=5.0)
    provider.script(failure("key", code=400), late, key_id="k")
    async with make_router([deployment("k")], provider=provider, max_retries=0) as router:
        tasks = []
        for _ in range(2):
            tasks.append(asyncio.create_task(router.send("x")))
            await clock.advance(0.1)
        await clock.advance(3)
        assert not any(task.result().success for task in tasks)
        error = (await router.send("x")).error
        assert isinstance(error, QuotaExhaustedError)
        assert [candidate.reason for candidate in error.candidates] == ["key: it failed"]


async def test_an_unreachable_provider_and_a_dead_key_are_not_healthy(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """Health combines what is wrong: if no send has a chance, it says so."""
    pool = [deployment(f"a{number}", provider="A") for number in range(4)]
    dead = FakeProvider([failure("key", code=400)] * 2)
    providers = {"A": FakeProvider([failure("network")] * 3), "B": dead}
    pool.append(deployment("b", provider="B", priority=9))
    router = make_router(pool, provider=providers, max_retries=0)
    for _ in range(4):
        await router.send("x")
    assert not (await router.send("x")).success
    assert not (await router.health_check())["healthy"]


async def test_a_quarantine_is_logged_once(
    make_router: MakeRouter, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that were in flight together are refused together, and fill no log."""
    provider = FakeProvider([failure("model", code=404)] * 5, clock=clock, delay=1.0)
    async with make_router([deployment("k")], provider=provider, max_retries=0) as router:
        tasks = [asyncio.create_task(router.send("x")) for _ in range(5)]
        await clock.advance(3)
        assert not any(task.result().success for task in tasks)
    assert len([record for record in caplog.records if "quarantined" in record.getMessage()]) == 1


async def test_a_caller_that_does_not_wait_is_never_refused_unasked(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """While the head of the line sleeps over the moment at which there is room, others are served."""
    async with make_router([deployment("k", rpm=5)]) as router:
        for _ in range(5):
            await router.send("x")
        head = asyncio.create_task(router.send("x", max_wait=1_000))
        await clock.advance(0)
        clock.shift(60.3)  # the timer of the head has not gone off yet
        assert (await router.send("x")).success
        assert not head.done()
        await clock.advance(0.1)
        assert head.result().success


async def test_the_reservation_of_a_stream_outlives_its_timeout(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """However long a reader takes."""
    store = PausingStore(clock=clock)
    router = make_router([deployment("k")], store=store)
    async with router.stream("x", timeout=7_200) as stream:
        await stream.collect()
    assert store.ttl >= 7_200


async def test_a_clock_set_back_does_not_stop_a_provider_for_longer(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """A provider that could not be reached is tried again, also when the clock was an hour ahead."""
    provider.script(failure("network"), times=3)
    pool = [deployment(f"k{number}") for number in range(4)]
    async with make_router(pool, max_retries=2, base_backoff=0.001) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        assert not task.result().success
        clock.jump(-3_600)
        assert (await router.send("x")).success


async def test_a_provider_that_estimates_nothing_loses_no_answer(make_router: MakeRouter) -> None:
    """An estimate of 0 breaks the port's promise, and must not cost the answer that was paid for."""

    class Zero(FakeProvider):
        def estimate_tokens(self, request: Request) -> int:
            return 0

    provider = Zero([Reply("ok", Usage(input_tokens=5))])
    async with make_router([deployment("k")], provider=provider) as router:
        assert (await router.send("x")).text == "ok"


class Demanding(MemoryStore):
    """A store in memory that remembers what was to be reserved."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.demands: list[Demand] = []

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.demands.append(demand)
        return await super().reserve(reservation_id, candidates, demand, ttl)


class TwoShards(MemoryStore):
    """A store of two shards: those of the even and the odd keys."""

    shards = 2

    def shard_of(self, deployment: Deployment) -> int:
        return int(deployment.key.key_id[-1]) % 2


async def test_shards_do_not_break_the_fallback_order(make_router: MakeRouter, clock: ManualClock) -> None:
    """The preferred model is asked on every shard before any other model is."""
    asked: list[list[str]] = []

    class Noting(TwoShards):
        async def reserve(
            self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
        ) -> Decision:
            asked.append([candidate.model for candidate in candidates])
            return await super().reserve(reservation_id, candidates, demand, ttl)

    pool = [Deployment(Key(f"k{n}", Secret("s")), model, "light") for n, model in enumerate("MMXX")]
    async with make_router(pool, store=Noting(clock=clock)) as router:
        for _ in range(10):
            assert (await router.send("x", model_preference="M")).model == "M"
    assert asked == [["M", "M", "X", "X"]] * 10


@pytest.mark.parametrize("strategy", [LeastLoaded(), RoundRobin()], ids=repr)
async def test_every_model_of_a_tier_gets_its_turn(
    make_router: MakeRouter, strategy: SelectionStrategy
) -> None:
    """Where a workload has several models of equal priority, none of them is left unused."""
    pool = [
        Deployment(Key(f"k{n}-{model}", Secret("s")), model, "light", quotas=(Quota(Metric.RPM, 100),))
        for model in "ab"
        for n in range(9)
    ]
    async with make_router(pool, strategy=strategy) as router:
        models = [(await router.send("x", workload="light")).model for _ in range(400)]
    assert 150 <= models.count("a") <= 250


def test_a_deployment_that_is_parked_again_and_again_has_one_entry(
    make_pool: Callable[..., Pool], clock: ManualClock
) -> None:
    """Roused early and refused again until the same moment, it does not fill the heap."""
    early, late = deployment("early"), deployment("late")
    pool = make_pool([early, late])
    pool.note_refusal(Refusal(early, "rpm", 50.0, 50.0), 0.0)
    for _ in range(5_000):
        pool.note_refusal(Refusal(late, "rpd", 100.0, 100.0), 0.0)
        pool.return_quota(late.model_scope, 0.0)
    [group] = pool.groups.values()
    assert len(group.parked) < 200


async def test_an_open_breaker_is_the_reason_that_is_given(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """While a provider cannot be reached, every candidate says so."""
    provider.script(failure("network"), times=3)
    pool = [deployment(f"k{number}") for number in range(6)]
    async with make_router(pool, max_retries=2, base_backoff=0.001) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        assert not task.result().success
        error = (await router.send("x")).error
    assert isinstance(error, QuotaExhaustedError)
    assert "the provider cannot be reached" in str(error)
    assert len(error.candidates) == 6


async def test_a_streamed_turn_may_be_left_by_another_task(make_router: MakeRouter) -> None:
    """A web server may close a stream elsewhere: the conversation goes on."""
    async with make_router([deployment("k")]) as router:
        conversation = router.conversation("a")
        stream = conversation.stream("two words")
        await stream.__aenter__()
        await asyncio.create_task(stream.__aexit__(None, None, None))
        assert (await asyncio.wait_for(conversation.send("three"), 5)).success


async def test_what_images_teach_about_estimates_does_not_change_those_of_texts(
    clock: ManualClock,
) -> None:
    """A prompt with an image may take ten times what was estimated; the next text is reserved as before."""
    store = Demanding(clock=clock)
    provider = FakeProvider()
    image = {"role": "user", "parts": [{"inline_data": {"mime_type": "image/png", "data": b"x"}}]}
    async with Router([deployment("a", rpm=100)], store=store, provider=provider, clock=clock) as router:
        for _ in range(20):
            provider.script(Reply("a cat", Usage(input_tokens=5_000)))
            await router.send([image])
        await router.send("one word")
        estimate = provider.estimate_tokens(Request(contents="one word"))
        assert store.demands[-1].tokens == estimate
        await router.send([image])
        assert store.demands[-1].tokens > provider.estimate_tokens(Request(contents=[image]))

"""Streamed answers: when another key is tried, what is settled, and what the caller sees."""

from __future__ import annotations

import asyncio
from collections import deque

import attrs
import pytest

from llm_router import (
    BlockedError,
    Chunk,
    Cooldown,
    DeadlineExceededError,
    InvalidRequestError,
    MemoryStore,
    Metric,
    ProviderError,
    Quota,
    QuotaExhaustedError,
    Refill,
    Reply,
    Response,
    Router,
    RouterClosedError,
    UnknownModelError,
    Usage,
)
from llm_router.providers.base import FailureKind, StreamingProvider
from llm_router.testing import FakeProvider


def failure(kind=FailureKind.SERVER, **fields) -> ProviderError:
    return ProviderError("it failed", kind=kind, **fields)


async def read(stream) -> list[str]:
    return [chunk.text async for chunk in stream]


async def used(store, deployment) -> list[int]:
    [snapshot] = await store.snapshot([deployment])
    return [quota.used for quota in snapshot.quotas]


# --- an answer ----------------------------------------------------------------------------------------


async def test_an_answer_comes_piece_by_piece_and_then_as_a_response(make_router, provider, pools):
    """The answer comes in chunks; the response has all of them, the usage and the one attempt."""
    provider.by_key["k"] = deque(["one two three"])
    async with make_router([pools.one(key_id="k")]) as router:
        async with router.stream("say it", workload="light") as stream:
            chunks = [chunk async for chunk in stream]
        assert all(isinstance(chunk, Chunk) for chunk in chunks)
        assert [chunk.text for chunk in chunks] == ["one ", "two ", "three"]
    response = stream.response
    assert isinstance(response, Response)
    assert response.text == "one two three"
    assert (response.finish_reason, response.key_id, response.workload) == ("STOP", "k", "light")
    assert response.usage == Usage(input_tokens=2, output_tokens=13, total_tokens=15)
    assert (response.attempts, len(response.attempt_log), response.error) == (1, 1, None)


async def test_a_stream_may_be_collected(make_router, pools):
    """``collect`` works from the start or in the middle, any number of times."""
    async with make_router([pools.one()]) as router, router.stream("a b c") as stream:
        assert (await anext(stream)).text == "echo: "
        response = await stream.collect()
        assert response.text == "echo: a b c"
        assert await stream.collect() is stream.response is response
        assert await read(stream) == []


async def test_quota_is_settled_with_what_was_counted(pools):
    """The usage of the last chunk settles the quota as soon as it has come."""
    store, deployment = MemoryStore(), pools.one(tpm=1_000)
    pieces = [Reply("a", Usage(300)), Reply("b", Usage(700), "STOP")]
    router = Router([deployment], store=store, provider=FakeProvider([pieces]))
    async with router.stream("hello") as stream:
        assert await used(store, deployment) == [1, 1]
        await stream.collect()
        assert await used(store, deployment) == [1, 700]


async def test_an_answer_that_is_read_slowly_is_still_settled(pools, clock):
    """The reservation outlives the timeout, which is for each chunk."""
    store = MemoryStore(clock=clock)
    deployment = attrs.evolve(pools.one(), quotas=(Quota(Metric.TPD, 1_000, Refill.DAILY),))
    pieces = [Reply("a", Usage(900)), Reply("b", Usage(900), "STOP")]
    provider = FakeProvider([pieces])
    async with Router([deployment], store=store, provider=provider, clock=clock) as router:
        async with router.stream("hello", timeout=5) as stream:
            clock.shift(1_000)
            await store.cool_down(
                Cooldown.lift(deployment.model_scope)
            )  # lets the store look at what expired
            await stream.collect()
        assert await used(store, deployment) == [900]


async def test_a_provider_that_cannot_stream_answers_in_one_piece(pools):
    """The answer of an adapter that does not stream comes as one chunk."""

    class Plain:
        async def generate(self, deployment, request, launched):
            return Reply(f"all of {request.contents}", finish_reason="STOP")

        def validate(self, request):
            """Accept it."""

        def estimate_tokens(self, request):
            return 1

        async def aclose(self):
            """Do nothing."""

    assert not isinstance(Plain(), StreamingProvider)
    async with Router(pools.many(2), provider=Plain()) as router, router.stream("a b") as stream:
        assert await read(stream) == ["all of a b"]
        assert stream.response.success


# --- failures -----------------------------------------------------------------------------------------


async def test_another_key_is_tried_until_the_first_chunk(make_router, provider, pools):
    """A stream that has not begun handles failures as a send does."""
    provider.by_key["bad"] = deque([failure()])
    keys = [pools.one(key_id="bad", priority=0), pools.one(key_id="good")]
    async with make_router(keys, base_backoff=0.0) as router, router.stream("x") as stream:
        assert await read(stream) == ["echo: ", "x"]
    assert [attempt.key_id for attempt in stream.response.attempt_log] == ["bad", "good"]
    assert len(provider.calls) == stream.response.attempts == 2


async def test_an_interrupted_answer_is_not_restarted(make_router, provider, pools, clock):
    """The caller keeps the chunks; the failure is raised and recorded, and its deployment is avoided."""
    provider.by_key["bad"] = deque([["one ", failure()]])
    keys = [pools.one(key_id="bad", priority=0), pools.one(key_id="good")]
    async with make_router(keys) as router:
        async with router.stream("x") as stream:
            got = [(await anext(stream)).text]
            with pytest.raises(ProviderError, match="it failed"):
                await anext(stream)
            with pytest.raises(ProviderError, match="it failed"):
                await anext(stream)
        assert got == ["one "]
        response = stream.response
        assert (response.success, response.answer, response.attempts) == (False, "", 1)
        assert response.error is response.attempt_log[0].error
        assert (await router.send("y")).key_id == "good"


async def test_every_attempt_may_fail(make_router, provider, pools):
    """A stream makes as many attempts as a send; reading raises the failure, entering does not."""
    provider.by_key = {f"k{n}": deque([failure()]) for n in range(6)}
    keys = [pools.one(key_id=f"k{n}") for n in range(6)]
    async with make_router(keys, max_retries=2, base_backoff=0.0) as router, router.stream("x") as stream:
        with pytest.raises(ProviderError):
            await read(stream)
    assert stream.response.attempts == len(provider.calls) == 3


async def test_without_room_there_is_no_stream(make_router, pools):
    """A refused stream reports the refusal and the time to retry, as a send does."""
    async with make_router([pools.one(rpm=1)]) as router:
        await router.send("x")
        async with router.stream("y") as stream:
            response = await stream.collect()
        assert isinstance(response.error, QuotaExhaustedError)
        assert response.retry_after == pytest.approx(60.3)
        with pytest.raises(QuotaExhaustedError):
            await read(stream)


async def test_a_stream_may_wait_for_room(make_router, pools, clock):
    """A stream waits for quota for up to ``max_wait``."""
    async with make_router([pools.one(rpm=1)]) as router:
        await router.send("x")

        async def wait():
            async with router.stream("y", max_wait=100) as stream:
                return await stream.collect()

        task = asyncio.create_task(wait())
        await clock.advance(61)
        assert task.result().success
        assert task.result().waited == pytest.approx(60.3, abs=0.1)


async def test_a_blocked_answer_is_a_failure(make_router, provider, pools):
    """The chunks before the block are delivered, then it is raised."""
    provider.by_key["k"] = deque([["one ", Reply("", Usage(3), "SAFETY", blocked="SAFETY")]])
    async with make_router([pools.one(key_id="k")]) as router, router.stream("x") as stream:
        assert (await anext(stream)).text == "one "
        assert (await anext(stream)).text == ""
        with pytest.raises(BlockedError):
            await anext(stream)
        assert stream.response.finish_reason == "SAFETY"


async def test_the_timeout_is_for_each_chunk(make_router, pools, clock, provider):
    """An answer may take longer than the timeout if its chunks keep coming; a late chunk ends it."""
    provider.delay = 4.0
    async with make_router([pools.one()]) as router:

        async def run(prompt):
            async with router.stream(prompt, timeout=5) as stream:
                return await stream.collect()

        patient = asyncio.create_task(run("a b c d"))
        await clock.advance(30)
        assert patient.result().success
        assert patient.result().latency == pytest.approx(20)
        provider.delay = 6.0
        late = asyncio.create_task(run("a b"))
        await clock.advance(30)
        assert isinstance(late.result().error, DeadlineExceededError)
        assert late.result().attempts == 1
        assert provider.streaming == 0


async def test_wrong_arguments_are_raised_on_entering(make_router, provider, pools):
    """Wrong arguments raise before anything is sent, as those of a send do."""
    router = make_router([pools.one()])
    for wrong, stream in (
        (InvalidRequestError, router.stream("")),
        (InvalidRequestError, router.stream("x", timeout=0)),
        (UnknownModelError, router.stream("x", model_preference="nobody's")),
    ):
        with pytest.raises(wrong):
            await stream.__aenter__()
    await router.aclose()
    with pytest.raises(RouterClosedError):
        await router.stream("x").__aenter__()
    assert provider.calls == []


async def test_a_request_that_cannot_be_built_returns_its_quota(pools):
    """If the provider cannot build the request, entering raises its error, and no quota is used."""
    store, deployment = MemoryStore(), pools.one()
    provider = FakeProvider([InvalidRequestError("no such field")])
    async with Router([deployment], store=store, provider=provider) as router:
        with pytest.raises(InvalidRequestError, match="no such field"):
            async with router.stream("x"):
                pass
    assert await used(store, deployment) == [0]


# --- leaving early ------------------------------------------------------------------------------------


async def test_leaving_a_stream_ends_and_settles_it(pools):
    """The usage so far is settled; nothing is left running, and nothing reserved."""
    store, deployment = MemoryStore(), pools.one(tpm=1_000)
    pieces = [Reply("a", Usage(300)), Reply("b", Usage(700), "STOP")]
    provider = FakeProvider([pieces])
    async with Router([deployment], store=store, provider=provider) as router:
        async with router.stream("hello") as stream:
            async for _ in stream:
                break
        assert provider.streaming == 0
        assert await used(store, deployment) == [1, 300]
        assert "0 reservations" in repr(store)
        with pytest.raises(RuntimeError, match="collect"):
            _ = stream.response
        with pytest.raises(RuntimeError, match="async with"):
            await anext(stream)


async def test_a_stream_without_its_block_is_refused(make_router, provider, pools):
    """Reading a stream outside its block is an error, because nothing would end it."""
    async with make_router([pools.one()]) as router:
        stream = router.stream("x")
        with pytest.raises(RuntimeError, match="async with"):
            await anext(stream)
        with pytest.raises(RuntimeError, match="async with"):
            await stream.collect()
    assert provider.calls == []


async def test_a_stream_is_read_once(make_router, provider, pools):
    """A stream that was left cannot be entered again."""
    async with make_router([pools.one()]) as router:
        stream = router.stream("x")
        async with stream:
            await anext(stream)
        with pytest.raises(RuntimeError, match="read once"):
            await stream.__aenter__()
    assert len(provider.calls) == 1


async def _read_and_fail(router):
    async with router.stream("a b c") as stream:
        await anext(stream)
        raise KeyError


async def test_an_error_of_the_caller_ends_the_stream(pools):
    """An exception in the block passes through, and everything is settled."""
    store, provider = MemoryStore(), FakeProvider()
    async with Router([pools.one()], store=store, provider=provider) as router:
        with pytest.raises(KeyError):
            await _read_and_fail(router)
    assert provider.streaming == 0
    assert "0 reservations" in repr(store)


@pytest.mark.parametrize("suspends", [False, True])
async def test_cancelling_at_every_await_leaves_nothing(pools, suspends):
    """A stream cancelled after 0, 1, 2, … steps leaves no reservation or call, and is really cancelled."""

    class Slow(FakeProvider):
        async def stream(self, *args):
            async for reply in super().stream(*args):
                if suspends:
                    await asyncio.sleep(0)
                yield reply

    async def consume(router):
        async with router.stream("a b c d") as stream:
            async for _ in stream:
                await asyncio.sleep(0)

    cut = 0
    for steps in range(20):
        store, provider = MemoryStore(), Slow()
        router = Router([pools.one()], store=store, provider=provider)
        task = asyncio.create_task(consume(router))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cut += task.cancelled()
        assert provider.streaming == 0
        assert "0 reservations" in repr(store), f"cancelled after {steps} steps"
    assert 3 < cut < 20


async def test_streams_that_are_read_do_not_delay_others(make_router, provider, pools, clock):
    """Streams that are being read take no permit between reservation and network."""
    provider.delay = 1.0
    async with make_router(pools.many(4)) as router:

        async def run():
            async with router.stream("a b c") as stream:
                return await stream.collect()

        tasks = [asyncio.create_task(run()) for _ in range(40)]
        await clock.advance(4)
        assert all(task.result().success for task in tasks)

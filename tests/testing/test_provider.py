"""The fake provider, called as a router calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import ProviderError, Reply, Request, Usage
from llm_router.providers.base import StreamingProvider
from llm_router.testing import Call, FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


REQUEST = Request(contents="two words")


def ignore() -> None:
    """Take no note of the dispatch."""


@pytest.fixture
def generate(provider: FakeProvider, pools: Pools) -> Callable[..., Coroutine[Any, Any, str]]:
    """Return the text of one answer of the provider."""

    async def call(key_id: str = "key", dispatched: Callable[[], None] = ignore) -> str:
        reply = await provider.generate(pools.one(key_id=key_id), REQUEST, dispatched)
        return reply.text

    return call


@pytest.fixture
def stream(provider: FakeProvider, pools: Pools) -> Callable[..., Coroutine[Any, Any, list[str]]]:
    """Return the pieces of one streamed answer of the provider."""

    async def call(dispatched: Callable[[], None] = ignore) -> list[str]:
        async with aclosing(provider.stream(pools.one(), REQUEST, dispatched)) as replies:
            return [reply.text async for reply in replies]

    return call


async def started(*calls: Any) -> list[asyncio.Task[Any]]:
    """Start ``calls`` and let them run until they wait."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def test_it_is_a_streaming_provider() -> None:
    """A router can stream from it."""
    assert isinstance(FakeProvider(), StreamingProvider)


# --- the script ---------------------------------------------------------------------------------------


async def test_it_echoes_without_a_script(provider: FakeProvider, pools: Pools) -> None:
    """The echo has a usage, the model and a finish reason."""
    reply = await provider.generate(pools.one("model-a"), REQUEST, ignore)
    assert reply.text == "echo: two words"
    assert reply.usage == Usage(input_tokens=2, output_tokens=15, total_tokens=17)
    assert (reply.model, reply.finish_reason) == ("model-a", "STOP")


async def test_answers_come_in_order_and_then_the_echo(pools: Pools) -> None:
    """Answers of the constructor come before those that are scripted later."""
    provider = FakeProvider(["one"])
    provider.script("two", Reply("three"))
    provider.script("four")
    replies = [await provider.generate(pools.one(), REQUEST, ignore) for _ in range(5)]
    assert [reply.text for reply in replies] == ["one", "two", "three", "four", "echo: two words"]


async def test_answers_are_repeated(
    provider: FakeProvider, generate: Callable[..., Coroutine[Any, Any, str]]
) -> None:
    """``times`` repeats the whole series of answers."""
    provider.script("one", "two", times=2)
    assert [await generate() for _ in range(5)] == ["one", "two", "one", "two", "echo: two words"]


async def test_a_key_may_have_answers_of_its_own(
    provider: FakeProvider, generate: Callable[..., Coroutine[Any, Any, str]]
) -> None:
    """Answers for one key are used before the others, and for no other key."""
    provider.script("for all")
    provider.script("for one", key_id="one")
    assert await generate("other") == "for all"
    assert await generate("one") == "for one"
    assert await generate("one") == "echo: two words"
    assert not provider.by_key["one"]


async def test_failures_are_raised(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
) -> None:
    """An exception in the script is raised, instead of an answer or after its first pieces."""
    failure = ProviderError("overloaded", kind="server", code=503)
    provider.script(failure, ["begun ", failure], times=2)
    for call in (generate, generate, stream, stream):
        with pytest.raises(ProviderError, match="overloaded"):
            await call()


async def test_a_function_makes_the_answer(
    provider: FakeProvider, generate: Callable[..., Coroutine[Any, Any, str]]
) -> None:
    """A function in the script gets the deployment and the request."""
    provider.script(lambda deployment, request: f"{deployment.key.key_id}: {request.contents}")
    assert await generate("k") == "k: two words"


# --- streams ------------------------------------------------------------------------------------------


async def test_a_text_is_streamed_word_by_word(provider: FakeProvider, pools: Pools) -> None:
    """Only the last piece has a finish reason, and usage grows."""
    provider.script("one two  three")
    replies = [reply async for reply in provider.stream(pools.one(), REQUEST, ignore)]
    assert [reply.text for reply in replies] == ["one ", "two  ", "three"]
    assert [reply.finish_reason for reply in replies] == [None, None, "STOP"]
    assert [reply.usage and reply.usage.output_tokens for reply in replies] == [4, 9, 14]


async def test_a_list_is_streamed_piece_by_piece(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
) -> None:
    """A caller that does not stream gets the pieces as one text."""
    provider.script(["in two ", Reply("pieces")], times=2)
    assert await stream() == ["in two ", "pieces"]
    assert await generate() == "in two pieces"


async def test_open_streams_are_counted(provider: FakeProvider, pools: Pools) -> None:
    """``streaming`` counts streams until they end or are closed."""
    replies = provider.stream(pools.one(), REQUEST, ignore)
    assert provider.streaming == 0
    await anext(replies)
    assert provider.streaming == 1
    await replies.aclose()
    assert provider.streaming == 0


# --- delays and events --------------------------------------------------------------------------------


async def test_a_delay_applies_to_each_answer_and_piece(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
    clock: ManualClock,
) -> None:
    """A delay passes on the provider's clock, and may be changed between calls."""
    provider.delay = 4.0
    [whole] = await started(generate())
    await clock.advance(3.9)
    assert not whole.done()
    await clock.advance(0.1)
    assert whole.result() == "echo: two words"
    provider.delay = 1.0
    [pieces] = await started(stream())
    await clock.advance(2.9)
    assert not pieces.done()
    await clock.advance(0.1)
    assert pieces.result() == ["echo: ", "two ", "words"]


async def test_the_constructor_takes_a_delay(pools: Pools) -> None:
    """The argument is the initial value of the attribute."""
    clock = ManualClock()
    provider = FakeProvider(clock=clock, delay=2.0)
    assert provider.delay == 2.0
    [task] = await started(provider.generate(pools.one(), REQUEST, ignore))
    await clock.advance(2)
    assert task.result().text == "echo: two words"


async def test_an_answer_waits_for_an_event(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
) -> None:
    """An event before or in an answer is waited for once the request has been dispatched."""
    gate = asyncio.Event()
    provider.script([gate, "late"], ["one ", gate, "two"])
    whole, pieces = await started(generate(), stream())
    assert len(provider.calls) == 2
    assert not whole.done()
    assert not pieces.done()
    gate.set()
    assert await whole == "late"
    assert await pieces == ["one ", "two"]


async def test_an_event_alone_delays_the_echo(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
) -> None:
    """An event without an answer is followed by the echo."""
    gate = asyncio.Event()
    provider.script(gate, times=2)
    whole, pieces = await started(generate(), stream())
    gate.set()
    assert await whole == "echo: two words"
    assert await pieces == ["echo: ", "two ", "words"]


async def test_an_answer_may_never_come(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
) -> None:
    """An event that is never set hangs until the call is cancelled, and leaves nothing running."""
    provider.script(asyncio.Event(), times=2)
    tasks = await started(generate(), stream())
    assert provider.streaming == 1
    for task in tasks:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert provider.streaming == 0


# --- what it records ----------------------------------------------------------------------------------


async def test_calls_are_recorded(
    provider: FakeProvider, generate: Callable[..., Coroutine[Any, Any, str]], clock: ManualClock
) -> None:
    """Each call has its time, key, model and request."""
    await generate("k1")
    clock.shift(5)
    await generate("k2")
    now = clock.time()
    assert provider.calls == [Call(now - 5, "k1", "model-a", REQUEST), Call(now, "k2", "model-a", REQUEST)]


async def test_a_request_is_dispatched_before_its_answer(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
) -> None:
    """A request is dispatched even if its answer is a failure."""
    provider.script(ProviderError("no", kind="request"))
    dispatched = []
    with pytest.raises(ProviderError):
        await generate(dispatched=lambda: dispatched.append(1))
    await stream(dispatched=lambda: dispatched.append(2))
    assert dispatched == [1, 2]


async def test_dispatch_can_be_delayed(
    provider: FakeProvider,
    generate: Callable[..., Coroutine[Any, Any, str]],
    stream: Callable[..., Coroutine[Any, Any, list[str]]],
) -> None:
    """Requests wait for the event, and are neither reported nor recorded until it is set."""
    dispatched = []
    provider.dispatch = asyncio.Event()
    tasks = await started(
        generate(dispatched=lambda: dispatched.append(1)),
        stream(dispatched=lambda: dispatched.append(2)),
        generate(),
    )
    assert provider.preparing == 3
    tasks.pop().cancel()
    await asyncio.sleep(0)
    assert provider.preparing == 2
    assert dispatched == []
    assert provider.calls == []
    provider.dispatch.set()
    await asyncio.gather(*tasks)
    assert (dispatched, len(provider.calls), provider.preparing) == ([1, 2], 2, 0)


async def test_closing_is_counted(provider: FakeProvider) -> None:
    """``closed`` counts how often the provider was closed."""
    await provider.aclose()
    await provider.aclose()
    assert provider.closed == 2

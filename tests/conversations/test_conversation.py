"""Conversations: memory that belongs to no key and no model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from llm_router import Deployment, InvalidRequestError, MemoryHistory, ProviderError, Reply, Request, Router
from llm_router.conversations import Turn, truncate
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]


class Pools(Protocol):
    def one(self, model: str = ..., *, rpm: int = ..., priority: int = ...) -> Deployment: ...


def texts(request: Request) -> list[str]:
    return [part["text"] for content in request.contents for part in content["parts"] if "text" in part]


async def test_a_conversation_remembers(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """The second turn carries the first, question and answer."""
    provider.script("Hello Ada.", "Ada.")
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("user-42", system_instruction="Be brief.", workload="light")
        assert (await conversation.send("I am Ada.")).text == "Hello Ada."
        assert (await conversation.send("Who am I?")).text == "Ada."
    assert texts(provider.calls[1].request) == ["I am Ada.", "Hello Ada.", "Who am I?"]
    assert [c["role"] for c in provider.calls[1].request.contents] == ["user", "model", "user"]
    assert {call.request.system_instruction for call in provider.calls} == {"Be brief."}


async def test_a_turn_may_be_streamed(make_router: MakeRouter, provider: FakeProvider, pools: Pools) -> None:
    """A streamed turn carries the history, and is remembered with its whole answer."""
    provider.script("Hello Ada.", "You are Ada.")
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("user-42", system_instruction="Be brief.", workload="light")
        await conversation.send("I am Ada.")
        async with conversation.stream("Who am I?", max_output_tokens=9) as stream:
            assert [chunk.text async for chunk in stream] == ["You ", "are ", "Ada."]
        assert stream.response.text == "You are Ada."
        await conversation.send("Thanks.")
    assert provider.calls[1].request.system_instruction == "Be brief."
    assert provider.calls[1].request.max_output_tokens == 9
    assert texts(provider.calls[2].request) == [
        "I am Ada.", "Hello Ada.", "Who am I?", "You are Ada.", "Thanks.",
    ]  # fmt: skip


async def test_an_unfinished_streamed_turn_is_not_remembered(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A stream that fails, is left early or is wrong leaves the history as it was, and blocks no turn."""
    provider.script("fine", ["so ", ProviderError("no", kind="request")], "left early")
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        before = await conversation.history()
        async with conversation.stream("two") as stream:
            assert not (await stream.collect()).success
        async with conversation.stream("three") as stream:
            await anext(stream)
        with pytest.raises(ValueError, match="unknown workload"):
            await conversation.stream("four", workload="hefty").__aenter__()
        assert await conversation.history() == before
        assert (await conversation.send("five")).success


async def test_a_turn_waits_until_a_stream_is_left(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """The next turn starts when the stream has ended, so that it carries its answer."""
    provider.script("two words")
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        async with conversation.stream("one two") as stream:
            await anext(stream)
            next_turn = asyncio.create_task(conversation.send("three"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not next_turn.done()
            await stream.collect()
        await next_turn
    assert texts(provider.calls[1].request) == ["one two", "two words", "three"]


async def test_handles_with_one_id_share_their_history(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """``send_chat`` and handles with the same id continue one conversation; other ids do not."""
    async with make_router([pools.one()]) as router:
        await router.send_chat(conv_id="a", prompt="one")
        await router.conversation("a").send("two")
        await router.send_chat(conv_id="b", prompt="other")
    assert texts(provider.calls[1].request)[0] == "one"
    assert texts(provider.calls[2].request) == ["other"]


@pytest.mark.parametrize("wrong", [5, None, b"user-42", "", ["user-42"]], ids=repr)
async def test_a_conversation_needs_a_name(make_router: MakeRouter, pools: Pools, wrong: Any) -> None:
    """A number worked in memory and failed in a file; with an empty name, strangers shared a history."""
    async with make_router([pools.one()]) as router:
        with pytest.raises(
            InvalidRequestError, match="conversation_id must be a string that names a history"
        ):
            router.conversation(wrong)
        with pytest.raises(InvalidRequestError, match="conversation_id"):
            await router.send_chat(conv_id=wrong, prompt="Hello.")


async def test_the_model_may_change_between_turns(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A history from one model goes to another as it is: plain contents, without objects of the SDK."""
    deployments = [pools.one("model-a", rpm=1, priority=0), pools.one("model-b", rpm=1)]
    async with make_router(deployments) as router:
        first = await router.send_chat(conv_id="a", prompt="one")
        second = await router.send_chat(conv_id="a", prompt="two")
    assert (first.model, second.model) == ("model-a", "model-b")
    assert all(type(content) is dict for content in provider.calls[1].request.contents)


async def test_a_failed_turn_leaves_the_history_as_it_was(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A turn without an answer is not remembered."""
    provider.script("fine", ProviderError("no", kind="request"))
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        before = await conversation.history()
        assert not (await conversation.send("two")).success
        assert await conversation.history() == before
        with pytest.raises(ValueError, match="unknown workload"):
            await conversation.send("three", workload="hefty")
        assert await conversation.history() == before


async def test_sends_on_one_conversation_take_turns(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Of two concurrent sends, the second carries the answer to the first."""
    provider.delay = 1.0
    async with make_router([pools.one()]) as router:
        tasks = [asyncio.create_task(router.send_chat(conv_id="a", prompt=text)) for text in ("one", "two")]
        await clock.advance(5)
        assert all(task.result().success for task in tasks)
    assert provider.calls[1].at - provider.calls[0].at == pytest.approx(1.0)
    assert texts(provider.calls[1].request)[0] == "one"


async def test_history_is_cut_to_the_budget_of_the_workload(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Whole turns are dropped, oldest first; the system instruction stays."""
    async with make_router([pools.one()], history_tokens={"light": 60}) as router:
        conversation = router.conversation("a", system_instruction="stay", workload="light")
        for number in range(10):
            await conversation.send(f"turn-{number} " + "word " * 5)
        await conversation.send("last")
    sent = texts(provider.calls[-1].request)
    assert sent[-1] == "last"
    assert "turn-9" in sent[-3]
    assert not any("turn-0" in text for text in sent)
    assert provider.calls[-1].request.contents[0]["role"] == "user"
    assert provider.calls[-1].request.system_instruction == "stay"


async def test_function_calls_are_remembered_with_their_answers(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A provider's own content (a function call) is kept, and sent together with its answer."""
    call = {"role": "model", "parts": [{"function_call": {"name": "add", "args": {"a": 1, "b": 2}}}]}
    provider.script(Reply("", content=call), "3")
    async with make_router([pools.one()], history_tokens={"light": 1}) as router:
        conversation = router.conversation("a", workload="light")
        await conversation.send("add 1 and 2")
        await conversation.send({"function_response": {"name": "add", "response": {"sum": 3}}})
    contents = provider.calls[1].request.contents
    assert contents[1] == call
    assert contents[2]["parts"][0]["function_response"]["name"] == "add"


def test_truncation_never_separates_a_call_from_its_answer() -> None:
    """Turns that belong together are dropped together."""
    turns = (Turn(("a",), 5), Turn(("call",), 5), Turn(("answer",), 5, answers_call=True), Turn(("b",), 5))
    assert truncate(turns, 100) == turns
    assert truncate(turns, 15) == turns[1:]
    assert truncate(turns, 14) == turns[3:]
    assert truncate(turns, 4) == ()
    assert truncate(turns, 0, answering=True) == turns[3:]
    assert truncate((), 10) == ()


async def test_clearing_forgets(make_router: MakeRouter, provider: FakeProvider, pools: Pools) -> None:
    """After ``clear()`` a conversation starts over."""
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        await conversation.clear()
        assert await conversation.history() == ()


async def test_memory_is_bounded_in_number_and_age() -> None:
    """The least recently used conversation is dropped first, and none outlives the maximum age."""
    clock = ManualClock()
    histories = MemoryHistory(most=2, max_age=100, clock=clock)
    turn = (Turn(("x",), 1),)
    for name in "abc":
        await histories.save(name, turn)
        clock.shift(10)
    assert await histories.load("a") == ()
    assert await histories.load("b") == turn
    clock.shift(85)
    assert await histories.load("b") == ()
    assert await histories.load("c") == turn
    clock.shift(100)
    assert len(histories) == 1
    assert await histories.load("c") == ()
    assert len(histories) == 0
    await histories.delete("never-there")


async def test_a_given_history_store_is_used_even_while_empty(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """A history store passed to the router is used, even though it is falsy while empty."""
    histories = MemoryHistory(most=5, clock=clock)
    async with make_router([pools.one()], histories=histories) as router:
        await router.send_chat(conv_id="a", prompt="one")
    assert len(histories) == 1

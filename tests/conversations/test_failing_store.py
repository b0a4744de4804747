"""History stores that fail, that are cancelled, and that keep turns in a form of their own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import pytest

from llm_router import Deployment, HistoryError, MemoryHistory, Reply, Request, Router
from llm_router.conversations import HistoryStore, Turn
from llm_router.testing import FakeProvider

MakeRouter = Callable[..., Router]


class Pools(Protocol):
    def one(self, model: str = ..., *, rpm: int = ..., priority: int = ...) -> Deployment: ...


class FlakyHistory(MemoryHistory):
    """Fails while it is told to; a save may fail after it took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()
        self.stores_first = False
        self.saving = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        self._fail("load")
        return await super().load(conversation_id)

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None:
        self.saving.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.stores_first:
            await super().save(conversation_id, turns)
        self._fail("save")
        await super().save(conversation_id, turns)

    async def delete(self, conversation_id: str) -> None:
        self._fail("delete")
        await super().delete(conversation_id)

    def _fail(self, method: str) -> None:
        if method in self.failing:
            raise OSError("cannot write 'a private matter'")


@pytest.fixture
def histories() -> FlakyHistory:
    return FlakyHistory()


def texts(request: Request) -> list[str]:
    return [part["text"] for content in request.contents for part in content["parts"]]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("stores_first", [False, True])
async def test_an_answer_outlives_a_save_that_fails(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    histories: FlakyHistory,
    caplog: pytest.LogCaptureFixture,
    streamed: bool,  # noqa: FBT001 - a parameter of the test
    stores_first: bool,  # noqa: FBT001 - likewise
) -> None:
    """It is returned, sent along by the next turns, once, and saved with the first save that succeeds."""
    provider.script("1", "2", "3")
    histories.stores_first = stores_first
    histories.failing = {"save"}
    async with make_router([pools.one()], histories=histories) as router:
        conversation = router.conversation("a")
        if streamed:
            async with conversation.stream("one") as stream:
                assert (await stream.collect()).text == "1"
        else:
            assert (await conversation.send("one")).text == "1"
        assert (await conversation.send("two")).text == "2"
        assert len(await conversation.history()) == 4
        histories.failing = set()
        assert (await conversation.send("three")).text == "3"
        assert len(await histories.load("a")) == 3
        assert len(await conversation.history()) == 6
    assert texts(provider.calls[1].request) == ["one", "1", "two"]
    assert texts(provider.calls[2].request) == ["one", "1", "two", "2", "three"]
    (warning,) = caplog.records
    assert (warning.levelno, warning.name) == (logging.WARNING, "llm_router")
    assert "'a'" in warning.getMessage()
    assert "OSError" in warning.getMessage()
    assert "private" not in caplog.text
    assert warning.exc_info is None


async def test_what_could_not_be_saved_is_known_to_all_handles(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, histories: FlakyHistory
) -> None:
    """As long as there is one; and clear() forgets it."""
    provider.script("1")
    histories.failing = {"save"}
    async with make_router([pools.one()], histories=histories) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        await router.send_chat(conv_id="a", prompt="two")
        assert texts(provider.calls[1].request) == ["one", "1", "two"]
        await conversation.clear()
        assert await conversation.history() == ()


async def test_what_cannot_be_saved_is_bounded(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, histories: FlakyHistory
) -> None:
    """What no longer fits into the budget is forgotten as from any history."""
    provider.script("1", times=50)
    histories.failing = {"save"}
    async with make_router([pools.one(rpm=100)], histories=histories, history_tokens={"": 60}) as router:
        conversation = router.conversation("a")
        for _ in range(50):
            await conversation.send("one")
        assert 0 < len(await conversation.history()) < 40


async def test_a_history_that_cannot_be_loaded_stops_the_send(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, histories: FlakyHistory
) -> None:
    """A typed error, before anything is sent or any quota is used; nothing stays locked."""
    async with make_router([pools.one(rpm=1)], histories=histories) as router:
        conversation = router.conversation("a")
        histories.failing = {"load", "delete"}
        refused = r"FlakyHistory.load\(\) failed for conversation 'a': OSError"
        with pytest.raises(HistoryError, match=refused) as raised:
            await conversation.send("one")
        assert "private" not in str(raised.value)
        assert isinstance(raised.value.__cause__, OSError)
        with pytest.raises(HistoryError, match=refused):
            await conversation.stream("one").__aenter__()
        with pytest.raises(HistoryError, match=refused):
            await conversation.history()
        with pytest.raises(HistoryError, match=r"FlakyHistory.delete\(\) failed"):
            await conversation.clear()
        assert provider.calls == []
        histories.failing = set()
        assert (await conversation.send("one")).success


@pytest.mark.parametrize("stored", [["hello"], [None], 7, [{"contents": []}]])
async def test_a_history_of_something_else_is_a_typed_error(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, stored: Any
) -> None:
    """What a store returns in place of turns is not sent."""
    histories = MemoryHistory()
    await histories.save("a", stored)
    async with make_router([pools.one()], histories=histories) as router:
        with pytest.raises(HistoryError, match="'a'"):
            await router.send_chat(conv_id="a", prompt="one")
    assert provider.calls == []


async def test_no_history_may_be_none(make_router: MakeRouter, provider: FakeProvider, pools: Pools) -> None:
    """A store that returns None for an unknown conversation means an empty history."""

    class NoneHistory(MemoryHistory):
        async def load(self, conversation_id: str) -> tuple[Turn, ...]:
            return await super().load(conversation_id) or None  # type: ignore[return-value]

    async with make_router([pools.one()], histories=NoneHistory()) as router:
        assert (await router.send_chat(conv_id="a", prompt="one")).success


async def test_an_answer_outlives_a_cancellation_while_it_is_saved(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, histories: FlakyHistory
) -> None:
    """The caller is cancelled at once; the turn is remembered, and saved by the next one."""
    provider.script("1", "2")
    histories.gate = asyncio.Event()
    async with make_router([pools.one()], histories=histories) as router:
        conversation = router.conversation("a")
        task = asyncio.create_task(conversation.send("one"))
        await histories.saving.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await histories.load("a") == ()
        histories.gate.set()
        await conversation.send("two")
        assert len(await histories.load("a")) == 2
    assert texts(provider.calls[1].request) == ["one", "1", "two"]


class JSONHistory:
    """Keeps turns as JSON, with the fields it knows."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields
        self.kept: dict[str, str] = {}

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        return tuple(Turn(**fields) for fields in json.loads(self.kept.get(conversation_id, "[]")))

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None:
        kept = [{name: attrs.asdict(turn)[name] for name in self.fields} for turn in turns]
        self.kept[conversation_id] = json.dumps(kept)

    async def delete(self, conversation_id: str) -> None:
        self.kept.pop(conversation_id, None)


SHAPES = [("contents", "tokens", "answers_call"), ("contents", "tokens", "answers_call", "model")]


@pytest.mark.parametrize("shape", SHAPES, ids=["old", "new"])
async def test_turns_can_be_kept_as_json(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    caplog: pytest.LogCaptureFixture,
    shape: tuple[str, ...],
) -> None:
    """Also those with signatures, and by a store that knows nothing of models."""
    signed = {"text": "1", "thought_signature": b"\xff\xfesigned"}
    provider.script(Reply("1", content={"role": "model", "parts": [signed]}), "2")
    histories: HistoryStore = JSONHistory(*shape)
    async with make_router([pools.one()], histories=histories) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        await conversation.send("two")
        assert len(await conversation.history()) == 4
    assert caplog.records == []
    request = provider.calls[1].request
    assert texts(request) == ["one", "1", "two"]
    assert request.origins is not None
    (origin,) = request.origins
    assert origin.content == 1
    assert origin.signatures == (b"\xff\xfesigned",)
    assert origin.model == ("model-a" if "model" in shape else None)

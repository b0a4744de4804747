"""Conversations in a record store: across restarts and processes, for memory, SQLite and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
from google.genai import types

from llm_router import (
    Conversation,
    Deployment,
    HistoryConflictError,
    HistoryError,
    Reply,
    Request,
    Router,
)
from llm_router.conversations import HistoryStore, StoredHistory, Turn, VersionedHistoryStore
from llm_router.conversations.stored import HISTORIES
from llm_router.errors import RecordTooLargeError, StoreCorruptError, StoreUnavailableError
from llm_router.records import Bounds, MemoryRecords
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]
Opener = Callable[[], HistoryStore | str]


class Pools(Protocol):
    def one(self, model: str = ..., *, rpm: int = ..., priority: int = ...) -> Deployment: ...


class FlakyRecords(MemoryRecords):
    """Fails while it is told to; a put may fail after it took effect."""

    failing = False
    puts_first = False

    async def put(self, *args: Any, **kwargs: Any) -> int:
        version = await super().put(*args, **kwargs) if self.puts_first or not self.failing else 0
        if self.failing:
            raise StoreUnavailableError("no answer")
        return version


@pytest.fixture(params=["memory", "sqlite", "server"])
def histories(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, servers_module: ModuleType
) -> Iterator[Opener]:
    """Return what a router is given as ``histories``; all of them are the same."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path}/state.sqlite3"
    elif request.param == "server":
        server = servers_module.shared_server(next(iter(servers_module.find_servers())))
        with server.client() as client:
            client.flushall()
        yield lambda: str(server.url)
    else:
        records = MemoryRecords(clock=clock)
        yield lambda: StoredHistory(records)


def texts(request: Request) -> list[str]:
    return [part["text"] for content in request.contents for part in content["parts"]]


SIGNED = {
    "role": "model",
    "parts": [
        {"text": "Here: \u00fc\ud800", "thoughtSignature": "c2lnbmVk"},
        {"inlineData": {"mimeType": "image/png", "data": b"\x89PNG\x00\xff"}},
        {"functionCall": {"id": "1", "name": "add", "args": {"$bytes": "a", "$$": [1.5, None, True]}}},
    ],
}
RESULT = {"role": "user", "parts": [{"functionResponse": {"id": "1", "name": "add", "response": {"sum": 3}}}]}


async def test_a_conversation_outlives_its_router(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, histories: Opener, clock: ManualClock
) -> None:
    """Every part is the same after a restart: signatures for their model only, objects as what they mean."""
    pool = [pools.one("model-a", priority=1), pools.one("model-b", priority=2)]
    provider.script(Reply("Here:", content=SIGNED, finish_reason="STOP", model="model-a"), "2", "3", "4")
    image = types.Part.from_bytes(data=b"\xff\xd8", mime_type="image/jpeg")
    async with make_router(pool, histories=histories()) as router:
        await router.conversation("a").send([image, "Look."], model="model-a")
    async with make_router(pool, histories=histories()) as router:
        conversation = router.conversation("a")
        await conversation.send([RESULT], model="model-a")
        await conversation.send("And?", model="model-b")
        said, _, answer, *_ = await conversation.history()
        await conversation.clear()
    assert said["parts"][0]["inline_data"] == {"data": b"\xff\xd8", "mime_type": "image/jpeg"}
    assert answer["parts"][1:] == SIGNED["parts"][1:]
    assert answer["parts"][0] == {"text": "Here: \u00fc\ud800"}
    sent = provider.calls[1].request
    assert sent.contents[2:4] == [answer, RESULT]
    assert sent.origins is not None
    assert sent.origins[0].model == "model-a"
    assert sent.origins[0].signatures == (b"signed", None, None)
    async with make_router(pool, histories=histories()) as router:
        await router.conversation("a").send("Anew.")
        assert texts(provider.calls[-1].request) == ["Anew."]
        clock.shift(30 * 86_400.0)
        assert await router.conversation("a").history() == ()


@pytest.mark.parametrize("streamed", [False, True])
async def test_of_two_writers_one_gets_a_conflict(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, histories: Opener, streamed: bool
) -> None:
    """The other one's turn stays, the answer is in the error, and the next send continues what is stored."""
    async with (
        make_router([pools.one()], histories=histories()) as one,
        make_router([pools.one()], histories=histories()) as two,
    ):
        mine, theirs = one.conversation("a"), two.conversation("a")
        gate = asyncio.Event()
        provider.script("1", [gate, "mine"], "theirs", "next")
        await mine.send("one")
        sending = asyncio.create_task(_say(mine, "of mine", streamed=streamed))
        async with asyncio.timeout(5):
            while len(provider.calls) < 2:  # noqa: ASYNC110 - a load from a server is before it
                await asyncio.sleep(0)
        await theirs.send("of theirs")
        assert len(await mine.history()) == 4  # which looks, and takes nothing over
        gate.set()
        with pytest.raises(HistoryConflictError, match="'a' was changed by another process") as caught:
            await sending
        assert caught.value.response.text == "mine"
        assert texts(Request(contents=list(await mine.history()))) == ["one", "1", "of theirs", "theirs"]
        assert (await mine.send("and")).text == "next"
        assert texts(Request(contents=list(await theirs.history())))[-2:] == ["and", "next"]


async def _say(conversation: Conversation, prompt: str, *, streamed: bool) -> None:
    if not streamed:
        await conversation.send(prompt)
        return
    async with conversation.stream(prompt) as stream:
        await stream.collect()


@pytest.mark.parametrize("puts_first", [False, True])
async def test_a_save_that_fails_keeps_the_answer_and_mixes_nothing(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, puts_first: bool
) -> None:
    """The next turn saves it, whether or not it was stored; but not into what another process has said."""
    records = FlakyRecords()
    records.puts_first = puts_first
    async with (
        make_router([pools.one()], histories=StoredHistory(records)) as one,
        make_router([pools.one()], histories=StoredHistory(records)) as two,
    ):
        mine, theirs = one.conversation("a"), two.conversation("a")
        provider.script("1", "2", "3", "4", "5", "6")
        await mine.send("one")
        records.failing = True
        assert (await mine.send("two")).text == "2"
        records.failing = False
        assert (await mine.send("three")).text == "3"
        assert texts(provider.calls[-1].request) == ["one", "1", "two", "2", "three"]
        assert len(await theirs.history()) == 6
        records.failing = True
        assert (await mine.send("four")).text == "4"
        records.failing = False
        await theirs.send("five")
        count = len(provider.calls)
        if puts_first:
            assert (await mine.send("six")).success
            said = ["one", "1", "two", "2", "three", "3", "four", "4", "five", "5", "six"]
            assert texts(provider.calls[-1].request) == said
            return
        with pytest.raises(HistoryConflictError, match="nothing was sent") as caught:
            await mine.send("six")
        assert caught.value.response is None
        assert len(provider.calls) == count
        assert (await mine.send("six")).success
        said = ["one", "1", "two", "2", "three", "3", "five", "5", "six"]
        assert texts(provider.calls[-1].request) == said


async def test_what_was_forgotten_elsewhere_goes_on_with_what_could_not_be_saved(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A store that comes back empty costs what it had, not the turn that this process has."""
    records = FlakyRecords()
    async with make_router([pools.one()], histories=StoredHistory(records)) as router:
        conversation = router.conversation("a")
        provider.script("1", "2", "3")
        await conversation.send("one")
        records.failing = True
        await conversation.send("two")
        records.failing = False
        await records.delete(HISTORIES, "a")
        await conversation.send("three")
        assert texts(provider.calls[-1].request) == ["two", "2", "three"]
        assert len(await conversation.history()) == 4


async def test_bounds(clock: ManualClock) -> None:
    """The oldest turns of a large conversation go, then old conversations; any id is a name."""
    bounds = {HISTORIES: Bounds(records=3, largest=600)}
    records = MemoryRecords(bounds=bounds, clock=clock)
    histories: HistoryStore = StoredHistory(records, max_age=100)
    assert isinstance(histories, VersionedHistoryStore)
    turns = tuple(Turn(({"role": "user", "parts": [{"text": f"{n}" * 100}]},), 1) for n in range(5))
    await histories.save("a", turns)
    assert await histories.load("a") == turns[2:]
    with pytest.raises(RecordTooLargeError):
        await histories.save("a", (Turn(("x" * 600,), 1),))
    with pytest.raises(TypeError, match="a object in contents cannot be kept"):
        await histories.save("a", (Turn((object(),), 1),))
    names = ["", "\ud800", "x" * 600, "sha256:a", "sha256:" + "0" * 64]
    for name in names:
        await histories.save(name, turns[:1])
        assert await histories.load(name) == turns[:1]
    assert [await histories.load(name) != () for name in names] == [False, False, True, True, True]
    clock.shift(100)
    assert await histories.load("sha256:a") == ()


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format":2,"turns":[]}', b'{"format":1,"turns":[5]}'])
async def test_a_history_that_makes_no_sense_is_left_alone(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, data: bytes
) -> None:
    """Nothing is sent, and nothing overwritten."""
    records = MemoryRecords()
    await records.put(HISTORIES, "a", data, ttl=60)
    async with make_router([pools.one()], histories=StoredHistory(records)) as router:
        with pytest.raises(HistoryError, match="StoreCorruptError") as caught:
            await router.conversation("a").send("one")
    assert isinstance(caught.value.__cause__, StoreCorruptError)
    found = await records.get(HISTORIES, "a")
    assert found is not None
    assert found.data == data
    assert provider.calls == []

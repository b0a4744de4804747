"""The cache: the same request is answered once, and nothing that fails in it fails a send."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pydantic
import pytest
from google.genai import types

from llm_router import (
    Cache,
    ConfigError,
    Deployment,
    InvalidRequestError,
    ProviderError,
    Reply,
    Response,
    Router,
    RouterClosedError,
    Usage,
)
from llm_router.errors import StoreUnavailableError
from llm_router.records import MemoryRecords, Record, RecordStore
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]


class Pools(Protocol):
    def one(self, model: str = ..., workload: str = ..., *, rpm: int = ...) -> Deployment: ...


@pytest.fixture(params=["memory", "sqlite", "server"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, servers_module: ModuleType
) -> Iterator[Callable[[], str | RecordStore]]:
    """Return where a router keeps answers; all of them are the same."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path}/state.sqlite3"
    elif request.param == "server":
        server = servers_module.shared_server(next(iter(servers_module.find_servers())))
        with server.client() as client:
            client.flushall()
        yield lambda: str(server.url)
    else:
        records = MemoryRecords(clock=clock)
        yield lambda: records


CONTENT = {
    "role": "model",
    "parts": [{"text": "one"}, {"inline_data": {"mime_type": "image/png", "data": b"\xff"}}],
}


async def test_the_same_request_is_answered_once(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    place: Callable[[], str | RecordStore],
    clock: ManualClock,
    tmp_path: Path,
) -> None:
    """Within its time, by any router that shares the cache, without a request, quota or tokens."""
    usage = Usage(input_tokens=3, output_tokens=4, total_tokens=7)
    provider.script(Reply("one", usage=usage, content=CONTENT, model="m-1"), "two", "three")
    cache = Cache(place(), ttl=100)
    async with make_router([pools.one(rpm=2)], cache=cache) as router:
        first = await router.send("A private matter?", workload="light")
        assert (first.text, first.cached, first.attempts) == ("one", False, 1)
        await kept(router)
        again = await router.send(
            [{"role": "user", "parts": [{"text": "A private matter?"}]}], workload="light"
        )
        assert again == Response(success=True, model="m-1", workload="light", answer="one", cached=True)
        assert again.content == CONTENT
        assert (await router.send_one_shot(prompt="A private matter?", workload="light", timeout=5)).cached
        assert await router.cache_savings() == {"requests": 2, "tokens": 14}
    async with make_router([pools.one(rpm=2)], cache=Cache(place(), ttl=100)) as router:
        assert (await router.send("A private matter?", workload="light", metadata={"a": "b"})).cached
        assert await router.cache_savings() == {"requests": 3, "tokens": 21}
        assert (await router.health_check())["cache"] == {"requests": 3, "tokens": 21}
        assert not (await router.send("A private matter?", workload="light", cache=False)).cached
        clock.shift(101)
        assert (await router.send("A private matter?", workload="light")).text == "three"
        with pytest.raises(InvalidRequestError, match="max_wait"):
            await router.send("A private matter?", workload="light", max_wait=float("nan"))
        with pytest.raises(TypeError, match=r"did you mean 'timeout'"):
            await router.send("A private matter?", workload="light", timeuot=1)  # type: ignore[call-arg]
    assert len(provider.calls) == 3
    with pytest.raises(RouterClosedError):
        await router.send("A private matter?", workload="light")
    for path in tmp_path.iterdir():
        assert b"private" not in path.read_bytes()


DIFFERENT: list[dict[str, Any]] = [
    {},
    {"workload": "heavy"},
    {"model": "model-a"},
    {"model": "model-a", "fallback": "model"},
    {"system_instruction": "Be brief."},
    {"max_output_tokens": 5},
    {"temperature": 0},
    {"safety_settings": {}},
    {"safety_settings": {"HARASSMENT": "BLOCK_NONE"}},
    {"config": {"top_k": 1}},
    {"config": types.GenerateContentConfig(top_k=2)},
    {"config": {"stop_sequences": ["x"]}},
]


async def test_what_shapes_an_answer_tells_requests_apart(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Each of these is a request of its own, and equal to itself."""
    pool = [pools.one("model-a", rpm=100), pools.one("model-b", "heavy", rpm=100)]
    async with make_router(pool, cache="memory://") as router:
        assert not any([(await router.send("x", **each)).cached for each in DIFFERENT])
        assert all([(await router.send("x", **each)).cached for each in DIFFERENT])
        assert not (await router.send("y")).cached
    assert len(provider.calls) == len(DIFFERENT) + 1
    other = FakeProvider()
    records = MemoryRecords()
    async with (
        make_router(pool, cache=Cache(records)) as router,
        make_router(pool, cache=Cache(records), provider={"gemini": _Other()}) as elsewhere,
    ):
        await router.send("x")
        assert not (await elsewhere.send("x")).cached
    assert other.calls == []


class _Other(FakeProvider):
    """Another server."""


UNKEPT: list[tuple[Any, dict[str, Any]]] = [
    ("x", {"temperature": 0.1}),
    ("x", {"config": {"temperature": 1}}),
    ("x", {"config": {"tools": [{"google_search": {}}]}}),
    ([types.Part.from_bytes(data=b"\xff", mime_type="image/png"), "x"], {}),
    ({"file_data": {"file_uri": "u", "mime_type": "text/plain"}}, {}),
    ([{"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]}], {}),
]


async def test_what_is_kept_only_if_asked_for(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Chance, tools and images are; "always" keeps them; functions, candidates and failures never are."""
    async with make_router([pools.one(rpm=100)], cache="memory://") as router:
        for prompt, options in UNKEPT:
            assert not any([(await router.send(prompt, **options)).cached for _ in range(2)])
            found = [(await router.send(prompt, **options, cache="always")).cached for _ in range(2)]
            assert found == [False, True]
        provider.script(
            ProviderError("no", kind="request"), Reply("", blocked="SAFETY"), Reply("", failed="NO")
        )
        for _ in range(3):
            assert not (await router.send("refused")).success
        assert not (await router.send("refused")).cached
        for config in ({"candidate_count": 2}, {"tools": [test_the_same_request_is_answered_once]}):
            assert not any([(await router.send("x", config=config, cache="always")).cached for _ in range(2)])
        with pytest.raises(InvalidRequestError, match="cache must be True, False or 'always', not 'never'"):
            await router.send("x", cache="never")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="the prompt is empty"):
            await router.send("")
        async with router.stream("x", cache="always") as stream:
            assert (await stream.collect()).success
    async with make_router([pools.one()]) as router:
        assert not (await router.send("x", cache="always")).cached
        assert await router.cache_savings() == {"requests": 0, "tokens": 0}


class _City(pydantic.BaseModel):
    name: str


async def test_an_answer_with_a_form_has_it_again(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """The object is made anew; where that is not the same, nothing is kept."""
    config = {"response_schema": _City, "response_mime_type": "application/json"}
    provider.script(
        Reply('{"name": "Ulm"}', parsed=_City(name="Ulm")),
        Reply('{"name": "Ulm"}', parsed={"another": "form"}),
    )
    async with make_router([pools.one()], cache="memory://") as router:
        await router.send("x", config=config)
        await kept(router)
        again = await router.send("x", config=config)
        assert (again.cached, again.parsed) == (True, _City(name="Ulm"))
        other = {"response_mime_type": "application/json"}
        await router.send("x", config=other)
        await kept(router)
        assert not (await router.send("x", config=other)).cached


async def test_equal_requests_under_way_share_one_call(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """All get the answer of the first; if that one is cancelled, the next one goes on."""
    first, second = asyncio.Event(), asyncio.Event()
    provider.script([first, "lost"], [second, "found"])
    async with make_router([pools.one()], cache="memory://") as router:
        sends = [asyncio.create_task(router.send("x")) for _ in range(5)]
        await _until(lambda: len(provider.calls) == 1)
        sends[1].cancel()
        sends[0].cancel()
        await _until(lambda: len(provider.calls) == 2)
        second.set()
        *gone, leader, one, two = await asyncio.gather(*sends, return_exceptions=True)
        assert [type(each) for each in gone] == [asyncio.CancelledError] * 2
        assert isinstance(leader, Response)
        assert (leader.text, leader.cached, leader.attempts) == ("found", False, 1)
        for each in (one, two):
            assert isinstance(each, Response)
            assert (each.text, each.cached, each.attempts, each.usage) == ("found", True, 0, Usage())
        assert (await router.send("x")).cached
        assert (await router.cache_savings())["requests"] == 3
        provider.script(ProviderError("no", kind="request"), times=1)
        refused = await asyncio.gather(*(router.send("y") for _ in range(3)))
        assert [each.success for each in refused] == [False] * 3
        assert not any(each.cached for each in refused)
        assert len(provider.calls) == 3


async def kept(router: Router) -> None:
    """Return when the answers given so far are kept."""
    assert router._cache is not None
    while router._cache._keeping:
        await asyncio.wait(router._cache._keeping)
        await asyncio.sleep(0)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other tasks
            await asyncio.sleep(0)


class _Flaky(MemoryRecords):
    """Fails, or does not answer, while it is told to."""

    failing: str | None = None
    asked = 0

    async def get(self, space: str, name: str) -> Record | None:
        self.asked += 1
        if self.failing == "get":
            raise StoreUnavailableError("no answer")
        if self.failing == "hang":
            await asyncio.Event().wait()
        return await super().get(space, name)

    async def put(self, *args: Any, **kwargs: Any) -> int:
        if self.failing == "put":
            raise StoreUnavailableError("no answer")
        return await super().put(*args, **kwargs)

    async def add(self, *args: Any, **kwargs: Any) -> Any:
        if self.failing == "add":
            raise StoreUnavailableError("no answer")
        return await super().add(*args, **kwargs)


@pytest.mark.parametrize("failing", ["get", "put", "hang", "add"])
async def test_a_cache_that_fails_fails_no_send(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    """It is left alone for a moment, with one warning, and then used again."""
    monkeypatch.setattr("llm_router.caching.cache._PATIENCE", 0.01)
    records = _Flaky(clock=clock)
    async with make_router([pools.one(rpm=1000)], cache=Cache(records)) as router:
        await router.send("known")
        await kept(router)
        records.failing = failing
        for _ in range(70):
            assert (await router.send("x")).success
            assert (await router.send("known")).success
            await kept(router)
        warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warnings) == 1
        health = await router.health_check()
        assert (health["healthy"], health["cache"] is None) == (True, failing == "add")
        records.failing = None
        clock.shift(5.1)
        await router.send("x")
        await kept(router)
        assert (await router.send("x")).cached
        if failing == "add":
            assert (await router.cache_savings())["requests"] >= 64


async def test_what_is_kept_makes_no_sense(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Then it is replaced."""
    records = MemoryRecords()
    async with make_router([pools.one(rpm=100)], cache=Cache(records)) as router:
        for data in (b"", b"[]", b'{"format":2}', b'{"format":1}', b'{"format":1,"content":{"$bytes":"?"}}'):
            await router.send("x")
            await kept(router)
            [name] = await records.names("cache")
            await records.put("cache", name, data, ttl=60)
            assert not (await router.send("x")).cached
            await kept(router)
            assert (await router.send("x")).cached


async def test_conversations_are_answered_too(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A turn after the same history is the same request, unless it is told otherwise."""
    provider.script("1", "2")
    async with make_router([pools.one(rpm=100)], cache="memory://") as router:
        for name in ("a", "b"):
            for prompt in ("one", "two"):
                assert (await router.conversation(name).send(prompt)).text == {"one": "1", "two": "2"}[prompt]
        assert len(provider.calls) == 2
        await router.conversation("c", cache=False).send("one")
        assert len(provider.calls) == 3


@pytest.mark.parametrize(
    "cache",
    [5, object(), MemoryRecords, "ftp://x", "", {"url": "memory://"}],
    ids=lambda each: type(each).__name__,
)
def test_a_wrong_cache_is_refused(make_router: MakeRouter, pools: Pools, cache: Any) -> None:
    """By its name, before anything is opened."""
    with pytest.raises(ConfigError, match="cache"):
        make_router([pools.one()], cache=cache)


@pytest.mark.parametrize(
    "options", [{"ttl": 0}, {"ttl": float("inf")}, {"ttl": float("nan")}, {"size": 0}, {"size": 0.5}]
)
def test_wrong_bounds_are_refused(options: dict[str, Any]) -> None:
    """A time and a size are numbers that can be meant."""
    with pytest.raises(ConfigError, match=f"the {next(iter(options))} of a Cache must be"):
        Cache("memory://", **options)

"""The drop-in client answers as the SDK's, sync and async, from any loop and thread."""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from llm_router import ConfigError, InvalidRequestError, Router, RouterClosedError, RouterLoopError
from llm_router.emulator import GeminiEmulator
from llm_router.genai import Client
from llm_router.sync import SyncRouter

Count = Callable[..., Coroutine[Any, Any, int]]


def test_it_is_the_sdks_client(client: Client) -> None:
    """Whatever asks for an SDK client takes it, and it has no key."""
    assert isinstance(client, genai.Client)
    assert not client.vertexai
    assert "AIza" not in repr(vars(client._api_client))


def test_the_environment_of_the_sdk(
    make_router: Callable[..., Router], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it says of keys, servers and Vertex AI is for other clients, and nothing warns of it."""
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.setenv(name, "of-another-client")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://of-another-client.invalid/path")
    with Client(router=make_router) as client:
        assert client.models.generate_content(model="flash", contents="hi").text == "[flash] echo: hi"
        assert "of-another-client" not in repr(vars(client._api_client)["_http_options"])
    assert caplog.records == []


def test_from_config(emulator: GeminiEmulator, tmp_path: Path) -> None:
    """A keys file and the environment are all that it needs; what is wrong in them is said at once."""
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [{"key_id": "key-1", "model_name": "flash", "limits": {"rpm": 1}}]}', "utf-8")
    env = {"API_KEY_key_1": "AIzaOfAlpha", "GOOGLE_GEMINI_BASE_URL": emulator.url}
    with Client.from_config(path, env=env, env_file=None, store="memory://", max_wait=0) as client:
        assert client.models.generate_content(model="flash", contents="hi").text == "[flash] echo: hi"
        with pytest.raises(errors.ClientError) as caught:
            client.models.generate_content(model="flash", contents="hi")
        assert caught.value.code == 429
    with pytest.raises(ConfigError, match="API_KEY_key_1"):
        Client.from_config(path, env={}, env_file=None)


async def test_an_asynchronous_call(client: Client, emulator: GeminiEmulator, count_used: Count) -> None:
    """It is answered by a key of the pool, which its headers name."""
    answer = await client.aio.models.generate_content(model="flash", contents="hello there")
    assert answer.text == "[flash] echo: hello there"
    assert answer.sdk_http_response is not None
    headers = answer.sdk_http_response.headers or {}
    assert headers["x-llm-router-key-id"] in ("alpha", "beta")
    assert (headers["x-llm-router-model"], headers["x-llm-router-attempts"]) == ("flash", "1")
    assert (emulator.accepted, await count_used(client)) == (1, 1)


async def test_a_synchronous_call(client: Client, emulator: GeminiEmulator, count_used: Count) -> None:
    """It needs no event loop."""
    generate = client.models.generate_content
    answer = await asyncio.to_thread(generate, model="flash", contents="hello there")
    assert answer.text == "[flash] echo: hello there"
    assert (emulator.accepted, await count_used(client)) == (1, 1)


async def test_streams(client: Client, emulator: GeminiEmulator, count_used: Count) -> None:
    """Pieces come as they come, and once they have come the quota is settled."""

    def read() -> list[str | None]:
        stream = client.models.generate_content_stream(model="flash", contents="one two three four")
        return [piece.text for piece in stream]

    stream = await client.aio.models.generate_content_stream(model="flash", contents="one two three four")
    pieces = [piece.text async for piece in stream]
    assert len(pieces) > 1
    assert "".join(each or "" for each in pieces) == "[flash] echo: one two three four"
    assert await asyncio.to_thread(read) == pieces
    assert (emulator.accepted, await count_used(client)) == (2, 2)


async def test_a_workload_stands_for_a_model(client: Client) -> None:
    """In place of the model's name, or in a header of the call."""
    answer = await client.aio.models.generate_content(model="workload:light", contents="hi")
    assert answer.text == "[lite] echo: hi"
    for _ in range(20):
        await client.aio.models.generate_content(model="flash", contents="hi")
    headers = {"x-llm-router-fallback": "any"}
    config = types.GenerateContentConfig(http_options=types.HttpOptions(headers=headers))
    answer = await client.aio.models.generate_content(model="flash", contents="hi", config=config)
    assert answer.text == "[lite] echo: hi"


@pytest.mark.parametrize(
    "header", ["x-llm-router-max-wait", "x-llm-router-fallback", "x-llm-router-worklaod"]
)
async def test_wishes_that_make_no_sense(client: Client, emulator: GeminiEmulator, header: str) -> None:
    """They are the SDK's error for a bad request, and cost nothing."""
    config = types.GenerateContentConfig(http_options=types.HttpOptions(headers={header: "far"}))
    with pytest.raises(errors.ClientError, match=header) as caught:
        await client.aio.models.generate_content(model="flash", contents="hi", config=config)
    assert (caught.value.code, emulator.requests) == (400, 0)


async def test_what_is_spent(client: Client, emulator: GeminiEmulator) -> None:
    """It is the SDK's 429 with a true time, and the server refused nothing."""
    for _ in range(20):
        await client.aio.models.generate_content(model="flash", contents="hi")
    stream = await client.aio.models.generate_content_stream(model="flash", contents="hi")
    for work in (client.aio.models.generate_content(model="flash", contents="hi"), anext(stream)):
        with pytest.raises(errors.ClientError) as caught:
            await work
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
        delays = [each["retryDelay"] for each in caught.value.details["error"]["details"]]
        assert 0 < float(delays[0].removesuffix("s")) <= 61
    assert (emulator.accepted, emulator.refused) == (20, 0)


async def test_unknown_models(client: Client) -> None:
    """They are the SDK's 404."""
    with pytest.raises(errors.ClientError, match="gemini-0") as caught:
        await client.aio.models.generate_content(model="gemini-0", contents="hi")
    assert caught.value.code == 404


def test_several_event_loops(client: Client, emulator: GeminiEmulator) -> None:
    """One asyncio.run after another, and synchronous calls between them, share the pool."""

    async def ask() -> str | None:
        return (await client.aio.models.generate_content(model="flash", contents="hi")).text

    for _ in range(2):
        assert asyncio.run(ask()) == "[flash] echo: hi"
        assert client.models.generate_content(model="flash", contents="hi").text == "[flash] echo: hi"
    assert emulator.accepted == 4


def test_calls_of_many_threads(client: Client, emulator: GeminiEmulator) -> None:
    """Threads with and without a loop of their own share one client."""

    def ask(number: int) -> str | None:
        if number % 2:
            return client.models.generate_content(model="flash", contents="hi").text
        return asyncio.run(client.aio.models.generate_content(model="flash", contents="hi")).text

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(20))) == {"[flash] echo: hi"}
    assert (emulator.accepted, emulator.refused) == (20, 0)


async def test_a_router_in_use(make_router: Callable[..., Router]) -> None:
    """It stays on its loop, is not closed by the client, and no blocking call can be made from that loop."""
    async with make_router() as router:
        assert (await router.send("hi")).success
        client = Client(router=router, max_wait=0)
        assert (await client.aio.models.generate_content(model="flash", contents="hi")).text
        generate = client.models.generate_content
        assert (await asyncio.to_thread(generate, model="flash", contents="hi")).text
        assert asyncio.get_running_loop() is router.loop
        with pytest.raises(RouterLoopError, match=r"client\.aio"):
            generate(model="flash", contents="hi")
        client.close()
        assert (await router.send("hi")).success


async def test_a_router_that_was_only_entered(make_router: Callable[..., Router]) -> None:
    """It is of the loop that closes it, also if the client is the first to use it."""
    async with make_router() as router:
        client = Client(router=router)
        assert (await client.aio.models.generate_content(model="flash", contents="hi")).text
        answer = await asyncio.to_thread(client.models.generate_content, model="flash", contents="hi")
        assert answer.text == "[flash] echo: hi"
        assert router.loop is asyncio.get_running_loop()
    assert router.closed


@pytest.mark.parametrize("source", ["keys.json", 5, lambda: None], ids=["path", "number", "function"])
def test_what_is_no_router_is_refused(source: Any) -> None:
    """It was a TypeError of Python's, or an AttributeError at the first call."""
    for face in (Client, SyncRouter):
        with pytest.raises(ConfigError, match="router must be a Router, or a function that makes one"):
            face(router=source)


def test_a_router_whose_loop_has_ended(make_router: Callable[..., Router]) -> None:
    """It goes on in a thread of the client, and is still not closed by it."""
    router = make_router()
    asyncio.run(router.send("hi"))
    client = Client(router=router, max_wait=0)
    assert client.models.generate_content(model="flash", contents="hi").text
    client.close()
    assert not router.closed
    asyncio.run(router.aclose())


@pytest.mark.filterwarnings("ignore:.*experimental")
@pytest.mark.parametrize(
    "session", ["live", "live.music", pytest.param("interactions", marks=pytest.mark.slow)]
)
async def test_websockets(client: Client, session: str) -> None:
    """They are refused before anything is opened, and the message says what to use."""
    connect = getattr(operator.attrgetter(session)(client.aio), "connect", None)
    if connect is None:
        pytest.skip("this SDK has no websocket for interactions")
    arguments = {"id": "some-id"} if session == "interactions" else {"model": "flash"}
    with pytest.raises(InvalidRequestError, match="with a key of its own"):
        await contextlib.AsyncExitStack().enter_async_context(connect(**arguments))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"http_options": {"base_url": "https://example.com"}}, "base_url"),
        ({"http_options": {"client_args": {"verify": False}}}, "client_args"),
        ({"max_wait": float("nan")}, "max_wait"),
        ({"max_wait": -1}, "max_wait"),
    ],
)
def test_what_cannot_be_meant(options: Any, named: str) -> None:
    """It is refused by name when the client is made, and no router is made for it."""
    with pytest.raises(ConfigError, match=named):
        Client(router=lambda: pytest.fail("made"), **options)


async def test_a_client_that_was_never_used(make_router: Callable[..., Router]) -> None:
    """Closing it closes its router, too; one that it was given stays open."""
    routers = [make_router(), make_router()]
    Client(router=lambda: routers[0]).close()
    with Client(router=routers[1]):
        pass
    assert [each.closed for each in routers] == [True, False]
    await routers[1].aclose()


async def test_a_closed_client(client: Client) -> None:
    """It says so."""
    client.close()
    client.close()
    with pytest.raises(RouterClosedError, match="make a new one"):
        await client.aio.models.generate_content(model="flash", contents="hi")

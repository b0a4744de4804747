"""What goes wrong reaches the callers of a drop-in client as it does those of the SDK."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from llm_router import Router, RouterClosedError, StoreUnavailableError
from llm_router.emulator import Fault, GeminiEmulator
from llm_router.genai import Client, passage
from llm_router.genai.transports import http_library

Count = Callable[..., Coroutine[Any, Any, int]]
UntilIdle = Callable[[Client], Coroutine[Any, Any, None]]
UntilHolding = Callable[..., Coroutine[Any, Any, None]]

LIBRARY: Any = http_library()
PROMPT: Any = {"model": "flash", "contents": "one two three four"}
BODY = {"contents": [{"parts": [{"text": "hi"}]}]}


async def generate(client: genai.Client, *, blocking: bool, **options: Any) -> Any:
    """Ask for a whole answer."""
    if blocking:
        return await asyncio.to_thread(client.models.generate_content, **PROMPT, **options)
    return await client.aio.models.generate_content(**PROMPT, **options)


async def read(client: genai.Client, *, blocking: bool) -> list[str | None]:
    """Read a stream to its end."""

    def read_blocking() -> list[str | None]:
        return [piece.text for piece in client.models.generate_content_stream(**PROMPT)]

    if blocking:
        return await asyncio.to_thread(read_blocking)
    return [piece.text async for piece in await client.aio.models.generate_content_stream(**PROMPT)]


@pytest.fixture(params=[False, True], ids=["asynchronous", "blocking"])
def blocking(request: pytest.FixtureRequest) -> bool:
    """Whether the caller blocks a thread."""
    return bool(request.param)


@pytest.mark.parametrize("fault", [Fault.status(429), Fault.status(503), Fault.drop(), Fault.cut_json()])
async def test_a_key_that_fails(
    client: Client, emulator: GeminiEmulator, fault: Fault, *, blocking: bool
) -> None:
    """Another one answers, and the caller sees nothing of it."""
    emulator.inject(fault, key="AIzaOfAlpha")
    for _ in range(4):
        answer = await generate(client, blocking=blocking)
        assert answer.text
    if fault != Fault.cut_json():  # of which nothing can be told before the end of a stream
        assert await read(client, blocking=blocking)


async def test_a_refusal_of_the_request(client: Client, emulator: GeminiEmulator) -> None:
    """It is the provider's own, and made once."""
    body = {"error": {"code": 400, "message": "No such field.", "status": "INVALID_ARGUMENT"}}
    emulator.inject(Fault.status(400, body=body))
    with pytest.raises(errors.ClientError, match=r"No such field\.") as caught:
        await client.aio.models.generate_content(**PROMPT)
    assert (caught.value.details, emulator.requests) == (body, 1)


async def test_an_error_inside_a_stream(client: Client, emulator: GeminiEmulator, *, blocking: bool) -> None:
    """It is the error that the SDK raises for it."""
    emulator.inject(Fault.stream_error(503, after=2))
    with pytest.raises(errors.ServerError) as caught:
        await read(client, blocking=blocking)
    assert caught.value.code == 503


@pytest.mark.parametrize("fault", [Fault.stream_drop(after=2), Fault.stream_cut(after=2)])
async def test_a_stream_that_breaks_off(
    client: Client, emulator: GeminiEmulator, fault: Fault, *, blocking: bool
) -> None:
    """The bare SDK's HTTP error is raised, also where the server ends the stream as if it were whole."""
    emulator.inject(fault)
    with pytest.raises(LIBRARY.RemoteProtocolError):
        await read(client, blocking=blocking)


async def test_a_timeout(
    client: Client,
    emulator: GeminiEmulator,
    until_idle: UntilIdle,
    count_used: Count,
    *,
    blocking: bool,
) -> None:
    """It is the bare SDK's error too, and the call is ended at the server."""
    emulator.inject(Fault.hang())
    config = types.GenerateContentConfig(http_options=types.HttpOptions(timeout=50))
    with pytest.raises(LIBRARY.ReadTimeout):
        await generate(client, blocking=blocking, config=config)
    await until_idle(client)
    assert await count_used(client) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_wait", "timeout", "header", "expected"),
    [
        (None, None, None, (60.0, 600.0)),
        (None, 5_000, None, (5.0, 5.0)),
        (None, 90_000, None, (60.0, 90.0)),
        (30, None, None, (30.0, 600.0)),
        (30, 5_000, None, (5.0, 5.0)),
        (30, None, "7", (7.0, 600.0)),
        (30, 5_000, "7", (5.0, 5.0)),
    ],
)
async def test_how_long_a_call_waits(
    make_router: Callable[..., Router],
    max_wait: float | None,
    timeout: int | None,
    header: str | None,
    expected: tuple[float, float],
) -> None:
    """For quota at most as long as the client, the call or its header says, and never beyond its timeout."""
    seen: list[tuple[Any, Any]] = []
    router = make_router()
    relay = router.relay

    def recorded(exchange: Any, **options: Any) -> Any:
        seen.append((options["max_wait"], options["timeout"]))
        return relay(exchange, **options)

    router.relay = recorded  # type: ignore[method-assign]
    client = Client(router=lambda: router, max_wait=max_wait)
    headers = None if header is None else {"x-llm-router-max-wait": header}
    config = types.GenerateContentConfig(http_options=types.HttpOptions(timeout=timeout, headers=headers))
    await client.aio.models.generate_content(**PROMPT, config=config)
    client.close()
    assert seen == [expected]


async def test_a_caller_that_is_cancelled(
    client: Client,
    emulator: GeminiEmulator,
    until_holding: UntilHolding,
    until_idle: UntilIdle,
    count_used: Count,
) -> None:
    """What it had asked for is ended, and counted once."""
    emulator.inject(Fault.hang())
    asking = asyncio.ensure_future(client.aio.models.generate_content(**PROMPT))
    await until_holding(emulator)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until_idle(client)
    await until_holding(emulator, 0)
    assert await count_used(client) == 1


async def test_closing_while_calls_are_under_way(
    client: Client, emulator: GeminiEmulator, until_holding: UntilHolding
) -> None:
    """They end, whether they block or not, and say why."""
    emulator.inject(Fault.hang())
    thread = asyncio.create_task(asyncio.to_thread(client.models.generate_content, **PROMPT))
    task = asyncio.create_task(client.aio.models.generate_content(**PROMPT))
    await until_holding(emulator, 2)
    await asyncio.to_thread(client.close)
    for each in (thread, task):
        with pytest.raises(RouterClosedError, match="closed"):
            await each
    await until_holding(emulator, 0)


async def test_closing_a_client_of_a_router_in_use(
    make_router: Callable[..., Router], emulator: GeminiEmulator, until_holding: UntilHolding
) -> None:
    """Its calls end as well, and those of the router go on."""
    async with make_router() as router:
        assert (await router.send("hi")).success
        client = Client(router=router)
        emulator.inject(Fault.hang())
        sending = asyncio.create_task(router.send("hi"))
        asking = asyncio.create_task(client.aio.models.generate_content(**PROMPT))
        await until_holding(emulator, 2)
        client.close()
        with pytest.raises(RouterClosedError, match="closed"):
            await asking
        await until_holding(emulator, 1)
        emulator.release()
        assert (await sending).success


async def test_a_store_that_fails_inside_a_stream(
    client: Client, monkeypatch: pytest.MonkeyPatch, *, blocking: bool
) -> None:
    """The answer is not taken for a whole one."""
    relay = client._bridge.router.relay

    async def failing(answer: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield await anext(answer)
        raise StoreUnavailableError("it is gone")

    def relay_failing(exchange: Any, **options: Any) -> Any:
        answer = relay(exchange, **options)
        monkeypatch.setattr(type(answer), "__aiter__", failing)
        return answer

    monkeypatch.setattr(client._bridge.router, "relay", relay_failing)
    with pytest.raises(StoreUnavailableError):
        await read(client, blocking=blocking)


async def test_a_body_that_was_read(client: Client, *, blocking: bool) -> None:
    """Asking for more of it gives nothing, and does not wait."""
    http = client._api_client._httpx_client if blocking else client._api_client._async_httpx_client
    assert http is not None
    path = "/v1beta/models/flash:streamGenerateContent?alt=sse"
    asked = http.build_request(
        "POST", f"https://any.host{path}", json={"contents": [{"parts": [{"text": "hi"}]}]}
    )
    answer: Any = http.send(asked, stream=True)
    if not blocking:
        answer = await answer
    pieces = answer.stream._stream
    if blocking:
        assert list(pieces)
        assert next(pieces, None) is None
    else:
        assert [piece async for piece in pieces]
        assert await anext(pieces, None) is None


async def test_requests_that_only_the_library_understands(client: Client, *, blocking: bool) -> None:
    """They get the same answer as one of the SDK's, with all that the library adds to it."""
    http: Any = client._api_client._httpx_client if blocking else client._api_client._async_httpx_client
    url = "https://any.host/v1beta/models/flash:generateContent"
    asked = {"contents": [{"parts": [{"text": "hi"}]}]}
    answers = []
    for said in ({"content": json.dumps(asked), "timeout": 60}, {"json": asked, "params": {"a": "b"}}):
        answer = http.request("POST", url, **said)
        answers.append(answer if blocking else await answer)
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json()["candidates"] == answers[1].json()["candidates"]
    assert [each.request.method for each in answers] == ["POST", "POST"]
    assert ["user-agent" in each.request.headers for each in answers] == [False, True]


@pytest.mark.parametrize("hooked", [False, True], ids=["by itself", "by the library"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_what_a_response_tells(client: Client, *, blocking: bool, streamed: bool, hooked: bool) -> None:
    """It is all that one of a real transport does, and hooks are called with it."""
    http: Any = client._api_client._httpx_client if blocking else client._api_client._async_httpx_client
    seen: list[Any] = []

    async def note(found: Any) -> None:
        seen.append(found)

    if hooked:
        http.event_hooks = {each: [seen.append if blocking else note] for each in ("request", "response")}
    path = "streamGenerateContent?alt=sse" if streamed else "generateContent"
    asked = http.build_request(
        "POST", f"https://any.host/v1beta/models/flash:{path}", content=json.dumps(BODY), timeout=60
    )
    answer: Any = http.send(asked, stream=streamed)
    answer = answer if blocking else await answer
    if streamed:
        assert not answer.is_closed
        with pytest.raises(RuntimeError, match="elapsed"):
            assert answer.elapsed
        body = answer.read() if blocking else await answer.aread()
        assert body == answer.content
    assert answer.elapsed.total_seconds() > 0
    assert (answer.is_closed, answer.is_stream_consumed, answer.is_success) == (True, True, True)
    assert answer.num_bytes_downloaded == len(answer.content) > 0
    assert (answer.http_version, answer.reason_phrase, answer.encoding) == ("HTTP/1.1", "OK", "utf-8")
    assert answer.extensions["http_version"] == b"HTTP/1.1"
    assert (answer.request, answer.url.host) == (asked, "any.host")
    assert (answer.history, answer.next_request, list(answer.cookies)) == ([], None, [])
    assert seen == ([asked, answer] if hooked else [])


async def test_a_refusal_of_a_stream(client: Client, emulator: GeminiEmulator, *, blocking: bool) -> None:
    """It is whole, and tells what a response does all the same."""
    emulator.inject(Fault.status(400))
    http: Any = client._api_client._httpx_client if blocking else client._api_client._async_httpx_client
    url = "https://any.host/v1beta/models/flash:streamGenerateContent?alt=sse"
    asked = http.build_request("POST", url, content=json.dumps(BODY), timeout=60)
    answer: Any = http.send(asked, stream=True)
    answer = answer if blocking else await answer
    assert (answer.status_code, answer.reason_phrase) == (400, "Bad Request")
    assert answer.elapsed.total_seconds() > 0
    assert "error" in answer.json()


async def test_a_stream_that_nobody_reads(
    sliced: Client, monkeypatch: pytest.MonkeyPatch, until_idle: UntilIdle, *, blocking: bool
) -> None:
    """It is given up, and whoever comes back to it is told."""
    monkeypatch.setattr(passage, "_IDLE", 0.05)
    held: Any
    if blocking:
        held = sliced.models.generate_content_stream(**PROMPT)
        await asyncio.to_thread(next, held)
    else:
        held = await sliced.aio.models.generate_content_stream(**PROMPT)
        await anext(held)
    await until_idle(sliced)
    with pytest.raises(LIBRARY.ReadTimeout, match="nothing of the answer was read"):
        await (asyncio.to_thread(list, held) if blocking else _all_of(held))


async def _all_of(stream: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in stream]


async def test_a_slow_reader(sliced: Client, *, blocking: bool) -> None:
    """The server is not read faster than the caller, who gets all of it."""
    pieces = await read(sliced, blocking=blocking)
    assert "".join(each or "" for each in pieces) == "[flash] echo: one two three four"


async def test_no_key_in_a_traceback(client: Client, emulator: GeminiEmulator) -> None:
    """Neither the error nor the locals of its frames show one."""
    emulator.inject(Fault.stream_drop(after=2))
    with pytest.raises(LIBRARY.RemoteProtocolError) as caught:
        await read(client, blocking=False)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "RemoteProtocolError" in shown
    assert "AIza" not in shown

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs
import httpx2
import pytest
from google.genai import errors, types
from google.genai.models import AsyncModels

from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.emulator.conftest import OpenSDK

pytestmark = pytest.mark.slow


MODEL = "gemini-test"
BODY = {"contents": [{"parts": [{"text": "hello"}]}]}
LOST = (
    aiohttp.ClientError,
    httpx2.TransportError,
    # Before it knew httpx2, the SDK used httpx, which later versions do not install.
    *([importlib.import_module("httpx").TransportError] if importlib.util.find_spec("httpx") else []),
)


async def stream_all(models: AsyncModels) -> tuple[list[Any], Any]:
    """Stream an answer; return its chunks and the error that ended it, if any."""
    chunks = []
    try:
        async for chunk in await models.generate_content_stream(model=MODEL, contents="Tell me of llamas"):
            chunks.append(chunk)  # noqa: PERF401 - the chunks before the error are wanted
    except (errors.APIError, errors.UnknownApiResponseError, *LOST) as error:
        return chunks, error
    return chunks, None


def generate(models: AsyncModels, **config: Any) -> Coroutine[Any, Any, types.GenerateContentResponse]:
    return models.generate_content(model=MODEL, contents="hello", **config)


async def test_delay(
    sdk: OpenSDK, clock: ManualClock, until_holding: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    """A delayed request is counted at once and answered when the delay has passed."""
    async with GeminiEmulator(clock=clock) as emulator, sdk(emulator) as models:
        emulator.inject(Fault.delay(5), times=1)
        task = asyncio.ensure_future(generate(models))
        await until_holding(emulator)
        assert emulator.accepted == 1
        await clock.advance(4.9)
        assert emulator.holding == 1
        await clock.advance(0.1)
        assert (await task).text
        assert clock.pending == 0


async def test_any_fault_may_be_delayed(
    sdk: OpenSDK, clock: ManualClock, until_holding: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    """A fault with seconds shows after that time."""
    async with GeminiEmulator(clock=clock) as emulator, sdk(emulator) as models:
        emulator.inject(attrs.evolve(Fault.status(503), seconds=2))
        task = asyncio.ensure_future(generate(models))
        await until_holding(emulator)
        await clock.advance(2)
        with pytest.raises(errors.ServerError, match="503 UNAVAILABLE"):
            await task


@pytest.mark.parametrize("counted", [True, False])
async def test_drop(http: aiohttp.ClientSession, counted: bool) -> None:
    """The connection is closed without an answer; the fault decides whether quota was used."""
    async with GeminiEmulator() as emulator:
        url = f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k"
        emulator.inject(Fault.drop(counted=counted), times=1)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await http.post(url, json=BODY)
        async with http.post(url, json=BODY) as reply:
            assert reply.status == 200
        assert (emulator.requests, emulator.accepted) == (2, 1 + counted)


@pytest.mark.parametrize("counted", [True, False])
async def test_drop_for_the_sdk(sdk: OpenSDK, backend: str, counted: bool) -> None:
    """The SDK reports a dropped connection as lost, and its next request is answered."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.drop(counted=counted))
        with pytest.raises(LOST):
            await generate(models)
        dropped = emulator.requests
        # Early versions of the SDK repeat a request that aiohttp lost, once.
        assert dropped in ({1, 2} if backend == "aiohttp" else {1})
        emulator.clear_faults()
        assert (await generate(models)).text
        assert (emulator.requests, emulator.accepted) == (dropped + 1, dropped * counted + 1)


async def test_hang_until_released(
    sdk: OpenSDK, until_holding: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    """A hanging request is answered when it is released."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.hang(), times=2)
        tasks = [asyncio.ensure_future(generate(models)) for _ in range(2)]
        await until_holding(emulator, 2)
        emulator.release()
        assert all([(await task).text for task in tasks])
        assert emulator.holding == 0


async def test_hang_until_the_client_goes(
    sdk: OpenSDK, until_holding: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    """A hanging request ends when its client gives up."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.hang())
        task = asyncio.ensure_future(generate(models))
        await until_holding(emulator)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_holding(emulator, 0)


async def test_hang_until_stopped(
    sdk: OpenSDK, until_holding: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    """Stopping the emulator drops hanging requests."""
    async with contextlib.AsyncExitStack() as stack:
        async with GeminiEmulator() as emulator:
            emulator.inject(Fault.hang())
            models = await stack.enter_async_context(sdk(emulator))
            task = asyncio.ensure_future(generate(models))
            await until_holding(emulator)
        with pytest.raises(LOST):
            await task


async def test_cut_json(sdk: OpenSDK) -> None:
    """The SDK cannot parse an answer whose JSON is cut in half."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.cut_json())
        with pytest.raises(json.JSONDecodeError):
            await generate(models)
        chunks, error = await stream_all(models)
        assert (chunks, type(error)) == ([], errors.UnknownApiResponseError)
        assert emulator.accepted == 2


async def test_cut_429(sdk: OpenSDK, backend: str) -> None:
    """For a 429 with cut JSON the SDK raises a JSONDecodeError on aiohttp, and a 429 on httpx2."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.cut_json(429))
        expected = json.JSONDecodeError if backend == "aiohttp" else errors.ClientError
        with pytest.raises(expected):
            await generate(models)
        assert (emulator.accepted, emulator.refused) == (0, 1)


async def test_a_status_with_a_body_and_headers(http: aiohttp.ClientSession) -> None:
    """A recorded status, body and headers are sent as they were, except for headers that frame the body."""
    recorded = {"Retry-After": "7", "Content-Type": "text/html", "Content-Length": "1", "X-Seen": "yes"}
    async with GeminiEmulator() as emulator:
        emulator.inject(Fault.status(429, body="<h1>Größe</h1>", headers=recorded), times=1)
        async with http.post(f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k", json=BODY) as reply:
            assert reply.status == 429
            assert await reply.read() == "<h1>Größe</h1>".encode()
            seen = {name.lower(): value for name, value in reply.headers.items()}
        assert (emulator.accepted, emulator.refused) == (0, 1)
    assert seen == {"retry-after": "7", "content-type": "text/html", "content-length": "16", "x-seen": "yes"}


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"\x00\xff", b"\x00\xff"),
        ("", b""),
        ("größer", "größer".encode()),
        ({"error": {"code": 503}}, b'{"error":{"code":503}}'),
        ([1], b"[1]"),
    ],
)
async def test_the_body_of_a_status(http: aiohttp.ClientSession, body: Any, sent: bytes) -> None:
    """Bytes and text are sent as they are, other objects as JSON; the content type is JSON."""
    async with GeminiEmulator() as emulator:
        emulator.inject(Fault.status(503, body=body))
        async with http.post(f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k", json=BODY) as reply:
            assert (reply.status, await reply.read()) == (503, sent)
            assert reply.content_type == "application/json"


async def test_headers_with_the_usual_error(http: aiohttp.ClientSession) -> None:
    """The usual error can be sent with headers such as Retry-After."""
    async with GeminiEmulator() as emulator:
        emulator.inject(Fault.status(503, headers={"Retry-After": "5"}))
        async with http.post(f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k", json=BODY) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
            assert (await reply.json())["error"]["status"] == "UNAVAILABLE"


async def test_an_answer_may_be_replayed(sdk: OpenSDK) -> None:
    """A 200 with a recorded body is an answer to the SDK, whole or streamed, and uses quota."""
    piece = {"candidates": [{"content": {"parts": [{"text": "replayed"}]}}]}
    event = f"data: {json.dumps(piece)}\r\n\r\n"
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.status(200, body=piece), times=1)
        assert (await generate(models)).text == "replayed"
        emulator.inject(Fault.status(200, body=event * 2, headers={"Content-Type": "text/event-stream"}))
        chunks, error = await stream_all(models)
        assert ([chunk.text for chunk in chunks], error) == (["replayed"] * 2, None)
        assert emulator.accepted == 2


@pytest.mark.parametrize("code", [204, 304])
async def test_a_status_without_a_body(http: aiohttp.ClientSession, code: int) -> None:
    """A status that has no body is sent without one, and the connection stays usable."""
    async with GeminiEmulator() as emulator:
        emulator.inject(Fault.status(code), times=1)
        for status in (code, 200):
            url = f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k"
            async with http.post(url, json=BODY) as reply:
                assert (reply.status, await reply.read() == b"") == (status, status == code)


@pytest.mark.parametrize(
    ("code", "options"),
    [(100, {}), (42, {}), (204, {"body": "words"}), (200, {"headers": {"X-Seen": "漢"}})],
)
def test_a_status_that_cannot_be_sent(code: int, options: Any) -> None:
    """Such a fault raises when it is made, not when a request has it."""
    with pytest.raises(ValueError, match=r"final HTTP status|no body|latin-1"):
        Fault.status(code, **options)


async def test_bare_429(sdk: OpenSDK) -> None:
    """A bare 429 has no details, so it does not say which quota was exceeded."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.bare_429())
        with pytest.raises(errors.ClientError) as caught:
            await generate(models)
        assert emulator.refused == 1
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert caught.value.message == "Resource has been exhausted (e.g. check quota)."
    assert "details" not in caught.value.details["error"]


async def test_list_429(sdk: OpenSDK, http: aiohttp.ClientSession) -> None:
    """The SDK reads a 429 in a list of one as the same error."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.list_429())
        with pytest.raises(errors.ClientError) as caught:
            await generate(models)
        url = f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k"
        async with http.post(url, json={"contents": [{"parts": [{"text": "hello"}]}]}) as response:
            body = await response.json()
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert [error["error"]["code"] for error in body] == [429]


@pytest.mark.parametrize("streamed", [False, True])
async def test_block(sdk: OpenSDK, streamed: bool) -> None:
    """A blocked prompt has feedback and no candidates."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.block("PROHIBITED_CONTENT"))
        if streamed:
            ((response,), _) = await stream_all(models)
        else:
            response = await generate(models)
    assert response.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
    assert not response.candidates
    assert response.usage_metadata.prompt_token_count


@pytest.mark.parametrize("streamed", [False, True])
async def test_safety(sdk: OpenSDK, streamed: bool) -> None:
    """A blocked answer has a candidate without text."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.safety())
        if streamed:
            ((response,), _) = await stream_all(models)
        else:
            response = await generate(models)
    assert response.candidates[0].finish_reason == types.FinishReason.SAFETY
    assert response.text is None


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("reason", ["MAX_TOKENS", "MALFORMED_FUNCTION_CALL", ""])
async def test_no_content(sdk: OpenSDK, streamed: bool, reason: str) -> None:
    """An answer without content has its finish reason, or no candidate at all, and its usage."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.no_content(reason))
        if streamed:
            ((response,), _) = await stream_all(models)
        else:
            response = await generate(models)
    assert [candidate.finish_reason.name for candidate in response.candidates or ()] == [reason][
        : len(reason)
    ]
    assert response.text is None
    assert response.usage_metadata.prompt_token_count


async def test_empty(sdk: OpenSDK) -> None:
    """The SDK reads an empty 200 as an empty response, not an error."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.empty())
        assert (await generate(models)).candidates is None
        assert await stream_all(models) == ([], None)


async def test_stream_cut(sdk: OpenSDK) -> None:
    """A cut stream ends without an error and without a finish reason."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.stream_cut(after=2))
        chunks, error = await stream_all(models)
    assert (len(chunks), error) == (2, None)
    assert chunks[-1].candidates[0].finish_reason is None


async def test_stream_error(sdk: OpenSDK) -> None:
    """An error in a stream is raised by the SDK after the first chunks."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.stream_error(503, after=2))
        chunks, error = await stream_all(models)
    assert len(chunks) == 2
    assert (error.code, error.status) == (503, "UNAVAILABLE")


async def test_stream_drop(sdk: OpenSDK) -> None:
    """A stream can lose its connection partway."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.stream_drop())
        _, error = await stream_all(models)
    assert isinstance(error, LOST)


async def test_stream_hang(sdk: OpenSDK, until_holding: Callable[..., Coroutine[Any, Any, None]]) -> None:
    """A stream can pause partway, and continues when it is released."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.stream_hang(after=1))
        stream = await models.generate_content_stream(model=MODEL, contents="Tell me of llamas")
        texts = [(await anext(stream)).text]
        await until_holding(emulator)
        emulator.release()
        texts += [chunk.text async for chunk in stream]
    assert None not in texts
    assert "".join(text or "" for text in texts) == "[gemini-test] echo: Tell me of llamas"


async def test_faults_match(sdk: OpenSDK) -> None:
    """A fault applies only to its model, methods and number of requests, and the oldest match wins."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        rule = emulator.inject(Fault.status(503), model=MODEL, times=2)
        emulator.inject(Fault.status(500), methods=["streamGenerateContent"])
        emulator.inject(Fault.stream_cut())
        assert (await models.generate_content(model="other", contents="hello")).text
        await models.count_tokens(model=MODEL, contents="hello")
        for _ in range(2):
            with pytest.raises(errors.ServerError, match="503"):
                await generate(models)
        assert (rule.taken, rule.left) == (2, 0)
        assert (await generate(models)).text
        _, error = await stream_all(models)
        assert error.code == 500
        emulator.clear_faults()
        chunks, error = await stream_all(models)
        assert (len(chunks), error) == (4, None)


async def test_count_tokens_may_fail_too(sdk: OpenSDK) -> None:
    """A fault for every method applies to countTokens, which still counts no request."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.status(429), methods=None)
        with pytest.raises(errors.ClientError, match="429"):
            await models.count_tokens(model=MODEL, contents="hello")
        assert (emulator.requests, emulator.refused) == (0, 0)


async def test_a_quota_goes_before_a_fault(sdk: OpenSDK, clock: ManualClock) -> None:
    """A request refused by its quota leaves the fault to the next request."""
    async with (
        GeminiEmulator(default_quota=QuotaSpec(rpm=1), clock=clock) as emulator,
        sdk(emulator) as models,
    ):
        await generate(models)
        rule = emulator.inject(Fault.block(), times=1)
        with pytest.raises(errors.ClientError, match="429"):
            await generate(models)
        assert rule.taken == 0
        clock.shift(60)
        assert not (await generate(models)).candidates
        assert rule.taken == 1


def test_a_share_of_the_requests_has_a_fault() -> None:
    """It is drawn for each request, and nothing but a share can be asked for."""
    emulator = GeminiEmulator()
    rule = emulator.inject(Fault.status(503), share=0.25)
    hits = sum(rule.matches(MODEL, "key", "generateContent", streams=False) for _ in range(4_000))
    assert 800 < hits < 1_200  # six standard deviations and more
    for share in (0.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match="share must be"):
            emulator.inject(Fault.status(503), share=share)

"""Unmodified SDKs through the gateway: their answers, and the errors that their users catch."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
from google.genai import Client, errors, types

from llm_router.emulator import Fault

# google-genai's own use of aiohttp.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

Guarded = Any


@pytest.fixture
async def client(guarded: Guarded) -> AsyncIterator[Any]:
    """Provide google-genai, which retries nothing by itself, with a token in place of a key."""
    served, tokens = guarded
    async with _genai(served.url, tokens["ann"]) as client:
        yield client


def _genai(url: str, token: str) -> Any:
    return Client(api_key=token, http_options=types.HttpOptions(base_url=url)).aio


@pytest.fixture
async def openai(guarded: Guarded) -> AsyncIterator[Any]:
    """Provide OpenAI's SDK, likewise."""
    library = pytest.importorskip("openai", reason="needs the openai SDK")
    served, tokens = guarded
    async with library.AsyncOpenAI(
        api_key=tokens["ann"], base_url=f"{served.url}/v1", max_retries=0
    ) as client:
        yield client


async def test_google_genai(client: Any, guarded: Guarded) -> None:
    """Answers, streams, token counts, embeddings and models come as from the API."""
    served, _ = guarded
    served.emulator.inject(Fault.bare_429(), times=1)
    answer = await client.models.generate_content(model="flash", contents="hello")
    assert answer.text.endswith("echo: hello")
    stream = await client.models.generate_content_stream(model="workload:light", contents="hi you")
    assert "".join([piece.text async for piece in stream]) == "[lite] echo: hi you"
    assert (await client.models.count_tokens(model="flash", contents="hello")).total_tokens
    found = await client.models.embed_content(model="text-embedding-9", contents=["a", "b"])
    assert len(found.embeddings) == 2
    assert "models/flash" in [model.name async for model in await client.models.list()]


async def test_google_genai_keeps_files(client: Any) -> None:
    """An upload goes to the gateway and comes back, and is used and deleted under its name."""
    file = await client.files.upload(file=io.BytesIO(b"hello"), config={"mime_type": "text/plain"})
    assert (await client.files.get(name=file.name)).name == file.name
    # A list is that of one project, and any may be asked.
    assert {each.name async for each in await client.files.list()} <= {file.name}
    assert (await client.models.generate_content(model="lite", contents=["read", file])).text
    await client.files.delete(name=file.name)
    with pytest.raises(errors.ClientError, match="404"):
        await client.files.get(name=file.name)


async def test_google_genai_raises_its_own_errors(client: Any, guarded: Guarded) -> None:
    """No quota, an unknown model, a wrong token, and an error in the middle of a stream."""
    served, _ = guarded
    for expected in (200, 200, 429):
        try:
            await client.models.generate_content(model="tiny", contents="hello")
            code = 200
        except errors.ClientError as error:
            code = error.code
        assert code == expected
    with pytest.raises(errors.ClientError, match="404"):
        await client.models.generate_content(model="unknown", contents="hello")
    async with _genai(served.url, "wrong") as stranger:
        with pytest.raises(errors.ClientError, match="401"):
            await stranger.models.generate_content(model="flash", contents="hello")
    # One that comes before anything was passed on is tried again, so that all attempts must fail.
    served.emulator.inject(Fault.stream_error(after=1), times=8)
    with pytest.raises(errors.ServerError):
        _ = [
            piece
            async for piece in await client.models.generate_content_stream(model="spare", contents="hello")
        ]


@pytest.mark.slow  # the SDK takes most of a second to import
async def test_openai(openai: Any) -> None:
    """Answers, streams, embeddings and models come as from OpenAI."""
    messages = [{"role": "user", "content": "hello"}]
    answer = await openai.chat.completions.create(model="flash", messages=messages)
    assert answer.choices[0].message.content.endswith("echo: hello")
    stream = await openai.chat.completions.create(model="workload:light", messages=messages, stream=True)
    pieces = [piece.choices[0].delta.content or "" async for piece in stream if piece.choices]
    assert "".join(pieces).endswith("echo: hello")
    found = await openai.embeddings.create(model="text-embedding-9", input=["a", "b"])
    assert len(found.data) == 2
    assert "models/flash" in [model.id async for model in openai.models.list()]


@pytest.mark.slow  # the SDK takes most of a second to import
async def test_openai_raises_its_own_errors(openai: Any, guarded: Guarded) -> None:
    """An unknown model, a token's limit, and a wrong token."""
    library = pytest.importorskip("openai")
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(library.NotFoundError):
        await openai.chat.completions.create(model="unknown", messages=messages)
    _, tokens = guarded
    slow = openai.with_options(api_key=tokens["slow"])
    for _ in range(2):
        await slow.chat.completions.create(model="flash", messages=messages)
    with pytest.raises(library.RateLimitError) as limited:
        await slow.chat.completions.create(model="flash", messages=messages)
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 61
    with pytest.raises(library.AuthenticationError):
        await openai.with_options(api_key="wrong").chat.completions.create(model="flash", messages=messages)


class _Both:
    """Both SDKs, asked for the same things."""

    def __init__(self, client: Any, openai: Any) -> None:
        self.client = client
        self.openai = openai

    async def google(self, text: str) -> AsyncIterator[str]:
        """Yield the pieces of a stream of Google's."""
        stream = await self.client.models.generate_content_stream(model="flash", contents=text)
        async for piece in stream:
            yield piece.text or ""

    async def other(self, text: str) -> AsyncIterator[str]:
        """Yield the pieces of a stream of OpenAI's."""
        messages = [{"role": "user", "content": text}]
        stream = await self.openai.chat.completions.create(model="flash", messages=messages, stream=True)
        async for piece in stream:
            yield piece.choices[0].delta.content or ""

    @property
    def streams(self) -> list[Any]:
        """What opens a stream, of each SDK."""
        return [self.google, self.other]


@pytest.fixture
def both(client: Any, openai: Any) -> _Both:
    """Provide both."""
    return _Both(client, openai)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.stream_cut(after=2), ("ClientPayloadError", "APIConnectionError")),
        (Fault.stream_drop(after=2), ("ClientPayloadError", "APIConnectionError")),
        (Fault.stream_error(503, after=2), ("ServerError", "APIError")),
    ],
)
async def test_a_stream_that_fails_in_the_middle(
    both: _Both, exact: Any, guarded: Guarded, fault: Fault, expected: tuple[str, str]
) -> None:
    """Each SDK raises what its users catch, also where the API ended the stream as if it were whole."""
    served, _ = guarded
    for stream, name in zip(both.streams, expected, strict=True):
        raised = "none"
        for _ in range(20):  # if nothing was passed on before it failed, another key has answered
            exact.inject(fault, times=1)
            raised = await _failure(stream("long:400000"))
            await asyncio.to_thread(served.lift)
            if raised != "none":
                break
        # OpenAI's older ones pass on the error of the HTTP library.
        assert raised in {name, "RemoteProtocolError"}


async def _failure(stream: AsyncIterator[str]) -> str:
    """Read a stream to its end; return the class that it raises."""
    try:
        await _all_of(stream)
    except Exception as error:  # noqa: BLE001 - it is what is tested
        return type(error).__name__
    return "none"


@pytest.mark.slow
async def test_slow_readers_and_those_that_leave(both: _Both, exact: Any, guarded: Guarded) -> None:
    """Who reads slowly gets all; who goes away, before the answer or inside it, ends its call."""
    served, _ = guarded
    for stream in both.streams:
        read = []
        async for piece in stream("long:8000000"):
            read.append(piece)
            await asyncio.sleep(0.01)
        assert "".join(read) == "x" * 8_000_000
        for fault in (Fault.hang(), Fault.stream_hang(after=1)):
            exact.inject(fault, times=1)
            reading = asyncio.ensure_future(_all_of(stream("hello")))
            async with asyncio.timeout(10):
                while not exact.holding:  # noqa: ASYNC110 - what is waited for happens in another thread
                    await asyncio.sleep(0.002)
                reading.cancel()
                await asyncio.wait([reading])
                while exact.holding:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.002)
            await asyncio.to_thread(served.until_idle)


async def _all_of(stream: AsyncIterator[str]) -> list[str]:
    return [piece async for piece in stream]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # google-genai's
async def test_what_is_large_and_what_is_refused(both: _Both, exact: Any, guarded: Guarded) -> None:
    """20 MB go through; unknown paths and methods, and no token, are errors of each SDK."""
    library = pytest.importorskip("openai")
    served, _ = guarded
    image = types.Part.from_bytes(data=b"x" * 15_000_000, mime_type="image/png")
    found = await both.client.models.generate_content(model="flash", contents=["hello", image])
    assert found.text == "[flash] echo: hello"
    url = {"url": "data:image/png;base64," + "eHh4" * 5_000_000}
    parts = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": url}]
    messages = [{"role": "user", "content": parts}]
    answer = await both.openai.chat.completions.create(model="flash", messages=messages)
    assert answer.choices[0].message.content == "[flash] echo: hello"
    requests = exact.requests
    with pytest.raises(library.NotFoundError, match="the API has no POST"):
        await both.openai.post("/nothing", cast_to=object, body={})
    with pytest.raises(library.NotFoundError, match="the API has no DELETE"):
        await both.openai.delete("/models/flash", cast_to=object)
    with pytest.raises(library.AuthenticationError):
        await both.openai.models.list(extra_headers={"Authorization": library.Omit()})
    with pytest.raises(errors.ClientError, match="the API has no"):
        await both.client._api_client.async_request("delete", "models/flash", {}, None)
    options = types.HttpOptions(base_url=served.url, headers={"x-goog-api-key": ""})
    async with Client(api_key="any", http_options=options).aio as stranger:
        with pytest.raises(errors.ClientError, match="401"):
            await stranger.models.generate_content(model="flash", contents="hello")
    assert exact.requests == requests


@pytest.mark.slow  # the SDK takes most of a second to import
async def test_the_words_of_the_api(openai: Any, exact: Any) -> None:
    """What the API refuses, OpenAI's SDK shows with its own words, and tries it no second time by itself."""
    library = pytest.importorskip("openai")
    refused = [{"error": {"code": 400, "message": "No such field.", "status": "INVALID_ARGUMENT"}}]
    exact.inject(attrs.evolve(Fault.status(400, body=refused), counted=True), times=1)
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(library.BadRequestError) as caught:
        await openai.chat.completions.create(model="flash", messages=messages)
    assert (caught.value.body["message"], caught.value.type) == ("No such field.", "invalid_request_error")
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7200s"}
    spent = {"code": 429, "message": "Spent.", "status": "RESOURCE_EXHAUSTED", "details": [info]}
    exact.inject(Fault.status(429, body=[{"error": spent}]), times=2)
    with pytest.raises(library.RateLimitError) as limited:
        await openai.with_options(max_retries=5).chat.completions.create(model="spare", messages=messages)
    assert int(limited.value.response.headers["retry-after"]) > 120
    assert limited.value.response.headers["x-should-retry"] == "false"
    assert exact.requests == 3

"""Unmodified SDKs through the gateway: their answers, and the errors that their users catch."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

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

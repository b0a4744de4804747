"""The SDK's whole surface goes through the pool, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import io
import operator
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from google.genai import types
from PIL import Image
from pydantic import BaseModel

from llm_router import InvalidRequestError
from llm_router.emulator import GeminiEmulator
from llm_router.genai import Client

Count = Callable[..., Coroutine[Any, Any, int]]
Call = Callable[..., Coroutine[Any, Any, Any]]


def _all_of(method: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    found = method(**arguments)
    return list(found) if hasattr(found, "__next__") or hasattr(found, "page") else found


@pytest.fixture(params=["blocking", "asynchronous"])
def call(request: pytest.FixtureRequest, client: Client) -> Call:
    """Call what the SDK has under a name; give streams and pages as lists."""

    async def blocking(name: str, /, **arguments: Any) -> Any:
        return await asyncio.to_thread(_all_of, operator.attrgetter(name)(client), arguments)

    async def asynchronous(name: str, /, **arguments: Any) -> Any:
        found = await operator.attrgetter(name)(client.aio)(**arguments)
        return [each async for each in found] if hasattr(found, "__aiter__") else found

    return blocking if request.param == "blocking" else asynchronous


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


add.__annotations__ = {
    "first": int,
    "second": int,
    "return": int,
}  # google-genai 2.30 cannot call with strings


class Fact(BaseModel):
    subject: str
    year: int


async def test_function_calling(
    call: Call, emulator: GeminiEmulator, count_used: Count, client: Client
) -> None:
    """A Python function is called by the SDK, and each hop is a request against the quota."""
    config = types.GenerateContentConfig(tools=[add])
    prompt = 'call:add{"first": 2, "second": 3}'
    answer = await call("models.generate_content", model="flash", contents=prompt, config=config)
    assert "5" in answer.text
    history = answer.automatic_function_calling_history
    assert [each.role for each in history][:2] == ["user", "model"]
    assert (emulator.accepted, await count_used(client)) == (2, 2)


async def test_structured_output(call: Call) -> None:
    """A schema is answered by an object."""
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Fact)
    answer = await call("models.generate_content", model="flash", contents="a fact", config=config)
    assert isinstance(answer.parsed, Fact)


async def test_images(call: Call) -> None:
    """An image is part of a prompt, and counts as one."""
    image = Image.new("RGB", (8, 8))
    answer = await call("models.generate_content", model="flash", contents=["what is it?", image])
    assert answer.usage_metadata.prompt_token_count > 200


async def test_embeddings_and_counts(call: Call, client: Client, count_used: Count) -> None:
    """Embeddings take the quota of their model; counting tokens takes none."""
    model = "text-embedding-9"
    answer = await call("models.embed_content", model=model, contents=["one", "two"])
    assert len(answer.embeddings) == 2
    assert await count_used(client, model) == 1
    counted = await call("models.count_tokens", model="flash", contents="one two three")
    assert counted.total_tokens > 0
    assert await count_used(client) == 0


@pytest.mark.parametrize(
    "name", ["generate_content", "generate_content_stream", "count_tokens", "embed_content"]
)
async def test_messages_in_the_form_of_another_api(call: Call, emulator: GeminiEmulator, name: str) -> None:
    """They are refused with what to write, as by the router, and nothing is sent; nor are they quoted."""
    messages = [{"role": "system", "content": "private"}]
    remedy = r"^contents is wrong: a message of OpenAI's API .*'parts'.*system_instruction=$"
    with pytest.raises(InvalidRequestError, match=remedy) as caught:
        await call(f"models.{name}", model="flash", contents=messages)
    assert "private" not in str(caught.value)
    assert emulator.requests == 0


async def test_models(call: Call) -> None:
    """They are listed and looked up."""
    listed = await call("models.list")
    assert listed
    assert (await call("models.get", model="flash")).name == "models/flash"


@pytest.mark.parametrize("streamed", [False, True])
async def test_chats(request: pytest.FixtureRequest, client: Client, call: Call, *, streamed: bool) -> None:
    """A chat remembers, and each turn is a request."""
    blocking = "blocking" in request.node.name
    chat = (client if blocking else client.aio).chats.create(model="flash")
    for text in ("first", "second"):
        name = "send_message_stream" if streamed else "send_message"
        sent = getattr(chat, name)
        answer = await (asyncio.to_thread(_all_of, sent, {"message": text}) if blocking else sent(text))
        if streamed and not blocking:
            answer = [piece async for piece in answer]
        told = "".join(piece.text for piece in answer) if streamed else answer.text
        assert told == f"[flash] echo: {text}"
    history: Any = chat.get_history()
    assert [each.parts[0].text for each in history if each.role == "user"] == ["first", "second"]


@pytest.mark.parametrize("size", [10, 9 * 1024 * 1024])
async def test_files(call: Call, emulator: GeminiEmulator, tmp_path: Path, size: int) -> None:
    """A file is uploaded in as many chunks as it needs; whatever names it goes where it is."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"x" * size)
    file = await call("files.upload", file=path)
    assert (file.size_bytes, file.mime_type) == (size, "text/plain")
    for _ in range(3):
        found = await call("files.get", name=file.name)
        assert found.uri == file.uri
        answer = await call("models.generate_content", model="flash", contents=["what is it?", file])
        assert answer.text
    await call("files.delete", name=file.name)
    assert emulator.refused == 0


async def test_where_an_upload_goes_on(client: Client) -> None:
    """To the host that it began at, for SDKs that take the URL as it is told."""
    http: Any = client._api_client._async_httpx_client
    headers = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
    answer = await http.post("https://any.host/upload/v1beta/files", headers=headers, json={"file": {}})
    assert answer.headers["x-goog-upload-url"].startswith("https://any.host/upload/v1beta/files?upload_id=")


async def test_a_file_that_is_open(call: Call) -> None:
    """What is uploaded may be in memory."""
    config = types.UploadFileConfig(mime_type="text/plain", display_name="notes")
    file = await call("files.upload", file=io.BytesIO(b"some text"), config=config)
    assert (file.size_bytes, file.display_name) == (9, "notes")


async def test_caches(call: Call, emulator: GeminiEmulator) -> None:
    """A cache is used where it was made."""
    config = types.CreateCachedContentConfig(contents="long " * 50, ttl="60s")
    cache = await call("caches.create", model="flash", config=config)
    using = types.GenerateContentConfig(cached_content=cache.name)
    for _ in range(3):
        answer = await call("models.generate_content", model="flash", contents="hi", config=using)
        assert answer.usage_metadata.cached_content_token_count > 0
    await call("caches.update", name=cache.name, config=types.UpdateCachedContentConfig(ttl="90s"))
    assert (await call("caches.get", name=cache.name)).name == cache.name
    await call("caches.delete", name=cache.name)
    assert emulator.refused == 0


@pytest.mark.slow  # the SDK takes half a second to import that part
async def test_interactions(call: Call, emulator: GeminiEmulator) -> None:
    """An interaction is continued, looked up and deleted where it began."""
    first = await call("interactions.create", model="flash", input="one")
    second = await call("interactions.create", model="flash", input="two", previous_interaction_id=first.id)
    assert second.id != first.id
    assert (await call("interactions.get", id=second.id)).id == second.id
    events = await call("interactions.create", model="flash", input="three", stream=True)
    assert len(list(events)) > 2
    await call("interactions.delete", id=first.id)
    assert emulator.refused == 0

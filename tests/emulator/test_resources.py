from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from google import genai
from google.genai import errors, types

from llm_router.emulator import Fault, GeminiEmulator
from llm_router.testing.clock import ManualClock

MODEL = "gemini-test"
KEYS = {"key-a": "a", "key-a2": "a", "key-b": "b"}

OpenClient = Callable[[str], genai.Client]


@pytest.fixture
def emulator(clock: ManualClock) -> Iterator[GeminiEmulator]:
    """An emulator with two projects, in its own thread so that synchronous clients can talk to it."""
    with GeminiEmulator(keys=KEYS, clock=clock).run_in_thread() as running:
        yield running


@pytest.fixture
def client(emulator: GeminiEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenClient]:
    """Return the SDK's client with a key."""
    monkeypatch.setattr("google.genai._api_client.has_aiohttp", False)
    monkeypatch.setenv("GOOGLE_GENAI_HTTP_CLIENT", "httpx2")
    with contextlib.ExitStack() as stack:

        def open_client(key: str) -> genai.Client:
            retry = types.HttpRetryOptions(attempts=1)
            options = types.HttpOptions(base_url=emulator.url, api_version="v1beta", retry_options=retry)
            opened = genai.Client(api_key=key, vertexai=False, http_options=options)
            stack.callback(opened.close)
            return opened

        yield open_client


def upload(client: genai.Client, data: bytes = b"llamas") -> types.File:
    config = types.UploadFileConfig(mime_type="text/plain", display_name="herd")
    return client.files.upload(file=io.BytesIO(data), config=config)


def name_of(thing: types.File | types.CachedContent) -> str:
    assert thing.name is not None
    return thing.name


@pytest.mark.slow
def test_a_file_is_uploaded_in_chunks(client: OpenClient) -> None:
    """A file of several chunks arrives whole, and is described, listed, downloaded and deleted."""
    one = client("key-a")
    data = b"0123456789" * 900_000  # the SDK's chunks have 8 MiB
    file = upload(one, data)
    assert (file.size_bytes, file.mime_type, file.display_name) == (len(data), "text/plain", "herd")
    assert file.state == types.FileState.ACTIVE
    assert [found.name for found in client("key-a2").files.list()] == [file.name]
    assert one.files.download(file=name_of(file)) == data
    one.files.delete(name=name_of(file))
    assert list(one.files.list()) == []


@pytest.mark.slow
def test_a_file_is_its_project_s(client: OpenClient) -> None:
    """Keys of the project may use a file; another project gets the same 403 everywhere."""
    file: Any = upload(client("key-a"))
    models = client("key-a2").models
    assert models.generate_content(model=MODEL, contents=[file, "hi"]).text == "[gemini-test] echo: hi"
    other = client("key-b")
    assert list(other.files.list()) == []
    for refused in (
        lambda: other.files.get(name=name_of(file)),
        lambda: other.files.delete(name=name_of(file)),
        lambda: other.models.generate_content(model=MODEL, contents=[file, "hi"]),
        lambda: other.caches.create(model=MODEL, config=types.CreateCachedContentConfig(contents=[file])),
    ):
        with pytest.raises(
            errors.ClientError, match="You do not have permission to access the File"
        ) as caught:
            refused()
        assert caught.value.code == 403


def test_files_are_paged_and_expire(client: OpenClient, clock: ManualClock) -> None:
    """The SDK follows the pages of a list; after 48 hours a file does not exist."""
    one = client("key-a")
    names = [name_of(upload(one)) for _ in range(3)]
    paged = one.files.list(config=types.ListFilesConfig(page_size=2))
    assert sorted(name_of(file) for file in paged) == names
    clock.shift(48 * 3600)
    assert list(one.files.list()) == []


@pytest.mark.slow
def test_cached_content(client: OpenClient, clock: ManualClock) -> None:
    """Cached content counts as input of its project's requests, until it expires or is deleted."""
    one = client("key-a")
    config = types.CreateCachedContentConfig(contents="x" * 400, ttl="60s", display_name="herd")
    name = name_of(one.caches.create(model=MODEL, config=config))
    assert [cache.display_name for cache in one.caches.list()] == ["herd"]
    one.caches.update(name=name, config=types.UpdateCachedContentConfig(ttl="600s"))
    clock.shift(599)
    assert one.caches.get(name=name).model == f"models/{MODEL}"
    cached = types.GenerateContentConfig(cached_content=name)
    usage = one.models.generate_content(model=MODEL, contents="llamas", config=cached).usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.cached_content_token_count) == (101, 100)
    with pytest.raises(errors.ClientError, match="has to be the same"):
        one.models.generate_content(model="other", contents="llamas", config=cached)
    other = client("key-b").models
    with pytest.raises(errors.ClientError, match="CachedContent not found") as caught:
        other.generate_content(model=MODEL, contents="llamas", config=cached)
    assert caught.value.code == 403
    one.caches.delete(name=name)
    second = name_of(one.caches.create(model=MODEL, config=config))
    clock.shift(60)
    for gone in (name, second):
        with pytest.raises(errors.ClientError, match="CachedContent not found"):
            one.caches.get(name=gone)


def test_faults_show_on_every_path(emulator: GeminiEmulator, client: OpenClient) -> None:
    """Requests that do not generate have the faults of their methods."""
    one = client("key-a")
    file = upload(one)
    emulator.inject(Fault.status(503), methods={"files.get"}, times=1)
    with pytest.raises(errors.ServerError):
        one.files.get(name=name_of(file))
    emulator.inject(Fault.bare_429(), methods={"cachedContents.create"}, key="key-a")
    config = types.CreateCachedContentConfig(contents="x")
    with pytest.raises(errors.ClientError) as caught:
        one.caches.create(model=MODEL, config=config)
    assert caught.value.code == 429
    client("key-a2").caches.create(model=MODEL, config=config)


@pytest.mark.slow  # the SDK takes half a second to import that part
def test_interactions(client: OpenClient) -> None:
    """A turn can name the previous one of its project; it is kept, cancelled and deleted."""
    one: Any = client("key-a").interactions
    first = one.create(model=MODEL, input="Tell me of llamas")
    second = one.create(model=MODEL, input="And more", previous_interaction_id=first.id)
    assert second.output_text == "[gemini-test] echo: And more"
    assert first.usage is not None
    assert second.usage is not None
    assert (first.usage.total_input_tokens, second.usage.total_input_tokens) == (4, 15)
    assert one.get(id=first.id).output_text == first.output_text
    events = list(one.create(model=MODEL, input="A stream", stream=True))
    kinds = [event.event_type for event in events]
    assert (kinds[0], kinds[-1]) == ("interaction.created", "interaction.completed")
    text = "".join(event.delta.text for event in events if event.event_type == "step.delta")
    assert text == "[gemini-test] echo: A stream"
    other = client("key-b").interactions
    with pytest.raises(Exception, match="Error code: 403"):
        other.get(id=first.id)
    assert one.cancel(id=first.id).status == "cancelled"
    one.delete(id=first.id)
    with pytest.raises(Exception, match="may not exist"):
        one.get(id=first.id)


@pytest.fixture
async def asynchronous(emulator: GeminiEmulator, backend: str) -> AsyncIterator[genai.client.AsyncClient]:
    """The SDK's asynchronous client, on each of its HTTP backends."""
    retry = types.HttpRetryOptions(attempts=1)
    options = types.HttpOptions(base_url=emulator.url, api_version="v1beta", retry_options=retry)
    async with contextlib.AsyncExitStack() as stack:
        if backend == "aiohttp":
            options.aiohttp_client = await stack.enter_async_context(aiohttp.ClientSession())
        opened = genai.Client(api_key="key-a", vertexai=False, http_options=options)
        stack.callback(opened.close)
        yield await stack.enter_async_context(opened.aio)


async def test_resources_asynchronously(asynchronous: genai.client.AsyncClient) -> None:
    """Files and caches are served to the asynchronous client, too."""
    config = types.UploadFileConfig(mime_type="text/plain")
    file: Any = await asynchronous.files.upload(file=io.BytesIO(b"llamas"), config=config)
    cached = types.CreateCachedContentConfig(contents=[file])
    cache = await asynchronous.caches.create(model=MODEL, config=cached)
    assert (await asynchronous.caches.get(name=name_of(cache))).name == cache.name
    response = await asynchronous.models.generate_content(model=MODEL, contents=[file, "hi"])
    assert response.text == "[gemini-test] echo: hi"
    await asynchronous.files.delete(name=name_of(file))


@pytest.mark.slow  # as above
async def test_interactions_asynchronously(asynchronous: genai.client.AsyncClient) -> None:
    """Interactions are served to the asynchronous client, too."""
    interaction: Any = await asynchronous.interactions.create(model=MODEL, input="hello")
    assert interaction.output_text == "[gemini-test] echo: hello"


async def test_an_upload_is_known_by_its_id_alone(
    emulator: GeminiEmulator, http: aiohttp.ClientSession
) -> None:
    """The URL is on the emulator's own address; chunks need no key but the right offset and id."""
    start = {"x-goog-api-key": "key-a", "X-Goog-Upload-Protocol": "resumable", "Host": "elsewhere.example"}
    async with http.post(f"{emulator.url}/upload/v1beta/files", headers=start) as begun:
        url = begun.headers["X-Goog-Upload-URL"]
    assert url.startswith(f"{emulator.url}/upload/v1beta/files?upload_id=")
    for offset, command, status, shown in (
        (1, "upload", 400, None),
        (0, "upload", 200, "active"),
        (3, "upload, finalize", 200, "final"),
        (6, "upload", 404, None),
    ):
        headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
        async with http.post(url, headers=headers, data=b"abc") as response:
            assert (response.status, response.headers.get("X-Goog-Upload-Status")) == (status, shown)
            body = await response.json() if shown == "final" else {}
    assert body == {}
    async with http.get(f"{emulator.url}/v1beta/files?key=key-a") as response:
        [file] = (await response.json())["files"]
    assert file["sizeBytes"] == "6"

"""Fixtures for the tests of providers: both HTTP backends, the emulator, and a scripted server."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import pytest

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.secret import Secret
from llm_router.emulator import GeminiEmulator
from llm_router.providers._gemini_session import HttpBackend
from llm_router.providers.gemini import GeminiProvider

SECRET = "AQ.Ab8-the_key_that-must/never+show"


def http(code: int = 200, body: Any = b"", headers: Iterable[str] = (), reason: str = "Reason") -> bytes:
    """Return the bytes of an HTTP response."""
    content: bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {code} {reason}", f"Content-Length: {len(content)}", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


ANSWER: dict[str, Any] = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello."}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
    "modelVersion": "gemini-test-001",
}


@attrs.define
class ScriptedServer:
    """Answers every request with ``reply``: bytes, or None to reset the connection without an answer."""

    # Hidden from the repr: tracebacks with locals are searched for the key, which is in the requests.
    reply: bytes | None = attrs.field(default=http(200, ANSWER), repr=False)
    reset_after_reply: bool = False
    url: str = ""
    requests: list[tuple[str, bytes]] = attrs.field(factory=list, repr=False)
    connections: int = 0

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.requests]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                self.requests.append((head, body))
                if self.reply is None:
                    break
                writer.write(self.reply)
                await writer.drain()
                if self.reset_after_reply:
                    break
        writer.transport.abort() if self.reply is None else writer.close()


@asynccontextmanager
async def serve_script() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    server = await asyncio.start_server(scripted.handle, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield scripted
    finally:
        server.close()


SLOW = pytest.mark.slow


@pytest.fixture(
    params=[
        "httpx",
        pytest.param("aiohttp", marks=SLOW),
        pytest.param("httpx by the SDK", marks=SLOW),
        pytest.param("aiohttp by the SDK", marks=SLOW),
    ]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HttpBackend:
    """Return an HTTP backend; plain requests go to it directly, or all of them by way of the SDK."""
    name, _, way = str(request.param).partition(" ")
    if way:
        monkeypatch.setattr("llm_router.providers.gemini.can_read", lambda: False)
    backend: HttpBackend = "aiohttp" if name == "aiohttp" else "httpx"
    return backend


@pytest.fixture
async def emulator() -> AsyncIterator[GeminiEmulator]:
    async with GeminiEmulator() as running:
        yield running


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    async with serve_script() as server:
        yield server


@pytest.fixture
def scripted_url() -> Iterator[str]:
    """Run a scripted server in a thread, for tests with their own event loops."""
    url: Future[str] = Future()
    stop = threading.Event()

    async def main() -> None:
        async with serve_script() as server:
            url.set_result(server.url)
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    yield url.result()
    stop.set()
    thread.join()


@pytest.fixture
async def open_provider(backend: HttpBackend) -> AsyncIterator[Callable[..., GeminiProvider]]:
    """Make providers on the backend under test, and close them when the test ends."""
    made = []

    def make(url: str, **options: Any) -> GeminiProvider:
        made.append(GeminiProvider(base_url=url, **{"http_backend": backend, **options}))
        return made[-1]

    yield make
    for provider in made:
        await provider.aclose()


@pytest.fixture
def answer() -> dict[str, Any]:
    return ANSWER


@pytest.fixture
def make_http() -> Callable[..., bytes]:
    return http


@pytest.fixture
def make_deployment() -> Callable[..., Deployment]:
    def make(secret: str = SECRET, key_id: str = "key-1", model: str = "gemini-test") -> Deployment:
        return Deployment(Key(key_id, Secret(secret)), model)

    return make


@pytest.fixture
def deployment(make_deployment: Callable[..., Deployment]) -> Deployment:
    return make_deployment()


@pytest.fixture
def assert_no_secret(caplog: pytest.LogCaptureFixture) -> Callable[..., None]:
    """Search the log, and everything of an error that can be printed or stored, for a secret."""
    caplog.set_level(0)

    def check(error: BaseException, secret: str = SECRET) -> None:
        seen = [pickle.dumps(error).decode("latin-1"), caplog.text]
        chain: list[BaseException] = []
        todo: list[BaseException | None] = [error]
        while todo:
            link = todo.pop()
            if link is not None and link not in chain:
                chain.append(link)
                todo += [link.__cause__, link.__context__]
        for link in chain:
            trace = traceback.TracebackException.from_exception(link, capture_locals=True)
            seen += [repr(link), str(link), repr(vars(link)), "".join(trace.format())]
        assert chain == [error]
        assert secret not in "\n".join(seen)

    return check


@pytest.fixture
def secret() -> str:
    return SECRET

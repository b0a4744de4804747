"""What the gateway's server bounds and notices, with each parser of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from llm_router.domain.clock import SystemClock
from llm_router.engine.timing import Deadlines
from llm_router.gateway import protocols
from llm_router.gateway.protocols import HEAD_BYTES, PROTOCOLS
from llm_router.gateway.requests import GoneError, Incoming
from llm_router.gateway.server import listen, server_config

POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


class _App:
    """Reads a body, answers its length unless the path is /wait, and notes who went away."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.left: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for name in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{name}.complete"})
            return
        incoming = Incoming.of(scope, receive, Deadlines(SystemClock()))
        try:
            body = await incoming.body()
            await incoming.while_there(
                self._wait() if incoming.exchange.path == "/wait" else asyncio.sleep(0)
            )
        except GoneError:
            self.left.put_nowait(incoming.exchange.path)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": f"{len(body):9}".encode()})

    async def _wait(self) -> None:
        self.waits.set()
        await asyncio.Event().wait()


@pytest.fixture(params=sorted(PROTOCOLS))
async def spoken(request: pytest.FixtureRequest) -> AsyncIterator[tuple[_App, int]]:
    """Provide an application, and the port at which it is served."""
    app = _App()
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, http=PROTOCOLS[request.param]))
    serving = asyncio.create_task(server.serve([listener]))
    yield app, listener.getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(serving, 10)
    listener.close()


async def _ask(port: int, *pieces: bytes) -> bytes:
    """Send pieces, and return all that comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


Spoken = tuple[_App, int]


def test_httptools_is_used_where_there_is_one() -> None:
    """The faster parser comes last, and that one is used."""
    assert list(PROTOCOLS) == ["h11", "httptools"]
    assert server_config(None).http is PROTOCOLS["httptools"]


async def test_a_body_passes_whole(spoken: Spoken) -> None:
    """A large body passes, told by its length or in chunks, and in chunks as small as can be."""
    close, size = b"Connection: close\r\n", 300_000
    for body, head in (
        (b"x" * size, b"Content-Length: %d\r\n" % size),
        (b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size), b"Transfer-Encoding: chunked\r\n"),
        (b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"),
    ):
        answer = await _ask(spoken[1], POST + close + head + b"\r\n", body)
        assert answer.startswith(b"HTTP/1.1 200")
        assert int(answer[-9:]) == (5_000 if body.startswith(b"1\r\n") else size)


async def test_what_goes_on_without_end_is_refused(spoken: Spoken) -> None:
    """A head, the extension of a chunk or a trailer that is too large ends the connection."""
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    many = 12 * HEAD_BYTES
    for pieces in {
        "field": [POST + b"X: " + b"x" * many + b"\r\n\r\n"],
        "fields": [POST, *[b"X-%d: y\r\n" % number for number in range(many // 9)], b"\r\n"],
        "path": [b"POST /" + b"x" * many + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        "unfinished": [POST + b"X: ", *[b"x" * 1000] * 400],
        "extension": [chunked, b"1;", *[b"x" * 1000] * 400],
        "trailer": [chunked + b"0\r\n", *[b"X: " + b"x" * 1000 + b"\r\n"] * 400],
    }.values():
        answer = await _ask(spoken[1], *pieces)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


async def test_a_slow_head_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, spoken: Spoken) -> None:
    """Who connects and sends no head, or only a part of one, is dropped."""
    monkeypatch.setattr(protocols, "_HEAD_SECONDS", 0.02)
    assert [*await asyncio.gather(_ask(spoken[1]), _ask(spoken[1], POST))] == [b"", b""]


async def test_who_goes_away_is_noticed(spoken: Spoken) -> None:
    """The work for a client ends when its connection does, also after a large body."""
    app, port = spoken
    for size in (0, 200_000):
        app.waits.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
        writer.write(head + b"x" * size)
        await asyncio.wait_for(app.waits.wait(), 5)
        writer.close()
        assert await asyncio.wait_for(app.left.get(), 5) == "/wait"


async def test_who_is_gone_already_is_noticed() -> None:
    """Work does not begin for a client that went away before."""
    scope = {
        "scheme": "http",
        "method": "GET",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
        "state": {"at_loss": lambda call: True},
    }

    async def receive() -> Any:
        raise AssertionError

    async def work() -> None:
        raise AssertionError

    with pytest.raises(GoneError):
        await Incoming.of(scope, receive, Deadlines(SystemClock())).while_there(work())

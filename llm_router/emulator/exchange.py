"""One HTTP request and its answer, down to the connection: reading, replying, holding back, hanging up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, NoReturn

from llm_router.gemini_http.framing import JSON_TYPE, dump

if TYPE_CHECKING:
    from collections.abc import Generator

    from starlette.types import Receive, Scope, Send

    from llm_router.domain.clock import Clock

__all__ = ["ConnectionGoneError", "Exchange", "Headers", "Wire"]


Headers = tuple[tuple[bytes, bytes], ...]
"""Headers of an answer, names in lower case."""


class ConnectionGoneError(Exception):
    """Nobody is left to answer: the client went, the server stops, or the connection was dropped."""


class Wire:
    """The open connections of a server and the requests it holds back."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}
        self._reading: set[tuple[str, int]] = set()
        self._held: set[asyncio.Future[bool]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def held(self) -> int:
        """How many requests are held back at the moment."""
        return len(self._held)

    def connected(self, transport: asyncio.Transport) -> None:
        """Remember a connection."""
        self._transports[_peer(transport)] = transport

    def disconnected(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        self._transports.pop(_peer(transport), None)

    def abort(self, peer: tuple[str, int]) -> None:
        """Close a connection at once, with whatever it still had to send."""
        transport = self._transports.get(peer)
        if transport is not None:
            transport.abort()

    async def abort_all(self) -> None:
        """Close the connections that are still open, and wait until they are."""
        while self._transports:
            for transport in tuple(self._transports.values()):
                transport.abort()
            await asyncio.sleep(0)

    def start(self) -> None:
        """Hold requests back, from now on, for as long as they ask for."""
        self._stopped = False

    def stop(self) -> None:
        """Hang up on every request that is held back, or will be, or has not arrived whole."""
        self._stopped = True
        for peer in self._reading:
            self.abort(peer)
        self._wake(proceed=False)

    def release(self) -> None:
        """Let every request that is held back go on to its answer. May be called from any thread."""
        self._wake(proceed=True)

    def _wake(self, *, proceed: bool) -> None:
        with self._lock:
            held = tuple(self._held)
        for future in held:
            _wake_from_any_thread(future, proceed=proceed)

    @contextlib.contextmanager
    def reading(self, peer: tuple[str, int]) -> Generator[None, None, None]:
        """Mark a connection whose request has not arrived whole."""
        self._reading.add(peer)
        if self._stopped:
            self.abort(peer)
        try:
            yield
        finally:
            self._reading.discard(peer)

    def hold(self) -> asyncio.Future[bool]:
        """Return what becomes True when a held request may go on, and False when the server stops."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._held.add(future)
        if self._stopped:
            future.set_result(False)
        return future

    def let_go(self, future: asyncio.Future[bool]) -> None:
        """Forget a held request."""
        with self._lock:
            self._held.discard(future)


class Exchange:
    """One request of a client and the answer to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, wire: Wire) -> None:
        self._receive = receive
        self._send = send
        self._wire = wire
        self._peer: tuple[str, int] = tuple(scope["client"])

    async def read(self) -> bytes:
        """Return the body of the request.

        Raises:
            ConnectionGoneError: The client went, or the server stops.
        """
        body: list[bytes] = []
        with self._wire.reading(self._peer):
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionGoneError
                body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(body)

    async def reply(
        self, code: int, body: bytes, content_type: str = JSON_TYPE, headers: Headers = ()
    ) -> None:
        """Send the whole answer; a content type in ``headers`` replaces ``content_type``."""
        framed = [(b"content-length", str(len(body)).encode()), *headers]
        if all(name != b"content-type" for name, _ in headers):
            framed.append((b"content-type", content_type.encode()))
        await self._send({"type": "http.response.start", "status": code, "headers": framed})
        await self._send({"type": "http.response.body", "body": body})

    async def reply_json(self, code: int, body: object) -> None:
        """Send ``body`` as the whole answer."""
        await self.reply(code, dump(body))

    async def start(self, content_type: str) -> None:
        """Begin an answer of a length not yet known."""
        headers = [(b"content-type", content_type.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a piece of an answer that was begun."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece of an answer that was begun."""
        await self._send({"type": "http.response.body", "body": data})

    async def drop(self) -> NoReturn:
        """Close the connection without another byte.

        Raises:
            ConnectionGoneError: Always.
        """
        self._wire.abort(self._peer)
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ConnectionGoneError

    async def hold(self, seconds: float | None) -> None:
        """Wait for ``seconds`` on the emulator's clock (None: for ever), or until released.

        Raises:
            ConnectionGoneError: The client went, or the server stops.
        """
        future = self._wire.hold()
        timer = None
        if seconds is not None:
            timer = self._wire.clock.call_later(seconds, lambda: _wake_from_any_thread(future, proceed=True))
        gone = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._wire.let_go(future)
            if timer is not None:
                timer.cancel()
            gone.cancel()
        if not future.done():
            raise ConnectionGoneError
        if not future.result():
            await self.drop()


def _wake_from_any_thread(future: asyncio.Future[bool], *, proceed: bool) -> None:
    # The clock may be moved, and hanging requests released, by a thread that is not the server's.
    def wake() -> None:
        if not future.done():
            future.set_result(proceed)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(wake)


def _peer(transport: asyncio.Transport) -> tuple[str, int]:
    host, port, *_ = transport.get_extra_info("peername") or ("", 0)
    return str(host), int(port)

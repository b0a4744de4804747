"""One HTTP request and its answer: reading, replying, pausing, dropping the connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

from llm_router.emulator.connections import wake
from llm_router.gemini_http.framing import JSON_TYPE, dump

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from llm_router.emulator.connections import Connections

__all__ = ["ConnectionGoneError", "Exchange", "Headers"]

Headers = tuple[tuple[bytes, bytes], ...]
"""Headers of an answer, names in lower case."""


class ConnectionGoneError(Exception):
    """The connection is gone: the client left, the server stops, or a fault dropped it."""


class Exchange:
    """One request of a client and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, connections: Connections) -> None:
        self._receive = receive
        self._send = send
        self._connections = connections
        self._scope = scope
        self._peer: tuple[str, int] = tuple(scope["client"])

    @property
    def own_url(self) -> str:
        """The URL of the address on which the request arrived, whatever host it names."""
        host, port = self._scope["server"]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def read(self) -> bytes:
        """Return the body of the request.

        Raises:
            ConnectionGoneError: The client left, or the server stops.
        """
        body: list[bytes] = []
        with self._connections.reading(self._peer):
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
        usual = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        sent = list((dict(usual) | dict(headers)).items()) if headers else usual
        await self._send({"type": "http.response.start", "status": code, "headers": sent})
        await self._send({"type": "http.response.body", "body": body})

    async def reply_json(self, code: int, body: object) -> None:
        """Send ``body`` as the whole answer."""
        await self.reply(code, dump(body))

    async def start(self, content_type: str) -> None:
        """Begin an answer of unknown length."""
        headers = [(b"content-type", content_type.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a piece of the answer."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece of the answer."""
        await self._send({"type": "http.response.body", "body": data})

    async def drop(self) -> NoReturn:
        """Close the connection without sending another byte.

        Raises:
            ConnectionGoneError: Always.
        """
        self._connections.abort(self._peer)
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ConnectionGoneError

    async def pause(self, seconds: float | None) -> None:
        """Wait for ``seconds`` on the emulator's clock, or until released; None waits only for the release.

        Raises:
            ConnectionGoneError: The client left, or the server stops.
        """
        future = self._connections.pause()
        timer = None
        if seconds is not None:
            timer = self._connections.clock.call_later(seconds, lambda: wake(future, proceed=True))
        gone = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections.resume(future)
            if timer is not None:
                timer.cancel()
            gone.cancel()
        if not future.done():
            raise ConnectionGoneError
        if not future.result():
            await self.drop()

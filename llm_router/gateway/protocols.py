"""HTTP as uvicorn speaks it, by httptools or h11, with the bounds that it lacks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ModuleNotFoundError:  # where it has no wheel
    HttpToolsProtocol = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HEAD_BYTES", "PROTOCOLS"]

HEAD_BYTES = 32 * 1024
"""Bytes of the largest head of a request."""

_HEAD_SECONDS = 20.0
"""Seconds that a client may take to send the head of a request."""

_MOST_HELD = 64 * 1024
"""Bytes that are held back until the next round of the loop."""

_OVERHEAD = 9
"""Bytes on the wire for each byte of a body: six if a client sends it in chunks of one byte."""


class _Joining(asyncio.Transport):
    """A transport that writes at once what is written between two rounds of the loop.

    The head of an answer and its body are two writes, and a call of the system for each is a tenth of what a
    call through the gateway costs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(bytes(data))
        self._size += len(data)
        if self._size > _MOST_HELD:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._held.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def _flush(self) -> None:
        if self._held:
            held, self._held, self._size = self._held, [], 0
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))


class _Bounds:
    """Does not wait long for the head of a request, and tells an application what becomes of a connection.

    The state of a request has ``abort()``, which drops the connection; ``at_exit(call)``: the call is made
    when the server is told to stop; and ``at_loss(call)``: it is made when the connection is lost. Each
    holds one call, or None. ``at_loss`` returns whether the connection is lost already.
    """

    app_state: dict[str, Any]
    cycle: Any
    flow: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    _late: asyncio.TimerHandle | None = None
    _is_lost = False
    _exit: Callable[[], object] | None = None
    _loss: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport = _Joining(transport, self.loop)
        super().connection_made(transport)  # type: ignore[misc]  # uvicorn's, here and below
        told = {"abort": transport.abort, "at_exit": self._at_exit, "at_loss": self._at_loss}
        self.app_state = {**self.app_state, **told}  # each request gets a copy
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._late is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._is_lost = True
        super().connection_lost(exc)  # type: ignore[misc]
        if self._loss is not None:
            self._loss()

    def shutdown(self) -> None:
        super().shutdown()  # type: ignore[misc]
        if self._exit is not None:
            self._exit()

    def _at_exit(self, call: Callable[[], object] | None) -> None:
        self._exit = call

    def _at_loss(self, call: Callable[[], object] | None) -> bool:
        self._loss = call
        if call is not None:
            self.flow.resume_reading()  # a transport that does not read does not notice, either
        return self._is_lost

    def _await_head(self) -> None:
        self._late = self.loop.call_later(_HEAD_SECONDS, self._expire)

    def _expire(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _BoundedH11(_Bounds, H11Protocol):  # type: ignore[misc]
    """With h11, which bounds heads itself."""


PROTOCOLS: dict[str, type[asyncio.Protocol]] = {"h11": _BoundedH11}
"""The protocols that there are, the fastest last."""

if HttpToolsProtocol is not None:

    class _TooLargeError(Exception):
        """A head is too large."""

    class _BoundedHttpTools(_Bounds, HttpToolsProtocol):  # type: ignore[misc]
        """With httptools, which bounds nothing: neither heads nor what goes along with a body in chunks."""

        _wire = 0
        _payload = 0

        def data_received(self, data: bytes) -> None:
            self._wire += len(data)
            super().data_received(data)
            if self._wire > HEAD_BYTES + _OVERHEAD * self._payload:
                self.transport.abort()

        def on_headers_complete(self) -> None:
            if self._wire > HEAD_BYTES:  # of which the body may be a part
                size = sum([len(name) + len(value) + 4 for name, value in self.headers])
                if len(self.url) + size > HEAD_BYTES:
                    raise _TooLargeError
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._payload += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._wire = self._payload = 0
            super().on_message_complete()

    PROTOCOLS["httptools"] = _BoundedHttpTools

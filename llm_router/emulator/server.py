"""Running the emulator: uvicorn inside an event loop, quiet, on a port of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from starlette.types import ASGIApp

    from llm_router.emulator.exchange import Wire

__all__ = ["EmulatorServer"]

_KEEP_ALIVE = 3600
"""Seconds that an idle connection stays open: longer than any client keeps one in its pool."""

_GRACE = 2
"""Seconds that running requests have to end when the server stops."""


class EmulatorServer:
    """A uvicorn server in the running event loop. Started with :meth:`start`, ended with :meth:`stop`."""

    def __init__(self, url: str, server: _Server, task: asyncio.Task[None], wire: Wire) -> None:
        self.url = url
        self._server = server
        self._task = task
        self._wire = wire

    @classmethod
    async def start(cls, app: ASGIApp, wire: Wire, host: str, port: int) -> Self:
        """Listen on ``host``, on ``port`` or on a free one when that is 0.

        Raises:
            OSError: The address is not this machine's, or the port is taken.
        """
        listener = _listen(host, port)
        wire.start()
        server = _Server(_config(app, wire), wire)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        ready = asyncio.create_task(server.ready.wait())
        try:
            await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if task.done():
            task.result()
        return cls(f"http://{_display(host)}:{listener.getsockname()[1]}", server, task, wire)

    async def stop(self) -> None:
        """Hang up on the requests that are held back, let the others end, and close every connection."""
        self._wire.stop()
        self._server.finished.set()
        await self._task


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which belong to the program, and without its pauses."""

    def __init__(self, config: uvicorn.Config, wire: Wire) -> None:
        super().__init__(config)
        self._wire = wire
        self.ready = asyncio.Event()
        self.finished = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        await self.finished.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await _end(self.server_state.tasks)
        await self._wire.abort_all()
        for server in self.servers:
            await server.wait_closed()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Let the running requests end, and cancel those that take too long."""
    running = set(tasks)
    if running:
        _, late = await asyncio.wait(running, timeout=_GRACE)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _config(app: ASGIApp, wire: Wire) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_protocol(wire),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
    )


def _protocol(wire: Wire) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, made to tell ``wire`` of its connections."""

    class _WiredProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            wire.connected(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            wire.disconnected(self.transport)
            super().connection_lost(exc)

    return _WiredProtocol


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is stated; with it, an answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def _display(host: str) -> str:
    return f"[{host}]" if ":" in host else host

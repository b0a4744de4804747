"""Running the emulator: uvicorn in the current event loop, without logs and signal handlers."""

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

    from llm_router.emulator.connections import Connections

__all__ = ["EmulatorServer"]

_KEEP_ALIVE = 3600
"""Seconds that an idle connection stays open, longer than any client keeps one in its pool."""

_GRACE = 2
"""Seconds that running requests have to finish when the server stops."""


class EmulatorServer:
    """A uvicorn server in the running event loop, from :meth:`start` to :meth:`stop`."""

    def __init__(self, url: str, server: _Server, task: asyncio.Task[None], connections: Connections) -> None:
        self.url = url
        self._server = server
        self._task = task
        self._connections = connections

    @classmethod
    async def start(cls, app: ASGIApp, connections: Connections, host: str, port: int) -> Self:
        """Listen on ``host`` and ``port``; 0 is a free port.

        Raises:
            OSError: The address does not belong to this machine, or the port is taken.
        """
        listener = _listen(host, port)
        connections.start()
        server = _Server(_config(app, connections), connections)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        ready = asyncio.create_task(server.ready.wait())
        try:
            await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if task.done():
            task.result()
        return cls(f"http://{_display(host)}:{listener.getsockname()[1]}", server, task, connections)

    async def stop(self) -> None:
        """Drop paused requests, let the others finish, and close every connection."""
        self._connections.stop()
        self._server.finished.set()
        await self._task


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which are the program's business, and without its pauses."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
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
        await self._connections.abort_all()
        for server in self.servers:
            await server.wait_closed()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Let the running requests finish, and cancel those that take too long."""
    running = set(tasks)
    if running:
        _, late = await asyncio.wait(running, timeout=_GRACE)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _config(app: ASGIApp, connections: Connections) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_protocol(connections),
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


def _protocol(connections: Connections) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, extended to report its connections to ``connections``."""

    class _TrackedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.connected(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.disconnected(self.transport)
            super().connection_lost(exc)

    return _TrackedProtocol


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only if the protocol is given; with it, an answer takes 40 ms.
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

"""The open connections of the emulator's server, and the requests that are paused on them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from llm_router.domain.clock import Clock

__all__ = ["Connections", "wake"]


class Connections:
    """The open connections of a server, and its paused requests."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}
        self._reading: set[tuple[str, int]] = set()
        self._paused: set[asyncio.Future[bool]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def paused(self) -> int:
        """The number of requests that are paused at the moment."""
        return len(self._paused)

    def connected(self, transport: asyncio.Transport) -> None:
        """Add a connection."""
        self._transports[_peer(transport)] = transport

    def disconnected(self, transport: asyncio.Transport) -> None:
        """Remove a connection."""
        self._transports.pop(_peer(transport), None)

    def abort(self, peer: tuple[str, int]) -> None:
        """Close a connection at once and discard unsent data."""
        transport = self._transports.get(peer)
        if transport is not None:
            transport.abort()

    async def abort_all(self) -> None:
        """Close the connections that are still open, and wait until they are closed."""
        while self._transports:
            for transport in tuple(self._transports.values()):
                transport.abort()
            await asyncio.sleep(0)

    def start(self) -> None:
        """Allow requests to pause from now on."""
        self._stopped = False

    def stop(self) -> None:
        """Drop every request that is paused, will pause, or has not arrived completely."""
        self._stopped = True
        for peer in self._reading:
            self.abort(peer)
        self._wake(proceed=False)

    def release(self) -> None:
        """Let every paused request continue to its answer. May be called from any thread."""
        self._wake(proceed=True)

    def _wake(self, *, proceed: bool) -> None:
        with self._lock:
            paused = tuple(self._paused)
        for future in paused:
            wake(future, proceed=proceed)

    @contextlib.contextmanager
    def reading(self, peer: tuple[str, int]) -> Generator[None, None, None]:
        """Mark a connection whose request has not arrived completely."""
        self._reading.add(peer)
        if self._stopped:
            self.abort(peer)
        try:
            yield
        finally:
            self._reading.discard(peer)

    def pause(self) -> asyncio.Future[bool]:
        """Return a future for a paused request: True if it may continue, False if the server stops."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._paused.add(future)
        if self._stopped:
            future.set_result(False)
        return future

    def resume(self, future: asyncio.Future[bool]) -> None:
        """Remove a request that is no longer paused."""
        with self._lock:
            self._paused.discard(future)


def wake(future: asyncio.Future[bool], *, proceed: bool) -> None:
    """Give ``future`` its result, unless it has one. May be called from any thread."""

    # Another thread than the server's may move the clock or release hanging requests.
    def give() -> None:
        if not future.done():
            future.set_result(proceed)

    with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits any more
        future.get_loop().call_soon_threadsafe(give)


def _peer(transport: asyncio.Transport) -> tuple[str, int]:
    host, port, *_ = transport.get_extra_info("peername") or ("", 0)
    return str(host), int(port)

"""A timeout for a server that does not blame it for the time during which the event loop was blocked."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["GRACE", "Deadline"]

GRACE = 0.5
"""Seconds by which a deadline moves, once, if the event loop notices it late."""

_LATE = 0.05
"""Seconds by which a busy event loop may be late without being blocked."""


class Deadline:
    """An asynchronous context manager: a timeout for requests to a server.

    An event loop that was blocked (by an import, or by synchronous code) is late for its timers, and for the
    answers that have arrived meanwhile. So if the deadline is noticed late, it moves to :data:`GRACE` seconds
    from then; only once, so that no caller waits longer than that.

    Args:
        when: The time at which to give up, on the clock of the running loop.

    Raises:
        TimeoutError: On leaving, if it was too late.
    """

    def __init__(self, when: float) -> None:
        self.when = when
        """When to give up, as things stand."""
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._timer = self._loop.call_at(self.when, self._give_up)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _give_up(self) -> None:
        now = self._loop.time()
        if now - self.when > _LATE:
            self.when = now + GRACE
        self._timeout.reschedule(self.when)

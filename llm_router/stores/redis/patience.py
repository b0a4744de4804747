"""Waiting for a server, without blaming it for the time that the event loop itself stood still."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["GRACE", "Patience"]

GRACE = 0.5
"""Seconds by which a deadline moves, once, when the event loop comes to it late."""

_LATE = 0.05
"""Seconds of lateness that a loop with much to do may have."""


class Patience:
    """An asynchronous context manager: a timeout for what is asked of a server.

    A loop that stands still (an import, somebody's synchronous code) comes late to its timers, and to the
    answers that have arrived meanwhile. So if the deadline is noticed late, there is a new one,
    :data:`GRACE` seconds later; only once, so that nobody waits longer than that.

    Args:
        deadline: The moment, on the clock of the running loop, at which to give up.

    Raises:
        TimeoutError: On leaving, if it was too late.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        """When to give up, as things stand."""
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._timer = self._loop.call_at(self.deadline, self._give_up)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _give_up(self) -> None:
        now = self._loop.time()
        if now - self.deadline > _LATE:
            self.deadline = now + GRACE
        self._timeout.reschedule(self.deadline)

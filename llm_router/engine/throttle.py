"""Bound the calls that a process sends per second."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

__all__ = ["Throttle"]


class Throttle:
    """Lets a number of calls through per second, however much quota there is.

    Args:
        per_second: Calls per second; above 0. Up to that many may go out at once.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._limiter: AsyncLimiter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self) -> None:
        """Wait for this call's turn."""
        from aiolimiter import AsyncLimiter  # noqa: PLC0415 - few routers throttle; the others need not load it

        loop = asyncio.get_running_loop()
        if self._limiter is None or self._loop is not loop:  # a limiter belongs to one event loop
            self._loop = loop
            # Below one a second the bucket holds one call and refills it over the longer period.
            calls = max(self._per_second, 1.0)
            self._limiter = AsyncLimiter(calls, calls / self._per_second)
        await self._limiter.acquire()

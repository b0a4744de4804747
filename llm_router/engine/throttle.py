"""Bound the calls that a process sends per second."""

from __future__ import annotations

import asyncio
import math
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
        self._pause = 1.0 / per_second
        # Below one a second the bucket holds one call and refills it over the longer period.
        self._calls = max(per_second, 1.0)
        self._limiter: AsyncLimiter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty_at = -math.inf  # when the bucket will be, if no more calls come

    async def wait(self, most: float = math.inf) -> float:
        """Wait for this call's turn, unless that comes in more than ``most`` seconds.

        Return 0 once it came. Otherwise return at once in how many seconds it would come.
        """
        from aiolimiter import AsyncLimiter  # noqa: PLC0415 - few routers throttle; the others need not load it

        loop = asyncio.get_running_loop()
        if self._limiter is None or self._loop is not loop:  # a limiter belongs to one event loop
            self._loop, self._empty_at = loop, -math.inf
            self._limiter = AsyncLimiter(self._calls, self._calls * self._pause)
        now = loop.time()
        empty_at = max(self._empty_at, now) + self._pause
        seconds = empty_at - now - self._calls * self._pause
        if seconds > most:
            return seconds
        self._empty_at = empty_at
        try:
            await self._limiter.acquire()
        except BaseException:
            self._empty_at -= self._pause  # what comes after it moves up
            raise
        return 0.0

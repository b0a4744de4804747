"""Bound the calls that a process sends per second."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from llm_router.domain.clock import Clock, SystemClock, Timer, monotonic

__all__ = ["Throttle"]

_ROUNDING = 1e-6
"""Seconds by which a turn may come early, so that no timer is set again for the rounding of a time."""


class Throttle:
    """Lets a number of calls through per second, in order of arrival, however much quota there is.

    Args:
        per_second: Calls per second; above 0. Up to that many may go out at once.
        clock: Where time comes from; the machine's clock by default.
    """

    def __init__(self, per_second: float, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._time = monotonic(self._clock)
        self._pause = 1.0 / per_second
        # Calls fill a bucket that leaks steadily. Below one a second it holds one call.
        self._ahead = (max(per_second, 1.0) - 1.0) * self._pause
        self._empty_at = -math.inf
        self._line: deque[asyncio.Future[None]] = deque()
        self._timer: Timer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, most: float = math.inf) -> float:
        """Wait for this call's turn, unless that comes in more than ``most`` seconds.

        Return 0 once it came. Otherwise return at once in how many seconds it would come.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what waited on an earlier one is gone
            self._loop, self._timer = loop, None
            self._line.clear()
        seconds = max(self._empty_at - self._ahead - self._time(), 0.0) + len(self._line) * self._pause
        if seconds <= _ROUNDING:
            self._take()
        elif seconds > most:
            return seconds
        else:
            await self._queue(loop.create_future())
        return 0.0

    def release(self) -> None:
        """Let everything through that waits: it is not going to be sent."""
        while self._line:
            self._pass()

    async def _queue(self, turn: asyncio.Future[None]) -> None:
        self._line.append(turn)
        self._set_timer()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._line:
                self._line.remove(turn)
            elif not turn.cancelled():  # its turn came, and is not used
                self._empty_at -= self._pause
            raise
        finally:
            if not self._line and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _set_timer(self) -> None:
        if self._timer is None and self._line:
            seconds = self._empty_at - self._ahead - self._time()
            self._timer = self._clock.call_later(max(seconds, 0.0), self._look)

    def _look(self) -> None:
        self._timer = None
        while self._line and self._empty_at - self._ahead - self._time() <= _ROUNDING:
            self._pass()
        self._set_timer()

    def _pass(self) -> None:
        turn = self._line.popleft()
        if not turn.done():  # else it was cancelled, and its task has not heard of it yet
            self._take()
            turn.set_result(None)

    def _take(self) -> None:
        self._empty_at = max(self._empty_at, self._time()) + self._pause

"""Time as the library sees it: injected, so that a test can stop it.

This is the only domain module that uses the event loop: a clock must be able to wake a sleeper.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "SystemClock", "Timer", "sleep"]


class Timer(Protocol):
    """A pending call of :meth:`Clock.call_later`."""

    def cancel(self) -> None:
        """Cancel the call. Harmless if it was already made or cancelled."""
        ...


class Clock(Protocol):
    """A source of time."""

    def time(self) -> float:
        """Return the time in seconds since the Unix epoch."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop once ``delay`` seconds have passed on this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    # Bound directly, since every send reads it several times.
    time = staticmethod(time.time)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop in ``delay`` seconds."""
        return asyncio.get_running_loop().call_later(delay, callback)

    def __repr__(self) -> str:
        return "SystemClock()"


async def sleep(clock: Clock, seconds: float) -> None:
    """Suspend the calling task until ``seconds`` have passed on ``clock``."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    timer = clock.call_later(max(seconds, 0.0), wake)
    try:
        await woken
    finally:
        timer.cancel()

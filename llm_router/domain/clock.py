"""Time as the library sees it: injected, so that a test can hold it still.

This is the one domain module that knows of the event loop: a clock that cannot wake a sleeper would not be
a clock.
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
        """Forget the call. Harmless when it was made or cancelled already."""
        ...


class Clock(Protocol):
    """Where time comes from."""

    def time(self) -> float:
        """Return the seconds since the Unix epoch."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop once ``delay`` seconds have passed on this clock."""
        ...


class SystemClock:
    """The clock of the machine."""

    __slots__ = ()

    # Bound directly: this is read several times in every send.
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

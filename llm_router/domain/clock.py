"""Time as the library sees it: injected, so that a test can stop it.

This is the only domain module that uses the event loop: a clock must be able to wake a sleeper.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "SystemClock", "Timer", "monotonic", "sleep"]


class Timer(Protocol):
    """A pending call of :meth:`Clock.call_later`."""

    def cancel(self) -> None:
        """Cancel the call. Harmless if it was already made or cancelled."""
        ...


class Clock(Protocol):
    """A source of time.

    It may have another method, ``monotonic() -> float``: the seconds since any moment, as :meth:`call_later`
    counts them, which no correction of the clock moves. Waits, timeouts and latencies go by it; without it
    they go by :meth:`time`.
    """

    def time(self) -> float:
        """Return the time in seconds since the Unix epoch."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop once ``delay`` seconds have passed on this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    # Bound directly, since every send reads them several times.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback`` on the running event loop in ``delay`` seconds."""
        return asyncio.get_running_loop().call_later(delay, callback)

    def __repr__(self) -> str:
        return "SystemClock()"


def monotonic(clock: Clock) -> Callable[[], float]:
    """Return what reads the seconds on ``clock`` that its corrections do not move.

    That is its method ``monotonic``; or ``time`` if it has none, or inherits one and has a ``time`` or
    ``call_later`` of its own, which may run at another speed. Look it up once per clock.
    """
    for kind in type(clock).__mro__:
        if "monotonic" in vars(kind):
            steady: Callable[[], float] = clock.monotonic  # type: ignore[attr-defined]  # not in the protocol
            return steady
        if "time" in vars(kind) or "call_later" in vars(kind):
            break
    return clock.time


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

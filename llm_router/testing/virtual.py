"""Virtual time: an event loop that jumps to its next timer, and the clock that shows its time."""

from __future__ import annotations

import asyncio
import inspect
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, TypeVar

from llm_router.domain.clock import Clock

__all__ = ["START", "VirtualClock", "VirtualLoop", "run"]

_T = TypeVar("_T")

START = 1_800_000_900.0
"""The first time of every run, in seconds since the epoch: a quarter past midnight in Los Angeles."""

_LATE = 1e-6
"""Seconds by which timers fire late, as those of a real loop do: never early by a rounding error."""

_PATIENCE = 10.0
"""Real seconds that a loop without timers waits for a thread, such as one that is being shut down."""


class _Selector(selectors.DefaultSelector):
    """A selector that moves the time on instead of waiting, unless something outside is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.outside = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; without anything, jump ``timeout`` seconds ahead."""
        if self.outside:
            # A call to a server or a thread is under way. It takes no virtual time.
            return super().select(None if timeout is None or timeout > 0 else 0)
        if timeout is None:
            ready = super().select(_PATIENCE)
            if not ready:
                raise RuntimeError("the virtual loop has nothing left to wait for")
            return ready
        if timeout > 0:
            self.now += timeout + _LATE
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when no task can run: then it jumps to the next timer.

    What computes takes no time. Time also stands still while a call marked by :meth:`awaited` waits for a
    server or a thread, which live in real time.
    """

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual.now

    def awaited(self, call: Callable[..., Awaitable[_T]]) -> Callable[..., Coroutine[Any, Any, _T]]:
        """Return ``call``, but time stands still until it returns."""

        @wraps(call)
        async def waiting(*args: Any, **kwargs: Any) -> _T:
            self._virtual.outside += 1
            try:
                return await call(*args, **kwargs)
            finally:
                self._virtual.outside -= 1

        return waiting

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002
        """Join the threads in real time: in virtual time, any ``timeout`` would be over at once."""
        await self.awaited(super().shutdown_default_executor)()

    def await_methods(self, thing: object) -> None:
        """Replace every public asynchronous method of ``thing`` by its :meth:`awaited` form."""
        for name, method in inspect.getmembers(thing, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                setattr(thing, name, self.awaited(method))


class VirtualClock(Clock):
    """The time of a virtual loop, as a clock of the library.

    Args:
        loop: The loop.
        start: What it shows when the loop is made, in seconds since the epoch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, start: float = START) -> None:
        self._loop = loop
        self._start = start

    def time(self) -> float:
        """Return the time in seconds since the epoch."""
        return self._start + self._loop.time()

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call ``callback`` once ``delay`` virtual seconds have passed."""
        return self._loop.call_later(delay, callback)


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, _T]]) -> _T:
    """Run ``main(loop)`` on a virtual loop of its own, and return its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)  # noqa: S101 - the factory makes no other
        return runner.run(main(loop))

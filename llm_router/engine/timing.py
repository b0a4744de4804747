"""Limits of time on the injected clock, and work that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio

from llm_router.domain.clock import Clock, Timer

__all__ = ["Deadlines", "TimeLimit", "finish"]

_T = TypeVar("_T")


class Deadlines:
    """Limits of time on an injected clock, with one timer for all of them.

    Nearly every limit is left long before it ends. A timer for each would cost a send more than choosing its
    deployment does; so the one timer there is waits for the earliest end that it was told of, and finds
    then, as a rule, that nobody is late and when to look again.

    Args:
        clock: Where time comes from.
    """

    __slots__ = ("_clock", "_due", "_limits", "_loop", "_timer")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limits: set[TimeLimit] = set()
        self._due = math.inf
        self._timer: Timer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def limit(self, seconds: float) -> TimeLimit:
        """Return a limit of so many seconds from the moment its block is entered."""
        return TimeLimit(self, seconds)

    def enter(self, limit: TimeLimit, loop: asyncio.AbstractEventLoop) -> None:
        """Watch ``limit``, whose block begins now on ``loop``."""
        if loop is not self._loop:  # whatever waited on another is gone with it
            self._loop, self._due = loop, math.inf
            self._limits.clear()
        limit.ends = self._clock.time() + limit.seconds
        self._limits.add(limit)
        if limit.ends < self._due:
            self._wait_for(limit.ends, limit.seconds)

    def leave(self, limit: TimeLimit) -> None:
        """Watch ``limit`` no more."""
        self._limits.discard(limit)

    def _wait_for(self, due: float, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._clock.call_later(max(seconds, 0.0), self._look)

    def _look(self) -> None:
        """Cut short what has come to its end, and wait for the next."""
        now = self._clock.time()
        self._timer, self._due = None, math.inf
        for limit in [*self._limits]:
            # The clock may have been set back: nobody waits longer than once more.
            limit.ends = min(limit.ends, now + limit.seconds)
            if limit.ends <= now:
                self._limits.discard(limit)
                limit.cut()
        due = min((limit.ends for limit in self._limits), default=math.inf)
        if due < math.inf:
            self._wait_for(due, due - now)


class TimeLimit:
    """Cancels the block under it once its time has passed, and swallows that cancellation.

    It does what :func:`asyncio.timeout` does, on an injected clock, and tells by :attr:`expired` rather than
    by an exception; it is used once in every send, where an anyio scope costs several times as much. A
    cancellation from elsewhere passes through. Made by :meth:`Deadlines.limit`.

    Attributes:
        seconds: How long the block may take.
        ends: When it ends, in seconds since the epoch.
        expired: Whether the block was cut short.
    """

    __slots__ = ("_cancelling", "_cut", "_deadlines", "_task", "ends", "expired", "seconds")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines = deadlines
        self._cut = False
        self.seconds = seconds
        self.ends = math.inf
        self.expired = False

    def __enter__(self) -> Self:
        if self.seconds < math.inf:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("a time limit needs a task to cancel")
            self._task = task
            self._cancelling = task.cancelling()
            self._deadlines.enter(self, task.get_loop())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not self._cut:
            self._deadlines.leave(self)
            return False
        # Somebody else's cancellation, if there is one too, goes before ours.
        ours_alone = self._task.uncancel() <= self._cancelling
        self.expired = ours_alone and exc_type is asyncio.CancelledError
        return self.expired

    def cut(self) -> None:
        """End the block now."""
        self._cut = True
        self._task.cancel()


async def finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Run ``work`` to its end whatever happens to the caller; a cancellation is delivered afterwards.

    ``work`` must be bounded in time. A shielded anyio scope alone does not withstand ``Task.cancel()``, and
    ``asyncio.shield`` alone does not wait; together they do both.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if task.cancelled():
                    raise
                cancelled = error
            except Exception:  # noqa: BLE001 - it is raised below, by task.result()
                break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen; the cancellation is what the caller must hear of
        raise cancelled
    return task.result()

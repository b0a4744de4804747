"""Limit time on the injected clock, and finish work that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import os
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio

from llm_router.domain.clock import Clock, Timer, monotonic
from llm_router.errors import RouterLoopError

__all__ = ["Deadlines", "TimeLimit", "finish"]

_T = TypeVar("_T")

_MAX_EXITED = 64
"""Exited limits kept in the heap before it is compacted."""


class Deadlines:
    """Time limits on an injected clock, with one timer for all of them.

    Nearly every limit is left long before it ends. A timer for each would cost a send more than choosing its
    deployment does; so the only timer waits for the earliest end, and then usually finds that this limit was
    left long ago, and when to look again.

    Args:
        clock: Where time comes from.

    Attributes:
        loop: The event loop that it works on; None before the first.
        on_adopt: Called on each loop that it begins to work on.
    """

    __slots__ = (
        "_adopting",
        "_clock",
        "_due",
        "_exited",
        "_heap",
        "_numbers",
        "_process",
        "_time",
        "_timer",
        "loop",
        "on_adopt",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._time = monotonic(clock)
        self._heap: list[tuple[float, int, TimeLimit]] = []  # by their end; exited ones stay a while
        self._exited = 0
        self._numbers = itertools.count()
        self._due = math.inf
        self._timer: Timer | None = None
        self._process = 0
        self._adopting = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.on_adopt: list[Callable[[], object]] = []

    def limit(self, seconds: float, task: asyncio.Task[Any] | None = None) -> TimeLimit:
        """Return a limit of ``seconds`` from the moment its block is entered, by ``task`` if it is known."""
        return TimeLimit(self, seconds, task)

    def enter_loop(self) -> None:
        """Work on the running loop; see :meth:`adopt`."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.adopt(loop)

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work on ``loop`` from now on; whatever waited on a closed loop is gone.

        Raises:
            RouterLoopError: The previous loop is still open, and not one of a parent process.
        """
        with self._adopting:  # of two threads, one is first
            self.check_loop(loop)
            self._process, self._due, self._heap, self._exited = os.getpid(), math.inf, [], 0
            self.loop = loop
        for listener in self.on_adopt:
            listener()

    def check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check that it may work on ``loop``, but leave it where it works.

        Raises:
            RouterLoopError: As for :meth:`adopt`.
        """
        before = self.loop
        if before in (None, loop) or before.is_closed() or self._process != os.getpid():
            return
        raise RouterLoopError(
            "this router works on another event loop, which is still open: give each loop a router "
            "of its own, as get_request_router() does, and one store for all (sqlite:// or redis://)"
        )

    def enter(self, limit: TimeLimit, loop: asyncio.AbstractEventLoop) -> None:
        """Watch ``limit``, whose block begins now on ``loop``."""
        if loop is not self.loop:
            self.adopt(loop)
        ends = self._time() + limit.seconds
        heapq.heappush(self._heap, (ends, next(self._numbers), limit))
        if ends < self._due:
            self._wait_for(ends, limit.seconds)

    def leave(self) -> None:
        """Note that a limit was exited, and need no longer be watched."""
        self._exited += 1
        if self._exited > _MAX_EXITED and 2 * self._exited > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].is_open]
            heapq.heapify(self._heap)
            self._exited = 0

    def _wait_for(self, due: float, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._clock.call_later(max(seconds, 0.0), self._look)

    def _look(self) -> None:
        """Cut short the blocks whose time is over, and wait for the next."""
        now, heap = self._time(), self._heap
        self._timer, self._due = None, math.inf
        if heap and heap[0][0] - now > heap[0][2].seconds:
            self._start_again(now)
        while heap and (heap[0][0] <= now or not heap[0][2].is_open):
            _, _, limit = heapq.heappop(heap)
            if limit.is_open:
                limit.cut()
            else:
                self._exited -= 1
        if heap:
            self._wait_for(heap[0][0], heap[0][0] - now)

    def _start_again(self, now: float) -> None:
        """Give every limit its whole time once more, because the clock was set back; none lasts longer.

        That happens only to a clock that has no monotonic time.
        """
        self._heap[:] = [(now + limit.seconds, number, limit) for _, number, limit in self._heap]
        heapq.heapify(self._heap)


class TimeLimit:
    """Cancels the block under it once its time has passed, and swallows that cancellation.

    It does what :func:`asyncio.timeout` does, on an injected clock, and reports by :attr:`expired` rather
    than by an exception. It is used once in every send, where an anyio scope costs several times as much. A
    cancellation from elsewhere passes through. Made by :meth:`Deadlines.limit`.

    Attributes:
        seconds: How long the block may take; ``math.inf`` for any time.
        is_open: Whether the block is running and was not cut short.
        expired: Whether the block was cut short.
    """

    __slots__ = ("_cancelling", "_deadlines", "_task", "expired", "is_open", "seconds")

    def __init__(self, deadlines: Deadlines, seconds: float, task: asyncio.Task[Any] | None = None) -> None:
        self._deadlines = deadlines
        self._task = task
        self.seconds = seconds
        self.is_open = False
        self.expired = False

    def __enter__(self) -> Self:
        if self.seconds == math.inf:
            self._task = None
        else:
            task = self._task or asyncio.current_task()
            if task is None:
                raise RuntimeError("a time limit needs a task to cancel")
            self._task = task
            self._cancelling = task.cancelling()
            self.is_open = True
            self._deadlines.enter(self, task.get_loop())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._task is None:
            return False
        if self.is_open:
            self.is_open, self._task = False, None
            self._deadlines.leave()
            return False
        # A cancellation from elsewhere, if there is one too, goes before ours.
        ours_alone = self._task.uncancel() <= self._cancelling
        self.expired = ours_alone and exc_type is asyncio.CancelledError
        return self.expired

    def cut(self) -> None:
        """End the block now."""
        self.is_open = False
        if self._task is not None:
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
            task.exception()  # retrieved; the cancellation is what the caller must see
        raise cancelled
    return task.result()

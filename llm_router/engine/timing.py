"""Limits of time on the injected clock, and work that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio

from llm_router.domain.clock import Clock, Timer

__all__ = ["TimeLimit", "finish"]

_T = TypeVar("_T")


class TimeLimit:
    """Cancels the block under it once ``seconds`` have passed on ``clock``, and swallows that cancellation.

    It does what :func:`asyncio.timeout` does, on an injected clock, and tells by :attr:`expired` rather than
    by an exception; it is used once in every send, where an anyio scope costs three times as much. A
    cancellation from elsewhere passes through.

    Attributes:
        expired: Whether the block was cut short.
    """

    __slots__ = ("_cancelling", "_clock", "_fired", "_seconds", "_task", "_timer", "expired")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._fired = False
        self._timer: Timer | None = None
        self.expired = False

    def __enter__(self) -> Self:
        if self._seconds < math.inf:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("a time limit needs a task to cancel")
            self._task = task
            self._cancelling = task.cancelling()
            self._timer = self._clock.call_later(max(self._seconds, 0.0), self._fire)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        if not self._fired:
            return False
        # Somebody else's cancellation, if there is one too, goes before ours.
        ours_alone = self._task.uncancel() <= self._cancelling
        self.expired = ours_alone and exc_type is asyncio.CancelledError
        return self.expired

    def _fire(self) -> None:
        self._fired = True
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

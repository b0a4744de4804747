"""What became of a call whose caller was cancelled."""

from __future__ import annotations

import asyncio
from typing import TypeVar

__all__ = ["answer_of"]

_T = TypeVar("_T")


def answer_of(future: asyncio.Future[_T]) -> _T | None:
    """Return the answer that no caller awaits any more; None if there is none, which is not reported."""
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()

"""Turns: lock files that admit the processes on one database file one after the other.

SQLite's own way to wait (retrying, after ever longer pauses) starves the process that has waited longest, and
a single lock is taken again by the process that has just released it. So there is a queue: a process that
wants a turn takes the last place, moves up whenever the place ahead is free, and only then releases the one
behind. No process has two turns in a row while another waits. As many processes as there are places get their
turns in the order in which they came; among more, chance decides which one gets the last place next.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TurnLock"]

_PRIVATE = 0o600
_LINE = ("-third", "-second", "-next", "-turn")
"""The endings of the names of the lock files, from the last place in the queue to the turn itself."""

_POLL = 0.0002
"""Seconds between two tries. There is no system call that waits for a lock file with a timeout."""

_LONG_POLL_AFTER = 0.1
"""Seconds of waiting after which tries become rare: the process that has the turn will not finish soon."""

_LONG_POLL = 0.005


class TurnLock:
    """The right to write to a database file, which one store of all processes has at a time.

    The lock files lie beside the database and are never deleted: locking a deleted one, which another process
    still has open, would exclude nothing. They are empty, and the locks of a process that dies are released.

    Args:
        path: The database file; the lock files have its name with ``-turn`` and the like appended.
    """

    def __init__(self, path: Path) -> None:
        self._paths = tuple(path.with_name(path.name + suffix) for suffix in _LINE)
        self._files: list[int] = []

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Take the turn for the duration of a ``with`` block.

        Args:
            deadline: When to stop waiting for it, on the clock of :func:`time.monotonic`.

        Raises:
            TimeoutError: It did not come in time.
            OSError: The lock files cannot be opened or locked.
        """
        behind: int | None = None
        for place in self._open():
            try:
                _wait_for(place, deadline)
            finally:
                if behind is not None:
                    _unlock(behind)
            behind = turn = place
        try:
            yield
        finally:
            _unlock(turn)

    def close(self) -> None:
        """Close the lock files; the next turn opens them again."""
        while self._files:
            os.close(self._files.pop())

    def _open(self) -> list[int]:
        for path in self._paths[len(self._files) :]:
            self._files.append(os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE))
        return self._files


def _wait_for(file: int, deadline: float) -> None:
    if _lock(file):
        return
    started = now = time.monotonic()
    while now < deadline:
        time.sleep(_POLL if now - started < _LONG_POLL_AFTER else _LONG_POLL)
        if _lock(file):
            return
        now = time.monotonic()
    raise TimeoutError("another process has kept the turn for too long")


if sys.platform == "win32":

    def _lock(file: int) -> bool:
        os.lseek(file, 0, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:

    def _lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: int) -> None:
        # Explicitly, instead of leaving it to close(): a child forked meanwhile has the same lock open.
        fcntl.flock(file, fcntl.LOCK_UN)

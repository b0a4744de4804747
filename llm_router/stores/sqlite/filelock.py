"""Taking turns: lock files that let the processes on one database file in one after the other.

SQLite's own way to wait (try again, after ever longer pauses) starves whoever has waited longest, and a lone
lock is snatched again by the process that has just let go of it. So there is a line: whoever wants a turn
takes its last place, moves up whenever the place before it is free, and only then lets go of the one behind.
Nobody has two turns running while another waits. As many as there are places have their turns in the order in
which they came; where more come, chance decides who has the last place next.
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
"""What the names of the lock files end in, from the last place in the line to the turn itself."""

_POLL = 0.0002
"""Seconds between two tries. There is no system call that waits for a lock file and can be told how long."""

_PATIENCE = 0.1
"""Seconds of waiting after which tries become rare: whoever has the turn is not coming back soon."""

_LONG_POLL = 0.005


class TurnLock:
    """The right to write a database file, held by one store of all processes at a time.

    The lock files stand beside the database and are never deleted: a process that still had a deleted one
    open would lock in vain. They hold nothing, and a process that dies lets go of them.

    Args:
        path: The database file; the lock files are called like it, with ``-turn`` and the like at the end.
    """

    def __init__(self, path: Path) -> None:
        self._paths = tuple(path.with_name(path.name + suffix) for suffix in _LINE)
        self._files: list[int] = []

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Have the turn for the length of a ``with`` block.

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
        time.sleep(_POLL if now - started < _PATIENCE else _LONG_POLL)
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
        # Said aloud, not left to close(): a child forked meanwhile has the same lock open.
        fcntl.flock(file, fcntl.LOCK_UN)

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

_TICK = 3_000_000_000
"""Nanoseconds within which a file system may give two changes of a directory the same time."""


class TurnLock:
    """The right to write to a database file, which one store of all processes has at a time.

    The lock files lie beside the database, are empty, and are never deleted by this library. If another
    program deletes them, processes go on with new ones after their present turns, which exclude none. The
    locks of a process that dies are released.

    Attributes:
        undisturbed: Whether it is certain that between the starts of the last two turns no file beside the
            database was made, deleted or renamed.

    Args:
        path: The database file; the lock files have its name with ``-turn`` and the like appended.
    """

    def __init__(self, path: Path) -> None:
        self._paths = tuple(path.with_name(path.name + suffix) for suffix in _LINE)
        self._directory = str(path.parent)
        self._seen: tuple[int, int, int] | None = None  # the directory, and when it had last changed
        self._files: list[int] = []
        self.undisturbed = False

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Take the turn for the duration of a ``with`` block.

        Args:
            deadline: When to stop waiting for it, on the clock of :func:`time.monotonic`.

        Raises:
            TimeoutError: It did not come in time.
            OSError: The lock files cannot be opened or locked.
        """
        turn = self._queue(deadline)
        self.undisturbed = self._look()
        while not self.undisturbed and not self._is_there(turn):
            _unlock(turn)  # it was deleted: others lock the one that took its place
            self.close()
            turn = self._queue(deadline)
        try:
            yield
        finally:
            _unlock(turn)

    def _queue(self, deadline: float) -> int:
        """Move up in the queue until it is this one's turn; return the file locked for it."""
        behind: int | None = None
        for place in self._open():
            try:
                _wait_for(place, deadline)
            finally:
                if behind is not None:
                    _unlock(behind)
            behind = turn = place
        return turn

    def _look(self) -> bool:
        """Return whether nothing in the directory was made, deleted or renamed since the last turn."""
        try:
            status = os.stat(self._directory)  # noqa: PTH116  # at half the cost of Path.stat
        except FileNotFoundError:
            return False
        before, changed_at = self._seen, status.st_mtime_ns
        self._seen = status.st_dev, status.st_ino, changed_at
        if before == self._seen:
            return True
        if time.time_ns() - changed_at < _TICK:
            self._seen = None  # what happens a moment later may leave the same time
        return False

    def _is_there(self, turn: int) -> bool:
        try:
            there = self._paths[-1].stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(turn))

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

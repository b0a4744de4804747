"""The files that make up an open database, and whether they are still those that were opened.

SQLite notices neither that its files were deleted nor that others lie in their place: it goes on with those
that it has open, while other processes use the new ones, and each of them grants the whole quota.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING

from llm_router.stores.sqlite.wal import frames_missing, salts_of_wal, size_of_wal

if TYPE_CHECKING:
    from pathlib import Path

    from llm_router.stores.sqlite.wal import Salts

__all__ = ["DatabaseFiles", "Identities", "Identity"]

Identity = tuple[int, int]
"""The device and the inode of a file. None other can have it while the file is open."""

Identities = tuple[Identity | None, Identity | None, Identity | None]
"""Those of the database, its WAL and its index of the WAL (-shm); None for a file that is not there."""

_POLL = 0.002
"""Seconds between two tries to move what another process is moving."""


class DatabaseFiles:
    """The files of the database at ``path``, as any other process would find them now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0  # of the WAL, at its longest,
        self._salts: Salts | None = None  # and which it was then
        self._database, self._wal, self._index = (f"{path}{suffix}" for suffix in ("", "-wal", "-shm"))

    def find(self) -> Identities:
        """Return which files are there."""
        return _identify(self._database), _identify(self._wal), _identify(self._index)

    def were_left(self) -> bool:
        """Return whether the database is missing or empty, and yet one of its companions is there.

        They appear once a database has its tables, and go with its last connection: there was one.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._database).st_size:  # noqa: PTH116
                return False
        _, wal, index = self.find()
        return wal is not None or index is not None

    def drop_stray_index(self) -> None:
        """Remove an index of commits whose WAL was deleted or cut short: SQLite would go by it all the same.

        What is left of the WAL goes too if it is older than what is in the database. Call it in a turn, while
        this process does not have the database open. Another process that has it open finds out in its next
        turn (:meth:`rescue`).
        """
        is_cut_short, is_outdated = frames_missing(self._path)
        if is_outdated:
            _remove(self._wal)
        if is_cut_short:
            _remove(self._index)

    def rescue(self, opened: Identities, connection: sqlite3.Connection, deadline: float) -> bool:
        """Return whether all that was committed is in the files that are there, after helping with it.

        Of a WAL that was deleted the connection still has the contents, and moves them into the database.
        If another process is about to do so, wait for it: until then the database is half old, half new.

        Args:
            opened: The files of the connection; the database is still there, but one of the others is not.
            connection: It, outside a transaction, and in a turn, so that no other one writes.
            deadline: When to stop waiting for another process, on the clock of :func:`time.monotonic`.
        """
        _, wal, index = self.find()
        if wal is not None and wal == opened[1]:
            return True  # the index is made anew from the WAL
        if wal is not None and not (index in (None, opened[2]) and self._is_empty(self._wal)):
            return False  # another process has begun to use it, with what was in the database
        try:
            return _move_all(connection, deadline)
        except sqlite3.Error:
            return False

    def clear(self, opened: Identities) -> None:
        """Remove those of the files opened that are still there though others are not.

        Otherwise SQLite would take them for a part of what is there instead. Call it in a turn, when the
        connection is closed.
        """
        database, wal, index = self.find()
        if index == opened[2]:
            is_left_over = wal == opened[1] and database != opened[0]
            if is_left_over or (wal is not None and self._is_empty(self._wal)):
                _remove(self._wal)
            _remove(self._index)

    def has_shrunk(self) -> bool:
        """Return whether the WAL is shorter than it was when this was asked before, of the same files.

        SQLite overwrites a WAL from its beginning, and shortens it only where all of it is in the database.
        """
        size = size_of_wal(self._path)
        if size > self._size:
            self._size, self._salts = size, salts_of_wal(self._path)
        return size < self._size

    def has_begun_anew(self) -> bool:
        """Return whether a WAL that has shrunk is empty, or another one than when it was longer.

        So it is after a checkpoint that cuts it short, by another program, even if others have written since.
        """
        return not size_of_wal(self._path) or salts_of_wal(self._path) not in (None, self._salts)

    def start_over(self) -> None:
        """Forget how long the WAL was: the database is opened anew."""
        self._size, self._salts = 0, None

    @staticmethod
    def _is_empty(name: str) -> bool:
        with contextlib.suppress(OSError):
            return os.stat(name).st_size == 0  # noqa: PTH116
        return False


def _move_all(connection: sqlite3.Connection, deadline: float) -> bool:
    """Return whether all of the WAL is in the database, after moving what was not."""
    while True:
        busy, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if not busy or time.monotonic() >= deadline:
            return not busy and pages == moved
        time.sleep(_POLL)


def _identify(name: str) -> Identity | None:
    try:
        status = os.stat(name)  # noqa: PTH116  # at half the cost of Path.stat
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)  # noqa: PTH108

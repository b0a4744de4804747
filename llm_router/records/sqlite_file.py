"""The file of the SQLite record store, as its thread works on it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from llm_router.errors import StoreCorruptError, StoreError
from llm_router.records.base import Bounds
from llm_router.records.entries import BoundsOf, added
from llm_router.stores.sqlite.database import disconnect
from llm_router.stores.sqlite.faults import Undecodable, explain
from llm_router.stores.sqlite.filelock import TurnLock

__all__ = ["RecordFile"]

_APPLICATION_ID = 0x4C4C_5245
"""``LLRE``: distinguishes files of records from those of quotas, and of others."""

_SCHEMA_VERSION = 1

_SUFFIXES = ("-wal", "-shm", "-journal")

_GET = "SELECT data, version, expires FROM records WHERE space = ? AND name = ? AND expires > ?"
_SPACE = "INSERT INTO spaces (space) VALUES (?) ON CONFLICT DO NOTHING"
_DELETE = "DELETE FROM records WHERE space = ? AND name = ?"
_INSERT = "INSERT INTO records (space, name, version, expires, size, data) VALUES (?, ?, ?, ?, ?, ?)"
_VERSION = "SELECT max(version + 1, ?) FROM spaces WHERE space = ?"
_TOTALS = "SELECT records, size FROM spaces WHERE space = ?"
_SWEEP = (
    "DELETE FROM records WHERE rowid IN "
    "(SELECT rowid FROM records WHERE space = ? AND expires <= ? ORDER BY expires LIMIT 100)"
)
_OLDEST = (
    "DELETE FROM records WHERE rowid = (SELECT rowid FROM records WHERE space = ? ORDER BY version LIMIT 1)"
)
_FOUND = (
    "FROM records WHERE space = ? AND expires > ? AND substr(name, 1, ?) = ? ORDER BY version DESC LIMIT ?"
)


class RecordFile:
    """Reads and writes a file of records. All its methods may raise :class:`StoreError`.

    Spaces are named as :class:`BoundsOf` names them; times are in microseconds.

    Args:
        path: The file.
        timeout: The most seconds to wait for other processes.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()  # a store that is dropped closes the file from another thread
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def get(self, space: str, name: str, now: int) -> tuple[bytes, int, int] | None:
        """Return data, version and expiry of a record, or None."""
        with self._reading() as connection:
            return _row(connection, space, name, now)

    def put(
        self,
        space: str,
        name: str,
        data: bytes,
        now: int,
        lasts: int,
        expected: int | None,
        bounds: Bounds,
    ) -> tuple[bool, int]:
        """Keep a record; return True and its version, or False and the one that is there instead."""
        with self._writing() as connection:
            if expected is not None:
                row = _row(connection, space, name, now)
                present = 0 if row is None else row[1]
                if present != expected:
                    return False, present
            return True, _keep(connection, space, name, data, now, lasts, bounds)

    def delete(self, spaces: Sequence[str], name: str) -> None:
        """Forget a name in several spaces."""
        with self._writing() as connection:
            connection.executemany(_DELETE, [(space, name) for space in spaces])

    def add(
        self, space: str, name: str, amounts: Mapping[str, int], now: int, lasts: int, bounds: BoundsOf
    ) -> bytes:
        """Add to the counts of a name, and return them as text.

        Raises:
            RecordTooLargeError: There are too many.
        """
        with self._writing() as connection:
            row = _row(connection, space, name, now)
            text = bounds.check_size(space, name, added(b"" if row is None else row[0], amounts))
            _keep(connection, space, name, text, now, lasts, bounds.of(space))
            return text

    def names(self, space: str, prefix: str, limit: int, now: int) -> list[str]:
        """Return the names that begin with ``prefix``, the last put first."""
        with self._reading() as connection:
            rows = connection.execute(f"SELECT name {_FOUND}", (space, now, len(prefix), prefix, limit))
            return [name for (name,) in rows]

    def rows(self, space: str, prefix: str, limit: int, now: int) -> list[tuple[str, bytes]]:
        """Return the names that begin with ``prefix`` and their data, the last put first."""
        with self._reading() as connection:
            rows = connection.execute(f"SELECT name, data {_FOUND}", (space, now, len(prefix), prefix, limit))
            found: list[tuple[str, bytes]] = rows.fetchall()
        if not all(isinstance(name, str) and isinstance(data, bytes) for name, data in found):
            raise self._damaged()
        return found

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            self._disconnect()

    def _damaged(self) -> StoreError:
        return explain(Undecodable("a record is not bytes"), self._path)

    # --- the connection ---

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._faults():
            yield self._open()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._faults():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (sqlite3.Error, OSError, UnicodeError, Undecodable) as error:
            self._disconnect()
            raise explain(error, self._path) from error

    def _open(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None and self._identity == self._present():
            return connection
        self._disconnect()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Of several that find no file, one makes it; meanwhile none removes what belongs to it.
        turns = TurnLock(self._path)
        with contextlib.closing(turns), turns.turn(time.monotonic() + self._timeout):
            connection = self._connect()
        self._connection, self._identity = connection, self._present()
        return connection

    def _connect(self) -> sqlite3.Connection:
        with contextlib.suppress(FileExistsError):  # SQLite itself would make a new file readable for others
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            for suffix in _SUFFIXES:  # of a database that was deleted
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            _set_up(connection, self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            disconnect(connection, is_current=self._identity == self._present())

    def _present(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - before every call
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _row(connection: sqlite3.Connection, space: str, name: str, now: int) -> tuple[bytes, int, int] | None:
    row: tuple[bytes, int, int] | None = connection.execute(_GET, (space, name, now)).fetchone()
    if row is not None and not (isinstance(row[0], bytes) and isinstance(row[1], int)):
        raise Undecodable("a record is neither bytes nor has a version")
    return row


def _keep(
    connection: sqlite3.Connection, space: str, name: str, data: bytes, now: int, lasts: int, bounds: Bounds
) -> int:
    connection.execute(_SPACE, (space,))
    connection.execute(_DELETE, (space, name))
    (version,) = connection.execute(_VERSION, (now, space)).fetchone()
    size = len(data) + len(name.encode())
    connection.execute(_INSERT, (space, name, version, now + lasts, size, data))
    connection.execute(_SWEEP, (space, now))
    while True:
        records, size = connection.execute(_TOTALS, (space,)).fetchone()
        if records <= bounds.records and size <= bounds.size:
            return int(version)
        if not connection.execute(_OLDEST, (space,)).rowcount:
            raise Undecodable("a space counts records that are not there")


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
    if not _is_ours(connection, path):
        script = files(__package__).joinpath("schema.sql").read_text("utf-8")
        connection.executescript(  # another process may do the same
            f"BEGIN IMMEDIATE; {script}; PRAGMA application_id = {_APPLICATION_ID};"
            f"PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
        )
    connection.execute("PRAGMA journal_mode = WAL")


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file has records; False for a new one.

    Raises:
        StoreCorruptError: It is something else.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == _APPLICATION_ID:
        if version > _SCHEMA_VERSION:
            raise _foreign(path, f"was written by a newer version of llm_router (schema {version})")
        return True
    if application or version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise _foreign(path, "is the database of another application")
    return False


def _foreign(path: Path, what: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{str(path)!r} {what}; it was left as it is: choose another path for the records, or move it away"
    )

"""Opens a database file: creates it or recognises it as ours, and brings its schema up to date."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, cast

from llm_router.errors import StoreCorruptError
from llm_router.stores.sqlite.limits import LimitPacker
from llm_router.stores.sqlite.wal import size_of_wal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "Synchronous",
    "begin",
    "check_header",
    "checkpoint",
    "connect",
    "disconnect",
    "recovered",
]

Synchronous = Literal["OFF", "NORMAL", "FULL", "EXTRA"]

APPLICATION_ID = 0x4C4C_4D52
"""``LLMR``: distinguishes SQLite files of this library from those of others."""

_MIGRATIONS = (("schema.sql",), ("journal.sql",), ("additions.sql", "limits.sql"))
"""The scripts at index n migrate a file from schema version n to n + 1."""

SCHEMA_VERSION = len(_MIGRATIONS)

_HEADER = 100
_MAGIC = b"SQLite format 3\0"
_USER_VERSION = slice(60, 64)
_APPLICATION_ID = slice(68, 72)
_BUSY_TIMEOUT = 0.05

_CACHE_KIB = 32_768
"""The most memory for pages; ten thousand keys fill a third of it."""

_MAX_WAL_PAGES = 8000
"""Pages in the WAL after which a commit also moves the last of them, so that the WAL starts again:
:func:`checkpoint` cannot keep up with processes that never pause."""


def check_header(path: Path) -> None:
    """Make sure that the file at ``path`` is ours, empty or missing, without opening it as a database.

    SQLite changes files by merely opening them (for example, it recovers a journal). A foreign file must stay
    as it is, byte for byte, so its header is read here first.

    Must not be called while this process has the file open as a database: closing any descriptor of a file
    releases the locks that the process holds on it (https://sqlite.org/howtocorrupt.html, 2.2), and another
    process could then remove the WAL that is in use.

    Raises:
        StoreCorruptError: It is something else.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER)
    except FileNotFoundError:
        return
    if not header:
        if size_of_wal(path):
            raise _empty(path)
        return
    if not header.startswith(_MAGIC) or len(header) < _HEADER:
        raise _foreign(path, "is not an SQLite database")
    if int.from_bytes(header[_APPLICATION_ID], "big") != APPLICATION_ID:
        raise _foreign(path, "is the database of another application")
    _check_version(path, int.from_bytes(header[_USER_VERSION], "big"))


def connect(
    path: Path,
    synchronous: Synchronous,
    deadline: float,
    look: Callable[[sqlite3.Connection], None] = lambda _: None,
) -> sqlite3.Connection:
    """Open the file at ``path``, new or ours, in WAL mode and with the newest schema.

    Call it only during a turn, so that no two processes create the file at once. It waits for programs that
    do not take turns until ``deadline`` (:func:`time.monotonic`).

    Args:
        path: The database file.
        synchronous: SQLite's setting of that name.
        deadline: See above.
        look: Called with the connection before the schema is brought up to date, which empties the WAL.

    Raises:
        StoreCorruptError: Its schema is newer than this version knows.
        sqlite3.Error: It cannot be opened.
        OSError: It cannot be created.
    """
    with contextlib.suppress(FileExistsError):  # SQLite itself would make a new file readable for others
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        for suffix in ("-wal", "-shm", "-journal"):  # of a database that was deleted
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        _retry_while_locked(lambda: _set_up(connection, path, synchronous, look), deadline)
    except BaseException:
        connection.close()
        raise
    return connection


def disconnect(connection: sqlite3.Connection, *, is_current: bool) -> None:
    """Close a connection; unless its files are still there, without touching those in their place.

    SQLite deletes the WAL and its index with the last connection to a database, by their names.
    """
    with contextlib.suppress(sqlite3.Error):
        if sys.version_info >= (3, 12) and not is_current:
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
        connection.close()


def begin(connection: sqlite3.Connection, deadline: float) -> None:
    """Start a transaction that may write; wait for others until ``deadline`` (:func:`time.monotonic`)."""
    _retry_while_locked(lambda: connection.execute("BEGIN IMMEDIATE"), deadline)


def checkpoint(path: Path, synchronous: Synchronous, is_current: Callable[[], bool]) -> None:
    """Move what has been committed from the WAL into the database, without blocking other connections.

    It waits for the disk, for tens of milliseconds; it has a connection of its own so that it can run on
    another thread than commits.

    Args:
        path: The database file.
        synchronous: SQLite's setting of that name.
        is_current: Returns whether the files at ``path`` are those that this process has open. Of others,
            SQLite would read the new WAL by the old index, and write any page in the place of any other.
    """
    with contextlib.suppress(sqlite3.Error):  # if the error matters, a commit will fail as well
        uri = f"{path.as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA synchronous = {synchronous}")  # reads the schema: all files are open
            if is_current():
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def recovered(connection: sqlite3.Connection) -> int:
    """Return the number of the last frame of the WAL that SQLite sees, after a checkpoint.

    Raises:
        sqlite3.Error: The WAL cannot be read.
    """
    (_, frames, _) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(frames)


def _retry_while_locked(action: Callable[[], object], deadline: float) -> None:
    """Retry until ``deadline`` while the database is locked, by a program that does not take turns."""
    while True:
        try:
            action()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        else:
            return


def _set_up(
    connection: sqlite3.Connection,
    path: Path,
    synchronous: Synchronous,
    look: Callable[[sqlite3.Connection], None],
) -> None:
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_MAX_WAL_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    # Some builds of SQLite, such as that of macOS, would cut the WAL whenever it starts again.
    connection.execute("PRAGMA journal_size_limit = -1")
    look(connection)
    _migrate(connection, path)
    # Last, because until the first checkpoint only the WAL has the header by which a file is recognised.
    connection.execute("PRAGMA journal_mode = WAL")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    _check_version(path, version)
    # typeshed knows aggregate functions of one number only.
    connection.create_aggregate("packed_limits", 6, cast("Any", LimitPacker))
    for number, names in enumerate(_MIGRATIONS[version:], version + 1):
        script = "".join(files(__package__).joinpath(name).read_text("utf-8") for name in names)
        connection.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA application_id = {APPLICATION_ID};"
            f"PRAGMA user_version = {number}; COMMIT; PRAGMA wal_checkpoint(TRUNCATE);"
        )


def _check_version(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise _foreign(path, f"was written by a newer version of llm_router (schema {version})")


def _empty(path: Path) -> StoreCorruptError:
    return StoreCorruptError(
        f"SQLite store {str(path)!r} is damaged (the file is empty, but not its -wal); it was left as it is: "
        "restore it, or move it and the -wal away to start with a new one"
    )


def _foreign(path: Path, what: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{str(path)!r} {what}; it was left as it is: choose another path for the store, "
        "or move the file away"
    )

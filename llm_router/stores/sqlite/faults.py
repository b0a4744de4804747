"""Translates what can go wrong with a database file into :mod:`llm_router.errors`."""

from __future__ import annotations

import sqlite3
import struct
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from llm_router.errors import ConfigError, StoreCorruptError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Undecodable", "decoding", "explain"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

# SQLITE_ERROR is an unknown table or column: another program has changed the schema.
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}

_FROM_READING = (sqlite3.OperationalError, UnicodeError)

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another program holds it locked; let that program finish",
    sqlite3.SQLITE_CANTOPEN: "check that the path and its directory may be written",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_IOERR: "check the disk, and that it is not full",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable",
}


class Undecodable(Exception):  # noqa: N818  # never leaves this package
    """A row does not hold what this version writes."""


def decoding(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function that reads rows raise :class:`Undecodable` if they make no sense."""

    @wraps(read)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return read(*args, **kwargs)
        except (ArithmeticError, ConfigError, LookupError, TypeError, ValueError, struct.error) as error:
            raise Undecodable(f"a row makes no sense: {error}") from error

    return wrapper


def explain(error: BaseException, path: Path) -> StoreError:
    """Return the error that a caller sees, a new one each time, for an error with the file at ``path``."""
    if isinstance(error, StoreError):
        made = type(error)(*error.args)
        made.__cause__ = error.__cause__
        return made
    made = _translate(error, path)
    made.__cause__ = error
    return made


def _translate(error: BaseException, path: Path) -> StoreError:
    start = f"SQLite store {str(path)!r}"
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"{start}: {error}; check whether a process that uses the file hangs")
    if isinstance(error, OSError):
        return StoreUnavailableError(
            f"{start}: {error.strerror or error}; check the path and its permissions"
        )
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    is_no_text = isinstance(error, UnicodeError) or "decode" in str(error)  # which has no code
    if (
        isinstance(error, Undecodable)
        or code in _CORRUPT
        or (isinstance(error, _FROM_READING) and is_no_text)
    ):
        return StoreCorruptError(
            f"{start} is damaged ({error}); it was left as it is: move it away to start with a new one"
        )
    remedy = _REMEDIES.get(code)
    return StoreUnavailableError(
        f"{start}: {error or type(error).__name__}" + (f"; {remedy}" if remedy else "")
    )

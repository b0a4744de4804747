"""The journal of a database file: what each of the last transactions changed, until it goes into the tables.

It buys CPU time: a transaction writes one row instead of one for each ledger and reservation. With 64 calls
in flight, that brought a reserve and settle from 12.8 to 9.6 µs with 10 keys, from 21.4 to 14.3 with 10,000.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING

import attrs

from llm_router.stores.sqlite.faults import decoding
from llm_router.stores.sqlite.numbers import pack, unpack

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

__all__ = ["Entry", "Journal"]

_SELECT = "SELECT number, ledgers, opened, taken, closed, cooldowns FROM journal"
_NEWER = _SELECT + " WHERE number > ? ORDER BY number"
_OLDER = _SELECT + " WHERE number < ? ORDER BY number"
_EXISTS = "SELECT 1 FROM journal WHERE number = ?"
_ONE = _SELECT + " WHERE number = ?"
_FIRST = "SELECT min(number) FROM journal"
_INSERT = "INSERT INTO journal (number, ledgers, opened, taken, closed, cooldowns) VALUES (?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM journal WHERE number < ?"

_MAX_BYTES = 8 << 20
"""Bytes that the journal may hold. The longer it is, the more of it is out of date before it goes into a
table, which saves writing it; but each process that opens the file has to read it."""

_BYTES_AT_ONCE = _MAX_BYTES // 64
"""Approximate bytes that one transaction moves into the tables, so that no turn takes long."""

_SKIPPED = 1_000_000
"""More rows than are added between two transactions of a connection."""

_ROW_BYTES = 512
"""What a row counts in addition to its contents: reading it takes time, however little it holds."""


@attrs.define
class Entry:
    """What one transaction changed; the columns of ``journal``."""

    number: int
    ledgers: Sequence[float] = ()
    opened: list[str] = attrs.field(factory=list)
    taken: Sequence[float] = ()
    closed: list[str] = attrs.field(factory=list)
    cooldowns: bool = False

    def __bool__(self) -> bool:
        """Return whether anything changed."""
        return bool(self.ledgers or self.opened or self.closed or self.cooldowns)


class Journal:
    """The journal, as one connection knows it.

    Attributes:
        number: The number of the newest row known.
        first: The number of the oldest row; what older rows held is in the tables.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._sizes: deque[tuple[int, int]] = deque()  # the number and the bytes of each row
        self._bytes = 0
        self._max_bytes = _MAX_BYTES
        self._leaves_until = 0
        self.number = -1
        self.first = 1

    @decoding
    def read(self) -> list[Entry] | None:
        """Return what is new since the last time, oldest first.

        The first time that is the whole journal. None means that some of the new rows are gone already, or
        that what is known from before is no longer valid: the caller has to start over.
        """
        rows = self._connection.execute(_NEWER, (self.number,)).fetchall()
        if rows:
            if self.number >= 0 and rows[-1][0] != self.number + len(rows):
                return None
            (self.first,) = self._connection.execute(_FIRST).fetchone()
            self._forget()
            for row in rows:
                self._note(*row[:5])
        self.number = max(self.number, 0)
        return [_entry(*row) for row in rows]

    def has_gone_back(self) -> bool:
        """Return whether the newest row known is gone, which is always kept: it is an older file by now."""
        return self.number > 0 and self._connection.execute(_EXISTS, (self.number,)).fetchone() is None

    def skip(self, number: int) -> None:
        """Go on far beyond a number: other connections, which may know rows that are gone, start over."""
        self.number = max(self.number, number) + _SKIPPED

    @decoding
    def find(self, number: int) -> Entry:
        """Return the row with a number, which must exist."""
        return _entry(*self._connection.execute(_ONE, (number,)).fetchone())

    def append(self, entry: Entry) -> None:
        """Append a row. Its number is one more than the newest; if not, all other connections start over."""
        opened, closed = json.dumps(entry.opened), json.dumps(entry.closed)
        row = entry.number, pack(entry.ledgers), opened, pack(entry.taken), closed
        self._connection.execute(_INSERT, (*row, entry.cooldowns))
        self._note(*row)

    @decoding
    def take_oldest(self) -> list[Entry]:
        """Remove and return some of the oldest rows, if the journal has become too long, or they shall leave.

        What they hold, unless a newer row has it, must be written elsewhere in the same transaction.
        """
        least, leaves_until = self._bytes - 4 * _BYTES_AT_ONCE, self._leaves_until
        if self._bytes > self._max_bytes:
            self._max_bytes = _MAX_BYTES
            least, leaves_until = self._bytes - _BYTES_AT_ONCE, self.number
        elif self.first > leaves_until:
            return []
        while self._bytes > least and self.first <= leaves_until and len(self._sizes) > 1:
            # The newest is kept: its number is needed.
            self.first = self._sizes[1][0]
            self._forget()
        rows = self._connection.execute(_OLDER, (self.first,)).fetchall()
        self._connection.execute(_DELETE, (self.first,))
        return [_entry(*row) for row in rows]

    def let_leave(self, number: int) -> None:
        """Remove the rows up to one, some of them in each transaction, however short the journal is."""
        self._leaves_until = max(self._leaves_until, number)

    def let_grow(self) -> None:
        """Keep the oldest rows for a while, because most of what they hold would have to be repeated."""
        self._max_bytes = self._bytes + 8 * _BYTES_AT_ONCE

    def _note(self, number: int, ledgers: bytes, opened: str, taken: bytes, closed: str) -> None:
        size = len(ledgers) + len(opened) + len(taken) + len(closed) + _ROW_BYTES
        self._sizes.append((number, size))
        self._bytes += size
        self.number = number

    def _forget(self) -> None:
        while self._sizes and self._sizes[0][0] < self.first:
            self._bytes -= self._sizes.popleft()[1]


def _entry(number: int, ledgers: bytes, opened: str, taken: bytes, closed: str, cooldowns: int) -> Entry:
    return Entry(
        number, unpack(ledgers), json.loads(opened), unpack(taken), json.loads(closed), bool(cooldowns)
    )

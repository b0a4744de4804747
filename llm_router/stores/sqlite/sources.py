"""What a database file remembers of the processes that use it: their last charges, and who is alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.calendar import microseconds
from llm_router.stores.base import CHARGES_KEPT, Standing
from llm_router.stores.sqlite.faults import decoding

if TYPE_CHECKING:
    import sqlite3

    from llm_router.domain.deployment import Scope

__all__ = ["Sources"]

_ALIVE_FOR = 60_000_000

_LARGEST = 2**62
"""A sequence beyond it, which SQLite could not store, counts as this one."""

_SELECT = "SELECT sequence FROM charges WHERE source = ? AND scope = ?"
_INSERT = "INSERT OR REPLACE INTO charges (source, scope, sequence, came) VALUES (?, ?, ?, ?)"
_SWEEP = """
    DELETE FROM charges WHERE (source, scope) IN (SELECT source, scope FROM charges WHERE came <= ? LIMIT ?)
"""
_ANNOUNCE = "INSERT OR REPLACE INTO processes (source, seen) VALUES (?, ?)"
_FORGET = "DELETE FROM processes WHERE seen <= ? OR seen > ?"
_COUNT = "SELECT count(*), coalesce(sum(source < ?), 0) FROM processes"


class Sources:
    """The processes of a file. Nothing of it is in memory: it is rarely asked for."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def begin_charge(self, source: str, scope: Scope, sequence: int, now: int) -> bool:
        """Record a charge; return whether it is a new one of its source and model, which must be counted."""
        sequence = max(-_LARGEST, min(sequence, _LARGEST))
        found = self._connection.execute(_SELECT, (source, scope)).fetchone()
        last = None if found is None else _sequence(*found)
        is_new = last is None or sequence > last
        row = source, scope, sequence if last is None else max(sequence, last), now
        self._connection.execute(_INSERT, row)
        return is_new

    def announce(self, source: str, now: int) -> Standing:
        """Record that a process is alive; return its place among those that were in the last minute."""
        # What is later than now was written before the clock was set back.
        self._connection.execute(_FORGET, (now - _ALIVE_FOR, now))
        self._connection.execute(_ANNOUNCE, (source, now))
        return Standing(*self._connection.execute(_COUNT, (source,)).fetchone())

    def sweep(self, now: int, most: int) -> None:
        """Forget old charges, at most ``most`` of them."""
        self._connection.execute(_SWEEP, (now - microseconds(CHARGES_KEPT), most))


@decoding
def _sequence(stored: float) -> int:
    return int(stored)

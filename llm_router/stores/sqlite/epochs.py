"""When a database file began to count, who charged what it had not counted, and who uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.calendar import microseconds, seconds
from llm_router.stores.base import CHARGES_KEPT, QUIET
from llm_router.stores.sqlite.faults import decoding

if TYPE_CHECKING:
    import sqlite3

    from llm_router.domain.deployment import Scope

__all__ = ["Epochs"]

_ALIVE = 60_000_000
"""Microseconds for which a process counts after it announced itself."""

_SELECT = "SELECT since, reset_at FROM epoch"
_DELETE = "DELETE FROM epoch"
_INSERT = "INSERT INTO epoch (since, reset_at) VALUES (?, ?)"
_SELECT_CHARGE = "SELECT sequence FROM charges WHERE source = ? AND scope = ?"
_INSERT_CHARGE = "INSERT OR REPLACE INTO charges (source, scope, sequence, came) VALUES (?, ?, ?, ?)"
_SWEEP_CHARGES = "DELETE FROM charges WHERE came NOT BETWEEN ? AND ?"
_ANNOUNCE = "INSERT OR REPLACE INTO processes (source, seen) VALUES (?, ?)"
_SWEEP_PROCESSES = "DELETE FROM processes WHERE seen <= ? OR seen > ?"
_COUNT_PROCESSES = "SELECT count(*) FROM processes"


class Epochs:
    """The epoch of a file: all of its ledgers are complete from its beginning on.

    Attributes:
        since: When it began, in seconds; 0 before it was first read.
        reset_at: When the file last lost something, or took the place of one that was lost; 0 for never.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.since = self.reset_at = 0.0
        self._quiet = 0, 0
        self._connection = connection

    def open(self, now: int, known: float, *, damaged: bool) -> bool:
        """Read the epoch of the file, or begin one; return whether the file changed.

        Args:
            now: Microseconds since the epoch.
            known: The beginning of the epoch that this process knows; 0 if it knows none.
            damaged: Whether the file lost something while this process had it open.
        """
        self.refresh()
        moment = seconds(now)
        if not self.since:  # a new file: with loss if it takes the place of another one
            return self._begin(moment, moment if known else 0.0)
        if damaged and self.since == known:  # else another process has noticed it already
            # At a later time than before, though the clock was set back: the number must differ.
            return self._begin(max(moment, self.since + 1e-6), moment)
        if known not in (0.0, self.since) and not self.reset_at:
            return self._begin(self.since, moment)
        return False

    @decoding
    def refresh(self) -> None:
        """Read it again, after another connection changed it."""
        found = self._connection.execute(_SELECT).fetchone()
        if found is not None:
            self.since, self.reset_at = map(float, found)
            self._quiet = microseconds(self.reset_at), microseconds(self.reset_at + QUIET)

    def quiet_until(self, now: int) -> int:
        """Return until when nothing is granted, because something was lost just before; 0 if all is well."""
        begins, ends = self._quiet
        return ends if begins <= now < ends else 0

    def _begin(self, since: float, reset_at: float) -> bool:
        self._connection.execute(_DELETE)
        self._connection.execute(_INSERT, (since, reset_at))
        self.refresh()
        return True

    def is_new_charge(self, source: str, scope: Scope, sequence: int, now: int) -> bool:
        """Return whether a charge was not made before, and remember it."""
        found = self._connection.execute(_SELECT_CHARGE, (source, scope)).fetchone()
        if found is not None and sequence <= found[0]:
            return False
        self._connection.execute(_INSERT_CHARGE, (source, scope, sequence, now))
        return True

    def announce(self, source: str, now: int) -> int:
        """Remember that a process is alive; return how many are."""
        self._connection.execute(_ANNOUNCE, (source, now))
        self._connection.execute(_SWEEP_PROCESSES, (now - _ALIVE, now))
        (count,) = self._connection.execute(_COUNT_PROCESSES).fetchone()
        return int(count)

    def sweep(self, now: int) -> None:
        """Forget charges that nobody will repeat."""
        kept = microseconds(CHARGES_KEPT)
        self._connection.execute(_SWEEP_CHARGES, (now - kept, now + kept))

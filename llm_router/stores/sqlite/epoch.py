"""When the record in a database file began: one time for all quotas, since a file is lost as a whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from llm_router.domain.calendar import microseconds, seconds
from llm_router.stores.base import QUIET
from llm_router.stores.sqlite.faults import decoding

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from llm_router.stores.base import Taking

__all__ = ["Epoch", "Loss", "read_epoch", "settle_epoch", "write_epoch"]

_SELECT = "SELECT since, previous, gap_from, reset_at FROM record ORDER BY since DESC LIMIT 1"
_DELETE = "DELETE FROM record"
_INSERT = "INSERT INTO record (since, previous, gap_from, reset_at) VALUES (?, ?, ?, ?)"

_TICK = 1
"""Microseconds by which an epoch begins after the one before it, whatever the clock shows."""

_OVERLAP = 0.05
"""Seconds before a gap of which it is not certain on which side of it a taking lies: it counts on both."""


@attrs.frozen
class Epoch:
    """What the file says of itself. Times are in seconds since the Unix epoch.

    Attributes:
        since: When the present record began.
        previous: When the record before it began; 0 if there is none.
        gap_from: What was counted in the previous record after this time may be gone.
        reset_at: When the file last lost something; 0 if it never did.
    """

    since: float
    previous: float = 0.0
    gap_from: float = -math.inf
    reset_at: float = 0.0

    @property
    def quiet(self) -> tuple[int, int]:
        """The time in which nothing is granted, in microseconds; empty if nothing was lost."""
        reset_at = microseconds(self.reset_at)
        return reset_at, reset_at + (microseconds(QUIET) if reset_at else 0)

    def lost(self, counted: Sequence[Taking], since: float) -> tuple[Taking, ...]:
        """Return those of the takings counted in the record that began at ``since`` that may be gone."""
        if since == self.since:
            return ()
        if since == self.previous:
            return tuple(taking for taking in counted if taking.at > self.gap_from - _OVERLAP)
        return tuple(counted)


@attrs.frozen
class Loss:
    """Something that happened to the files while a store had them open.

    Attributes:
        kept: Whether all that was committed is nevertheless in the file that is there now.
    """

    kept: bool


def settle_epoch(present: Epoch | None, known: float, loss: Loss | None, now: int) -> Epoch:
    """Return the epoch of a file from now on: the present one, or one that begins now.

    Args:
        present: The epoch in the file, or None if it has none.
        known: When the last epoch began that this store has seen, in this or another file; 0 if none.
        loss: What happened since then, as far as the store has noticed.
        now: In microseconds.
    """
    if present is None:
        since = max(now, microseconds(known) + _TICK)
        return Epoch(seconds(since), reset_at=seconds(now) if known or loss is not None else 0.0)
    if loss is None and (not known or present.since == known):
        return present
    if known and present.since > known and present.reset_at > 0.0:
        return present  # another process has noticed it before
    # An older record, or the same one, is one that went on elsewhere. A newer one was begun by a process
    # that knew nothing of the loss: all that it counted is there.
    kept = (known > 0.0 and present.since > known) or (
        present.since == known and loss is not None and loss.kept
    )
    since = max(now, microseconds(known) + _TICK, microseconds(present.since) + _TICK)
    return Epoch(seconds(since), present.since, seconds(now) if kept else -math.inf, seconds(now))


@decoding
def read_epoch(connection: sqlite3.Connection) -> Epoch | None:
    """Return the epoch in the file, or None if it has none."""
    row = connection.execute(_SELECT).fetchone()
    return Epoch(*map(float, row)) if row is not None else None


def write_epoch(connection: sqlite3.Connection, epoch: Epoch) -> None:
    """Replace the epoch in the file."""
    connection.execute(_DELETE)
    connection.execute(_INSERT, (epoch.since, epoch.previous, epoch.gap_from, epoch.reset_at))

"""The reservations of a database file: what each took, until it is settled or has expired."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Demand
from llm_router.stores.sqlite.accounts import Shelf
from llm_router.stores.sqlite.faults import decoding

if TYPE_CHECKING:
    import sqlite3

    from llm_router.stores.sqlite.accounts import Accounts

__all__ = ["Reservation", "Reservations"]

_SELECT = "SELECT expires, scope, kinds, taken FROM reservation WHERE id = ?"
_INSERT = "INSERT OR REPLACE INTO reservation (id, expires, scope, kinds, taken) VALUES (?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM reservation WHERE id = ?"
_SWEEP = "DELETE FROM reservation WHERE id IN (SELECT id FROM reservation WHERE expires <= ? LIMIT ?)"


@attrs.define
class Reservation:
    """What one request took.

    Attributes:
        expires: Microseconds since the epoch.
        demand: What was asked for.
        shelf: Where it was taken from.
        marks: Its mark in each of the accounts of the shelf.
        epoch: The epoch in which the file was known to hold it.
    """

    expires: int
    demand: Demand
    shelf: Shelf
    marks: list[int]
    epoch: int


class Reservations:
    """The open reservations. Those made here are kept in memory as well."""

    def __init__(self, connection: sqlite3.Connection, accounts: Accounts) -> None:
        self._connection = connection
        self._accounts = accounts
        self._known: dict[str, Reservation] = {}
        self._added: dict[str, Reservation] = {}
        self._removed: list[tuple[str]] = []

    def add(self, reservation_id: str, reservation: Reservation) -> None:
        """Note what a request took."""
        self._known[reservation_id] = self._added[reservation_id] = reservation

    def pop(self, reservation_id: str) -> Reservation | None:
        """Take a reservation out, or return None if there is no such one (any more)."""
        reservation = self._known.pop(reservation_id, None)
        if reservation is None or reservation.epoch != self._accounts.epoch:
            row = self._connection.execute(_SELECT, (reservation_id,)).fetchone()
            if row is None:
                return None
            reservation = reservation or self._read(*row)
        elif self._added.pop(reservation_id, None):
            return reservation
        self._removed.append((reservation_id,))
        return reservation

    def save(self) -> None:
        """Write back what was added and taken out."""
        if self._removed:
            self._connection.executemany(_DELETE, self._removed)
            self._removed.clear()
        if self._added:
            rows = [
                (
                    key,
                    r.expires,
                    r.shelf.folder.scope,
                    r.shelf.kinds,
                    repr([r.demand.requests, r.demand.tokens, *r.marks]),
                )
                for key, r in self._added.items()
            ]
            self._connection.executemany(_INSERT, rows)
            self._added.clear()

    def sweep(self, now: int, most: int) -> int:
        """Delete expired reservations, which keep what they took; at most so many. Return how many."""
        self._known = {key: known for key, known in self._known.items() if known.expires > now}
        return self._connection.execute(_SWEEP, (now, most)).rowcount

    @decoding
    def _read(self, expires: int, scope: str, kinds: str, taken: str) -> Reservation:
        requests, tokens, *marks = json.loads(taken)
        folder = self._accounts.folder(Scope(scope))
        present = {account.kind: account for account in folder.accounts.values()}
        live = [pair for pair in zip(kinds.split(), marks, strict=True) if pair[0] in present]
        shelf = Shelf(folder, tuple(present[kind] for kind, _ in live))
        epoch = self._accounts.epoch
        return Reservation(expires, Demand(requests, tokens), shelf, [mark for _, mark in live], epoch)

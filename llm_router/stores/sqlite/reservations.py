"""The reservations of a database file: what each took, until it is settled or has expired.

They are in the journal and nowhere else: most are settled before their row of it is the oldest. Those that
are not are written once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from llm_router.domain.quota import Demand
from llm_router.stores.sqlite.accounts import FolderShelf
from llm_router.stores.sqlite.faults import decoding
from llm_router.stores.sqlite.numbers import kinds_of, offsets, record, split

if TYPE_CHECKING:
    from llm_router.stores.sqlite.accounts import Accounts
    from llm_router.stores.sqlite.journal import Entry, Journal

__all__ = ["Reservation", "Reservations"]

_HEAD = 4
"""Numbers before what was taken: expiry, row of ledgers, kinds, and how many follow."""


@attrs.define
class Reservation:
    """What one request took.

    Attributes:
        expires: Microseconds since the epoch.
        demand: What was asked for.
        shelf: Where it was taken from.
        marks: Its mark in each of the books of the shelf.
    """

    expires: int
    demand: Demand
    shelf: FolderShelf
    marks: list[int]


class Reservations:
    """The open reservations. Of those made elsewhere no more is in memory than where they are written."""

    def __init__(self, accounts: Accounts, journal: Journal) -> None:
        self._accounts = accounts
        self._journal = journal
        self._known: dict[str, Reservation] = {}  # made here
        self._rows: dict[str, int] = {}  # the row of the journal that has it
        self._opened: dict[str, Reservation] = {}  # since the last row
        self._closed: list[str] = []
        self._kept: list[str] = []
        self._kept_taken: list[float] = []

    def add(self, reservation_id: str, reservation: Reservation) -> None:
        """Note what a request took."""
        self._known[reservation_id] = self._opened[reservation_id] = reservation

    def pop(self, reservation_id: str) -> Reservation | None:
        """Take a reservation out, or return None if there is no such one (any more)."""
        reservation = self._known.pop(reservation_id, None)
        if reservation is not None and self._opened.pop(reservation_id, None) is not None:
            return reservation  # the file never hears of it
        number = self._rows.pop(reservation_id, 0)
        if number < self._journal.first:
            return None
        self._closed.append(reservation_id)
        return reservation or self._read(reservation_id, number)

    @decoding
    def learn(self, entry: Entry) -> None:
        """Take note of what another connection has made and settled."""
        self._rows.update(dict.fromkeys(entry.opened, entry.number))
        for reservation_id in entry.closed:
            self._rows.pop(reservation_id, None)
            self._known.pop(reservation_id, None)

    @decoding
    def keep(self, entry: Entry, now: int) -> int:
        """Save what is still open of an entry that leaves the journal, for the next one; return how many.

        What has expired is forgotten, so that there is never more in memory than the journal holds.
        """
        number, rows, before = entry.number, self._rows, len(self._kept)
        if any(rows.get(reservation_id) == number for reservation_id in entry.opened):
            numbers = entry.taken
            for reservation_id, start in zip(entry.opened, offsets(numbers, _HEAD), strict=True):
                if rows.get(reservation_id) != number:
                    continue
                if numbers[start] > now:
                    head, taken = record(numbers, start, _HEAD)
                    self._kept.append(reservation_id)
                    self._kept_taken += (*head, *taken)
                else:
                    del rows[reservation_id]
                    self._known.pop(reservation_id, None)
        return len(self._kept) - before

    def write(self, entry: Entry) -> None:
        """Say in ``entry`` what is new, what was taken out, and what is kept."""
        taken = self._kept_taken
        for reservation in self._opened.values():
            shelf, demand, marks = reservation.shelf, reservation.demand, reservation.marks
            taken += (reservation.expires, shelf.folder.id or 0, shelf.kinds, 2 + len(marks))
            taken += (demand.requests, demand.tokens, *marks)
        entry.opened, entry.taken, entry.closed = [*self._kept, *self._opened], taken, self._closed
        self._rows.update(dict.fromkeys(entry.opened, entry.number))
        self._opened.clear()
        self._closed, self._kept, self._kept_taken = [], [], []

    def sweep(self, now: int) -> None:
        """Forget those that have expired."""
        first = self._journal.first
        self._known = {key: known for key, known in self._known.items() if known.expires > now}
        self._rows = {key: number for key, number in self._rows.items() if number >= first}

    @decoding
    def _read(self, reservation_id: str, number: int) -> Reservation | None:
        entry = self._journal.find(number)
        place = entry.opened.index(reservation_id)
        (expires, folder_id, kinds, _), taken = split(entry.taken, _HEAD)[place]
        folder = self._accounts.find(int(folder_id))
        if folder is None:  # its row was deleted, because all of it had been back for a day
            return None
        requests, tokens, *marks = map(int, taken)
        present = {account.kind: account for account in folder.accounts.values()}
        pairs = zip(kinds_of(int(kinds)), marks, strict=True)
        live = [(present[kind], mark) for kind, mark in pairs if kind in present]
        shelf = FolderShelf(folder, tuple(account for account, _ in live))
        return Reservation(int(expires), Demand(requests, tokens), shelf, [mark for _, mark in live])

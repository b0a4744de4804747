"""The reservations of a database file: what each took, until it is settled or has expired.

They are stored in the journal only, since most are settled before their row is the oldest one. Those that are
still open when it leaves the journal are written again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from llm_router.domain.quota import Demand, Quota
from llm_router.stores.ledger import MAX_TTL_MICROSECONDS
from llm_router.stores.sqlite.faults import decoding
from llm_router.stores.sqlite.ledger_table import RowQuotaSet, StoredLedger
from llm_router.stores.sqlite.numbers import Kind, kinds_of, offsets, record, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_router.stores.sqlite.journal import Entry, Journal
    from llm_router.stores.sqlite.ledger_table import LedgerRow, LedgerTable

__all__ = ["Reservation", "Reservations"]

_HEAD = 4
"""Numbers before what was taken: expiry, id of the row of ledgers, kinds, and how many follow."""

_SWEEP_AT_ONCE = 5_000


@attrs.define
class Reservation:
    """What one request took.

    Attributes:
        expires: Microseconds since the epoch.
        made: Likewise; 0 if it is not known.
        demand: What was requested.
        quotas: What it was taken from.
        marks: Its mark in each ledger of ``quotas``.
    """

    expires: int
    demand: Demand
    quotas: RowQuotaSet
    marks: list[int]
    made: int = 0


class Reservations:
    """The open reservations. For those made elsewhere, memory only holds their place in the journal."""

    def __init__(self, ledgers: LedgerTable, journal: Journal) -> None:
        self._ledgers = ledgers
        self._journal = journal
        self._known: dict[str, Reservation] = {}  # made here
        self._rows: dict[str, int] = {}  # the row of the journal that has it
        self._opened: dict[str, Reservation] = {}  # since the last row
        self._closed: list[str] = []
        self._kept: list[tuple[str, Sequence[float]]] = []
        self._unchecked: list[str] = []  # by the present sweep
        self._due: dict[int, float] = {}  # when the first of each row of the journal expires

    def add(self, reservation_id: str, reservation: Reservation) -> None:
        """Record what a request took."""
        self._known[reservation_id] = self._opened[reservation_id] = reservation

    def pop(self, reservation_id: str) -> Reservation | None:
        """Remove a reservation and return it, or None if there is none with that id (any more)."""
        reservation = self._known.pop(reservation_id, None)
        if reservation is not None and self._opened.pop(reservation_id, None) is not None:
            return reservation  # it never reaches the file
        number = self._rows.pop(reservation_id, 0)
        if number < self._journal.first:
            return None
        self._closed.append(reservation_id)
        return reservation or self._read(reservation_id, number)

    @decoding
    def note(self, entry: Entry) -> None:
        """Remember which reservations another connection has made and settled."""
        self._rows.update(dict.fromkeys(entry.opened, entry.number))
        if entry.opened:
            self._due[entry.number] = entry.taken[0]
        for reservation_id in entry.closed:
            self._rows.pop(reservation_id, None)
            self._known.pop(reservation_id, None)

    @decoding
    def keep(self, entry: Entry, now: int) -> int:
        """Keep the open reservations of an entry that leaves the journal for the next one; return how many.

        Those that have expired are forgotten, so that memory never holds more of them than the journal.
        """
        number, rows, before = entry.number, self._rows, len(self._kept)
        if any(rows.get(reservation_id) == number for reservation_id in entry.opened):
            numbers = entry.taken
            for reservation_id, start in zip(entry.opened, offsets(numbers, _HEAD), strict=True):
                if rows.get(reservation_id) != number:
                    continue
                if now < numbers[start] <= now + MAX_TTL_MICROSECONDS:
                    head, taken = record(numbers, start, _HEAD)
                    self._kept.append((reservation_id, (*head, *taken)))
                else:
                    del rows[reservation_id]
                    self._known.pop(reservation_id, None)
        return len(self._kept) - before

    def write(self, entry: Entry) -> None:
        """Put into ``entry`` the new, the removed and the kept reservations, first the first to expire."""
        opened, taken = entry.opened, list[float]()
        new = sorted(self._opened.items(), key=_expires)
        if self._kept:
            numbers = [*self._kept, *((reservation_id, _numbers(each)) for reservation_id, each in new)]
            for reservation_id, each in sorted(numbers, key=_first_number):
                opened.append(reservation_id)
                taken += each
        else:
            for reservation_id, reservation in new:
                opened.append(reservation_id)
                taken += _numbers(reservation)
        entry.taken, entry.closed = taken, self._closed
        if opened:
            self._rows.update(dict.fromkeys(opened, entry.number))
            self._due[entry.number] = taken[0]
        self._opened.clear()
        self._closed, self._kept = [], []

    def set_back(self, now: int) -> None:
        """Let none that was made here last longer because the clock was set back."""
        for reservation in self._known.values():
            if reservation.made > now:
                reservation.expires += now - reservation.made
                reservation.made = now

    def sweep(self, now: int) -> bool:
        """Forget expired reservations, a bounded number at a time; return whether there may be more."""
        unchecked, first = self._unchecked, self._journal.first
        if not unchecked:
            self._let_leave(now)
            unchecked.extend(self._rows)
        for key in unchecked[-_SWEEP_AT_ONCE:]:
            if self._rows.get(key, first) < first:  # another process did not keep it
                del self._rows[key]
                self._known.pop(key, None)
            elif key in self._known and self._known[key].expires <= now:
                del self._known[key]
        del unchecked[-_SWEEP_AT_ONCE:]
        return bool(unchecked)

    def _let_leave(self, now: int) -> None:
        """Let the rows that have expired reservations leave the journal."""
        # What expires after the longest time was made before the clock was set back.
        first = self._journal.first
        self._due = {number: due for number, due in self._due.items() if number >= first}
        still_open = set(self._rows.values())
        ended = [number for number, due in self._due.items() if not now < due <= now + MAX_TTL_MICROSECONDS]
        self._journal.let_leave(max(still_open.intersection(ended), default=0))

    @decoding
    def _read(self, reservation_id: str, number: int) -> Reservation | None:
        entry = self._journal.find(number)
        place = entry.opened.index(reservation_id)
        (expires, row_id, kinds, _), taken = split(entry.taken, _HEAD)[place]
        row = self._ledgers.find(int(row_id))
        if row is None:  # deleted, because everything had been back for a day
            return None
        requests, tokens, *marks = map(int, taken)
        present = {each.kind: each for each in row.ledgers.values()}
        ledgers = tuple(present.get(kind) or _replaced(kind, row) for kind in kinds_of(int(kinds)))
        quotas = RowQuotaSet(row, ledgers)
        return Reservation(int(expires), Demand(requests, tokens), quotas, marks)


def _expires(item: tuple[str, Reservation]) -> int:
    return item[1].expires


def _first_number(item: tuple[str, Sequence[float]]) -> float:
    return item[1][0]


def _numbers(reservation: Reservation) -> Sequence[float]:
    quotas, demand, marks = reservation.quotas, reservation.demand, reservation.marks
    head = reservation.expires, quotas.row.id or 0, quotas.kinds, 2 + len(marks)
    return *head, demand.requests, demand.tokens, *marks


def _replaced(kind: Kind, row: LedgerRow) -> StoredLedger:
    """Return a ledger of a kind that a row does not have any more."""
    metric, refill = kind
    replaced = StoredLedger(Quota(metric, 0, refill), 0)
    if metric in row.ledgers:
        replaced.ledger.successor = row.ledgers[metric].ledger
    return replaced

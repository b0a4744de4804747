"""The ledgers of a database file: read from rows of the table ``ledgers``, and written back when they change.

All ledgers of one (provider, project, model) share a row, because a request takes from all of them or from
none.
"""

from __future__ import annotations

import json
from array import array
from typing import TYPE_CHECKING, Any

from llm_router.domain.calendar import NEVER
from llm_router.domain.deployment import Scope
from llm_router.domain.quota import MINUTE, PROVIDER_TIMEZONE, Metric, Quota, Refill
from llm_router.stores.ledger import Ledger, QuotaLedger, QuotaSet, carry_over, make_ledger
from llm_router.stores.sqlite.faults import decoding
from llm_router.stores.sqlite.numbers import Kind, kinds_of, number_of, offsets, pack, record, split, unpack

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from llm_router.stores.sqlite.journal import Entry

__all__ = ["LedgerRow", "LedgerTable", "RowQuotaSet", "StoredLedger"]

_EMPTY: dict[Refill, Sequence[float]] = {
    Refill.ROLLING: (),
    Refill.STEADY: (0.0, 0, 0),
    Refill.DAILY: (0, 0, 0, 0),
}

_TERMS_EVERY = 60_000_000
"""Microseconds between two updates of ``rests_at`` and ``terms`` if only the ledgers change; of the two only
``rests_at`` changes with them, and only the sweep of the next day reads it."""

_HEAD = 3
"""Numbers before a state in the journal: id of the row, kinds, and how many numbers follow."""

_SELECT = "SELECT id, terms, kinds, state FROM ledgers WHERE scope = ?"
_SELECT_SCOPE = "SELECT scope FROM ledgers WHERE id = ?"
_SELECT_RESTED = "SELECT id FROM ledgers WHERE rests_at <= ? LIMIT ?"
_INSERT = "INSERT INTO ledgers (scope, rests_at, terms, kinds, state) VALUES (?, 0, '[]', 0, x'')"
_UPDATE = "UPDATE ledgers SET kinds = ?, state = ? WHERE id = ?"
_UPDATE_TERMS = "UPDATE ledgers SET rests_at = ?, terms = ? WHERE id = ?"
_DELETE = "DELETE FROM ledgers WHERE id = ?"


def _quota(
    metric: Metric, limit: int, refill: Refill, window: float, guard: float, burst: int | None, timezone: str
) -> Quota:
    """Return a quota without what means nothing under its refill, which earlier versions accepted."""
    daily, steady = refill is Refill.DAILY, refill is Refill.STEADY
    return Quota(
        metric,
        limit,
        refill,
        window=MINUTE if daily else window,
        guard=guard,
        burst=min(burst, max(limit, 1)) if burst is not None and steady else None,
        timezone=timezone if daily else PROVIDER_TIMEZONE,
    )


class StoredLedger(QuotaLedger):
    """A quota with its ledger that is stored in the file."""

    __slots__ = ()

    def __init__(self, quota: Quota, limit: int) -> None:
        super().__init__(quota, make_ledger(quota, limit))

    @property
    def kind(self) -> Kind:
        """The metric and the way it refills."""
        return self.quota.metric, self.quota.refill

    @property
    def terms(self) -> list[Any]:
        """What a process that does not know the deployment needs to know about the quota."""
        quota = self.quota
        data = quota.metric, quota.refill, quota.limit, quota.window, quota.guard, quota.burst, quota.timezone
        return [*data, self.ledger.limit]


class LedgerRow:
    """The ledgers of one (provider, project, model), which share a row.

    Attributes:
        ledgers: In the order in which they are written.
        kinds: Their kinds, as one number.
        changed: Whether they must be written back.
        id: The id of the row, or None while the file has no such row.
        stale: Whether another process has written something that has not been read yet.
        terms_due: When to update the terms of the row.
        version: Increases whenever one of them is reconfigured or replaced.
    """

    __slots__ = ("changed", "id", "kinds", "ledgers", "scope", "stale", "terms_due", "version")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.ledgers: dict[Metric, StoredLedger] = {}
        self.kinds = 0
        self.changed = False
        self.stale = True
        self.version = 0
        self.id: int | None = None
        self.terms_due = 0

    def configure(self, now: int, quota: Quota, limit: int, limit_expires: int) -> StoredLedger:
        """Return the ledger of a quota, under the limit now in force and with what was taken before."""
        present = self.ledgers.get(quota.metric)
        if present is None or present.quota != quota or present.ledger.limit != limit:
            self.version += 1
            self.terms_due = 0
            if present is None or present.quota.refill is not quota.refill:
                before, present = present, self._open(quota, limit)
                if before is not None:
                    carry_over(before.ledger, present.ledger, quota, now)
            else:
                present.quota = quota
                present.ledger.configure(quota, limit)
        present.limit_expires = limit_expires
        return present

    def has_all(self, kinds: int) -> bool:
        """Return whether there is a ledger for each metric, whatever its refill."""
        return kinds == self.kinds or all(metric in self.ledgers for metric, _ in kinds_of(kinds))

    def add_missing(self, terms: str) -> None:
        """Add ledgers for quotas that the deployments of this process do not have."""
        for metric, refill, configured, window, guard, burst, timezone, limit in json.loads(terms):
            if metric not in self.ledgers:
                self.version += 1
                quota = _quota(Metric(metric), configured, Refill(refill), window, guard, burst, timezone)
                self._open(quota, limit)

    def load(self, kinds: int, state: Sequence[float], now: int) -> None:
        """Replace the state of all ledgers with what is in the file."""
        dumps = [dump for _, dump in split(state, 1)]
        written: dict[Kind, Sequence[float]] = {}
        if kinds != self.kinds:
            written = dict(zip(kinds_of(kinds), dumps, strict=True))
            dumps = [written.get(each.kind, _EMPTY[each.quota.refill]) for each in self.ledgers.values()]
            self.terms_due = 0
        for each, dump in zip(self.ledgers.values(), dumps, strict=True):
            each.ledger.load(dump)
        for (metric, refill), dump in written.items():
            each = self.ledgers[metric]
            if each.quota.refill is not refill:  # from a process that is configured differently
                # How it is configured there is not known; with the least burst it drains the fastest.
                quota = each.quota
                old = make_ledger(
                    _quota(metric, quota.limit, refill, quota.window, quota.guard, 1, quota.timezone)
                )
                old.load(dump)
                self._replace(each, old, now)

    def _replace(self, each: StoredLedger, old: Ledger, now: int) -> None:
        """Go on with a new ledger that counts what one of another kind does, without the marks of before."""
        replaced, each.ledger = each.ledger, make_ledger(each.quota, each.ledger.limit)
        carry_over(old, each.ledger, each.quota, now)
        replaced.successor = each.ledger
        self.version += 1

    def dump(self) -> array[float]:
        """Return the state of all ledgers: the dump of each, preceded by its length."""
        numbers = array("d")
        for each in self.ledgers.values():
            dump = each.ledger.dump()
            numbers.append(len(dump))
            numbers.extend(dump)
        return numbers

    def dump_terms(self, now: int) -> tuple[int, str, int | None]:
        """Return when everything will be back, the terms, and the id."""
        ledgers = self.ledgers.values()
        rests_at = max((each.ledger.resets_at(now) for each in ledgers), default=now)
        return min(rests_at, NEVER), json.dumps([each.terms for each in ledgers]), self.id

    def _open(self, quota: Quota, limit: int) -> StoredLedger:
        opened = self.ledgers[quota.metric] = StoredLedger(quota, limit)
        self.kinds = number_of(each.kind for each in self.ledgers.values())
        return opened


class RowQuotaSet(QuotaSet):
    """A quota set whose ledgers share a row.

    Attributes:
        row: Where they come from.
        kinds: Their kinds, as one number.
    """

    __slots__ = ("kinds", "row")

    def __init__(self, row: LedgerRow, ledgers: tuple[StoredLedger, ...], valid_until: int = NEVER) -> None:
        super().__init__(ledgers, valid_until, row.version)
        self.row = row
        self.kinds = number_of(each.kind for each in ledgers)


class LedgerTable:
    """The rows that a connection has in memory. Each is read when it is first needed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.now = 0  # the time of the transaction
        self._connection = connection
        self._rows: dict[Scope, LedgerRow] = {}
        self._by_id: dict[int, LedgerRow] = {}
        self._missing: list[LedgerRow] = []  # not in the file; another connection may insert them
        self._changed: list[LedgerRow] = []
        self._unread: dict[int, tuple[Sequence[float], int]] = {}  # where others wrote what is not read yet
        self._newest: dict[int, int] = {}  # the last row of the journal that mentions a row of ledgers

    def row(self, scope: Scope) -> LedgerRow:
        """Return the ledgers of a scope, as they are in the file."""
        row = self._rows.get(scope)
        if row is None:
            row = self._rows[scope] = LedgerRow(scope)
        if row.stale:
            self.refresh(row)
        return row

    def find(self, row_id: int) -> LedgerRow | None:
        """Return the row with an id, or None if there is no such row."""
        row = self._by_id.get(row_id)
        if row is not None:
            return row
        found = self._connection.execute(_SELECT_SCOPE, (row_id,)).fetchone()
        return self.row(Scope(found[0])) if found is not None else None

    @decoding
    def refresh(self, row: LedgerRow) -> None:
        """Load what other connections have written since the last time."""
        found = self._unread_of(row)
        if found is None or not row.has_all(found[0]):
            found = self._read(row)
        if row.id is not None:
            self._unread.pop(row.id, None)
        row.load(*found, self.now)
        row.stale = False

    def _read(self, row: LedgerRow) -> tuple[int, Sequence[float]]:
        """Read a row from the table; return its kinds and state, from the journal if that has newer ones."""
        found = self._connection.execute(_SELECT, (row.scope,)).fetchone()
        if found is None:
            row.id = None
            self._missing.append(row)
            return 0, ()
        row.id, terms, kinds, state = found
        self._by_id[row.id] = row
        row.add_missing(terms)
        return self._unread_of(row) or (kinds, unpack(state))

    def _unread_of(self, row: LedgerRow) -> tuple[int, Sequence[float]] | None:
        unread = self._unread.get(row.id) if row.id is not None else None
        if unread is None:
            return None
        (_, kinds, _), state = record(*unread, _HEAD)
        return int(kinds), state

    def change(self, row: LedgerRow) -> None:
        """Prepare a row for a change: it is up to date, has an id, and will be written."""
        if row.changed:
            return
        if row.stale:
            self.refresh(row)
        row.changed = True
        self._changed.append(row)
        if row.id is None:
            row.id = self._connection.execute(_INSERT, (row.scope,)).lastrowid or 0
            self._by_id[row.id] = row

    @decoding
    def note(self, entry: Entry) -> None:
        """Remember where another connection has written ledgers."""
        while self._missing:
            row = self._missing.pop()
            row.stale = row.id is None
        numbers = entry.ledgers
        for start in offsets(numbers, _HEAD):
            row_id = int(numbers[start])
            self._newest[row_id] = entry.number
            self._unread[row_id] = numbers, start
            known = self._by_id.get(row_id)
            if known is not None:
                known.stale = True

    def write(self, entry: Entry, now: int) -> None:
        """Put the changed ledgers into ``entry``."""
        numbers = array("d")
        terms = []
        for row in self._changed:
            row.changed = False
            row_id, state = row.id or 0, row.dump()
            numbers.extend((row_id, row.kinds, len(state)))
            numbers.extend(state)
            self._newest[row_id] = entry.number
            if not now < row.terms_due <= now + _TERMS_EVERY:
                row.terms_due = now + _TERMS_EVERY
                terms.append(row.dump_terms(now))
        if terms:
            self._connection.executemany(_UPDATE_TERMS, terms)
        self._changed.clear()
        entry.ledgers = numbers

    @decoding
    def store(self, entry: Entry) -> None:
        """Write the ledgers of an entry that leaves the journal to the table, unless a newer one has them."""
        updates = []
        numbers = entry.ledgers
        for start in offsets(numbers, _HEAD):
            row_id = int(numbers[start])
            if self._newest.get(row_id) == entry.number:
                (_, kinds, _), state = record(numbers, start, _HEAD)
                del self._newest[row_id]
                self._unread.pop(row_id, None)
                updates.append((int(kinds), pack(state), row_id))
        self._connection.executemany(_UPDATE, updates)

    def _postpone(self, row_id: int, before: int) -> bool:
        """Return whether a row is in use after ``before``, since more was settled; note until when."""
        row = self.find(row_id)
        if row is None:
            return False
        if row.stale:
            self.refresh(row)
        rests_at, terms, _ = row.dump_terms(before)
        if rests_at > before:
            self._connection.execute(_UPDATE_TERMS, (rests_at, terms, row_id))
        return rests_at > before

    def sweep(self, before: int, most: int) -> int:
        """Delete at most ``most`` rows that have been unused since ``before``; return how many."""
        found = self._connection.execute(_SELECT_RESTED, (before, most)).fetchall()
        found = [(row_id,) for (row_id,) in found if not self._postpone(row_id, before)]
        self._connection.executemany(_DELETE, found)
        for (row_id,) in found:
            self._newest.pop(row_id, None)
            self._unread.pop(row_id, None)
            row = self._by_id.pop(row_id, None)
            if row is not None:
                row.id, row.stale = None, True
        return len(found)

"""The ledgers of a database file: rows in, ledgers out, and what changed back in.

All ledgers of one (provider, project, model) share a row, as they share their fate: a request takes from all
of them or from none.
"""

from __future__ import annotations

import json
from array import array
from typing import TYPE_CHECKING, Any

from llm_router.domain.calendar import NEVER
from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Metric, Quota, Refill
from llm_router.stores.ledger import Book, Shelf, make_ledger
from llm_router.stores.sqlite.faults import decoding
from llm_router.stores.sqlite.numbers import Kind, kinds_of, number_of, offsets, pack, record, split, unpack

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from llm_router.stores.sqlite.journal import Entry

__all__ = ["Account", "Accounts", "Folder", "FolderShelf"]

_EMPTY: dict[Refill, Sequence[float]] = {
    Refill.ROLLING: (),
    Refill.STEADY: (0.0, 0, 0),
    Refill.DAILY: (0, 0, 0, 0),
}

_REST_EVERY = 60_000_000
"""Microseconds between two updates of ``rests_at``, which only the sweep of the next day looks at."""

_HEAD = 3
"""Numbers before a state in the journal: row of ledgers, kinds, and how many follow."""

_SELECT = "SELECT id, terms, kinds, state FROM ledgers WHERE scope = ?"
_SELECT_SCOPE = "SELECT scope FROM ledgers WHERE id = ?"
_SELECT_RESTED = "SELECT id FROM ledgers WHERE rests_at <= ? LIMIT ?"
_INSERT = "INSERT INTO ledgers (scope, rests_at, terms, kinds, state) VALUES (?, 0, '[]', 0, x'')"
_UPDATE = "UPDATE ledgers SET kinds = ?, state = ? WHERE id = ?"
_UPDATE_REST = "UPDATE ledgers SET rests_at = ?, terms = ? WHERE id = ?"
_DELETE = "DELETE FROM ledgers WHERE id = ?"


class Account(Book):
    """A book that is written to the file."""

    __slots__ = ()

    def __init__(self, quota: Quota, limit: int) -> None:
        super().__init__(quota, make_ledger(quota, limit))

    @property
    def kind(self) -> Kind:
        """The metric and the way it comes back."""
        return self.quota.metric, self.quota.refill

    @property
    def terms(self) -> list[Any]:
        """What a process that does not know the deployment has to know of the quota."""
        quota = self.quota
        told = quota.metric, quota.refill, quota.limit, quota.window, quota.guard, quota.burst, quota.timezone
        return [*told, self.ledger.limit]


class Folder:
    """The accounts of one (provider, project, model): a row.

    Attributes:
        accounts: In the order in which they are written.
        kinds: Their kinds, as a number.
        changed: Whether they are to be written back.
        contested: Whether another process, under another configuration, has refill differ from ours.
        id: The row's, or None if there is no row.
        stale: Whether another process has written what is not read yet.
        rest_due: When to write the rest of the row.
        version: Rises whenever one of them goes on under other limits, or is replaced.
    """

    __slots__ = ("accounts", "changed", "contested", "id", "kinds", "rest_due", "scope", "stale", "version")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.accounts: dict[Metric, Account] = {}
        self.kinds = 0
        self.changed = False
        self.contested = False
        self.stale = True
        self.version = 0
        self.id: int | None = None
        self.rest_due = 0

    def configure(self, quota: Quota, limit: int, holds_until: int) -> Account:
        """Return the account of a quota, under the limit that holds now and with what was taken before."""
        account = self.accounts.get(quota.metric)
        if account is None or account.quota != quota or account.ledger.limit != limit:
            self.version += 1
            self.rest_due = 0
            if account is None or account.quota.refill is not quota.refill:
                account = self._open(quota, limit)
            else:
                account.quota = quota
                account.ledger.configure(quota, limit)
        account.holds_until = holds_until
        return account

    def knows(self, kinds: int) -> bool:
        """Tell whether there is an account for each metric, of whatever refill."""
        return kinds == self.kinds or all(metric in self.accounts for metric, _ in kinds_of(kinds))

    def learn(self, terms: str) -> None:
        """Open accounts for quotas that the deployments of this process do not have."""
        for metric, refill, configured, window, guard, burst, timezone, limit in json.loads(terms):
            if metric not in self.accounts:
                self.version += 1
                quota = Quota(Metric(metric), configured, Refill(refill), window, guard, burst, timezone)
                self._open(quota, limit)

    def load(self, kinds: int, state: Sequence[float]) -> None:
        """Take over what was written."""
        dumps = [dump for _, dump in split(state, 1)]
        self.contested = False
        if kinds != self.kinds:
            written = dict(zip(kinds_of(kinds), dumps, strict=True))
            dumps = [
                written.get(account.kind, _EMPTY[account.quota.refill]) for account in self.accounts.values()
            ]
            self.contested = any(
                self.accounts[metric].quota.refill is not refill for metric, refill in written
            )
            self.rest_due = 0
        for account, dump in zip(self.accounts.values(), dumps, strict=True):
            account.ledger.load(dump)

    def dump(self) -> array[float]:
        """Return the state of all accounts: what each ledger dumps, after its length."""
        numbers = array("d")
        for account in self.accounts.values():
            dump = account.ledger.dump()
            numbers.append(len(dump))
            numbers.extend(dump)
        return numbers

    def rest(self, now: int) -> tuple[int, str, int | None]:
        """Return what else the row holds: when all is as good as new, and the terms."""
        accounts = self.accounts.values()
        rests_at = max((account.ledger.resets_at(now) for account in accounts), default=now)
        return rests_at, json.dumps([account.terms for account in accounts]), self.id

    def _open(self, quota: Quota, limit: int) -> Account:
        account = self.accounts[quota.metric] = Account(quota, limit)
        self.kinds = number_of(account.kind for account in self.accounts.values())
        return account


class FolderShelf(Shelf):
    """A shelf with accounts of one folder.

    Attributes:
        folder: Where they come from.
        kinds: Their kinds, as a number.
    """

    __slots__ = ("folder", "kinds")

    def __init__(self, folder: Folder, accounts: tuple[Account, ...], valid_until: int = NEVER) -> None:
        super().__init__(accounts, valid_until, folder.version)
        self.folder = folder
        self.kinds = number_of(account.kind for account in accounts)


class Accounts:
    """The folders that a connection has in memory. They are read when they are first wanted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._folders: dict[Scope, Folder] = {}
        self._by_id: dict[int, Folder] = {}
        self._rowless: list[Folder] = []  # others may make their row
        self._changed: list[Folder] = []
        self._told: dict[int, tuple[Sequence[float], int]] = {}  # where others wrote what is not read yet
        self._newest: dict[int, int] = {}  # the last row of the journal that tells of a folder

    def folder(self, scope: Scope) -> Folder:
        """Return the accounts of a scope, as they are in the file."""
        folder = self._folders.get(scope)
        if folder is None:
            folder = self._folders[scope] = Folder(scope)
        if folder.stale:
            self.refresh(folder)
        return folder

    def find(self, folder_id: int) -> Folder | None:
        """Return the accounts in the row of an id, or None if there is no such row."""
        folder = self._by_id.get(folder_id)
        if folder is not None:
            return folder
        row = self._connection.execute(_SELECT_SCOPE, (folder_id,)).fetchone()
        return self.folder(Scope(row[0])) if row is not None else None

    @decoding
    def refresh(self, folder: Folder) -> None:
        """Take over what other connections have written since the last time."""
        found = self._told_of(folder)
        if found is None or not folder.knows(found[0]):
            found = self._read(folder)
        if folder.id is not None:
            self._told.pop(folder.id, None)
        folder.load(*found)
        folder.stale = False

    def _read(self, folder: Folder) -> tuple[int, Sequence[float]]:
        """Read the row of a folder; return the kinds and the state, which may be newer than the row's."""
        row = self._connection.execute(_SELECT, (folder.scope,)).fetchone()
        if row is None:
            folder.id = None
            self._rowless.append(folder)
            return 0, ()
        folder.id, terms, kinds, state = row
        self._by_id[folder.id] = folder
        folder.learn(terms)
        return self._told_of(folder) or (kinds, unpack(state))

    def _told_of(self, folder: Folder) -> tuple[int, Sequence[float]] | None:
        told = self._told.get(folder.id) if folder.id is not None else None
        if told is None:
            return None
        (_, kinds, _), state = record(*told, _HEAD)
        return int(kinds), state

    def change(self, folder: Folder) -> None:
        """Prepare a folder for a change: it is up to date, has a row, and will be written."""
        if folder.changed:
            return
        if folder.stale:
            self.refresh(folder)
        folder.changed = True
        self._changed.append(folder)
        if folder.id is None:
            folder.id = self._connection.execute(_INSERT, (folder.scope,)).lastrowid or 0
            self._by_id[folder.id] = folder

    def is_ours(self, folder: Folder) -> bool:
        """Tell whether the file still counts as our configuration says, so that marks mean something."""
        if folder.stale:
            self.refresh(folder)
        return not folder.contested

    @decoding
    def learn(self, entry: Entry) -> None:
        """Take note of what another connection has written."""
        while self._rowless:
            folder = self._rowless.pop()
            folder.stale = folder.id is None
        numbers = entry.ledgers
        for start in offsets(numbers, _HEAD):
            folder_id = int(numbers[start])
            self._newest[folder_id] = entry.number
            self._told[folder_id] = numbers, start
            known = self._by_id.get(folder_id)
            if known is not None:
                known.stale = True

    def write(self, entry: Entry, now: int) -> None:
        """Say in ``entry`` what changed."""
        numbers = array("d")
        rest = []
        for folder in self._changed:
            folder.changed = folder.contested = False
            folder_id, state = folder.id or 0, folder.dump()
            numbers.extend((folder_id, folder.kinds, len(state)))
            numbers.extend(state)
            self._newest[folder_id] = entry.number
            if now >= folder.rest_due:
                folder.rest_due = now + _REST_EVERY
                rest.append(folder.rest(now))
        if rest:
            self._connection.executemany(_UPDATE_REST, rest)
        self._changed.clear()
        entry.ledgers = numbers

    @decoding
    def store(self, entry: Entry) -> None:
        """Move into the table what an entry that leaves the journal says, as far as no newer one does."""
        rows = []
        numbers = entry.ledgers
        for start in offsets(numbers, _HEAD):
            folder_id = int(numbers[start])
            if self._newest.get(folder_id) == entry.number:
                (_, kinds, _), state = record(numbers, start, _HEAD)
                del self._newest[folder_id]
                self._told.pop(folder_id, None)
                rows.append((int(kinds), pack(state), folder_id))
        self._connection.executemany(_UPDATE, rows)

    def sweep(self, before: int, most: int) -> int:
        """Delete rows that have been as good as new since ``before``; at most so many. Return how many."""
        rows = self._connection.execute(_SELECT_RESTED, (before, most)).fetchall()
        self._connection.executemany(_DELETE, rows)
        for (folder_id,) in rows:
            self._newest.pop(folder_id, None)
            self._told.pop(folder_id, None)
            folder = self._by_id.pop(folder_id, None)
            if folder is not None:
                folder.id, folder.stale = None, True
        return len(rows)

"""The ledgers of a database file: rows in, ledgers out, and what changed back in.

All ledgers of one (provider, project, model) share a row, as they share their fate: a request takes from all
of them or from none.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from llm_router.domain.quota import Metric, Quota, Refill
from llm_router.stores.ledger import NEVER, Ledger, make_ledger
from llm_router.stores.sqlite.faults import decoding

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from llm_router.domain.deployment import Scope

__all__ = ["Account", "Accounts", "Folder", "Shelf"]

_EMPTY: dict[Refill, Sequence[float]] = {
    Refill.ROLLING: (),
    Refill.STEADY: (0.0, 0, 0),
    Refill.DAILY: (0, 0, 0, 0),
}

_REST_EVERY = 60_000_000
"""Microseconds between two updates of ``rests_at``, which only the sweep of the next day looks at."""

_SELECT = "SELECT id, terms, state FROM ledgers WHERE scope = ?"
_INSERT = "INSERT INTO ledgers (scope, rests_at, terms, state) VALUES (?, 0, '[]', x'')"
_UPDATE = "UPDATE ledgers SET state = ? WHERE id = ?"
_UPDATE_REST = "UPDATE ledgers SET rests_at = ?, terms = ? WHERE id = ?"
_SWEEP = "DELETE FROM ledgers WHERE id IN (SELECT id FROM ledgers WHERE rests_at <= ? LIMIT ?)"


class Account:
    """A quota with its ledger, as the deployments of one (provider, project, model) share it.

    Attributes:
        holds_until: When its limit ends, where that is a learnt one; in microseconds since the epoch.
    """

    __slots__ = ("daily", "folder", "holds_until", "ledger", "metric", "quota", "tokens")

    def __init__(self, folder: Folder, quota: Quota, limit: int) -> None:
        self.folder = folder
        self.metric = quota.metric
        self.tokens = quota.metric.counts_tokens
        self.daily = quota.refill is Refill.DAILY
        self.quota = quota
        self.holds_until = NEVER
        self.ledger: Ledger = make_ledger(quota, limit)

    @property
    def kind(self) -> str:
        """The metric and the way it comes back: what must agree for a mark or a dump to mean the same."""
        return f"{self.metric.value}/{self.quota.refill.value}"

    @property
    def terms(self) -> list[Any]:
        """What a process that does not know the deployment has to know of the quota."""
        quota = self.quota
        told = quota.metric, quota.refill, quota.limit, quota.window, quota.guard, quota.burst, quota.timezone
        return [*told, self.ledger.limit]


class Folder:
    """The accounts of one (provider, project, model): a row.

    Attributes:
        accounts: In the order in which the row has them.
        changed: Whether they are to be written back.
        contested: Whether another process, under another configuration, has refill differ from ours.
        epoch: In which epoch they were last compared with the file.
        version: Rises whenever one of them goes on under other limits, or is replaced.
    """

    __slots__ = ("accounts", "changed", "contested", "epoch", "id", "rest_due", "saved", "scope", "version")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.accounts: dict[Metric, Account] = {}
        self.changed = False
        self.contested = False
        self.epoch = -1
        self.version = 0
        self.id: int | None = None
        self.saved = b""  # its state, as it was read or written last
        self.rest_due = 0  # when to write the rest of the row

    def configure(self, quota: Quota, limit: int, holds_until: int) -> Account:
        """Return the account of a quota, under the limit that holds now and with what was taken before."""
        account = self.accounts.get(quota.metric)
        if account is None or account.quota != quota or account.ledger.limit != limit:
            self.version += 1
            self.rest_due = 0
            if account is None or account.quota.refill is not quota.refill:
                account = self.accounts[quota.metric] = Account(self, quota, limit)
            else:
                account.quota = quota
                account.ledger.configure(quota, limit)
        account.holds_until = holds_until
        return account

    def read(self, row: tuple[int, str, bytes] | None) -> None:
        """Take over the row, unless it is what was read or written last; None for a row that is gone."""
        row_id, terms, state = row or (None, "[]", b"")
        if row_id == self.id and state == self.saved:
            return
        self.id, self.saved = row_id, state
        row_terms = json.loads(terms)
        fresh = set(self.accounts)
        for its_terms, its_state in zip(row_terms, _unpack(state), strict=True):
            account = self._account(its_terms)
            if account.quota.refill == its_terms[1]:  # otherwise its numbers mean something else
                account.ledger.load(its_state)
                fresh.discard(account.metric)
        for metric in fresh:
            account = self.accounts[metric]
            account.ledger.load(_EMPTY[account.quota.refill])
        self.contested = any(
            self.accounts[its_terms[0]].quota.refill != its_terms[1] for its_terms in row_terms
        )
        present = [[account.metric, account.quota.refill] for account in self.accounts.values()]
        if present != [its_terms[:2] for its_terms in row_terms]:
            self.rest_due = 0

    def dump(self) -> bytes:
        """Return the state of all accounts."""
        return _pack(account.ledger.dump() for account in self.accounts.values())

    def rest(self, now: int) -> tuple[int, str, int | None]:
        """Return what else the row holds: when all is as good as new, and the terms."""
        accounts = self.accounts.values()
        rests_at = max((account.ledger.resets_at(now) for account in accounts), default=now)
        return rests_at, json.dumps([account.terms for account in accounts]), self.id

    def _account(self, terms: list[Any]) -> Account:
        metric, refill, configured, window, guard, burst, timezone, limit = terms
        account = self.accounts.get(metric)
        if account is None:
            self.version += 1
            quota = Quota(Metric(metric), configured, Refill(refill), window, guard, burst, timezone)
            account = self.accounts[quota.metric] = Account(self, quota, limit)
        return account


class Shelf:
    """The accounts of one deployment, or of one reservation, looked up once.

    Attributes:
        folder: Where they come from.
        accounts: The accounts.
        kinds: Their kinds, with a space between them.
    """

    __slots__ = ("_rows", "accounts", "folder", "kinds", "valid_until", "version")

    def __init__(self, folder: Folder, accounts: tuple[Account, ...], valid_until: int = NEVER) -> None:
        self.folder = folder
        self.accounts = accounts
        self.kinds = " ".join(account.kind for account in accounts)
        self.valid_until = valid_until
        self.version = folder.version
        self._rows = tuple((account.tokens, account.daily, account.ledger) for account in accounts)

    def fits(self, requests: int, tokens: int, now: int) -> bool:
        """Tell whether every quota has room now."""
        for counts_tokens, _, ledger in self._rows:
            amount = tokens if counts_tokens else requests
            if amount and ledger.room_at(amount, now) != now:
                return False
        return True

    def take(self, requests: int, tokens: int, now: int) -> tuple[list[int], float, float]:
        """Take what fits; return the marks, and the shares that remain of the other and the daily quotas."""
        marks = []
        headroom = daily_headroom = 1.0
        for counts_tokens, daily, ledger in self._rows:
            amount = tokens if counts_tokens else requests
            marks.append(ledger.take(amount, now))
            used = ledger.taken if amount else ledger.used(now)
            limit = ledger.limit
            share = 1.0 - used / limit if used < limit else 0.0
            if daily:
                if share < daily_headroom:  # noqa: PLR1730 - three times as fast as min()
                    daily_headroom = share
            elif share < headroom:
                headroom = share
        return marks, headroom, daily_headroom

    def correct(self, marks: Sequence[int], requests: int, tokens: int, now: int) -> None:
        """Change what was taken at ``marks`` by so many requests and tokens."""
        for (counts_tokens, _, ledger), mark in zip(self._rows, marks, strict=True):
            change = tokens if counts_tokens else requests
            if change:
                ledger.correct(mark, change, now)


class Accounts:
    """The folders that a connection has in memory. They are read when they are first wanted in an epoch.

    Attributes:
        epoch: Rises whenever what is in memory may differ from what is in the file.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.epoch = 0
        self._connection = connection
        self._folders: dict[Scope, Folder] = {}
        self._changed: list[Folder] = []

    def folder(self, scope: Scope) -> Folder:
        """Return the accounts of a scope, as they are in the file."""
        folder = self._folders.get(scope)
        if folder is None:
            folder = self._folders[scope] = Folder(scope)
        if folder.epoch != self.epoch:
            self.refresh(folder)
        return folder

    @decoding
    def refresh(self, folder: Folder) -> None:
        """Take over what other connections have written since the last time."""
        folder.read(self._connection.execute(_SELECT, (folder.scope,)).fetchone())
        folder.epoch = self.epoch

    def change(self, folder: Folder) -> None:
        """Prepare a folder for a change: it is up to date, has a row, and will be saved."""
        if folder.changed:
            return
        if folder.epoch != self.epoch:
            self.refresh(folder)
        folder.changed = True
        self._changed.append(folder)
        if folder.id is None:
            folder.id = self._connection.execute(_INSERT, (folder.scope,)).lastrowid

    def is_ours(self, folder: Folder) -> bool:
        """Tell whether the file still counts as our configuration says, so that marks mean something."""
        if folder.epoch != self.epoch:
            self.refresh(folder)
        return not folder.contested

    def save(self, now: int) -> None:
        """Write back the folders that changed."""
        if not self._changed:
            return
        states, rest = [], []
        for folder in self._changed:
            folder.changed = folder.contested = False
            folder.saved = folder.dump()
            states.append((folder.saved, folder.id))
            if now >= folder.rest_due:
                folder.rest_due = now + _REST_EVERY
                rest.append(folder.rest(now))
        self._connection.executemany(_UPDATE, states)
        if rest:
            self._connection.executemany(_UPDATE_REST, rest)
        self._changed.clear()

    def sweep(self, before: int, most: int) -> int:
        """Delete rows that have been as good as new since ``before``; at most so many. Return how many."""
        count = self._connection.execute(_SWEEP, (before, most)).rowcount
        if count:
            self.epoch += 1
        return count


def _pack(dumps: Iterable[list[float]]) -> bytes:
    """Write the dumps of ledgers as doubles, each dump after its length.

    Whole numbers below 2**53, such as microseconds until the year 2255, are exact as doubles; and JSON takes
    six times as long to write, for every ledger of every request.
    """
    numbers: list[float] = []
    for dump in dumps:
        numbers.append(len(dump))
        numbers += dump
    return struct.pack(f"<{len(numbers)}d", *numbers)


def _unpack(state: bytes) -> Iterator[tuple[float, ...]]:
    numbers = struct.unpack(f"<{len(state) // 8}d", state)
    start = 0
    while start < len(numbers):
        end = start + 1 + int(numbers[start])
        if not start < end <= len(numbers):
            raise ValueError("the lengths of the dumps do not add up")
        yield numbers[start + 1 : end]
        start = end

"""What a store decides inside one transaction: the state of a database file, as one connection knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.calendar import NEVER, microseconds
from llm_router.domain.quota import Demand
from llm_router.stores.base import Decision, DeploymentSnapshot, Refusal
from llm_router.stores.ledger import terms_in_force
from llm_router.stores.sqlite.accounts import Accounts, FolderShelf
from llm_router.stores.sqlite.cooldowns import Cooldowns
from llm_router.stores.sqlite.journal import Entry, Journal
from llm_router.stores.sqlite.reservations import Reservation, Reservations

if TYPE_CHECKING:
    import sqlite3

    from llm_router.domain.cooldown import Cooldown
    from llm_router.domain.deployment import Deployment

__all__ = ["State"]

_MINUTE = 60_000_000
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

_SWEEP_AT_ONCE = 500
"""Rows deleted in one transaction at most, so that nobody's turn takes long."""

_MOST_SHELVES = 50_000
"""Deployment objects remembered; a router that is reloaded makes new ones. Forgetting them loses no count."""


class State:
    """The state behind a connection. Every method runs inside a transaction that holds the write lock.

    Between :meth:`begin` and :meth:`save`, what is in memory is ahead of the file. If the transaction fails
    in between, the whole object is of no use any more. ``now`` is in microseconds since the epoch.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._sweep_at = self._sweep_ledgers_at = 0
        self._ttl = 0.0, 0  # the last one, in seconds and in microseconds
        self._start_over()

    def _start_over(self) -> None:
        """Forget what is in memory; the file has it all."""
        self._journal = Journal(self._connection)
        self._accounts = Accounts(self._connection)
        self._reservations = Reservations(self._accounts, self._journal)
        self._cooldowns = Cooldowns(self._connection)
        self._shelves: dict[Deployment, FolderShelf] = {}

    def begin(self) -> None:
        """Learn what other connections have written since the last transaction."""
        entries = self._journal.read()
        if entries is None:
            self._start_over()
            entries = self._journal.read() or []
        for entry in entries:
            self._accounts.learn(entry)
            self._reservations.learn(entry)
        changed = not self._cooldowns.known or any(entry.cooldowns for entry in entries)
        if changed and self._cooldowns.refresh():
            self._shelves.clear()

    def save(self, now: int) -> None:
        """Write back what changed, and forget some of what is over."""
        entry = Entry(self._journal.number + 1)
        self._accounts.write(entry, now)
        self._shorten_journal(now)
        self._reservations.write(entry)
        self._cooldowns.write(entry)
        if entry:
            self._journal.append(entry)
        if now >= self._sweep_at:
            self._sweep(now)

    def _shorten_journal(self, now: int) -> None:
        """Find another place for what its oldest rows say, if it is too long."""
        opened = kept = 0
        for entry in self._journal.take_oldest():
            self._accounts.store(entry)
            opened += len(entry.opened)
            kept += self._reservations.keep(entry, now)
        if kept > opened / 2:
            self._journal.let_grow()

    # --- the operations -------------------------------------------------------------------------------

    def reserve(
        self, now: int, reservation_id: str, candidates: tuple[Deployment, ...], demand: Demand, ttl: float
    ) -> Decision:
        """Take ``demand`` from the first candidate with room; see :class:`RateLimitStore`."""
        refusals: tuple[Refusal, ...] = ()
        requests, tokens = demand.requests, demand.tokens
        for deployment in candidates:
            shelf = self._shelf(deployment, now)
            cooldown = self._cooldowns.latest(deployment, now)
            if cooldown is not None or not shelf.fits(requests, tokens, now):
                refusals += (shelf.refuse(deployment, cooldown, demand, now),)
                continue
            if not shelf.books:
                return Decision(deployment, refusals=refusals)  # nothing was taken: nothing is to be settled
            if not shelf.folder.changed:
                self._accounts.change(shelf.folder)
            marks, headroom, daily_headroom = shelf.take(requests, tokens, now)
            if ttl != self._ttl[0]:
                self._ttl = ttl, microseconds(ttl)
            self._reservations.add(reservation_id, Reservation(now + self._ttl[1], demand, shelf, marks))
            return Decision(deployment, headroom, daily_headroom, refusals)
        return Decision(None, 0.0, 0.0, refusals)

    def settle(self, now: int, reservation_id: str, used: Demand) -> None:
        """Correct a reservation to what was really used; see :class:`RateLimitStore`."""
        reservation = self._reservations.pop(reservation_id)
        if reservation is None or now >= reservation.expires:
            return
        requests = used.requests - reservation.demand.requests
        tokens = used.tokens - reservation.demand.tokens
        shelf = reservation.shelf
        if (requests or tokens) and self._accounts.is_ours(shelf.folder):
            self._accounts.change(shelf.folder)
            shelf.correct(reservation.marks, requests, tokens, now)

    def cool_down(self, now: int, cooldown: Cooldown) -> None:
        """Put a scope aside; see :class:`RateLimitStore`."""
        self._cooldowns.put(cooldown, now)
        if cooldown.learnt:
            self._shelves.clear()

    def snapshot(self, now: int, deployments: tuple[Deployment, ...]) -> list[DeploymentSnapshot]:
        """Tell the state of ``deployments``; see :class:`RateLimitStore`."""
        return [
            self._open(deployment, now).describe(deployment, self._cooldowns.latest(deployment, now), now)
            for deployment in deployments
        ]

    # --- finding the accounts -------------------------------------------------------------------------

    def _shelf(self, deployment: Deployment, now: int) -> FolderShelf:
        shelf = self._shelves.get(deployment)
        if shelf is None or now >= shelf.valid_until or shelf.version != shelf.folder.version:
            return self._open(deployment, now)
        if shelf.folder.stale:
            self._accounts.refresh(shelf.folder)
        return shelf

    def _open(self, deployment: Deployment, now: int) -> FolderShelf:
        """Find or open the accounts of a deployment under the limits that hold now."""
        folder = self._accounts.folder(deployment.model_scope)
        learnt = self._cooldowns.learnt_limits(folder.scope, now)
        accounts = tuple(folder.configure(*terms) for terms in terms_in_force(deployment, learnt))
        valid_until = min((until for _, until in learnt.values()), default=NEVER)
        if len(self._shelves) >= _MOST_SHELVES:
            self._shelves.clear()
        shelf = self._shelves[deployment] = FolderShelf(folder, accounts, valid_until)
        return shelf

    # --- forgetting -----------------------------------------------------------------------------------

    def _sweep(self, now: int) -> None:
        """Delete rows of no consequence, a bounded number at a time; come back at once if there are more."""
        self._reservations.sweep(now)
        self._cooldowns.sweep(now)
        self._sweep_at = now + _MINUTE
        if now >= self._sweep_ledgers_at:
            swept = self._accounts.sweep(now - _DAY, _SWEEP_AT_ONCE)
            if swept:  # the others must not go on with rows that are gone
                self._journal.append(Entry(self._journal.number + 2))
            more = swept == _SWEEP_AT_ONCE
            self._sweep_ledgers_at = now if more else now + _HOUR

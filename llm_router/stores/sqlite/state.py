"""What a store decides inside one transaction: the state of a database file, as one connection knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import Decision, DeploymentSnapshot, QuotaSnapshot, Refusal
from llm_router.stores.ledger import NEVER, microseconds, seconds
from llm_router.stores.sqlite.accounts import Account, Accounts, Shelf
from llm_router.stores.sqlite.cooldowns import Cooldowns
from llm_router.stores.sqlite.journal import Entry, Journal
from llm_router.stores.sqlite.reservations import Reservation, Reservations

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

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

_SMALLEST = Demand(1, 1)


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
        self._shelves: dict[Deployment, Shelf] = {}

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
            if self._cooldowns.present or not shelf.fits(requests, tokens, now):
                refusal = self._refuse(deployment, shelf, demand, now)
                if refusal is not None:
                    refusals += (refusal,)
                    continue
            if not shelf.accounts:
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
        return [self._describe(deployment, now) for deployment in deployments]

    # --- deciding -------------------------------------------------------------------------------------

    def _refuse(self, deployment: Deployment, shelf: Shelf, demand: Demand, now: int) -> Refusal | None:
        """Return None if ``demand`` fits; else when it will, and what is in the way the longest."""
        retry_at, reason = self._room_at(deployment, shelf.accounts, demand, now)
        if retry_at <= now:
            return None
        wake_at, _ = self._room_at(deployment, shelf.accounts, _SMALLEST, now)
        return Refusal(deployment, reason, seconds(retry_at), seconds(min(wake_at, retry_at)))

    def _room_at(
        self, deployment: Deployment, accounts: tuple[Account, ...], demand: Demand, now: int
    ) -> tuple[int, str]:
        """Return ``now`` if ``demand`` fits; else the moment it will, and what is in the way the longest."""
        latest, reason = now, ""
        cooldown = self._cooldowns.latest(deployment, now)
        if cooldown is not None:
            latest, reason = microseconds(cooldown.until), cooldown.reason
        for account in accounts:
            amount = demand.tokens if account.tokens else demand.requests
            if amount:
                room_at = account.ledger.room_at(amount, now)
                if room_at > now:
                    room_at = min(room_at, account.holds_until)  # a learnt limit of 0 does not hold for ever
                    if room_at > latest:
                        latest, reason = room_at, account.metric.value
        return latest, reason

    def _describe(self, deployment: Deployment, now: int) -> DeploymentSnapshot:
        quotas = []
        for account in self._open(deployment, now).accounts:
            ledger = account.ledger
            resets_at = seconds(ledger.resets_at(now))
            quotas.append(QuotaSnapshot(account.metric, ledger.limit, ledger.used(now), resets_at))
        return DeploymentSnapshot(deployment, tuple(quotas), self._cooldowns.latest(deployment, now))

    # --- finding the accounts -------------------------------------------------------------------------

    def _shelf(self, deployment: Deployment, now: int) -> Shelf:
        shelf = self._shelves.get(deployment)
        if shelf is None or now >= shelf.valid_until or shelf.version != shelf.folder.version:
            return self._open(deployment, now)
        if shelf.folder.stale:
            self._accounts.refresh(shelf.folder)
        return shelf

    def _open(self, deployment: Deployment, now: int) -> Shelf:
        """Find or open the accounts of a deployment under the limits that hold now."""
        folder = self._accounts.folder(deployment.model_scope)
        learnt = self._cooldowns.learnt_limits(folder.scope, now)
        accounts = tuple(folder.configure(*terms) for terms in _terms(deployment, learnt))
        valid_until = min((until for _, until in learnt.values()), default=NEVER)
        if len(self._shelves) >= _MOST_SHELVES:
            self._shelves.clear()
        shelf = self._shelves[deployment] = Shelf(folder, accounts, valid_until)
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


def _terms(deployment: Deployment, learnt: dict[Metric, tuple[int, int]]) -> Iterator[tuple[Quota, int, int]]:
    """Yield each quota of a deployment, its limit in force, and until when that is a learnt one."""
    configured = {quota.metric: quota for quota in deployment.quotas}
    for metric, quota in configured.items():
        limit, until = learnt.get(metric, (quota.limit, NEVER))
        yield (quota, limit, until) if limit < quota.limit else (quota, quota.limit, NEVER)
    for metric in Metric:
        if metric in learnt and metric not in configured:
            limit, until = learnt[metric]
            yield Quota(metric, limit, Refill.DAILY if metric.is_daily else Refill.ROLLING), limit, until

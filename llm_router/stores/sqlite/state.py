"""The decisions of a store inside one transaction, on what a connection knows of a database file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.calendar import NEVER, seconds
from llm_router.domain.quota import Demand
from llm_router.stores.base import RECOUNT, Decision, DeploymentSnapshot, Refusal
from llm_router.stores.ledger import lifetime, look, terms_in_force
from llm_router.stores.sqlite.cooldowns import Cooldowns
from llm_router.stores.sqlite.epoch import Epoch, Loss, read_epoch, settle_epoch, write_epoch
from llm_router.stores.sqlite.journal import Entry, Journal
from llm_router.stores.sqlite.ledger_table import LedgerTable, RowQuotaSet
from llm_router.stores.sqlite.reservations import Reservation, Reservations
from llm_router.stores.sqlite.sources import Sources

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from llm_router.domain.cooldown import Cooldown
    from llm_router.domain.deployment import Deployment, Scope
    from llm_router.stores.base import Standing, Taking

__all__ = ["State"]

_MINUTE = 60_000_000
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_RESERVATIONS_EVERY = 15_000_000

_SWEEP_AT_ONCE = 500
"""The most rows deleted in one transaction, so that no turn takes long."""

_MAX_QUOTA_SETS = 50_000
"""Deployment objects remembered; a reloaded router makes new ones. Forgetting them loses no count."""


class State:
    """The state behind a connection. Every method runs inside a transaction that holds the write lock.

    Attributes:
        epoch: The epoch of the file.

    Between :meth:`begin` and :meth:`save` the memory is ahead of the file. If the transaction fails in
    between, the whole object must be discarded. ``now`` is in microseconds since the epoch.
    """

    def __init__(self, connection: sqlite3.Connection, known_since: float, loss: Loss | None) -> None:
        self._connection = connection
        self.epoch = Epoch(known_since)
        self._loss = loss
        self._quiet_from = self._quiet_until = 0
        self._epoch_changed = False
        self._sweep_at = self._sweep_ledgers_at = self._sweep_reservations_at = 0
        self._seen = 0  # the time of the last transaction
        self._ttl = 0.0, 0  # the last one, in seconds and in microseconds
        self._start_over()

    def _start_over(self) -> None:
        """Forget what is in memory; the file has all of it."""
        self._journal = Journal(self._connection)
        self._ledgers = LedgerTable(self._connection)
        self._reservations = Reservations(self._ledgers, self._journal)
        self._cooldowns = Cooldowns(self._connection)
        self._sources = Sources(self._connection)
        self._quota_sets: dict[Deployment, RowQuotaSet] = {}

    def begin(self, now: int) -> None:
        """Read what other connections have written since the last transaction."""
        entries = self._journal.read()
        known = 0
        if entries == [] and self._journal.has_gone_back():
            known = self._journal.number
            entries, self._loss = None, Loss(kept=False)
        if entries is None:
            self._start_over()
            entries = self._journal.read() or []
        self._ledgers.now = now
        for entry in entries:
            self._ledgers.note(entry)
            self._reservations.note(entry)
        changed = not self._cooldowns.known or any(entry.cooldowns for entry in entries)
        if changed and self._cooldowns.refresh():
            self._quota_sets.clear()
        if changed:
            self._settle_epoch(now)
        if known and self._epoch_changed:
            self._journal.skip(known)
        if now < self._seen:
            self._reservations.set_back(now)
        if (changed or now < self._seen) and self._cooldowns.set_back(now):
            self._quota_sets.clear()
        self._seen = now

    def _settle_epoch(self, now: int) -> None:
        """Take the epoch from the file, or begin one if the file has lost something."""
        present = read_epoch(self._connection)
        self.epoch = settle_epoch(present, self.epoch.since, self._loss, now)
        self._loss = None
        self._quiet_from, self._quiet_until = self.epoch.quiet
        if self.epoch is not present:
            write_epoch(self._connection, self.epoch)
            self._epoch_changed = present is not None  # then others may have read that one

    def save(self, now: int) -> None:
        """Write what has changed, and forget some of what is over."""
        entry = Entry(self._journal.number + 1)
        self._ledgers.write(entry, now)
        self._shorten_journal(now)
        self._reservations.write(entry)
        self._cooldowns.write(entry)
        entry.cooldowns, self._epoch_changed = entry.cooldowns or self._epoch_changed, False
        if entry:
            self._journal.append(entry)
        if not now < self._sweep_reservations_at <= now + _RESERVATIONS_EVERY:
            more = self._reservations.sweep(now)
            self._sweep_reservations_at = now if more else now + _RESERVATIONS_EVERY
        if not now < self._sweep_at <= now + _MINUTE:
            self._sweep(now)

    def _shorten_journal(self, now: int) -> None:
        """If it is too long, move what its oldest rows hold elsewhere."""
        opened = kept = 0
        for entry in self._journal.take_oldest():
            self._ledgers.store(entry)
            opened += len(entry.opened)
            kept += self._reservations.keep(entry, now)
        if kept > opened / 2:
            self._journal.let_grow()

    # --- the operations -------------------------------------------------------------------------------

    def reserve(
        self,
        now: int,
        reservation_id: str,
        candidates: tuple[Deployment, ...],
        demand: Demand,
        ttl: float,
        known: Mapping[Scope, float],
    ) -> Decision:
        """Reserve from the first candidate with room; see :class:`RateLimitStore`."""
        refusals: tuple[Refusal, ...] = ()
        lost: tuple[Deployment, ...] = ()
        requests, tokens = demand.requests, demand.tokens
        since, reset_at = self.epoch.since, self.epoch.reset_at
        is_quiet = self._quiet_from <= now < self._quiet_until
        for deployment in candidates:
            if is_quiet or known:
                is_lost = known.get(deployment.model_scope, since) != since
                if is_lost:
                    lost += (deployment,)
                if is_lost or is_quiet:
                    at = seconds(self._quiet_until if is_quiet else now)
                    refusals += (Refusal(deployment, RECOUNT, at, at),)
                    continue
            quotas = self._quotas_of(deployment, now)
            cooldown = self._cooldowns.latest(deployment, now)
            if cooldown is not None or not quotas.fits(requests, tokens, now):
                refusals += (quotas.refuse(deployment, cooldown, demand, now),)
                self._keep_moved(quotas)
                continue
            if not quotas.ledgers:
                # Nothing is taken, so nothing will be settled.
                probes = self._cooldowns.probe(deployment, now)
                lifts = self._cooldowns.lifts
                return Decision(deployment, 1.0, 1.0, refusals, probes, lifts, since, lost, reset_at)
            if not quotas.row.changed:
                self._ledgers.change(quotas.row)
            marks, headroom, daily_headroom = quotas.take(requests, tokens, now)
            if ttl != self._ttl[0]:
                self._ttl = ttl, lifetime(ttl)
            self._reservations.add(
                reservation_id, Reservation(now + self._ttl[1], demand, quotas, marks, now)
            )
            probes = self._cooldowns.probe(deployment, now)
            lifts = self._cooldowns.lifts
            return Decision(
                deployment, headroom, daily_headroom, refusals, probes, lifts, since, lost, reset_at
            )
        return Decision(None, 0.0, 0.0, refusals, (), self._cooldowns.lifts, 0.0, lost, reset_at)

    def settle(self, now: int, reservation_id: str, used: Demand) -> None:
        """Replace the estimate of a reservation by what was used; see :class:`RateLimitStore`."""
        reservation = self._reservations.pop(reservation_id)
        if reservation is None or now >= reservation.expires:
            return
        requests = used.requests - reservation.demand.requests
        tokens = used.tokens - reservation.demand.tokens
        quotas = reservation.quotas
        if requests or tokens:
            self._ledgers.change(quotas.row)
            quotas.correct(reservation.marks, requests, tokens, now)

    def charge(
        self,
        now: int,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: tuple[Taking, ...],
        counted: tuple[Taking, ...],
        since: float,
    ) -> float:
        """Count what was taken without asking, or was lost; see :class:`RateLimitStore`."""
        if self._sources.begin_charge(source, deployment.model_scope, sequence, now):
            quotas = self._quotas_of(deployment, now)
            takings = missing + self.epoch.lost(counted, since)
            if quotas.ledgers and takings:
                self._ledgers.change(quotas.row)
                quotas.charge(takings, now)
        return self.epoch.since

    def announce(self, now: int, source: str) -> Standing:
        """Record that a process is alive; return its place among those that were in the last minute."""
        return self._sources.announce(source, now)

    def cool_down(self, now: int, cooldown: Cooldown) -> None:
        """Cool a scope down; see :class:`RateLimitStore`."""
        self._cooldowns.put(cooldown, now)
        if cooldown.learnt:
            self._quota_sets.clear()

    def snapshot(self, now: int, deployments: tuple[Deployment, ...]) -> list[DeploymentSnapshot]:
        """Return the state of ``deployments``; see :class:`RateLimitStore`."""
        return [self._describe(deployment, now) for deployment in deployments]

    def _describe(self, deployment: Deployment, now: int) -> DeploymentSnapshot:
        row, cooldown = self._ledgers.row(deployment.model_scope), self._cooldowns.latest(deployment, now)
        learnt = self._cooldowns.learnt_limits(row.scope, now)
        return look(row.ledgers, deployment, learnt, now).describe(deployment, cooldown, now)

    def _keep_moved(self, quotas: RowQuotaSet) -> None:
        """Write ledgers that changed because the clock was set back, so that a restart does not undo it."""
        for each in quotas.ledgers:
            if each.ledger.moved:
                each.ledger.moved = False
                self._ledgers.change(quotas.row)

    # --- finding the quotas ---------------------------------------------------------------------------

    def _quotas_of(self, deployment: Deployment, now: int) -> RowQuotaSet:
        quotas = self._quota_sets.get(deployment)
        if quotas is not None and quotas.row.stale:
            self._ledgers.refresh(quotas.row)
        if quotas is None or now >= quotas.valid_until or quotas.version != quotas.row.version:
            return self._open(deployment, now)
        return quotas

    def _open(self, deployment: Deployment, now: int) -> RowQuotaSet:
        """Find or create the quota set of a deployment, under the limits now in force."""
        row = self._ledgers.row(deployment.model_scope)
        learnt = self._cooldowns.learnt_limits(row.scope, now)
        ledgers = tuple(row.configure(now, *terms) for terms in terms_in_force(deployment, learnt, now))
        for each in ledgers:
            each.learnt = learnt.get(each.quota.metric)
        valid_until = min((entry.in_force(now)[1] for entry in learnt.values()), default=NEVER)
        if len(self._quota_sets) >= _MAX_QUOTA_SETS:
            self._quota_sets.clear()
        quotas = self._quota_sets[deployment] = RowQuotaSet(row, ledgers, valid_until)
        return quotas

    # --- forgetting -----------------------------------------------------------------------------------

    def _sweep(self, now: int) -> None:
        """Delete rows that no longer matter, a bounded number at a time; soon again if there are more."""
        self._cooldowns.sweep(now)
        self._sources.sweep(now, _SWEEP_AT_ONCE)
        self._sweep_at = now + _MINUTE
        if not now < self._sweep_ledgers_at <= now + _HOUR:
            swept = self._ledgers.sweep(now - _DAY, _SWEEP_AT_ONCE)
            if swept:  # other connections must not continue to use rows that are gone
                self._journal.append(Entry(self._journal.number + 2))
            more = swept == _SWEEP_AT_ONCE
            self._sweep_ledgers_at = now if more else now + _HOUR

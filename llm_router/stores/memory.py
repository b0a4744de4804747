"""The store of one process: everything is in dictionaries, and nothing survives it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
from weakref import WeakSet

from llm_router.domain.calendar import NEVER, microseconds
from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.quota import MAX_LIMIT, Demand, Metric, Quota
from llm_router.stores.base import CHARGES_KEPT, Decision, DeploymentSnapshot, Refusal
from llm_router.stores.ledger import (
    MAX_TTL,
    QuotaLedger,
    QuotaSet,
    StoredLimit,
    bounded,
    carry_over,
    due_cooldowns,
    forgotten_at,
    impose,
    latest_cooldown,
    learn,
    lifetime,
    look,
    make_ledger,
    moved_back,
    probed,
    remembered,
    terms_in_force,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_router.domain.cooldown import Cooldown
    from llm_router.domain.deployment import Deployment, Scope
    from llm_router.stores.base import Taking

__all__ = ["MemoryStore"]

_log = logging.getLogger("llm_router")

_SWEEP_EVERY = 1_000_000
"""Microseconds between two sweeps of what has expired."""

_SWEEP_AT_ONCE = 5_000
"""Reservations looked at in one call, so that none takes long; less than half a millisecond."""

_MAX_QUOTA_SETS = 500_000
"""Deployment objects remembered; a reloaded router makes new ones. Forgetting them loses no count."""

_MAX_CHARGES = 100_000
"""Processes times models whose last charge is remembered. A charge that is forgotten may count twice."""

_NOTHING = Demand(0, 0)


class _ModelQuotas:
    """The quotas of one (provider, project, model): their ledgers, and the limits learnt from refusals."""

    __slots__ = ("learnt", "ledgers")

    def __init__(self) -> None:
        self.ledgers: dict[Metric, QuotaLedger] = {}
        self.learnt: dict[Metric, StoredLimit] = {}


_Reservation = tuple[float, int, int, QuotaSet, list[int], int]
"""When it expires, the requests and tokens it asked for, the quotas it took from, the mark in each ledger,
when it was made."""


class MemoryStore:
    """Keeps the state of one process in memory.

    No method ever suspends, so each is atomic among the tasks of an event loop. Not for several threads.
    Processes do not see each other's state: use SQLite or Redis where several share keys. A forked child that
    continues to use its parent's store logs one warning, before it takes anything.

    Args:
        clock: The source of time; the machine's clock by default.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._time = (clock or SystemClock()).time
        self._model_quotas: dict[Scope, _ModelQuotas] = {}
        self._quota_sets: dict[Deployment, QuotaSet] = {}
        self._cooldowns: dict[Scope, Cooldown] = {}
        self._imposed: dict[Scope, int] = {}  # when the end of each was set
        self._reservations: dict[str, _Reservation] = {}
        # The sequence and the time of the last charge of each process and model, oldest first.
        self._charges: dict[tuple[str, Scope], tuple[int, int]] = {}
        self._unchecked: list[str] = []  # the reservations that the present sweep has not looked at
        self._swept_at = self._sweep_at = 0
        self._process = os.getpid()
        self._lifts = 0
        self._version = 0  # increases whenever a limit changes; one for all, since that is rare
        _stores.add(self)

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve in memory; see :class:`RateLimitStore`."""
        now = round(self._time() * 1e6)
        if not self._swept_at <= now < self._sweep_at:
            self._sweep(now)
        requests, tokens = demand.requests, demand.tokens
        if not (0 <= requests <= MAX_LIMIT and 0 <= tokens <= MAX_LIMIT):
            demand = bounded(demand)
            requests, tokens = demand.requests, demand.tokens
        refusals: tuple[Refusal, ...] = ()
        for deployment in candidates:
            quotas = self._quota_sets.get(deployment)
            if quotas is None or now >= quotas.valid_until or quotas.version != self._version:
                quotas = self._open(deployment, now)
            cooldown = self._cooldown(deployment, now)
            if cooldown is not None or not quotas.fits(requests, tokens, now):
                refusals += (quotas.refuse(deployment, cooldown, demand, now),)
                continue
            marks, headroom, daily_headroom = quotas.take(requests, tokens, now)
            expires = now + (ttl * 1e6 if 0.0 <= ttl <= MAX_TTL else lifetime(ttl))
            self._reservations[reservation_id] = expires, requests, tokens, quotas, marks, now
            probes = self._probe(deployment, now) if self._cooldowns else ()
            return Decision(deployment, headroom, daily_headroom, refusals, probes, self._lifts)
        return Decision(None, 0.0, 0.0, refusals, (), self._lifts)

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Replace the estimate of a reservation by what was used; see :class:`RateLimitStore`."""
        reservation = self._reservations.pop(reservation_id, None)
        if reservation is not None:
            _, requests, tokens, _, _, _ = reservation
            if used.requests != requests or used.tokens != tokens:
                self._correct(reservation, used)

    async def release(self, reservation_id: str) -> None:
        """Give back everything a reservation took; see :class:`RateLimitStore`."""
        await self.settle(reservation_id, _NOTHING)

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),  # noqa: ARG002 - nothing that was counted is ever lost
        since: float = 0.0,  # noqa: ARG002
    ) -> float:
        """Count what was taken without asking; see :class:`RateLimitStore`."""
        now = round(self._time() * 1e6)
        if not self._swept_at <= now < self._sweep_at:
            self._sweep(now)
        charge = source, deployment.model_scope
        last, _ = self._charges.pop(charge, (sequence - 1, now))
        self._charges[charge] = max(last, sequence), now
        if len(self._charges) > _MAX_CHARGES:
            del self._charges[next(iter(self._charges))]
        if sequence > last:
            self._open(deployment, now).charge(missing, now)
        return 0.0

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool a scope down; see :class:`RateLimitStore`."""
        now = round(self._time() * 1e6)
        if not self._swept_at <= now < self._sweep_at:
            self._sweep(now)
        present = self._cooldowns.pop(cooldown.scope, None)
        kept = impose(present, cooldown, now)
        if kept is not None:
            self._cooldowns[cooldown.scope] = kept
            if kept is not present:
                self._imposed[cooldown.scope] = now
        if present is not None and cooldown.until <= 0.0:
            self._lifts += 1
        if cooldown.learnt:
            self._learn(cooldown, now)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state of ``deployments``; see :class:`RateLimitStore`."""
        now = round(self._time() * 1e6)
        if now < self._swept_at:
            self._sweep(now)
        return [self._describe(deployment, now) for deployment in deployments]

    async def aclose(self) -> None:
        """Do nothing: the store holds nothing open."""

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._model_quotas)} models, {len(self._reservations)} reservations)"

    # --- deciding -------------------------------------------------------------------------------------

    def _correct(self, reservation: _Reservation, used: Demand) -> None:
        """Change what a reservation took to ``used``, unless it has expired."""
        expires, requests, tokens, quotas, marks, _ = reservation
        now = round(self._time() * 1e6)
        if now < expires:
            if not (0 <= used.requests <= MAX_LIMIT and 0 <= used.tokens <= MAX_LIMIT):
                used = bounded(used)
            quotas.correct(marks, used.requests - requests, used.tokens - tokens, now)

    def _cooldown(self, deployment: Deployment, now: int) -> Cooldown | None:
        return latest_cooldown(self._cooldowns, deployment, now) if self._cooldowns else None

    def _probe(self, deployment: Deployment, now: int) -> tuple[Cooldown, ...]:
        """Let a granted request probe the half-open cooldowns that are due; return them."""
        due = due_cooldowns(self._cooldowns, deployment, now)
        for cooldown in due:
            self._cooldowns[cooldown.scope] = probed(cooldown, now)
            self._imposed[cooldown.scope] = now
        return due

    def _describe(self, deployment: Deployment, now: int) -> DeploymentSnapshot:
        model, cooldown = self._quotas_of(deployment.model_scope), self._cooldown(deployment, now)
        return look(model.ledgers, deployment, remembered(model.learnt, now), now).describe(
            deployment, cooldown, now
        )

    # --- the quotas -----------------------------------------------------------------------------------

    def _quotas_of(self, scope: Scope) -> _ModelQuotas:
        model = self._model_quotas.get(scope)
        if model is None:
            model = self._model_quotas[scope] = _ModelQuotas()
        return model

    def _open(self, deployment: Deployment, now: int) -> QuotaSet:
        """Find or create the quota set of a deployment, under the limits now in force."""
        model = self._quotas_of(deployment.model_scope)
        if model.learnt:
            model.learnt = remembered(model.learnt, now)
        ledgers = tuple(
            self._ledger(model, now, *terms) for terms in terms_in_force(deployment, model.learnt, now)
        )
        valid_until = min((entry.in_force(now)[1] for entry in model.learnt.values()), default=NEVER)
        if len(self._quota_sets) >= _MAX_QUOTA_SETS:
            self._quota_sets.clear()
        quotas = self._quota_sets[deployment] = QuotaSet(ledgers, valid_until, self._version)
        return quotas

    def _ledger(
        self, model: _ModelQuotas, now: int, quota: Quota, limit: int, limit_expires: int
    ) -> QuotaLedger:
        """Return the ledger of ``quota``, reconfigured if the quota or its limit has changed."""
        present = model.ledgers.get(quota.metric)
        if present is None or present.quota != quota or present.ledger.limit != limit:
            if present is not None:
                self._version += 1
            if present is None or present.quota.refill is not quota.refill:
                ledger = make_ledger(quota, limit)
                if present is not None:
                    carry_over(present.ledger, ledger, quota, now)
            else:
                ledger = present.ledger
                ledger.configure(quota, limit)
            present = model.ledgers[quota.metric] = QuotaLedger(quota, ledger)
        present.limit_expires, present.learnt = limit_expires, model.learnt.get(quota.metric)
        return present

    def _learn(self, cooldown: Cooldown, now: int) -> None:
        """Record limits that were learnt, in place of those before."""
        model = self._quotas_of(cooldown.scope)
        for learnt in cooldown.learnt:
            kept = learn(model.learnt.pop(learnt.metric, None), learnt, now)
            if kept is not None:
                model.learnt[learnt.metric] = kept
        self._version += 1

    # --- forgetting -----------------------------------------------------------------------------------

    def _warn_after_fork(self) -> None:
        if self._process != os.getpid():
            self._process = os.getpid()
            _log.warning(
                "a memory store is used by a forked process: parent and child now count separately, and "
                "together may take twice every quota; open sqlite:// or redis:// to share it"
            )

    def after_fork(self) -> None:
        """Sweep at the next call, which warns before this process takes anything."""
        self._sweep_at = 0

    def _sweep(self, now: int) -> None:
        """Drop what has ended, and reservations that have expired, which keep what they took.

        It does a part of that at a time: until it is done, every call goes on with it.
        """
        if now < self._swept_at:
            self._set_back(now)
        self._swept_at = now
        self._warn_after_fork()
        if not self._unchecked:
            self._sweep_others(now)
            self._unchecked = list(self._reservations)
        reservations, unchecked = self._reservations, self._unchecked
        for key in unchecked[-_SWEEP_AT_ONCE:]:
            reservation = reservations.get(key)
            if reservation is not None and reservation[0] <= now:
                del reservations[key]
        del unchecked[-_SWEEP_AT_ONCE:]
        self._sweep_at = now if unchecked else now + _SWEEP_EVERY

    def _sweep_others(self, now: int) -> None:
        while self._charges:
            name, (_, charged_at) = next(iter(self._charges.items()))
            if now < charged_at + microseconds(CHARGES_KEPT):
                break
            del self._charges[name]
        ended = [key for key, present in self._cooldowns.items() if forgotten_at(present) <= now]
        for scope in ended:
            del self._cooldowns[scope]
        if len(self._imposed) > 2 * len(self._cooldowns):
            self._imposed = {scope: self._imposed[scope] for scope in self._cooldowns}

    def _set_back(self, now: int) -> None:
        """Let nothing last longer than it should because the clock was set back."""
        for scope, cooldown in self._cooldowns.items():
            self._cooldowns[scope] = moved_back(cooldown, self._imposed[scope], now)
            self._imposed[scope] = min(now, self._imposed[scope])
        for key, (expires, *terms, made) in self._reservations.items():
            if made > now:
                self._reservations[key] = (now + expires - made, *terms, now)  # type: ignore[assignment]
        for charge, (sequence, charged_at) in self._charges.items():
            self._charges[charge] = sequence, min(charged_at, now)
        for model in self._model_quotas.values():
            model.learnt = {metric: entry.moved_back(now) for metric, entry in model.learnt.items()}
        self._version += 1


_stores: WeakSet[MemoryStore] = WeakSet()


def _after_fork() -> None:
    for store in tuple(_stores):
        store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

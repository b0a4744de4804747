"""Explain what a send would decide now, without deciding it."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any, Unpack

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import ProjectDeployment, Scope
from llm_router.domain.explanation import (
    Exclusion,
    ExplainedCandidate,
    ExplainedQuota,
    ExplainedTier,
    Explanation,
)
from llm_router.domain.options import SendOptions
from llm_router.domain.quota import Demand
from llm_router.domain.status import LimitStatus
from llm_router.engine.extensions import snapshots_of
from llm_router.engine.full_days import full_days
from llm_router.engine.index import DeploymentState, Step
from llm_router.engine.pacing import PACED
from llm_router.engine.pool import Pool
from llm_router.engine.project_limits import heed_counts, is_known, projects_of
from llm_router.engine.rehearsal import ROUNDING, Counted, Rehearsal, choose, demand_on, room_at
from llm_router.engine.search import lacking
from llm_router.engine.sending import Sender
from llm_router.engine.statuses import limit_of
from llm_router.stores.base import DeploymentSnapshot, QuotaSnapshot, RateLimitStore
from llm_router.strategies.base import SelectionStrategy

__all__ = ["Explainer"]

_Excluded = tuple[float, Exclusion | None, str | None]
"""Until when (seconds since the epoch), how, and why."""

_until = itemgetter(0)


@attrs.frozen(eq=False, repr=False)
class Explainer:
    """Explains sends: rehearses them on copies, and on one snapshot of the store.

    Attributes:
        sender: Checks and estimates requests as for a send.
        store: Keeps the quotas.
        strategy: Ranks.
        pool: The deployments.
    """

    sender: Sender
    store: RateLimitStore
    strategy: SelectionStrategy
    pool: Pool

    async def explain(self, prompt: Any, **options: Unpack[SendOptions]) -> Explanation:
        """Explain what ``send(prompt, **options)`` would decide now; see :meth:`Router.explain`.

        Raises:
            InvalidRequestError: As for a send.
            RouterClosedError: The router is closed.
            StoreError: The store failed.
            TypeError: There is no such option.
        """
        send = await self.sender.begin("explain", prompt, options)
        clock = self.sender.clock
        held = self.pool.states
        self.pool.ask_again(clock.time())  # as the send would begin
        chosen = choose(send.order, self.strategy, clock.time())
        projects = projects_of(chosen, self.pool)
        found = await snapshots_of(self.store, [*chosen, *projects])
        snapshots = dict(zip(chosen, found[: len(chosen)], strict=True))
        if self.pool.states is not held:  # a reload meanwhile
            return await self.explain(prompt, **options)
        # From here on nothing is awaited: what is read of this process is of one moment.
        selector = self.sender.selector
        rehearsal = Rehearsal(
            send,
            self.strategy,
            selector.quarantines,
            selector.probes,
            snapshots,
            clock.time(),
            selector.pacer,
            self._projects(found[len(chosen) :]),
        )
        rehearsal.run()
        tiers = tuple(_tier(tier, rehearsal) for tier in send.order.tiers)
        waits = (each.usable_in for tier in tiers for each in tier.candidates if each.usable_in is not None)
        return Explanation(
            workload=send.order.workload,
            model=send.model,
            fallback=options.get("fallback", "any"),
            tiers=tiers,
            retry_after=0.0 if rehearsal.taken is not None else min(waits, default=None),
            left_out=send.order.size - len(chosen),
        )

    def _projects(self, snapshots: list[DeploymentSnapshot]) -> dict[Scope, list[Counted]]:
        """Return what is counted on all models of projects, by the scope of each."""
        heed_counts(self.pool, snapshots)
        found: dict[Scope, list[Counted]] = {}
        for each in snapshots:
            deployment = each.deployment
            state = self.pool.sharing(deployment) if isinstance(deployment, ProjectDeployment) else None
            if is_known(each.quotas) and state is not None:
                found.setdefault(deployment.project_scope, []).append(Counted(state, each.quotas))
        return found


def _tier(tier: tuple[Step, ...], rehearsal: Rehearsal) -> ExplainedTier:
    found: list[ExplainedCandidate] = []
    size = 0
    for step in tier:
        for group in step.groups:
            size += len(group.states)
            found += (
                _candidate(state, step.distance, snapshot, rehearsal)
                for state in group.states
                if (snapshot := rehearsal.snapshots.get(state.deployment)) is not None
            )
    return ExplainedTier(size, tuple(sorted(found, key=_place)))


def _place(candidate: ExplainedCandidate) -> tuple[float, float]:
    """Return what sorts candidates: by rank, and those that are not asked by when they are usable."""
    rank, usable_in = candidate.rank, candidate.usable_in
    return math.inf if rank is None else rank, math.inf if usable_in is None else usable_in


def _candidate(
    state: DeploymentState, distance: int, snapshot: DeploymentSnapshot, rehearsal: Rehearsal
) -> ExplainedCandidate:
    deployment, now = state.deployment, rehearsal.now
    asked = rehearsal.asked.get(deployment)
    rank, tokens = (None, demand_on(rehearsal.send, [state]).tokens) if asked is None else asked
    demand, is_taken = Demand(1, tokens), deployment is rehearsal.taken
    counted, cooldown = rehearsal.counted_on(state, snapshot), rehearsal.cooldown_of(snapshot)
    until, exclusion, reason = now, None, None
    if not is_taken:
        until, exclusion, reason = _excluded(state, snapshot, demand, rehearsal)
    return ExplainedCandidate(
        key_id=deployment.key.key_id,
        model=deployment.model,
        provider=deployment.key.provider,
        project=deployment.key.project,
        workload=deployment.workload,
        priority=deployment.priority,
        distance=distance,
        rank=rank,
        is_taken=is_taken,
        headroom=max(state.headroom_at(now), 0.0),
        failures=state.failures,
        tokens=tokens,
        quotas=_quotas(counted[0], demand, cooldown, now),
        project_quotas=tuple(quota for each in counted[1:] for quota in _quotas(each, demand, cooldown, now)),
        exclusion=exclusion,
        reason=reason,
        usable_in=_seconds_until(until, now),
    )


def _quotas(
    counted: Counted, demand: Demand, cooldown: Cooldown | None, now: float
) -> tuple[ExplainedQuota, ...]:
    found: list[ExplainedQuota] = []
    full = full_days(cooldown, counted.state.deployment, counted.quotas, now)
    for quota in counted.quotas:
        amount = demand.amount(quota.metric)
        at = max(room_at(quota, counted.state, amount, now), full.get(quota.metric, now))
        status = limit_of(quota, counted.state.deployment, now, full_until=full.get(quota.metric))
        found.append(
            ExplainedQuota(
                metric=quota.metric,
                name=counted.state.deployment.limit_name(quota.metric.value),
                amount=amount,
                remaining=_share_left(quota, status),
                fits=at <= now,
                fits_in=_seconds_until(at, now),
                status=status,
            )
        )
    return tuple(found)


def _share_left(quota: QuotaSnapshot, status: LimitStatus) -> float:
    """Return which share of a quota is left: nothing of one that admits nothing, or is full."""
    if status["full_until"] is not None or not quota.limit:
        return 0.0
    return max(1.0 - quota.used / quota.limit, 0.0)


def _excluded(
    state: DeploymentState, snapshot: DeploymentSnapshot, demand: Demand, rehearsal: Rehearsal
) -> _Excluded:
    """Return what keeps a deployment out of use the longest."""
    now = rehearsal.now
    found: list[_Excluded] = []
    cooldown, refusal = rehearsal.cooldown_of(snapshot), state.refusal
    noted = None if refusal is None else refusal.reason
    if cooldown is not None:
        kind = Exclusion.COOLING_DOWN
        if cooldown.is_disabled or cooldown.is_quarantine:
            kind = Exclusion.DISABLED if cooldown.is_disabled else Exclusion.QUARANTINED
        found.append((cooldown.until, kind, cooldown.reason))
    found += _left_out(state, noted, rehearsal)
    for counted in rehearsal.counted_on(state, snapshot):
        for quota in counted.quotas:
            at = room_at(quota, counted.state, demand.amount(quota.metric), now)
            if at > now:
                found.append((at, Exclusion.QUOTA, counted.quota_name(quota.metric)))
    is_asked = state.deployment in rehearsal.asked
    latest = max(map(_until, found), default=now)
    if not is_asked and state.is_parked and state.wakes_at > latest + ROUNDING:
        found.append((state.wakes_at, Exclusion.PARKED, noted))
    if found:
        return max(found, key=_until)
    if is_asked:
        return now, None, None
    return math.inf, Exclusion.STRATEGY, "the strategy leaves it out"


def _left_out(state: DeploymentState, noted: str | None, rehearsal: Rehearsal) -> list[_Excluded]:
    """Return what keeps a deployment out of use in this process only."""
    until = state.group.breaker.open_until
    found: list[_Excluded] = [
        (state.avoided_until, Exclusion.AVOIDED, noted),
        (until, Exclusion.UNREACHABLE, state.group.breaker.reason),
    ]
    if rehearsal.send.features:
        until, lack = lacking(state, rehearsal.send.features)
        found.append((until, Exclusion.AVOIDED, lack))
    if rehearsal.pacer is not None:
        until = rehearsal.pacer.until(state.deployment, rehearsal.send.order.workload, rehearsal.now)
        found.append((until, Exclusion.PACED, PACED))
    return [each for each in found if _until(each) > rehearsal.now]


def _seconds_until(moment: float, now: float) -> float | None:
    return None if moment == math.inf else max(moment - now, 0.0)

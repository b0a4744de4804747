"""Rehearse a send on a copy of the local index: which deployments it would ask, in which order."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.engine.evidence import WINDOW
from llm_router.engine.index import DeploymentState, FallbackOrder
from llm_router.engine.pacing import Paced, Pacer
from llm_router.engine.probes import Probes
from llm_router.engine.quarantines import Quarantines
from llm_router.engine.search import FIRST_CANDIDATES, MAX_CANDIDATES, Either, Unsuitable, further, soonest
from llm_router.engine.state import SendState
from llm_router.stores.base import DeploymentSnapshot, QuotaSnapshot, Refusal
from llm_router.strategies.base import SelectionStrategy

__all__ = ["ROUNDING", "Counted", "Rehearsal", "choose", "demand_on", "room_at"]

ROUNDING = 0.001
"""Seconds by which two times may differ that are the same."""


def choose(order: FallbackOrder, strategy: SelectionStrategy, now: float) -> list[Deployment]:
    """Return up to 128 deployments of ``order``: those that would be asked, best first, then the others."""
    known = [state for group in order.groups for state in group.states]
    if len(known) > MAX_CANDIDATES:
        order, strategy = order.copy(), _twin(strategy)
        seen = dict.fromkeys(order.draw(strategy, now, FIRST_CANDIDATES))
        seen |= dict.fromkeys(order.draw(strategy, now, MAX_CANDIDATES, seen))
        rest = (state for group in order.groups for state in group.states)
        known = list(dict.fromkeys(itertools.chain(seen, soonest(order, MAX_CANDIDATES), rest)))
    return [state.deployment for state in known[:MAX_CANDIDATES]]


def demand_on(send: SendState, states: Iterable[DeploymentState]) -> Demand:
    """Return what a reserve that may choose among ``states`` takes: the largest estimate among them."""
    groups = {state.group for state in states}
    tokens = max(send.tokens[group.upstream] * group.corrections[send.kind].factor for group in groups)
    return Demand(1, round(tokens) or 1)


def room_at(quota: QuotaSnapshot, state: DeploymentState, amount: int, now: float) -> float:
    """Return when ``amount`` fits into a quota if no other request takes any (seconds since the epoch).

    That is ``now`` if it fits now, and otherwise at the latest: a snapshot has the time at which all of a
    rolling quota is back, and an earlier refusal may show that enough is back before. Where nothing but a
    higher limit helps, it is when a learnt one rises next; ``math.inf`` stands for never.
    """
    terms = {each.metric: each for each in state.deployment.quotas}.get(quota.metric)
    if terms is not None and terms.refill is Refill.STEADY:
        capacity = min(terms.capacity, quota.limit)
        missing = quota.used + amount - capacity
        returned_at = now + missing / _rate(terms, quota.limit, capacity)
    else:
        capacity = quota.limit
        returned_at = min(quota.resets_at, _known_return(state, quota, terms, now))
    if quota.used + amount <= capacity:
        return now
    learnt = quota.learnt
    if learnt is not None and (
        quota.source_on(state.deployment) is not learnt.source or learnt.raise_at <= now
    ):
        learnt = None  # it is not in force, or does not rise any more
    at = returned_at if amount <= capacity else math.inf
    if learnt is not None and (at == math.inf or quota.used + amount <= learnt.raised):
        at = min(at, learnt.raise_at)
    return max(at, now)


def _known_return(state: DeploymentState, quota: QuotaSnapshot, terms: Quota | None, now: float) -> float:
    """Return when a quota of requests has room for one, if this process was told; otherwise infinity.

    What it was told is of the past if anything was taken since then, or another limit was learnt.
    """
    refusal, learnt, metric = state.refusal, quota.learnt, quota.metric
    if refusal is None or refusal.cooldown is not None or metric.counts_tokens or refusal.reason != metric:
        return math.inf
    window = WINDOW if terms is None else terms.window + terms.guard
    is_past = quota.resets_at > state.refused_at + window + ROUNDING
    if is_past or (learnt is not None and learnt.learnt_at > state.refused_at - ROUNDING):
        return math.inf
    # A store has a refusal end when a learnt limit rises, whether or not that is enough.
    is_rise = learnt is not None and abs(refusal.wake_at - learnt.raise_at) < ROUNDING
    return refusal.wake_at if refusal.wake_at > now and not is_rise else math.inf


def _rate(terms: Quota, limit: int, capacity: int) -> float:
    """Return how much of a steady quota comes back in a second."""
    return max(limit - capacity + (terms.guard > 0), 1) / (terms.window + terms.guard)


def _twin(strategy: SelectionStrategy) -> SelectionStrategy:
    """Return a copy of a strategy, so that asking it moves none of its state; or itself if it has none."""
    try:
        return copy.deepcopy(strategy)
    except Exception:  # noqa: BLE001 - whatever the user's objects raise
        return strategy


@attrs.frozen
class Counted:
    """Quotas, and what they are counted on: a deployment, or all models of a project.

    Attributes:
        state: What this process knows of it.
        quotas: Its quotas.
    """

    state: DeploymentState
    quotas: tuple[QuotaSnapshot, ...]

    def quota_name(self, metric: Metric) -> str:
        """Return what a refusal for want of a quota of it is called."""
        return self.state.deployment.quota_name(metric)


class _Unknown(Container[DeploymentState]):
    """The deployments of which there is no snapshot."""

    __slots__ = ("_known",)

    def __init__(self, known: Mapping[Deployment, object]) -> None:
        self._known = known

    def __contains__(self, item: object) -> bool:
        return isinstance(item, DeploymentState) and item.deployment not in self._known


@attrs.define(eq=False)
class Rehearsal:
    """A send that asks snapshots in place of the store, and a copy of the local index.

    It does what the selector does, by the same functions. Once a deployment is found that it would take, it
    goes on as if that had refused, so that the others are ranked as well.

    Attributes:
        send: The send; it is only read.
        strategy: Ranks; a copy of it is asked, if it can be copied.
        quarantines: The quarantines that this process has met.
        probes: The half-open cooldowns that it has met.
        snapshots: What the store knows of the deployments; others are left out.
        now: Seconds since the epoch.
        pacer: Spreads the quotas of a day, or None; it is only read.
        projects: What is counted on all models of a project, by the scope of the project.
        asked: The deployments that are asked, with their place, from 1, and how many input tokens would be
            reserved on them.
        taken: The deployment that would be taken, or None.
        reopened: The scopes whose quarantine the send would end or try.
    """

    send: SendState
    strategy: SelectionStrategy
    quarantines: Quarantines
    probes: Probes
    snapshots: Mapping[Deployment, DeploymentSnapshot]
    now: float
    pacer: Pacer | None = None
    projects: Mapping[Scope, Sequence[Counted]] = attrs.field(factory=dict)
    asked: dict[Deployment, tuple[int, int]] = attrs.field(factory=dict, init=False)
    taken: Deployment | None = attrs.field(default=None, init=False)
    reopened: set[Scope] = attrs.field(factory=set, init=False)
    _refused: dict[DeploymentState, Refusal] = attrs.field(factory=dict, init=False)

    def run(self) -> None:
        """Ask the shortlist, then every other deployment that may have room."""
        order, strategy, now = self.send.order.copy(), _twin(self.strategy), self.now
        is_whole = len(self.snapshots) == order.size
        skip: Container[DeploymentState] = () if is_whole else _Unknown(self.snapshots)
        if self.send.features:
            skip = Either(Unsuitable(self.send, now), skip)
        if self.pacer is not None:
            skip = Paced(self.pacer, order.workload, now, self._refused, skip)
        shortlist = order.draw(strategy, now, FIRST_CANDIDATES, skip)
        if shortlist:
            self._ask(shortlist)
            self._notice_lifts(order)
        for candidates in further(order, strategy, lambda: now, self._refused, skip):
            self._ask(candidates)
            self._notice_lifts(order)

    def cooldown_of(self, snapshot: DeploymentSnapshot) -> Cooldown | None:
        """Return the cooldown that would refuse a deployment, or None.

        A snapshot has only the last to end: beneath a quarantine that the send would end none is seen.
        """
        cooldown = snapshot.cooldown
        if cooldown is None or cooldown.until <= self.now or cooldown.scope in self.reopened:
            return None
        return cooldown

    def counted_on(self, state: DeploymentState, snapshot: DeploymentSnapshot) -> list[Counted]:
        """Return all quotas that a request on a deployment takes from."""
        of_project = self.projects.get(snapshot.deployment.project_scope, ())
        return [Counted(state, snapshot.quotas), *of_project]

    def _ask(self, candidates: list[DeploymentState]) -> None:
        demand = demand_on(self.send, candidates)
        reopened: set[Scope] = set()
        for state in candidates:
            self.asked.setdefault(state.deployment, (len(self.asked) + 1, demand.tokens))
            snapshot = self.snapshots[state.deployment]
            refusal = self._refuse(snapshot, state, demand)
            if refusal is None:
                refusal = Refusal(state.deployment, "", self.now, self.now)
                self.taken = self.taken or state.deployment
            elif self._reopens(refusal):
                assert refusal.cooldown is not None  # noqa: S101 - it is what would be reopened
                reopened.add(refusal.cooldown.scope)
                continue
            refusal = self.probes.hastened(refusal, self.now)
            self._refused[state] = refusal
            state.note(refusal, self.now)
            if refusal.wake_at > self.now:
                state.group.park(state, refusal.wake_at)
        self.reopened |= reopened

    def _refuse(self, snapshot: DeploymentSnapshot, state: DeploymentState, demand: Demand) -> Refusal | None:
        """Return why a store would refuse a demand, by what is known of it; None if it has room."""
        now, cooldown = self.now, self.cooldown_of(snapshot)
        latest, reason = (now, "") if cooldown is None else (cooldown.until, cooldown.reason)
        wake_at = latest
        for counted in self.counted_on(state, snapshot):
            for quota in counted.quotas:
                at = room_at(quota, counted.state, demand.amount(quota.metric), now)
                if at > latest:
                    latest, reason = at, counted.quota_name(quota.metric)
                wake_at = max(wake_at, room_at(quota, counted.state, 1, now))
        if latest <= now:
            return None
        return Refusal(state.deployment, reason, latest, min(wake_at, latest), cooldown)

    def _reopens(self, refusal: Refusal) -> bool:
        cooldown = refusal.cooldown
        if self.taken is not None or cooldown is None or cooldown.scope in self.reopened:
            return False
        return self.quarantines.would_reopen(cooldown, refusal.deployment, self.now)

    def _notice_lifts(self, order: FallbackOrder) -> None:
        """Make ready what was cooled down and is not any more: the store's reply would say so."""
        for group in order.groups:
            for state in group.states:
                refusal, snapshot = state.refusal, self.snapshots.get(state.deployment)
                if snapshot is None or refusal is None or refusal.cooldown is None:
                    continue
                if state.avoided_until <= self.now and self.cooldown_of(snapshot) is None:
                    group.rouse(state)

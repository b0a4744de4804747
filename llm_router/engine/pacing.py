"""Which deployments are ahead of the pace at which their day's quota lasts until midnight."""

from __future__ import annotations

import math
from collections.abc import Container, Generator
from contextlib import contextmanager

import attrs

from llm_router.domain.calendar import next_midnight
from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.pacing import Pacing
from llm_router.domain.quota import MAX_LIMIT, Metric, Quota, Refill
from llm_router.engine.index import DeploymentState
from llm_router.stores.base import Refusal

__all__ = ["PACED", "DayPlan", "Paced", "Pacer"]

PACED = "rpd pacing"
"""The reason of a refusal for the sake of the pace."""

_LEARNT = Quota(Metric.RPD, MAX_LIMIT, adaptive=True)
"""The requests per day of a deployment for which none are configured, but a limit was learnt."""

_SET_BACK = 1.0
"""Seconds by which a clock must be set back for a plan to be given up."""


@attrs.define
class DayPlan:
    """How one day's quota is to go down: evenly, from what was left at some time to nothing at midnight.

    Times are in seconds since the epoch; shares are of the whole day's quota.

    Attributes:
        ends: When the day ends.
        noted_at: When the last request was granted.
        began: When the plan began,
        from_share: and what was left then.
        share: What is left.
        unit: The share of one request,
        least: and the least by which the share went down on that day: a learnt limit may be in force.
        others: From when on requests of others may go, by the workload of which they are not.
    """

    ends: float = -math.inf
    noted_at: float = -math.inf
    began: float = 0.0
    from_share: float = 1.0
    share: float = 1.0
    unit: float = 1.0
    least: float = math.inf
    others: dict[str, float] = attrs.field(factory=dict)

    def note(self, share: float, unit: float, now: float, ends: float) -> None:
        """Note a request that was granted, and what is left; what is behind the plan is spread anew.

        ``unit`` is the share of a request at least.
        """
        if ends != self.ends:
            self.least = math.inf
        elif share < self.share:
            self.least = min(self.least, self.share - share)
        if self.least < math.inf:
            unit = max(unit, self.least)
        before = share + unit
        if ends != self.ends or before > self._planned(now):
            self.ends, self.began, self.from_share = ends, now, before
        self.share, self.unit, self.noted_at = share, unit, now

    @property
    def gap(self) -> float:
        """Seconds between two requests from now on, if what is left is to last."""
        return (self.ends - self.noted_at) * self.unit / max(self.share, self.unit)

    def due(self, burst: int) -> float:
        """Return from when on the next request keeps the pace.

        Where nothing is left it is the past: the store knows better when something is.
        """
        if self.share < self.unit / 2:
            return self.began
        allowed = self.share + (burst - 1) * self.unit
        if allowed >= self.from_share:
            return self.began
        return self.ends - (self.ends - self.began) * allowed / self.from_share

    def _planned(self, now: float) -> float:
        return self.from_share * (self.ends - now) / (self.ends - self.began) if now < self.ends else 0.0


class Pacer:
    """Decides for this process which deployments keep the pace.

    Args:
        pacing: The rules.
        clock: Where time comes from.
    """

    def __init__(self, pacing: Pacing, clock: Clock) -> None:
        self._pacing = pacing
        self._clock = clock
        self._plans: dict[Scope, DayPlan] = {}
        self._asked_at: dict[str, float] = {}
        self._waiting: dict[str, int] = {}

    def until(self, deployment: Deployment, workload: str | None, now: float) -> float:
        """Return until when a request for ``workload`` must leave a deployment alone; the past for not."""
        plan = self._plans.get(deployment.model_scope)
        if plan is None or now >= plan.ends or now < plan.noted_at - _SET_BACK:
            return -math.inf
        kept = (plan.others.get(name, -math.inf) for name in self._claims(workload, now))
        return max(plan.due(self._pacing.burst), *kept, -math.inf)

    def forget(self) -> None:
        """Spread what is left anew, since limits may have changed."""
        self._plans.clear()

    def ask(self, workload: str | None) -> None:
        """Note that a request asks for a workload, so that its share is not lent."""
        if workload is not None and workload in self._pacing.kept:
            self._asked_at[workload] = self._clock.time()

    @contextmanager
    def waiting(self, workload: str | None) -> Generator[None]:
        """While in the block, a request waits for a workload."""
        if workload is None or workload not in self._pacing.kept:
            yield
            return
        self._waiting[workload] = self._waiting.get(workload, 0) + 1
        try:
            yield
        finally:
            self._waiting[workload] -= 1
            self.ask(workload)

    def note(self, state: DeploymentState, workload: str | None, now: float) -> None:
        """Note a grant to a request for ``workload``; park the deployment until the next one is due."""
        deployment = state.deployment
        quota = _per_day(state)
        if quota is None:
            return
        plan = self._plans.setdefault(deployment.model_scope, DayPlan())
        if now < plan.noted_at - _SET_BACK:
            plan = self._plans[deployment.model_scope] = DayPlan()
        plan.note(state.daily_headroom, 1.0 / quota.limit, now, next_midnight(now, quota.timezone))
        if (due := plan.due(self._pacing.burst)) > now:
            state.group.park(state, due)  # only so that no request needs to look at it
            state.note(Refusal(state.deployment, PACED, due, due))
        claims = self._claims(workload, now)
        for name, share_kept in self._pacing.kept.items():
            if name in claims:
                at = max(plan.others.get(name, now), now)
                plan.others[name] = at + plan.gap / (1.0 - share_kept)
            elif name != workload:  # it is lent, and what was borrowed is not to be paid back
                plan.others.pop(name, None)

    def _claims(self, workload: str | None, now: float) -> list[str]:
        """Return the other workloads whose share is not lent now."""
        return [
            name
            for name in self._pacing.kept
            if name != workload
            and (
                self._waiting.get(name, 0) > 0
                or now - self._asked_at.get(name, -math.inf) < self._pacing.idle
            )
        ]


class Paced(Container[DeploymentState]):
    """The deployments that a request must leave out for the sake of the pace, or for another reason.

    Args:
        pacer: Decides.
        workload: What the request asks for.
        now: Seconds since the epoch.
        refused: The refusals of the request, to which those for the sake of the pace are added.
        skip: What it leaves out anyway.

    Attributes:
        skip: As given.
    """

    __slots__ = ("_now", "_pacer", "_refused", "_workload", "skip")

    def __init__(
        self,
        pacer: Pacer,
        workload: str | None,
        now: float,
        refused: dict[DeploymentState, Refusal],
        skip: Container[DeploymentState] = (),
    ) -> None:
        self._pacer = pacer
        self._workload = workload
        self._now = now
        self._refused = refused
        self.skip = skip

    def __contains__(self, item: object) -> bool:
        if item in self.skip:
            return True
        if not isinstance(item, DeploymentState):
            return False
        until = self._pacer.until(item.deployment, self._workload, self._now)
        if until <= self._now:
            return False
        self._refused.setdefault(item, Refusal(item.deployment, PACED, until, until))
        return True


def _per_day(state: DeploymentState) -> Quota | None:
    """Return the requests per day of a deployment; None if they are not limited."""
    quotas = state.deployment.quotas
    for quota in quotas:
        if quota.metric is Metric.RPD and quota.refill is Refill.DAILY and quota.limit:
            return quota
    is_learnt = state.daily_headroom < 1.0 and not any(quota.metric.is_daily for quota in quotas)
    return _LEARNT if is_learnt else None

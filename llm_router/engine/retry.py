"""What to do after a failure: what to avoid for how long, and whether to try again."""

from __future__ import annotations

import random
from enum import Enum, auto

import attrs

from llm_router.domain.calendar import next_midnight
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.engine.credentials import mark
from llm_router.engine.index import DeploymentState
from llm_router.errors import ProviderError

__all__ = ["Next", "RetryPolicy", "Verdict", "store_scope"]

_LONGEST_TRANSIENT = 60.0
_LONGEST_UNEXPLAINED = 15 * 60.0
_SHORTEST_REFUSAL = 1.0
_UNEXPLAINED = (30.0, 60.0)
_LADDER = (300.0, 1_800.0, 7_200.0, 21_600.0, 86_400.0)
"""Seconds after which one request tries again what was quarantined, by the number of strikes before."""

_KEY_LADDER = (10.0, 86_400.0)
"""The same for what is called invalid or suspended: asked for confirmation first, then once a day."""

_OPEN_DAY = 0.05


class Next(Enum):
    """What the request does next."""

    ELSEWHERE = auto()
    """Try another deployment at once: the fault lies with this one."""
    BACK_OFF = auto()
    """Wait a little, then try another deployment if there is one."""
    GIVE_UP = auto()
    """Stop: no other deployment would do better."""


@attrs.frozen
class Verdict:
    """The consequence of one failure.

    Attributes:
        next: What the request does next.
        cooldown: What every process that shares the store is to leave alone, or None.
        avoid_until: Seconds since the epoch until which this process alone avoids the deployment, or None.
        feature_until: Seconds since the epoch until which requests with the feature that the failure names
            avoid the (project, model), or None.
        unfit: Whether the model cannot serve this request, whatever the key.
        overloaded: Whether the model is overloaded: after two of its keys, another model is tried first.
    """

    next: Next
    cooldown: Cooldown | None = None
    avoid_until: float | None = None
    feature_until: float | None = None
    unfit: bool = False
    overloaded: bool = False


@attrs.frozen
class RetryPolicy:
    """Says what failures mean.

    Attributes:
        max_retries: Most attempts after the first.
        base_backoff: Upper bound of the first backoff in seconds; doubled by each further one.
        random: Draws the jitter.
    """

    max_retries: int = 3
    base_backoff: float = 0.5
    random: random.Random = attrs.field(factory=random.Random, repr=False)

    def ceiling(self, attempts: int) -> float:
        """Return the longest backoff after ``attempts`` attempts, in seconds."""
        return min(self.base_backoff * 2.0 ** min(attempts - 1, 16), _LONGEST_TRANSIENT)

    def backoff(self, attempts: int) -> float:
        """Draw a backoff after ``attempts`` attempts, in seconds; full jitter disperses crowds."""
        return self.random.uniform(0.0, self.ceiling(attempts))

    def judge(
        self,
        error: ProviderError,
        state: DeploymentState,
        now: float,
        strikes: int = 0,
        *,
        repeated: bool = False,
    ) -> Verdict:
        """Return what ``error`` on a deployment means, and count it against the deployment.

        Args:
            error: The failure.
            state: The deployment.
            now: Seconds since the epoch.
            strikes: How often in a row the scope of the failure was refused before.
            repeated: Whether the request was on its way before such a failure was last acted upon: then it is
                the same event, and does not count again.
        """
        match error.kind:
            case FailureKind.REQUEST:
                other_model = error.scope is FaultScope.MODEL
                return Verdict(Next.ELSEWHERE if other_model else Next.GIVE_UP, unfit=other_model)
            case FailureKind.KEY | FailureKind.MODEL:
                cooldown = None if repeated else _quarantine(error, state.deployment, now, strikes)
                return Verdict(Next.ELSEWHERE, cooldown)
            case FailureKind.QUOTA:
                return self._judge_quota(error, state, now, strikes, repeated=repeated)
            case FailureKind.SERVER:
                state.failures += 1
                until = now + self.ceiling(state.failures)
                scope = state.deployment.model_scope
                return Verdict(Next.BACK_OFF, Cooldown(scope, until, f"provider: {error}"), overloaded=True)
            case _:
                # The path is this process's own: no other process need avoid the deployment.
                state.failures += 1
                return Verdict(Next.BACK_OFF, avoid_until=now + self.ceiling(state.failures))

    def _judge_quota(
        self, error: ProviderError, state: DeploymentState, now: float, strikes: int, *, repeated: bool
    ) -> Verdict:
        scope = store_scope(error, state.deployment)
        # What a refusal of a whole project states are not the limits of the deployment.
        learnt = tuple(
            LearntLimit(violation.metric, violation.limit)
            for violation in error.violations
            if violation.metric is not None and violation.limit and error.scope is not FaultScope.PROJECT
        )
        named = [violation.metric for violation in error.violations if violation.metric is not None]
        if error.scope is FaultScope.FEATURE and error.feature is not None:
            until = now + self._minute_delay(error, state, explained=True)
            return Verdict(Next.ELSEWHERE, feature_until=until)
        if any(violation.limit == 0 for violation in error.violations):
            if repeated:
                return Verdict(Next.ELSEWHERE)
            reason = "no quota for this model in this project (limit 0)"
            return Verdict(Next.ELSEWHERE, _quarantine(error, state.deployment, now, strikes, reason))
        if any(metric.is_daily for metric in named):
            return Verdict(Next.ELSEWHERE, self._daily_cooldown(error, state, now, strikes, learnt))
        until = now + self._minute_delay(error, state, explained=bool(named) or repeated)
        names = ", ".join(metric.value for metric in named) or "unnamed quota"
        return Verdict(Next.ELSEWHERE, Cooldown(scope, until, f"{names} spent, says the provider", learnt))

    def _minute_delay(self, error: ProviderError, state: DeploymentState, *, explained: bool) -> float:
        """Return how many seconds a minute's refusal lasts: from 1 to 900."""
        delay = error.retry_delay
        if delay is None:
            delay = self.random.uniform(*_UNEXPLAINED)
        elif delay > _SHORTEST_REFUSAL:
            return min(delay, _LONGEST_UNEXPLAINED)
        else:  # "retry at once" is said by mistake: wait, and longer each time that it is said again
            delay, explained = _SHORTEST_REFUSAL, False
        if explained:
            return delay
        state.failures += 1
        return min(delay * 2.0 ** min(state.failures - 1, 16), _LONGEST_UNEXPLAINED)

    def _daily_cooldown(
        self,
        error: ProviderError,
        state: DeploymentState,
        now: float,
        strikes: int,
        learnt: tuple[LearntLimit, ...],
    ) -> Cooldown:
        """Return the cooldown of a daily refusal.

        It lasts until midnight, unless our own ledger gives reason to doubt it: then one request tries again
        after the delay that the provider asks for.
        """
        daily = [quota for quota in state.deployment.quotas if quota.metric.is_daily]
        scope, reason = store_scope(error, state.deployment), "daily quota spent, says the provider"
        midnight = next_midnight(now, daily[0].timezone if daily else "America/Los_Angeles") + 1.0
        if bool(daily) and state.daily_headroom > _OPEN_DAY and strikes == 0:
            until = min(now + self._minute_delay(error, state, explained=True), midnight)
            return Cooldown(scope, until, reason, learnt, half_open=True, strikes=1, since=now)
        return Cooldown(scope, midnight, reason, learnt, since=now)


def store_scope(error: ProviderError, deployment: Deployment) -> Scope:
    """Return the scope of the store that a failure takes out."""
    if error.scope is FaultScope.PROJECT:
        return deployment.project_scope
    return deployment.key_scope if error.scope is FaultScope.KEY else deployment.model_scope


def _quarantine(
    error: ProviderError, deployment: Deployment, now: float, strikes: int, reason: str = ""
) -> Cooldown:
    """Return the quarantine of what a failure blames: longer with each strike, and never for ever.

    A key that is called invalid is asked once more before it is believed: valid ones are now and then.
    """
    is_key = error.scope is FaultScope.KEY
    ladder = _KEY_LADDER if is_key or error.lasting else _LADDER
    seconds = ladder[min(strikes, len(ladder) - 1)]
    return Cooldown(
        store_scope(error, deployment),
        now + seconds,
        reason or f"{error.kind.value}: {error}",
        half_open=True,
        strikes=strikes + 1,
        since=now,
        credential=mark(deployment, whole_project=not is_key),
    )

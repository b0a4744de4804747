"""What to do after a failure: what to avoid for how long, and whether to try again."""

from __future__ import annotations

import math
import random
from enum import Enum, auto

import attrs

from llm_router.domain.calendar import next_midnight
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.engine.index import DeploymentState
from llm_router.errors import ProviderError

__all__ = ["Next", "RetryPolicy", "Verdict"]

_FORBIDDEN = 403
_UNCERTAIN = 300.0
"""Seconds for which a refusal is believed that may end at any time: of a permission, of a bill."""

_SHORTEST_REFUSAL = 1.0
_LONGEST_TRANSIENT = 60.0
_LONGEST_UNEXPLAINED = 15 * 60.0
_UNEXPLAINED = (30.0, 60.0)
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
    """

    next: Next
    cooldown: Cooldown | None = None
    avoid_until: float | None = None


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

    def judge(  # noqa: PLR0911 - one for each kind
        self, error: ProviderError, state: DeploymentState, now: float
    ) -> Verdict:
        """Return what ``error`` on a deployment means, and count it against the deployment."""
        deployment = state.deployment
        if error.scope in (FaultScope.PROJECT, FaultScope.FEATURE):
            return Verdict(Next.ELSEWHERE, self._scoped_cooldown(error, state, now))
        match error.kind:
            case FailureKind.REQUEST:
                return Verdict(Next.GIVE_UP)
            case FailureKind.KEY:
                return Verdict(Next.ELSEWHERE, Cooldown(deployment.key_scope, math.inf, f"key: {error}"))
            case FailureKind.MODEL:  # a permission may be granted at any time
                until = now + _UNCERTAIN if error.code == _FORBIDDEN else math.inf
                return Verdict(Next.ELSEWHERE, Cooldown(deployment.model_scope, until, f"model: {error}"))
            case FailureKind.QUOTA:
                return Verdict(Next.ELSEWHERE, self._quota_cooldown(error, state, now))
            case FailureKind.SERVER:
                state.failures += 1
                until = now + self.ceiling(state.failures)
                return Verdict(Next.BACK_OFF, Cooldown(deployment.model_scope, until, f"provider: {error}"))
            case _:
                # The path is this process's own: no other process need avoid the deployment.
                state.failures += 1
                return Verdict(Next.BACK_OFF, avoid_until=now + self.ceiling(state.failures))

    def _scoped_cooldown(self, error: ProviderError, state: DeploymentState, now: float) -> Cooldown | None:
        """Return the cooldown of what is not the deployment's fault alone, or None.

        What a project lacks is looked for again after some minutes, on each of its keys. What only a feature
        lacks must not stop requests without it: this one goes elsewhere.
        """
        if error.scope is FaultScope.FEATURE:
            return None
        seconds = _UNCERTAIN if error.retry_delay is None else max(error.retry_delay, _SHORTEST_REFUSAL)
        return Cooldown(state.deployment.key_scope, now + seconds, f"project: {error}")

    def _quota_cooldown(self, error: ProviderError, state: DeploymentState, now: float) -> Cooldown:
        scope = state.deployment.model_scope
        learnt = tuple(
            LearntLimit(violation.metric, violation.limit)
            for violation in error.violations
            if violation.metric is not None and violation.limit is not None
        )
        if any(violation.limit == 0 for violation in error.violations):
            return Cooldown(scope, math.inf, "no quota for this model in this project (limit 0)")
        named = [violation.metric for violation in error.violations if violation.metric is not None]
        if any(metric.is_daily for metric in named):
            until = self._day_ends(error, state, now)
            return Cooldown(scope, until, "daily quota spent, says the provider", learnt)
        until = now + self._minute_delay(error, state, explained=bool(named))
        names = ", ".join(metric.value for metric in named) or "unnamed quota"
        return Cooldown(scope, until, f"{names} spent, says the provider", learnt)

    def _minute_delay(self, error: ProviderError, state: DeploymentState, *, explained: bool) -> float:
        if error.retry_delay is not None:
            return error.retry_delay
        delay = self.random.uniform(*_UNEXPLAINED)
        if explained:
            return delay
        state.failures += 1
        return min(delay * 2.0 ** min(state.failures - 1, 16), _LONGEST_UNEXPLAINED)

    def _day_ends(self, error: ProviderError, state: DeploymentState, now: float) -> float:
        """Return when a daily refusal ends: at midnight, unless our own ledger gives reason to doubt it."""
        daily = [quota for quota in state.deployment.quotas if quota.metric.is_daily]
        doubtful = bool(daily) and state.daily_headroom > _OPEN_DAY
        state.day_strikes += 1
        if doubtful and state.day_strikes == 1:
            return now + self._minute_delay(error, state, explained=True)
        timezone = daily[0].timezone if daily else "America/Los_Angeles"
        return next_midnight(now, timezone) + 1.0

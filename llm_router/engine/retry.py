"""What to do after a failure: what to avoid for how long, and whether to try again."""

from __future__ import annotations

import random
from enum import Enum, auto

import attrs

from llm_router.domain.calendar import next_midnight
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.domain.limits import LearntLimit
from llm_router.domain.quota import PROVIDER_TIMEZONE
from llm_router.engine.credentials import mark
from llm_router.engine.evidence import Inference
from llm_router.engine.index import DeploymentState
from llm_router.errors import ProviderError

__all__ = [
    "DAY_SPENT",
    "SPENDING_SPENT",
    "Next",
    "RetryPolicy",
    "Verdict",
    "asked_delay",
    "is_daily",
    "is_spending",
    "names_quota",
    "store_scope",
]

_SPENT, _UNNAMED = "spent, says the provider", "unnamed quota"

DAY_SPENT = f"daily quota {_SPENT}"
"""The reason of a cooldown because of a quota of the day."""

SPENDING_SPENT = f"spend limit {_SPENT}"
"""The same because of what a project may spend in ten minutes."""

_MONEY_SPENT = f"money {_SPENT}"

_LONGEST_TRANSIENT = 60.0
_LONGEST_UNEXPLAINED = 15 * 60.0
_SHORTEST_REFUSAL = 1.0
_UNEXPLAINED = (30.0, 60.0)
_LADDER = (300.0, 1_800.0, 7_200.0, 21_600.0, 86_400.0)
"""Seconds after which one request tries again what was quarantined, by the number of strikes before."""

_KEY_LADDER = (10.0, 86_400.0)
"""The same for what is called invalid or suspended: asked for confirmation first, then once a day."""

_OPEN_DAY = 0.05

_OUTAGE = 3
"""Failures of a deployment in a row after which one request at a time tries whether it is over."""

_ESCALATION = 3.0
"""How many times as long each further refusal without an explanation lasts."""


_NOTHING_INFERRED = Inference()


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
        learnt: The limits that every process that shares the store is to keep to from now on.
    """

    next: Next
    cooldown: Cooldown | None = None
    avoid_until: float | None = None
    feature_until: float | None = None
    unfit: bool = False
    overloaded: bool = False
    learnt: tuple[LearntLimit, ...] = ()


@attrs.frozen
class _Strikes:
    """How often in a row a scope was refused before, and since when."""

    count: int
    since: float


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
        since: float | None = None,
        inference: Inference = _NOTHING_INFERRED,
        turn: float | None = None,
    ) -> Verdict:
        """Return what ``error`` on a deployment means, and count it against the deployment.

        Args:
            error: The failure.
            state: The deployment.
            now: Seconds since the epoch.
            strikes: How often in a row the scope of the failure was refused before.
            repeated: Whether the request was on its way before such a failure was last acted upon: then it is
                the same event, and does not count again.
            since: When the first of those strikes was; None if there were none.
            inference: What the refusal says about limits.
            turn: When it is the turn of the deployment to try whether an outage of its model is over.
        """
        match error.kind:
            case FailureKind.REQUEST:
                other_model = error.scope is FaultScope.MODEL
                return Verdict(Next.ELSEWHERE if other_model else Next.GIVE_UP, unfit=other_model)
            case FailureKind.KEY | FailureKind.MODEL:
                if error.scope is FaultScope.FEATURE and error.feature is not None:
                    verdict = Verdict(Next.ELSEWHERE, feature_until=now + _LADDER[0])
                else:
                    cooldown = None if repeated else _quarantine(error, state.deployment, now, strikes)
                    verdict = Verdict(Next.ELSEWHERE, cooldown)
                return verdict
            case FailureKind.QUOTA:
                if repeated:
                    # That there is no quota at all is no limit to keep to, and already acted upon.
                    none = any(violation.limit == 0 for violation in error.violations)
                    return Verdict(Next.ELSEWHERE, learnt=() if none else inference.learnt)
                return self._judge_quota(error, state, now, _Strikes(strikes, since or now), inference)
            case FailureKind.SERVER:
                cooldown = None if repeated else self._overload(error, state, now, strikes, turn)
                return Verdict(Next.BACK_OFF, cooldown, overloaded=True)
            case _:
                # The path is this process's own: no other process need avoid the deployment.
                state.failures += 1
                delay = max(self.ceiling(state.failures), asked_delay(error))
                return Verdict(Next.BACK_OFF, avoid_until=now + delay)

    def _overload(
        self, error: ProviderError, state: DeploymentState, now: float, strikes: int, turn: float | None
    ) -> Cooldown:
        """Return the cooldown of an overloaded model; after a few in a row one request goes first.

        It lasts at least as long as the provider asks for.
        """
        state.failures = max(state.failures, strikes) + 1
        until, half_open = now + self.ceiling(state.failures), state.failures >= _OUTAGE
        if turn is not None:
            until, half_open = turn, True
        return Cooldown(
            state.deployment.model_scope,
            max(until, now + asked_delay(error)),
            f"provider: {error}",
            half_open=half_open,
            strikes=state.failures if half_open else 0,
            since=now,
        )

    def _judge_quota(
        self,
        error: ProviderError,
        state: DeploymentState,
        now: float,
        strikes: _Strikes,
        inference: Inference,
    ) -> Verdict:
        if error.scope is FaultScope.FEATURE and error.feature is not None:
            until = now + self._minute_delay(error, 0)
            return Verdict(Next.ELSEWHERE, feature_until=until)
        if any(violation.limit == 0 for violation in error.violations):
            reason = "no quota for this model in this project (limit 0)"
            return Verdict(Next.ELSEWHERE, _quarantine(error, state.deployment, now, strikes.count, reason))
        if is_daily(error) or inference.is_day_confirmed:
            is_certain = inference.is_day_confirmed or strikes.count > 0
            cooldown = self._daily_cooldown(error, state, now, is_certain=is_certain)
        elif inference.is_explained:
            cooldown = None
        else:
            cooldown = self._minute_cooldown(error, state, now, strikes, inference)
            state.starved += inference.is_starved
        return Verdict(Next.ELSEWHERE, cooldown, learnt=inference.learnt)

    def _minute_delay(
        self, error: ProviderError, strikes: int, pause: float = 0.0, starved: int = 0
    ) -> float:
        """Return how many seconds a minute's refusal lasts: from 1 to 900.

        What the provider asks for, or twice as long each time that nothing was admitted before the refusal;
        if it asks for nothing, or to retry at once, longer with each strike.
        """
        delay = error.retry_delay
        if delay is None:
            delay = self.random.uniform(pause, 2.0 * pause) if pause else self.random.uniform(*_UNEXPLAINED)
        elif delay > _SHORTEST_REFUSAL:
            return min(delay * 2.0 ** min(starved, 16), _LONGEST_UNEXPLAINED)
        else:  # said by mistake
            delay = _SHORTEST_REFUSAL
        factor = max(_ESCALATION ** min(strikes, 16), 2.0 ** min(starved, 16))
        return min(delay * factor, _LONGEST_UNEXPLAINED)

    def _minute_cooldown(
        self,
        error: ProviderError,
        state: DeploymentState,
        now: float,
        strikes: _Strikes,
        inference: Inference,
    ) -> Cooldown:
        """Return the cooldown of a refusal that the store's count does not explain.

        At its end one request goes first. Each time that it is refused as well, the next one waits longer.
        """
        starved = state.starved if inference.is_starved else 0
        delay = self._minute_delay(error, strikes.count, inference.pause, starved)
        if error.retry_delay is None:
            delay = min(delay, max(inference.counted_in, _SHORTEST_REFUSAL))
        until = now + delay
        scope = store_scope(error, state.deployment)
        reason = _reason(error)
        return Cooldown(scope, until, reason, half_open=True, strikes=strikes.count + 1, since=strikes.since)

    def _daily_cooldown(
        self, error: ProviderError, state: DeploymentState, now: float, *, is_certain: bool
    ) -> Cooldown:
        """Return the cooldown of a daily refusal.

        It lasts until midnight, unless our own ledger gives reason to doubt it: then one request tries again
        after the delay that the provider asks for.
        """
        scope = store_scope(error, state.deployment)
        midnight = _end_of_day(state.deployment, now)
        is_counted = any(quota.metric.is_daily for quota in state.deployment.quotas)
        if is_counted and state.daily_headroom > _OPEN_DAY and not is_certain:
            until = min(now + self._minute_delay(error, 0), midnight)
            return Cooldown(scope, until, DAY_SPENT, half_open=True, strikes=1, since=now)
        return Cooldown(scope, midnight, DAY_SPENT, since=now)


def is_daily(error: ProviderError) -> bool:
    """Return whether a refusal says that it is for a quota of the day."""
    return any(each.metric is not None and each.metric.is_daily for each in error.violations)


def is_spending(error: ProviderError) -> bool:
    """Return whether a refusal is for what a project spent in ten minutes."""
    is_for_quota = error.kind is FailureKind.QUOTA and error.scope is FaultScope.PROJECT
    return is_for_quota and error.spending and not error.lasting


def names_quota(cooldown: Cooldown) -> bool:
    """Return whether a scope cools down because a quota is spent that the provider has named."""
    reason = cooldown.reason
    is_named = reason not in (SPENDING_SPENT, _MONEY_SPENT) and not reason.startswith(_UNNAMED)
    return is_named and reason.endswith(_SPENT)


def _reason(error: ProviderError) -> str:
    """Return the reason of a cooldown because of a refusal for want of quota."""
    if is_spending(error):
        return SPENDING_SPENT
    if error.lasting:
        return _MONEY_SPENT
    named = [violation.metric.value for violation in error.violations if violation.metric is not None]
    return f"{', '.join(named) or _UNNAMED} {_SPENT}"


def _end_of_day(deployment: Deployment, now: float) -> float:
    timezones = (quota.timezone for quota in deployment.quotas if quota.metric.is_daily)
    return next_midnight(now, next(timezones, PROVIDER_TIMEZONE)) + 1.0


def asked_delay(error: ProviderError) -> float:
    """Return for how many seconds a server asked to be left alone: from 0, if it did not, to 900."""
    delay = error.retry_delay or 0.0
    return min(delay, _LONGEST_UNEXPLAINED) if delay > 0.0 else 0.0  # NaN is not


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

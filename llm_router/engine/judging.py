"""Draw the consequences of an attempt, in this process and in the store."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

import attrs

from llm_router.domain.clock import Clock, monotonic
from llm_router.domain.cooldown import PROBE_TIME, Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.engine.breaker import FORBIDDEN_WITHIN, PATH_FAILURES
from llm_router.engine.evidence import Inference
from llm_router.engine.extensions import note_failure, snapshots_of
from llm_router.engine.failures import FailureLog
from llm_router.engine.index import DeploymentState
from llm_router.engine.learning import LimitLearner, Refused
from llm_router.engine.pool import Pool
from llm_router.engine.project_limits import is_of_project
from llm_router.engine.remembering import remember
from llm_router.engine.reporting import Reporter
from llm_router.engine.retry import (
    DAY_SPENT,
    Next,
    RetryPolicy,
    Verdict,
    asked_delay,
    is_daily,
    store_scope,
)
from llm_router.engine.timing import finish
from llm_router.errors import ProviderError
from llm_router.stores.base import RateLimitStore

__all__ = ["Judge"]

_log = logging.getLogger("llm_router")

_FORBIDDEN, _NOT_FOUND = 403, 404
_UNCONFIRMED = 60.0
"""Seconds; a shorter quarantine only waits for a second witness, which is not worth a warning."""

_BLAMES = (FailureKind.KEY, FailureKind.MODEL)
_REMEMBERED = 256
"""Most scopes of which it is remembered when they were last refused."""

_PASSING = (FailureKind.QUOTA, FailureKind.SERVER)
_UNTOLD = (FailureKind.REQUEST, *PATH_FAILURES)
"""Failures that say nothing of what a probe was to find out."""

_NO_INFERENCE = Inference()

_OTHERS = 64
"""Most deployments of a model that are looked at for when they try again."""

_WITNESSES = 3
_WITNESSED_WITHIN = 600.0
"""Projects that are told within so many seconds that a model does not exist before it is gone for all."""


@attrs.define(eq=False)
class Judge:
    """Judges failures by a policy, and sees to the consequences.

    Attributes:
        policy: Says what a failure means.
        pool: Where deployments are parked or avoided.
        store: Where cooldowns are shared.
        clock: Where time comes from.
        reporter: Reports to observers, or None.
        on_room: Called when requests that wait may find room.
        failures: Where the failures of each key are remembered.
    """

    policy: RetryPolicy
    pool: Pool
    store: RateLimitStore
    clock: Clock
    reporter: Reporter | None = None
    on_room: Callable[[], None] = lambda: None
    failures: FailureLog = attrs.field(factory=FailureLog)
    learner: LimitLearner = attrs.field(init=False)
    _monotonic: Callable[[], float] = attrs.field(init=False)
    _refused: dict[Scope, float] = attrs.field(factory=dict, init=False)
    _missing: deque[tuple[float, str, str, str]] = attrs.field(
        factory=lambda: deque(maxlen=_REMEMBERED), init=False
    )

    def __attrs_post_init__(self) -> None:
        self._monotonic = monotonic(self.clock)
        self.learner = LimitLearner(self.pool, self.store, self.clock, self.on_room, self.reporter)

    async def judge(
        self,
        error: ProviderError,
        state: DeploymentState,
        probes: Iterable[Cooldown] = (),
        began: float = math.inf,
        tokens: int = 0,
    ) -> Verdict:
        """Cool down, quarantine or avoid what failed; return what the request is to do next.

        Args:
            error: The failure.
            state: The deployment.
            probes: The half-open cooldowns that the attempt probed.
            began: When the attempt began, on the monotonic clock.
            tokens: The input tokens that were reserved for it.
        """
        now, deployment, breaker = self.clock.time(), state.deployment, state.group.breaker
        self.failures.note(deployment, error, now)
        scope = store_scope(error, deployment)
        probed = max((p for p in probes if p.scope == scope), key=attrgetter("strikes"), default=None)
        # What was refused before in a row: that a minute's quota was spent says nothing of the day's.
        before = None if probed is None or (is_daily(error) and probed.reason != DAY_SPENT) else probed
        strikes, since = (0, None) if before is None else (before.strikes, before.since or None)
        # What was sent before such a refusal was acted upon belongs to the same event.
        repeated = not strikes and self._refused.get(scope, began) > began
        if error.kind in PATH_FAILURES:
            breaker.record_failure(deployment.key.key_id, now)
        elif self._may_be_of_several(error, state):
            model = self._one_of_several(state) if error.kind is FailureKind.MODEL else None
            if breaker.record_forbidden(
                deployment.key.key_id, deployment.key.project, now, str(error), model
            ):
                verdict = await self._acquit_forbidden(breaker.forbidden, state, now, str(error))
                await self.pass_on(probes, state, began)
                return verdict
        elif not breaker.is_clear:
            breaker.record_success()
        inference = _NO_INFERENCE
        if error.kind is FailureKind.QUOTA:
            sent_at = now - (self._monotonic() - began)
            inference = await self._infer(Refused(error, sent_at, before, repeated, tokens), state)
        turns: Mapping[Deployment, float] = {}
        if error.kind is FailureKind.SERVER and not repeated and state.group.overload.record(deployment):
            turns = await self._take_turns(state, now + asked_delay(error))
        verdict = self.policy.judge(
            error,
            state,
            now,
            strikes,
            repeated=repeated,
            since=since,
            inference=inference,
            turn=turns.get(deployment),
        )
        await self._carry_out(verdict, error, state, probed)
        for other, turn in turns.items():
            waiting = self.pool.states.get(other)
            if waiting not in (None, state) and verdict.cooldown is not None:
                cooldown = attrs.evolve(verdict.cooldown, scope=other.model_scope, until=turn)
                await self._impose(cooldown, waiting, now)
        is_told = error.kind not in _UNTOLD and error.scope is not FaultScope.FEATURE
        await self.pass_on([each for each in probes if each is not probed or not is_told], state, began)
        return verdict

    async def _infer(self, refused: Refused, state: DeploymentState) -> Inference:
        """Return what a refusal says about limits: of the model, or of all models of the project."""
        error = refused.error
        if error.lasting:
            return _NO_INFERENCE  # no limit comes back as late as what was used up
        if error.scope is FaultScope.DEPLOYMENT:
            return await self.learner.infer(refused, state)
        if not is_of_project(error):
            return _NO_INFERENCE
        is_counted = any(quota.metric.is_daily for quota in state.deployment.quotas)
        if is_daily(error) and is_counted and refused.probed is None:
            return _NO_INFERENCE  # the first of a day is tried again, as where it is the model's
        return await self.learner.infer_of_project(refused, state)

    async def _carry_out(
        self, verdict: Verdict, error: ProviderError, state: DeploymentState, probed: Cooldown | None
    ) -> None:
        now, deployment = self.clock.time(), state.deployment
        if verdict.avoid_until is not None:
            self.pool.avoid(state, verdict.avoid_until, str(error))
        if verdict.feature_until is not None and error.feature is not None:
            self.pool.avoid_feature(deployment.model_scope, error.feature, verdict.feature_until)
        if verdict.learnt:
            self._note(store_scope(error, deployment))
            about = self.learner.about(error, state)
            if about is not None:
                await self.learner.learn(about, verdict.learnt)
        ends = now if verdict.cooldown is None else verdict.cooldown.until
        if probed is not None and error.kind in _PASSING and ends < now + PROBE_TIME:
            # Others must not wait for this probe for longer than what it found lasts.
            await self._share(Cooldown.lift(probed.scope), state)
        if verdict.cooldown is not None:
            self._note(verdict.cooldown.scope)
            await self._impose(verdict.cooldown, state, now)
            if error.kind is FailureKind.MODEL and error.scope is FaultScope.DEPLOYMENT:
                self._witness(state, verdict.cooldown)

    async def _take_turns(self, state: DeploymentState, start: float) -> dict[Deployment, float]:
        """Return when deployments are to try whether the outage of their model is over.

        That is after all others, and after ``start``, in seconds since the epoch.
        """
        group = state.group
        try:
            snapshots = await snapshots_of(self.store, [each.deployment for each in group.states[:_OTHERS]])
        except Exception as error:  # noqa: BLE001 - as below; the turns of this process have to do
            note_failure(self.store, "snapshot", error)
            snapshots = []
        cooldowns = [each.cooldown for each in snapshots if each.cooldown is not None]
        others = [each.until for each in cooldowns if each.half_open]
        return group.overload.take_turns(
            state.deployment, start, others, len(group.states), self.policy.ceiling
        )

    async def acquit(self, state: DeploymentState, probes: Iterable[Cooldown]) -> None:
        """Lift the half-open cooldowns that a successful attempt has probed."""
        if await self._is_disabled(state):
            return  # since the probe was sent; a lift would end that, too
        state.starved = state.starved and max(state.starved - 1, 1)
        for probe in probes:
            if probe.is_quarantine:
                _log.info("%s is used again: %s", state.deployment.id, probe.reason)
            await self._share(Cooldown.lift(probe.scope), state)
            self.pool.rouse(probe.scope, self.clock.time())
        self.on_room()

    async def pass_on(self, probes: Iterable[Cooldown], state: DeploymentState, began: float) -> None:
        """Have the next request probe the half-open cooldowns of which an attempt found nothing out.

        Args:
            probes: Those that the attempt probed.
            state: The deployment.
            began: When the attempt began, on the monotonic clock. If that is too long ago, another request
                has its turn already, or had it.
        """
        if self._monotonic() - began >= PROBE_TIME:
            return
        for probe in probes:
            await self._share(Cooldown.retry(probe.scope), state)
            self.pool.rouse(probe.scope, self.clock.time())
            self.on_room()

    async def end_outage(self, state: DeploymentState) -> None:
        """Have every deployment of a model try again that waits for its turn: ``state`` has answered."""
        held, ended = self.pool.states, state.group.overload.end()
        waiting = [held[each] for each in ended if each in held]  # not those that a reload has taken away
        for other in waiting:
            other.failures = 0  # they were not its own
        if others := [other for other in waiting if other is not state]:
            await finish(self._end_turns(others))

    async def _end_turns(self, waiting: Iterable[DeploymentState]) -> None:
        async def end(state: DeploymentState) -> None:
            scope = state.deployment.model_scope
            await self._share(Cooldown.retry(scope), state)
            self.pool.rouse(scope, self.clock.time())

        await asyncio.gather(*map(end, waiting))  # together, since there may be thousands
        self.on_room()

    async def _acquit_forbidden(
        self, key_ids: frozenset[str], state: DeploymentState, now: float, reason: str
    ) -> Verdict:
        """Blame no key and no model for a refusal that several get at once; lift what was imposed for it."""
        for other in self.pool:
            cooldown = None if other.refusal is None else other.refusal.cooldown
            if other.deployment.key.key_id not in key_ids or cooldown is None or not cooldown.is_quarantine:
                continue
            if cooldown.since > now - FORBIDDEN_WITHIN:
                await self._share(Cooldown.lift(cooldown.scope), state)
                self.pool.rouse(cooldown.scope, now)
        self.pool.readmit_models(now)
        self.on_room()
        self._missing.clear()
        state.failures += 1
        self.pool.avoid(state, now + self.policy.ceiling(state.failures), reason)
        return Verdict(Next.BACK_OFF)

    def _may_be_of_several(self, error: ProviderError, state: DeploymentState) -> bool:
        """Return whether, if several keys are told the same at once, that is the provider's fault.

        That a key is wrong or forbidden, or that one of several models does not exist. Where there is only
        one model, it is more likely to be gone, or its name to be wrong.
        """
        if error.kind not in _BLAMES or error.scope is FaultScope.FEATURE:
            return False
        return (
            error.code == _FORBIDDEN
            or error.kind is FailureKind.KEY
            or (error.code == _NOT_FOUND and self._one_of_several(state) is not None)
        )

    def _one_of_several(self, state: DeploymentState) -> str | None:
        """Return the model of a deployment, or None if its provider has no other."""
        upstream, model = state.group.upstream, state.group.model
        groups = self.pool.groups.values()
        return model if any(each.upstream is upstream and each.model != model for each in groups) else None

    async def _is_disabled(self, state: DeploymentState) -> bool:
        try:
            [snapshot] = await snapshots_of(self.store, [state.deployment])
        except Exception as error:  # noqa: BLE001 - as below; then nothing can be lifted either
            note_failure(self.store, "snapshot", error)
            return False
        return snapshot.cooldown is not None and snapshot.cooldown.is_disabled

    def _note(self, scope: Scope) -> None:
        remember(self._refused, scope, self._monotonic())

    def _witness(self, state: DeploymentState, cooldown: Cooldown) -> None:
        """Avoid a model on every key once several projects were told that it does not exist."""
        now, provider, model = self._monotonic(), state.group.upstream.name, state.group.model
        self._missing.append((now, provider, model, state.deployment.key.project))
        projects = {
            project
            for at, *what, project in self._missing
            if what == [provider, model] and at > now - _WITNESSED_WITHIN
        }
        if len(projects) >= _WITNESSES:
            self.pool.avoid_model(provider, model, cooldown.until, cooldown.reason)

    async def _impose(self, cooldown: Cooldown, state: DeploymentState, now: float) -> None:
        if not self.pool.is_concerned(cooldown):
            return  # the request was sent before a reload
        if cooldown.is_quarantine and cooldown.until - now > _UNCONFIRMED:
            _log.warning(
                "%s is quarantined, and tried again in %.0f min: %s",
                state.deployment.id,
                (cooldown.until - now) / 60.0,
                cooldown.reason,
            )
        self.pool.cool_down(cooldown)
        await self._share(cooldown, state)

    async def _share(self, cooldown: Cooldown, state: DeploymentState) -> None:
        if self.reporter is not None:
            self.reporter.imposed(cooldown, state.deployment)
        try:
            await self.store.cool_down(cooldown)
        except Exception as error:  # noqa: BLE001 - of a user's store; this process keeps to it all the same
            note_failure(self.store, "cool_down", error)

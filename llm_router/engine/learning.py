"""Learn limits: read the count behind a refusal or an answer, and share what the controller makes of it."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, ProjectDeployment, Scope
from llm_router.domain.kinds import Metric
from llm_router.domain.limits import LearntLimit, LimitRecord, LimitSource
from llm_router.engine.evidence import LATEST, WINDOW, Circumstances, Inference, begin_to_count, is_in_part
from llm_router.engine.extensions import note_failure, snapshots_of
from llm_router.engine.index import DeploymentState
from llm_router.engine.limits import after_answer, after_refusal, first_inferences, for_another_project
from llm_router.engine.pool import Pool
from llm_router.engine.project_limits import (
    added_up,
    counted_from_now,
    in_requests,
    is_known,
    is_of_project,
    refused_by,
    shared_state,
    uncounted_by,
)
from llm_router.engine.remembering import remember
from llm_router.engine.reporting import Reporter
from llm_router.engine.suspicions import REMEMBERED, Suspicions
from llm_router.engine.tries import concerns_others, follow, proves_more, put_off, takes_turns
from llm_router.engine.unnamed import counting_tokens, is_refuted, taken_for_tokens
from llm_router.errors import ProviderError
from llm_router.stores.base import QuotaSnapshot, RateLimitStore

__all__ = ["LimitLearner", "Refused"]

_log = logging.getLogger("llm_router")

_LOOKED_AT = 5.0
"""Seconds for which one answer alone looks at the limits that it may raise."""

_DOUBTED_FOR = 86_400.0
"""Seconds for which a refusal that was put down to chance lets the next one be believed. A limit that is then
too low rises within minutes of demand, so it may be long."""

_IN_TEN_MINUTES = "requests in ten minutes"

_BEGINNING = "beginning"
"""Who charges what the models of a project took before it was counted on the project: no process."""

_OTHERS = 64
"""Most other projects that start from a limit that was learnt on one."""


@attrs.frozen
class _Before:
    """The quotas of a (project, model) when a refusal came, before anything was learnt from it."""

    at: float
    quotas: tuple[QuotaSnapshot, ...]


@attrs.frozen
class Refused:
    """A refusal for want of quota.

    Attributes:
        error: The refusal.
        began: When the refused request was sent, in seconds since the epoch.
        probed: The half-open cooldown that the request probed, or None; also None where the refusal says that
            it is for another reason.
        repeated: Whether it was on its way before another refusal was acted upon.
        tokens: The input tokens that were reserved for it.
    """

    error: ProviderError
    began: float
    probed: Cooldown | None
    repeated: bool
    tokens: int = 0


@attrs.define(eq=False)
class LimitLearner:
    """Learns limits from refusals and answers.

    Attributes:
        pool: The deployments.
        store: Where limits are kept, and what is counted.
        clock: Where time comes from.
        on_room: Called when requests that wait may find room.
        reporter: Reports to observers, or None.
        suspicions: What refusals suggest besides limits.
    """

    pool: Pool
    store: RateLimitStore
    clock: Clock
    on_room: Callable[[], None]
    reporter: Reporter | None = None
    suspicions: Suspicions = attrs.field(factory=Suspicions, init=False)
    _found: dict[Scope, float] = attrs.field(factory=dict, init=False)
    _doubted: dict[Scope, float] = attrs.field(factory=dict, init=False)
    _before: dict[Scope, _Before] = attrs.field(factory=dict, init=False)
    _latest: dict[Scope, tuple[tuple[QuotaSnapshot, ...], ...]] = attrs.field(factory=dict, init=False)
    _taken_for_tokens: dict[Scope, tuple[float, int]] = attrs.field(factory=dict, init=False)
    _told: dict[str, float] = attrs.field(factory=dict, init=False)
    _beginning: set[Scope] = attrs.field(factory=set, init=False)

    async def infer(self, refused: Refused, state: DeploymentState) -> Inference:
        """Return what a refusal says about the limits of a deployment."""
        [quotas] = await self._quotas_of([state])
        return await self._infer(refused, state, quotas)

    async def infer_of_project(self, refused: Refused, state: DeploymentState) -> Inference:
        """Return what a refusal says about the limits that all models of a project share.

        The first one that this process meets also cools the project down: so others hear of it.

        Args:
            refused: A refusal that is about such a limit.
            state: The deployment that was asked.
        """
        shared = refused_by(refused.error, state.deployment)
        known, scope = self.pool.sharing(shared), shared.model_scope
        if known is None:
            if scope in self._beginning or not self.pool.holds(state):
                return Inference()
            self._beginning.add(scope)
            try:
                inference = await self._begin(refused, state)
            finally:
                self._beginning.discard(scope)
            return attrs.evolve(inference, learnt=(), is_explained=False)
        if shared.is_spending:
            [own] = await self._quotas_of([known])
            return await self._infer(attrs.evolve(refused, error=in_requests(refused.error)), known, own)
        [own, *others] = await self._quotas_of([known, *self._models(shared.project_scope)])
        if refused.repeated:
            own = tuple(_at_most(quota, added_up(others, quota.metric)) for quota in own)
        return await self._infer(refused, known, own)

    async def _begin(self, refused: Refused, state: DeploymentState) -> Inference:
        """Begin to keep the limits of a project, by what its models took; return what is known at once.

        Of ten minutes of spending, that is the last one only: nothing is learnt before they have passed.
        """
        wanted = refused_by(refused.error, state.deployment)
        shared = shared_state(state, wanted)
        [own, *others] = await self._quotas_of([shared, *self._models(wanted.project_scope)])
        inference = Inference()
        if wanted.is_spending:
            if not is_known(own):
                await self.learn(shared, (begin_to_count(Metric.RPM),))
        elif uncounted := counted_from_now(refused.error, own, ()):
            sums = (added_up(others, entry.metric) for entry in uncounted)
            quotas = tuple(quota for quota in sums if quota is not None)
            inference = await self._infer(refused, shared, (*own, *quotas))
            uncounted = counted_from_now(refused.error, own, inference.learnt)
            await self.learn(shared, (*inference.learnt, *uncounted))
        if takings := uncounted_by(own, others, self.clock.time()):
            minute = int(self.clock.time() // WINDOW)  # so that of several who begin at once one charges
            try:
                await self.store.charge(_BEGINNING, minute, shared.deployment, takings)
            except Exception as error:  # noqa: BLE001 - as below; then a refusal more is met
                note_failure(self.store, "charge", error)
        self.pool.share(shared)
        self._look_at(shared, self.clock.time() + WINDOW)
        return inference

    def _models(self, scope: Scope) -> list[DeploymentState]:
        """Return a deployment of each model of a project."""
        return list({state.deployment.model_scope: state for state in self.pool.of(scope)}.values())

    async def _infer(
        self, refused: Refused, state: DeploymentState, quotas: tuple[QuotaSnapshot, ...]
    ) -> Inference:
        """Return what a refusal says about limits; have other projects of the model start from them."""
        error, repeated, probed = refused.error, refused.repeated, refused.probed
        now, began, scope = self.clock.time(), refused.began, state.deployment.model_scope
        is_spending = state.deployment.is_spending
        if not (repeated or is_spending):  # requests that cost more than others look like others' requests
            self.suspicions.note(state.deployment, error, quotas, now)
            self._tell(state.deployment, now)
        finding = repeated and self._found.get(scope, -math.inf) >= began
        strikes, since = (0, math.inf) if probed is None else (probed.strikes, probed.since or math.inf)
        doubted = 0.0 <= now - self._doubted.get(scope, math.inf) < _DOUBTED_FOR
        before = self._quotas_before(scope, quotas, now, began, since) if not repeated else ()
        latest = self._latest.get(scope, ())
        taken_at, first_tokens = self._taken_for_tokens.get(scope, (-math.inf, 0))
        when = Circumstances(
            now,
            began,
            strikes,
            since,
            repeated,
            finding,
            doubted,
            refused.tokens,
            before,
            latest,
            first_tokens if 0.0 <= now - taken_at < _DOUBTED_FOR else 0,
        )
        inference = after_refusal(error, state.deployment, quotas, when)
        if not (repeated or error.violations):
            is_whole = not any(is_in_part(quota, now) for quota in quotas)
            remember(self._latest, scope, (*latest, quotas)[-LATEST:] if is_whole else ())
            inference = counting_tokens(inference, quotas)
            if first := taken_for_tokens(inference):
                remember(self._taken_for_tokens, scope, (now, first))
            elif is_refuted(inference):
                self._taken_for_tokens.pop(scope, None)  # if it has become less, it is found again
        if not (repeated or inference.is_explained or inference.is_starved or inference.is_day_confirmed):
            remember(self._doubted, scope, now)
        self._look_at(state, now + WINDOW)
        news = first_inferences(inference.learnt, quotas)
        if news:
            remember(self._found, scope, now)
            others = self._other_projects(state)
            for other, its_quotas in zip(others, await self._quotas_of(others), strict=True):
                if prior := for_another_project(news, other.deployment, its_quotas):
                    await self.learn(other, prior)
        elif not (inference.is_day_confirmed or is_spending) and any(map(takes_turns, inference.learnt)):
            learnt = [
                await self._take_turns(entry, state, quotas, now) if takes_turns(entry) else entry
                for entry in inference.learnt
            ]
            inference = attrs.evolve(inference, learnt=tuple(learnt))
        return inference

    def _quotas_before(
        self, scope: Scope, quotas: tuple[QuotaSnapshot, ...], now: float, began: float, since: float
    ) -> tuple[QuotaSnapshot, ...]:
        """Return the quotas when the first of some strikes came; nothing if this process did not see it."""
        if since == math.inf:
            if all(quota.learnt is None or quota.learnt.learnt_at < began for quota in quotas):
                remember(self._before, scope, _Before(now, quotas))
            return ()
        before = self._before.get(scope)
        return before.quotas if before is not None and abs(before.at - since) < WINDOW else ()

    def _tell(self, deployment: Deployment, now: float) -> None:
        """Log what the refusals of a deployment suggest, once an hour at most while it does not change."""
        for fact in self.suspicions.about(deployment, now):
            name = f"{deployment.model_scope} {fact['kind']} {' '.join(fact['keys'])}"
            if not 0.0 <= now - self._told.get(name, -math.inf) < REMEMBERED:
                _log.warning("%s: %s", deployment.id, fact["words"])
            remember(self._told, name, now)

    async def _take_turns(
        self, entry: LearntLimit, state: DeploymentState, quotas: Sequence[QuotaSnapshot], now: float
    ) -> LearntLimit:
        """Put the next try of a limit behind those of other projects with the same limit.

        So many projects that not all are looked at try each by itself: else only those looked at would wait.
        """
        others = self._other_projects(state)
        if len(others) >= _OTHERS:
            return entry
        records = await self._records_of(others, entry.metric)
        failed = concerns_others(entry, _record(quotas, entry.metric))
        entry, later = put_off(entry, records, now, failed=failed)
        for place, lesson in later.items():
            await self._share(Cooldown.learn(others[place].deployment.model_scope, lesson))
        return entry

    def about(self, error: ProviderError, state: DeploymentState) -> DeploymentState | None:
        """Return whose limits a refusal taught; None if a reload has taken the project away meanwhile."""
        return self.pool.sharing(refused_by(error, state.deployment)) if is_of_project(error) else state

    async def grow(self, state: DeploymentState, *, ends_day: bool) -> None:
        """Let limits rise that an answer has proven too low, if it is time to look at them.

        Args:
            state: The deployment.
            ends_day: Whether the answered request took the last of a quota of the day.
        """
        now = self.clock.time()
        state.limits_due = now + _LOOKED_AT
        shared = self.pool.shared.get(state.deployment.project_scope, ())
        states = [state, *shared]
        found = await self._read(states)
        if found is None:
            return
        growths = [
            after_answer(each.deployment, quotas, now, ends_day=ends_day)
            for each, quotas in zip(states, found, strict=True)
        ]
        state.limits_due = min(growth.due for growth in growths)
        for each, quotas in zip(shared, found[1:], strict=True):
            if not is_known(quotas):
                self.pool.unshare(each, now)  # what was learnt of the project is forgotten
                self.on_room()
        for each, quotas, growth in zip(states, found, growths, strict=True):
            if growth.learnt:
                await self.learn(each, growth.learnt)
                for entry in growth.learnt:
                    await self._have_others_follow(entry, each, quotas)
                self.pool.return_quota(each.deployment.model_scope, now)
                self.on_room()

    def _look_at(self, state: DeploymentState, due: float) -> None:
        """Have answers at the limits of a deployment, or of a whole project, looked at from then on."""
        is_shared = isinstance(state.deployment, ProjectDeployment)
        for each in self.pool.of(state.deployment.model_scope) if is_shared else (state,):
            each.limits_due = min(each.limits_due, due)

    async def _have_others_follow(
        self, entry: LearntLimit, state: DeploymentState, quotas: Sequence[QuotaSnapshot]
    ) -> None:
        """Have other projects with the limit that has just proven too low try the higher one at once."""
        before = _record(quotas, entry.metric)
        if before is None or not proves_more(entry, before):
            return
        others = self._other_projects(state)
        records = await self._records_of(others, entry.metric)
        now = self.clock.time()
        for place, lesson in follow(entry, before, records, now).items():
            other = others[place]
            await self._share(Cooldown.learn(other.deployment.model_scope, lesson))
            self._look_at(other, now)
            self.pool.return_quota(other.deployment.model_scope, now)

    async def learn(self, state: DeploymentState, limits: tuple[LearntLimit, ...]) -> None:
        """Share limits of the (project, model) of a deployment, and say so."""
        lesson = Cooldown.learn(state.deployment.model_scope, *limits)
        for entry in lesson.learnt:
            level = logging.DEBUG if entry.source is LimitSource.UNKNOWN else logging.INFO
            text = "%s: at most %s %s from now on (%s)"
            what = _IN_TEN_MINUTES if state.deployment.is_spending else entry.metric.value
            _log.log(level, text, state.deployment.id, entry.limit, what, entry.source.value)
        if self.reporter is not None:
            self.reporter.imposed(lesson, state.deployment)
        await self._share(lesson)
        if isinstance(state.deployment, ProjectDeployment):
            state.refusal = None  # it was for want of what may be there by now

    async def _share(self, lesson: Cooldown) -> None:
        try:
            await self.store.cool_down(lesson)
        except Exception as error:  # noqa: BLE001 - of a user's store; this process keeps to it all the same
            note_failure(self.store, "cool_down", error)

    def _other_projects(self, state: DeploymentState) -> list[DeploymentState]:
        """Return a deployment of the same model in each other project, at most a few; or all its models."""
        found = {state.deployment.model_scope: state}
        if isinstance(state.deployment, ProjectDeployment):
            kind = state.group.upstream, state.group.model
            every = itertools.chain.from_iterable(self.pool.shared.values())
            shared = (each for each in every if (each.group.upstream, each.group.model) == kind)
            found |= {each.deployment.model_scope: each for each in itertools.islice(shared, _OTHERS)}
        for group in self.pool.groups.values():
            if (group.upstream, group.model) == (state.group.upstream, state.group.model):
                for other in group.states:
                    if len(found) <= _OTHERS:
                        found.setdefault(other.deployment.model_scope, other)
        del found[state.deployment.model_scope]
        return list(found.values())

    async def _quotas_of(self, states: list[DeploymentState]) -> list[tuple[QuotaSnapshot, ...]]:
        found = await self._read(states)
        return [()] * len(states) if found is None else found  # then the count says nothing

    async def _read(self, states: list[DeploymentState]) -> list[tuple[QuotaSnapshot, ...]] | None:
        """Return the quotas of deployments; None if the store fails."""
        if not states:
            return []
        try:
            snapshots = await snapshots_of(self.store, [state.deployment for state in states])
        except Exception as error:  # noqa: BLE001 - as above
            note_failure(self.store, "snapshot", error)
            return None
        return [snapshot.quotas for snapshot in snapshots]

    async def _records_of(self, states: list[DeploymentState], metric: Metric) -> list[LimitRecord | None]:
        return [_record(each, metric) for each in await self._quotas_of(states)]


def _at_most(quota: QuotaSnapshot, other: QuotaSnapshot | None) -> QuotaSnapshot:
    """Return a quota of which no more is used than of the other one, where that is known."""
    return quota if other is None else attrs.evolve(quota, used=min(quota.used, other.used))


def _record(quotas: Sequence[QuotaSnapshot], metric: Metric) -> LimitRecord | None:
    return next((quota.learnt for quota in quotas if quota.metric is metric), None)

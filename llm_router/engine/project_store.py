"""The store in front of the store: what is granted on a model is reserved on its project, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import cast

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand
from llm_router.engine.extensions import is_foreign, note_failure, pass_on, wrong_decision
from llm_router.engine.index import TOKEN_REASONS, DeploymentState
from llm_router.engine.pool import Pool
from llm_router.engine.timing import finish
from llm_router.stores.base import (
    Decision,
    DeploymentSnapshot,
    FrontingStore,
    RateLimitStore,
    Refusal,
    Taking,
    innermost,
)

__all__ = ["ProjectStore"]

_FRESH, _AT_MOST = 0.1, 1.0
"""Seconds for which a refusal of a project stands for all requests that are no smaller; where the store takes
longer to say so, as many as it took, but not more than this. So none asks time and again for a deployment
that would be granted, and a half-open cooldown with it, only to give it back."""

_UNKNOWN, _AGAIN = "what is left", 1.0
"""The reason of a refusal where a store has given none, and the seconds after which it is asked again."""

_ROUNDS = 8
"""Most times that one reserve asks for a deployment, each time without those whose project has refused."""


@attrs.frozen
class _Full:
    """What a project has refused.

    Attributes:
        asked_at: When it was asked, in seconds since the epoch.
        at: When this was known, and what had been granted on the deployment given back.
        tokens: How many were asked for.
        refusal: What the store said.
    """

    asked_at: float
    at: float
    tokens: int
    refusal: Refusal

    def stands_for(self, demand: Demand, now: float) -> bool:
        """Return whether it has just refused as much."""
        fresh = min(max(self.at - self.asked_at, _FRESH), _AT_MOST)
        is_fresh = 0.0 <= now - self.at < fresh and now < self.refusal.retry_at
        return is_fresh and demand.tokens >= self.tokens

    def room_at(self, demand: Demand) -> float:
        """Return when there is room for a demand, by this refusal; for a smaller one not before that."""
        return self.refusal.retry_at if demand.tokens >= self.tokens else self.refusal.wake_at

    def after(self, other: Refusal, demand: Demand) -> Refusal:
        """Return the refusal of a deployment, which is for another reason, as one that ends with this."""
        own = _of_project(self.refusal, other.deployment)
        # What the smallest demand waits for, in the end, decides what it may be roused by.
        cooldown = other.cooldown if other.wake_at > own.wake_at else None
        return Refusal(
            own.deployment, own.reason, self.room_at(demand), max(own.wake_at, other.wake_at), cooldown
        )


class ProjectStore:
    """Stands in front of a store, and reserves on the project, too, what is granted on its deployments.

    A project without room refuses all its deployments, until the time that its own quota said; what had been
    granted is given back, and the deployments of other projects are asked. Both reservations are settled and
    released together. The rest is the business of the store itself.

    Args:
        store: The store.
        pool: Knows for which projects limits are kept.
        clock: Where time comes from.
        on_return: Called when requests that wait may find room: what others were refused came back unused.
    """

    def __init__(
        self,
        store: RateLimitStore,
        pool: Pool,
        clock: Clock,
        on_return: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._clock = clock
        self._on_return = on_return
        # What a reservation is in the store, if that is more than itself: ids there, and on which project.
        self._parts: dict[str, dict[str, DeploymentState | None]] = {}
        self._full: dict[DeploymentState, _Full] = {}
        self._lifts = 0
        self._distrusts = is_foreign(store)

    @property
    def behind(self) -> RateLimitStore:
        """The store that keeps the quotas; see :class:`FrontingStore`."""
        return innermost(self._store)

    @property
    def trouble(self) -> str | None:
        """Why another store has taken over; see :class:`FrontingStore`."""
        return self._store.trouble if isinstance(self._store, FrontingStore) else None

    def later(self, refusal: Refusal, demand: Demand) -> Refusal:
        """Return the refusal of a deployment, or that of its project where that is known to end later.

        The store knows of a deployment that cools down nothing of its project, and is asked for no more.

        Args:
            refusal: The refusal.
            demand: What was to be reserved.
        """
        now = self._clock.time()
        for shared in self._pool.shared.get(refusal.deployment.project_scope, ()) if demand.requests else ():
            full = self._full.get(shared)
            if full is None or shared.refusal is not full.refusal:  # since then its limit was learnt
                continue
            if full.at <= now and full.room_at(demand) > refusal.retry_at:
                refusal = full.after(refusal, demand)
        return refusal

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve on a deployment and on its project; see :class:`RateLimitStore`."""
        refusals = self._known(candidates, demand)
        try:
            for number in range(_ROUNDS):
                left = [each for each in candidates if each not in refusals] if refusals else candidates
                if not left:
                    break
                told = tuple(refusals.values())
                decision, is_full = await self._reserve(reservation_id, number, left, told, demand, ttl)
                if not is_full:
                    return decision
                refusals = {each.deployment: each for each in decision.refusals}
        except Exception:
            self._parts.pop(reservation_id, None)
            raise
        return Decision(None, refusals=tuple(refusals.values()), lifts=self._lifts)

    def _known(self, candidates: Sequence[Deployment], demand: Demand) -> dict[Deployment, Refusal]:
        """Return the refusals of those candidates whose project has just refused as much."""
        now, known = self._clock.time(), dict[Deployment, Refusal]()
        for each in candidates if demand.requests and self._full else ():
            for shared in self._pool.shared.get(each.project_scope, ()):
                full = self._full.get(shared)
                if full is not None and full.stands_for(demand, now):
                    known[each] = _of_project(full.refusal, each)
        return known

    async def _reserve(
        self,
        reservation_id: str,
        number: int,
        candidates: Sequence[Deployment],
        told: tuple[Refusal, ...],
        demand: Demand,
        ttl: float,
    ) -> tuple[Decision, bool]:
        """Reserve on a deployment and on its project; return whether only the project refused, as well.

        The decision also has the refusals ``told`` before, of deployments that are no candidates any more.
        """
        name = _name(reservation_id, number)
        if number:
            self._parts[reservation_id] = {name: None}
        decision = await self._store.reserve(name, candidates, demand, ttl)
        if not isinstance(decision, Decision) or self._is_wrong(decision, candidates):
            self._parts.pop(reservation_id, None)
            return decision, False  # a user's store may return anything: the selector checks it
        self._lifts = decision.lifts  # of which the selector must see no older one later
        if told:
            decision.refusals = (*told, *decision.refusals)
        if decision.deployment is None:
            self._parts.pop(reservation_id, None)
            return decision, False
        scope = decision.deployment.project_scope
        for shared in self._pool.shared.get(scope, ()) if demand.requests else ():
            second = await self._reserve_on(shared, reservation_id, name, decision, demand, ttl)
            if not isinstance(second, Decision):
                return cast("Decision", second), False
            if second.deployment is None:
                refusal = self._as_of_now(self._why(second, shared), shared)
                known = {each.deployment for each in decision.refusals}
                concerned = [each for each in candidates if each.project_scope == scope and each not in known]
                refusals = (_of_project(refusal, each) for each in concerned)
                decision.deployment, decision.probes = None, ()
                decision.refusals = (*decision.refusals, *refusals)
                return decision, True
            self._note_room(shared, demand)
            decision.headroom = min(decision.headroom, second.headroom)
            decision.daily_headroom = min(decision.daily_headroom, second.daily_headroom)
        return decision, False

    async def _reserve_on(
        self,
        shared: DeploymentState,
        reservation_id: str,
        name: str,
        decision: Decision,
        demand: Demand,
        ttl: float,
    ) -> object:
        """Reserve on a project, too, what was granted; give that back unless there is room for both."""
        # The id ends in what it is reserved on, such as "*", and begins as that of the one on the deployment.
        twin = f"{name}{shared.deployment.model}"
        self._parts.setdefault(reservation_id, {name: None})[twin] = shared
        granted, asked_at = cast("Deployment", decision.deployment), self._clock.time()
        try:
            second: object = await self._store.reserve(twin, [shared.deployment], demand, ttl)
        except BaseException:
            await finish(self._give_back(reservation_id, granted, shared, decision.probes))
            raise
        failure = None
        if self._distrusts and isinstance(second, Decision):
            failure = wrong_decision(self._store, second, [shared.deployment])
        if failure is None and isinstance(second, Decision) and second.deployment is None:
            self._note(shared, self._why(second, shared), demand, asked_at)
        if failure is not None or not isinstance(second, Decision) or second.deployment is None:
            # Not to the end if this is cancelled: the caller then releases it once more.
            await self._give_back(reservation_id, granted, shared, decision.probes)
        if failure is not None:
            raise failure
        return second

    def _is_wrong(self, decision: Decision, asked: Sequence[Deployment]) -> bool:
        return self._distrusts and wrong_decision(self._store, decision, asked) is not None

    def _why(self, decision: Decision, shared: DeploymentState) -> Refusal:
        """Return why a project has no room; a user's store need not say."""
        again = self._clock.time() + _AGAIN
        return next(iter(decision.refusals), Refusal(shared.deployment, _UNKNOWN, again, again))

    def _as_of_now(self, refusal: Refusal, shared: DeploymentState) -> Refusal:
        """Return a refusal that has been noted, as one that is over if quota has come back since.

        What had been granted was given back meanwhile, and whoever gave quota back could not yet tell of it
        those that this refusal will have wait.
        """
        if shared in self._full:
            return refusal
        now = self._clock.time()
        return Refusal(refusal.deployment, refusal.reason, now, now)

    def _note(self, shared: DeploymentState, refusal: Refusal, demand: Demand, asked_at: float) -> None:
        """Note why a project has no room."""
        now = self._clock.time()
        shared.note(refusal, now)
        self._full = {state: full for state, full in self._full.items() if full.refusal.retry_at > now}
        self._full[shared] = _Full(asked_at, now, demand.tokens, refusal)

    def _note_room(self, shared: DeploymentState, demand: Demand) -> None:
        """Note that a project has room, whatever it refused before."""
        full = self._full.get(shared)
        if full is not None and demand.tokens >= full.tokens:
            del self._full[shared]

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Settle both reservations; see :class:`RateLimitStore`."""
        projects = self._projects_in(reservation_id)
        await self._end(reservation_id, lambda each: self._store.settle(each, used))
        for shared in projects:  # some of the tokens may be back
            if (full := self._full.get(shared)) is not None and full.refusal.reason in TOKEN_REASONS:
                del self._full[shared]

    async def release(self, reservation_id: str) -> None:
        """Release both reservations; see :class:`RateLimitStore`."""
        projects = self._projects_in(reservation_id)
        await self._end(reservation_id, self._store.release)
        for shared in projects:  # what it took is back
            self._full.pop(shared, None)

    def _projects_in(self, reservation_id: str) -> list[DeploymentState]:
        parts = self._parts.get(reservation_id, {})
        return [shared for shared in parts.values() if shared is not None]

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),
        since: float = 0.0,
    ) -> float:
        """Charge in the store; see :class:`RateLimitStore`."""
        return await self._store.charge(source, sequence, deployment, missing, counted, since)

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool a scope down in the store; see :class:`RateLimitStore`."""
        await self._store.cool_down(cooldown)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state in the store; see :class:`RateLimitStore`."""
        return await self._store.snapshot(deployments)

    async def aclose(self) -> None:
        """Close the store; see :class:`RateLimitStore`."""
        await self._store.aclose()

    async def _end(self, reservation_id: str, end: Callable[[str], Awaitable[None]]) -> None:
        first, *others = self._parts.get(reservation_id) or (reservation_id,)
        try:
            async with AsyncExitStack() as stack:  # each is ended, whatever becomes of the others
                for part in others:
                    stack.push_async_callback(end, part)
                await end(first)
        except Exception:
            self._parts.pop(reservation_id, None)
            raise
        self._parts.pop(reservation_id, None)  # not if it was cancelled: then it is to be ended once more

    async def _give_back(
        self, reservation_id: str, granted: Deployment, failed: DeploymentState, probes: Iterable[Cooldown]
    ) -> None:
        """Release what was granted and is not to be used; another request may probe what it was to.

        Args:
            reservation_id: What is released.
            granted: On which deployment it was granted.
            failed: What stands for its project and did not grant it, too.
            probes: The half-open cooldowns that it was to probe.
        """
        projects = [shared for shared in self._projects_in(reservation_id) if shared is not failed]
        await pass_on(self._store, probes)
        try:
            await self._end(reservation_id, self._store.release)
        except Exception as error:  # noqa: BLE001 - of a user's store; the reservation expires by itself
            note_failure(self._store, "release", error)
        else:
            self._tell_of_return(granted, projects, failed)

    def _tell_of_return(
        self, granted: Deployment, projects: Iterable[DeploymentState], failed: DeploymentState
    ) -> None:
        """See that nobody waits for what came back unused: it was refused to others meanwhile.

        Those that try again now know why it was not used: each would be granted it in vain as well, and wake
        the others once more.
        """
        now = self._clock.time()
        if (full := self._full.get(failed)) is not None:
            self._full[failed] = attrs.evolve(full, at=now)
        is_waited_for = self._pool.return_own_quota(granted, now)
        for shared in projects:
            if self._full.pop(shared, None) is not None:
                self._pool.return_quota(granted.project_scope, now)
                is_waited_for = True
        if is_waited_for:
            self._on_return()


def _name(reservation_id: str, number: int) -> str:
    """Return the id in the store of what is reserved when asking once more: none is used twice."""
    return f"{reservation_id}.{number}" if number else reservation_id


def _of_project(refusal: Refusal, deployment: Deployment) -> Refusal:
    """Return the refusal of a project as that of one of its deployments."""
    named = refusal.deployment.quota_name(refusal.reason)
    reason = refusal.reason if refusal.cooldown is not None else named
    return Refusal(deployment, reason, refusal.retry_at, refusal.wake_at)

"""Every deployment of a router, by group and by scope."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import OF_PROJECT, Deployment, ProjectDeployment, Scope
from llm_router.engine.credentials import is_marked
from llm_router.engine.index import TOKEN_REASONS, DeploymentState, Group, ReadyRing
from llm_router.engine.sharding import ShardedRing
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import Refusal, Sharded

__all__ = ["Pool"]

_AGAIN = 60.0
"""Seconds after which what lacks quota for longer than that is asked for again."""

_AGAIN_AT_MOST = 128
"""Most deployments that are asked for again at a time."""

_Kind = tuple[str, str, str, frozenset[str]]
"""Provider, workload, model and methods."""

_refused_at = attrgetter("refused_at")


class Pool:
    """Every deployment of a router, and what is to be noted of a whole scope.

    Args:
        deployments: The active ones.
        upstreams: Their providers by name.
        shards: The store, if it keeps its deployments in shards.

    Attributes:
        sharded: Whether the store has several shards.
        groups: The groups by (provider, workload, model, methods).
        states: What is known of each deployment. A reload puts another dictionary in its place.
        features_until: Until when at the latest a feature is avoided somewhere (seconds since the epoch).
        shared: By the scope of a project, what stands for all its models or for what they spend, where limits
            are known that they share; see :mod:`~llm_router.engine.project_limits`.
        searched: The scopes of the projects that the store was asked for such limits of.
        on_share: Called when such a limit was added.
        returns: How often quota of a deployment came back early.
        again_at: Seconds since the epoch from when on :meth:`ask_again` is due; ``math.inf`` if nothing lacks
            quota for long.
        again_from: Seconds since the epoch before which it is due as well, since the clock was set back.
    """

    def __init__(
        self,
        deployments: Iterable[Deployment],
        upstreams: Mapping[str, Upstream],
        shards: Sharded | None = None,
    ) -> None:
        self._shard_of = shards.shard_of if shards is not None and shards.shards > 1 else None
        self.sharded = self._shard_of is not None
        self.groups: dict[_Kind, Group] = {}
        self.states: dict[Deployment, DeploymentState] = {}
        self._by_scope: dict[Scope, list[DeploymentState]] = {}
        self._avoided_models: set[tuple[str, str]] = set()
        self.features_until = 0.0
        # By the scope of a quota, from when on some deployment there may be parked for want of it.
        self._lacking_from: dict[Scope, float] = {}
        self.again_at, self.again_from = math.inf, -math.inf
        self._short: set[Scope] = set()  # where tokens were refused, by the scope of the quota
        self.returns = 0
        self._returned: dict[Scope, int] = {}  # what that number was when some of a model last did
        self.shared: dict[Scope, tuple[DeploymentState, ...]] = {}
        self.searched: frozenset[Scope] = frozenset()
        self.on_share: Callable[[], None] = lambda: None
        self.replace(deployments, upstreams, {}, 0.0)

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[DeploymentState]:
        return iter(self.states.values())

    def replace(
        self,
        deployments: Iterable[Deployment],
        upstreams: Mapping[str, Upstream],
        before: Mapping[Deployment, Deployment],
        now: float,
    ) -> None:
        """Hold ``deployments`` from now on, in one step.

        What is known of one that is held already goes on, as does what is known of one that goes on under
        other terms. One that is gone stays as it is for the requests that use it, in a group of its own.

        Args:
            deployments: What to hold.
            upstreams: Their providers by name.
            before: What those were that go on under other terms: with the same secret and in the same scopes.
            now: Seconds since the epoch.
        """
        groups: dict[_Kind, Group] = {}
        states: dict[Deployment, DeploymentState] = {}
        by_scope: defaultdict[Scope, list[DeploymentState]] = defaultdict(list)
        gone = dict(self.states)
        for deployment in deployments:
            group = self._group_of(deployment, groups, upstreams)
            earlier = before.get(deployment, deployment)
            state = gone.pop(earlier, None)
            if state is None:
                state = group.add(deployment, 0 if self._shard_of is None else self._shard_of(deployment))
            else:
                group.states.append(state)
                if earlier is not deployment:
                    group.take_over(state, deployment)
                    if earlier.quotas != deployment.quotas:
                        _return_quota(state, now)
            states[deployment] = state
            for scope in deployment.scopes:
                by_scope[scope].append(state)
        for state in gone.values():
            group = state.group.alone()
            group.take_over(state, state.deployment)
            group.rouse(state)  # else a search under way takes it for one that may have quota again
            group.states.append(state)
        shared = {scope: states for scope, states in self.shared.items() if scope in by_scope}
        for scope, sharing in shared.items():
            by_scope |= {state.deployment.model_scope: by_scope[scope] for state in sharing}
        self.searched &= by_scope.keys()
        self._lacking_from = {scope: at for scope, at in self._lacking_from.items() if scope in by_scope}
        self._short &= by_scope.keys()
        self._returned = {scope: count for scope, count in self._returned.items() if scope in by_scope}
        # Assigned, not changed in place: a request may be in the midst of reading them.
        self.groups, self.states, self._by_scope, self.shared = groups, states, dict(by_scope), shared

    def _group_of(
        self, deployment: Deployment, groups: dict[_Kind, Group], upstreams: Mapping[str, Upstream]
    ) -> Group:
        """Return the group of a deployment, as yet without those that were in it before."""
        name, workload, model = deployment.key.provider, deployment.workload, deployment.model
        kind = name, workload, model, deployment.methods
        group = groups.get(kind)
        if group is None:
            group = self.groups.get(kind)
            if group is None:
                make_ring = ShardedRing if self.sharded else ReadyRing
                group = Group(upstreams[name], workload, model, make_ring, deployment.methods)
            groups[kind] = group
            group.states = []
        return group

    def holds(self, state: DeploymentState) -> bool:
        """Whether a deployment is in use: not if a reload has taken it away, or given it another secret."""
        return self.states.get(state.deployment) is state

    def of(self, scope: Scope) -> Sequence[DeploymentState]:
        """Return the deployments that a scope concerns."""
        return self._by_scope.get(scope, ())

    def share(self, state: DeploymentState) -> None:
        """Keep limits that all models of a project share: ``state`` stands for them.

        What is noted of its scope from now on concerns every deployment of the project.
        """
        scope, own = state.deployment.project_scope, state.deployment.model_scope
        if scope in self._by_scope and own not in self._by_scope:
            self._by_scope[own] = self._by_scope[scope]
            self.shared[scope] = (*self.shared.get(scope, ()), state)
            self.on_share()

    def unshare(self, state: DeploymentState, now: float) -> None:
        """Stop keeping them, as nothing is known of them any more; nothing waits for them."""
        scope, own = state.deployment.project_scope, state.deployment.model_scope
        present = self.shared.pop(scope, ())
        if left := tuple(each for each in present if each.deployment.model_scope != own):
            self.shared[scope] = left
        if len(left) < len(present):
            self._by_scope.pop(own, None)
            self.return_quota(scope, now)

    def sharing(self, deployment: ProjectDeployment) -> DeploymentState | None:
        """Return what stands for all models of a project, or None if no limits of it are kept."""
        present = self.shared.get(deployment.project_scope, ())
        return next((each for each in present if each.deployment.model == deployment.model), None)

    def note_refusal(self, refusal: Refusal, now: float) -> DeploymentState | None:
        """Note a store's refusal; park the deployment if not even the smallest request fits.

        Return the deployment; or None if a reload has changed it since the store was asked.
        """
        state = self.states.get(refusal.deployment)
        if state is not None:
            state.note(refusal, now)
            if refusal.reason in TOKEN_REASONS:
                deployment = state.deployment
                self._short.add(deployment.model_scope if _is_own(refusal) else deployment.project_scope)
            if refusal.wake_at > now:
                state.group.park(state, refusal.wake_at)
            if state.is_parked and refusal.cooldown is None:
                if refusal.wake_at - now > _AGAIN and now + _AGAIN < self.again_at:
                    self.again_at, self.again_from = now + _AGAIN, now
                self._lacking_from[state.deployment.project_scope] = -math.inf
                if _is_own(refusal):
                    self._lacking_from[state.deployment.model_scope] = -math.inf
        return state

    def ask_again(self, now: float) -> None:
        """If it is due, make some deployments ready that lack quota for long: they may have some by now.

        Another process may have forgotten or raised a limit, given back what it took, or brought the store's
        record of a day back. It tells nobody. So each of them is asked for again about once a minute; where
        more than 128 lack quota, these take turns.

        Args:
            now: Seconds since the epoch.
        """
        if self.again_from <= now < self.again_at:
            return
        lacking = [state for state in self.states.values() if _lacks_for_long(state, now)]
        self.again_at, self.again_from = (now + _AGAIN, now) if lacking else (math.inf, -math.inf)
        usable = (state for state in lacking if state.avoided_until <= now)
        for state in heapq.nsmallest(_AGAIN_AT_MOST, usable, key=_refused_at):
            state.group.rouse(state)

    def as_of_now(self, refusals: tuple[Refusal, ...], asked: int, now: float) -> tuple[Refusal, ...]:
        """Return refusals; one ends at once whose quota has come back since the store was asked.

        Whoever gave it back could not yet tell of it those that the refusal will have wait. Whether as many
        tokens as a request needs have come back is not known: the time that the store said for them stays.

        Args:
            refusals: What the store said; not yet noted.
            asked: What ``returns`` was when it was asked.
            now: Seconds since the epoch.
        """
        if self.returns == asked or not any(self._is_past(each, asked) for each in refusals):
            return refusals
        return tuple(_ended(each, now) if self._is_past(each, asked) else each for each in refusals)

    def _is_past(self, refusal: Refusal, asked: int) -> bool:
        returned = self._returned.get(refusal.deployment.model_scope, 0)
        return returned > asked and refusal.cooldown is None and _is_own(refusal)

    def is_concerned(self, cooldown: Cooldown) -> bool:
        """Whether a verdict is about what is used: not if it is about a credential that was replaced."""
        states = self._by_scope.get(cooldown.scope, ())
        credential = cooldown.credential
        return not credential or any(is_marked(state.deployment, credential) for state in states)

    def cool_down(self, cooldown: Cooldown) -> None:
        """Park every deployment of the scope of ``cooldown`` until it ends."""
        until = cooldown.until
        for state in self._by_scope.get(cooldown.scope, ()):
            if state.group.park(state, until):
                state.note(Refusal(state.deployment, cooldown.reason, until, until, cooldown))

    def avoid(self, state: DeploymentState, until: float, reason: str) -> None:
        """Avoid a deployment until ``until``, in this process only."""
        state.avoided_until = max(state.avoided_until, until)
        state.group.avoided_until = max(state.group.avoided_until, until)
        until = state.avoided_until
        if state.group.park(state, until):
            state.note(Refusal(state.deployment, reason, until, until))

    def avoid_feature(self, scope: Scope, feature: str, until: float) -> None:
        """Have requests with ``feature`` avoid the deployments of ``scope`` until ``until``, here only."""
        for state in self._by_scope.get(scope, ()):
            state.features = {**(state.features or {}), feature: until}
        self.features_until = max(self.features_until, until)

    def avoid_model(self, provider: str, model: str, until: float, reason: str) -> None:
        """Avoid every deployment of a model until ``until``, in this process only.

        Those that are parked because of a cooldown stay so: the store says when that is over or lifted.
        """
        self._avoided_models.add((provider, model))
        for group in self.groups.values():
            if (group.upstream.name, group.model) == (provider, model):
                for state in group.states:
                    is_cooled = state.refusal is not None and state.refusal.cooldown is not None
                    if not (state.is_parked and is_cooled):
                        self.avoid(state, until, reason)

    def readmit_models(self, now: float) -> None:
        """Stop avoiding whole models: what speaks against one of them is no longer so."""
        for group in self.groups.values():
            if (group.upstream.name, group.model) in self._avoided_models:
                for state in group.states:
                    if state.avoided_until > now:
                        state.avoided_until = now
                        group.rouse(state)
        self._avoided_models.clear()

    def set_back(self, seconds: float, now: float) -> None:
        """Leave nothing out for longer than was meant: the clock was set back by ``seconds``, to ``now``.

        What is parked for another reason than that this process avoids it is ready: the store says until when
        it still has no room.
        """
        for group in self.groups.values():
            group.avoided_until -= seconds
            for state in group.states:
                state.limits_due = min(state.limits_due, now)
                if state.avoided_until > now:
                    state.avoided_until -= seconds
                group.rouse(state)
                if state.avoided_until > now:
                    group.park(state, state.avoided_until)

    def forgive(self, deployment: Deployment) -> None:
        """Stop avoiding a deployment, for whatever reason this process does so."""
        state = self.states.get(deployment)
        if state is not None:
            state.avoided_until, state.failures, state.starved, state.features = 0.0, 0, 0, None
            state.group.rouse(state)

    def rouse(self, scope: Scope, now: float) -> None:
        """Make the deployments of ``scope`` ready: their cooldown was lifted."""
        for state in self._by_scope.get(scope, ()):
            if state.avoided_until <= now:
                state.group.rouse(state)

    def return_quota(self, scope: Scope, now: float) -> None:
        """Make the deployments of ``scope`` ready that wait for quota: some of it came back early."""
        avoided = [_return_quota(state, now) for state in self._by_scope.get(scope, ())]
        self._lacking_from[scope] = min(avoided, default=math.inf)

    def return_quota_of(self, state: DeploymentState, now: float) -> None:
        """Make the deployments ready that wait for a quota which ``state`` shares: some came back early.

        There may be thousands. So they are looked at once after a refusal, and not each time.
        """
        self._note_return(state.deployment)
        self._return_to_lacking(self.quota_scope_of(state), now)

    def return_tokens_of(self, state: DeploymentState, now: float) -> bool:
        """Do the same where some tokens came back; return whether any were refused since the last time.

        Nearly every answer gives some back. So those that wait for tokens are told once a refusal.
        """
        self._note_return(state.deployment)
        if not self._short:
            return False
        short = {state.deployment.model_scope, state.deployment.project_scope} & self._short
        if short:
            self._short -= short
            self._return_to_lacking(self.quota_scope_of(state), now)
        return bool(short)

    def return_own_quota(self, deployment: Deployment, now: float) -> bool:
        """Make the deployments ready that wait for the quota of a model, of which some came back early.

        Return whether there may have been any. Those that wait for a quota of the project still do.
        """
        self._note_return(deployment)
        return self._return_to_lacking(deployment.model_scope, now)

    def _note_return(self, deployment: Deployment) -> None:
        self.returns += 1
        if deployment.model_scope in self._by_scope:
            self._returned[deployment.model_scope] = self.returns

    def _return_to_lacking(self, scope: Scope, now: float) -> bool:
        is_lacking = self._lacking_from.get(scope, math.inf) <= now
        if is_lacking:
            self.return_quota(scope, now)
        return is_lacking

    def quota_scope_of(self, state: DeploymentState) -> Scope:
        """Return the scope of those that share a quota with a deployment."""
        deployment = state.deployment
        is_shared = deployment.project_scope in self.shared
        return deployment.project_scope if is_shared else deployment.model_scope

    def rouse_cooled(self, now: float) -> None:
        """Make every deployment ready that is parked because of a cooldown: one of these was lifted."""
        self.readmit_models(now)
        for state in self.states.values():
            is_cooled = state.refusal is not None and state.refusal.cooldown is not None
            if state.is_parked and is_cooled and state.avoided_until <= now:
                state.group.rouse(state)


def _lacks_for_long(state: DeploymentState, now: float) -> bool:
    refusal = state.refusal
    is_lacking = state.is_parked and refusal is not None and refusal.cooldown is None
    return is_lacking and state.wakes_at - now > _AGAIN


def _ended(refusal: Refusal, now: float) -> Refusal:
    retry_at = refusal.retry_at if refusal.reason in TOKEN_REASONS else now
    return Refusal(refusal.deployment, refusal.reason, retry_at, now)


def _is_own(refusal: Refusal) -> bool:
    """Return whether a refusal is for want of a quota of the model, and not of the whole project."""
    return not refusal.reason.endswith(OF_PROJECT)


def _return_quota(state: DeploymentState, now: float) -> float:
    """Make a deployment ready if it waits for quota; return when to look again if it is avoided, or inf."""
    if state.refusal is not None and state.refusal.cooldown is not None:
        return math.inf
    if state.avoided_until > now:
        return state.avoided_until
    state.group.rouse(state)
    return math.inf

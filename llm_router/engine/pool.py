"""Every deployment of a router, by group and by scope."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.engine.index import DeploymentState, Group, ReadyRing
from llm_router.engine.sharding import ShardedRing
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import Refusal, Sharded

__all__ = ["Pool"]


class Pool:
    """Every deployment of a router, and what is to be noted of a whole scope.

    Args:
        deployments: The active ones.
        upstreams: Their providers by name.
        shards: The store, if it keeps its deployments in shards.

    Attributes:
        sharded: Whether the store has several shards.
        groups: The groups by (provider, workload, model, methods).
        states: What is known of each deployment.
    """

    def __init__(
        self,
        deployments: Iterable[Deployment],
        upstreams: Mapping[str, Upstream],
        shards: Sharded | None = None,
    ) -> None:
        shard_of = shards.shard_of if shards is not None and shards.shards > 1 else None
        self.sharded = shard_of is not None
        self.groups: dict[tuple[str, str, str, frozenset[str]], Group] = {}
        self.states: dict[Deployment, DeploymentState] = {}
        self._by_scope: defaultdict[Scope, list[DeploymentState]] = defaultdict(list)
        self._avoided_models: set[tuple[str, str]] = set()
        make_ring = ShardedRing if self.sharded else ReadyRing
        for deployment in deployments:
            name, workload, model = deployment.key.provider, deployment.workload, deployment.model
            kind = name, workload, model, deployment.methods
            group = self.groups.get(kind)
            if group is None:
                group = Group(upstreams[name], workload, model, make_ring, deployment.methods)
                self.groups[kind] = group
            shard = 0 if shard_of is None else shard_of(deployment)
            state = self.states[deployment] = group.add(deployment, shard)
            for scope in deployment.scopes:
                self._by_scope[scope].append(state)

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[DeploymentState]:
        return iter(self.states.values())

    def note_refusal(self, refusal: Refusal, now: float) -> None:
        """Note a store's refusal; park the deployment if not even the smallest request fits."""
        state = self.states[refusal.deployment]
        state.note(refusal, now)
        if refusal.wake_at > now:
            state.group.park(state, refusal.wake_at)

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
        """Avoid nothing for longer than was meant: the clock was set back by ``seconds``, to ``now``."""
        for group in self.groups.values():
            group.avoided_until -= seconds
            for state in group.states:
                if state.avoided_until > now:
                    state.avoided_until -= seconds
                    group.rouse(state)
                    if state.avoided_until > now:
                        group.park(state, state.avoided_until)

    def forgive(self, deployment: Deployment) -> None:
        """Stop avoiding a deployment, for whatever reason this process does so."""
        state = self.states.get(deployment)
        if state is not None:
            state.avoided_until, state.failures, state.features = 0.0, 0, None
            state.group.rouse(state)

    def rouse(self, scope: Scope, now: float) -> None:
        """Make the deployments of ``scope`` ready: their cooldown was lifted."""
        for state in self._by_scope.get(scope, ()):
            if state.avoided_until <= now:
                state.group.rouse(state)

    def return_quota(self, scope: Scope, now: float) -> None:
        """Make the deployments of ``scope`` ready that wait for quota: some of it came back early."""
        for state in self._by_scope.get(scope, ()):
            waits_for_quota = state.refusal is None or state.refusal.cooldown is None
            if waits_for_quota and state.avoided_until <= now:
                state.group.rouse(state)

    def rouse_cooled(self, now: float) -> None:
        """Make every deployment ready that is parked because of a cooldown: one of these was lifted."""
        self.readmit_models(now)
        for state in self.states.values():
            is_cooled = state.refusal is not None and state.refusal.cooldown is not None
            if state.is_parked and is_cooled and state.avoided_until <= now:
                state.group.rouse(state)

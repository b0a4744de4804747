"""Random play on stores: worlds of deployments, sequences of calls, and the player that makes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
from hypothesis import strategies as st

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

    from llm_router.stores.base import Decision, DeploymentSnapshot, RateLimitStore
    from llm_router.testing.clock import ManualClock
    from tests.stores.store_model.history import micros
    from tests.stores.store_model.model import StoreModel
else:
    from llm_router_tests_store_model.history import micros
    from llm_router_tests_store_model.model import StoreModel

__all__ = ["Operation", "Player", "World", "plays", "worlds"]

Operation = tuple[str, tuple[Any, ...]]
"""The name of a method of :class:`Player`, and its arguments."""


@attrs.frozen
class World:
    """The deployments of a play.

    Attributes:
        deployments: All of them; some share a project.
        start: What the clock shows at first, in seconds since the Unix epoch.
    """

    deployments: tuple[Deployment, ...]
    start: float


@attrs.define
class Player:
    """Makes the calls of a play on one store, and checks each answer against the model.

    Attributes:
        store: The store.
        clock: The clock of the store; the player moves it.
        world: The deployments.
        model: What the answers are compared with.
        answers: What the store answered, in order.
    """

    store: RateLimitStore
    clock: ManualClock
    world: World
    model: StoreModel = attrs.field(factory=StoreModel)
    answers: list[Decision | list[DeploymentSnapshot]] = attrs.field(factory=list)
    _reservations: list[str] = attrs.field(factory=list)
    _retry_at: float = math.inf
    _refused: tuple[Sequence[int], int, int, float] | None = None

    @property
    def _now(self) -> int:
        return micros(self.clock.time())

    async def play(self, operations: list[Operation]) -> None:
        """Make every call in turn."""
        for name, arguments in operations:
            await getattr(self, name)(*arguments)

    async def reserve(self, picks: Sequence[int], requests: int, tokens: int, ttl: float) -> None:
        """Reserve from some of the deployments."""
        candidates = tuple(self.world.deployments[n % len(self.world.deployments)] for n in picks)
        candidates = tuple(dict.fromkeys(candidates))
        reservation_id = f"r{len(self._reservations)}"
        self._reservations.append(reservation_id)
        demand = Demand(requests, tokens)
        decision = await self.store.reserve(reservation_id, candidates, demand, ttl)
        self.answers.append(decision)
        self.model.reserve(reservation_id, candidates, demand, ttl, self._now, decision)
        if decision.refusals:
            self._retry_at = min(refusal.retry_at for refusal in decision.refusals)
            self._refused = picks, requests, tokens, ttl

    async def settle(self, which: int, requests: int, tokens: int) -> None:
        """Settle one of the reservations made so far, counted from the newest, settled or not."""
        if self._reservations:
            reservation_id = self._reservations[-1 - which % len(self._reservations)]
            await self.store.settle(reservation_id, Demand(requests, tokens))
            self.model.settle(reservation_id, Demand(requests, tokens), self._now)

    async def release(self, which: int) -> None:
        """Release one of the reservations made so far."""
        if self._reservations:
            reservation_id = self._reservations[-1 - which % len(self._reservations)]
            await self.store.release(reservation_id)
            self.model.settle(reservation_id, Demand(0, 0), self._now)

    async def cool_down(self, which: int, kind: int, seconds: float, limits: dict[Metric, int]) -> None:
        """Cool a scope down, lift it (-inf) or quarantine it (inf), perhaps with learnt limits."""
        deployment = self.world.deployments[which % len(self.world.deployments)]
        scope = deployment.scopes[kind]
        steady = {quota.metric for quota in deployment.quotas if quota.refill is Refill.STEADY}
        learnt = tuple(LearntLimit(metric, limit) for metric, limit in limits.items() if metric not in steady)
        cooldown = Cooldown(scope, self.clock.time() + seconds, f"for {seconds}", learnt if kind == 0 else ())
        await self.store.cool_down(cooldown)
        self.model.cool_down(cooldown, self._now)

    async def learn(
        self, which: int, metric: Metric, limit: int | None, more: int, raise_after: float, replaces: str
    ) -> None:
        """Learn a limit that may rise, in place of any, of the present one, or of one that is not there."""
        deployment = self.world.deployments[which % len(self.world.deployments)]
        if metric in {quota.metric for quota in deployment.quotas if quota.refill is Refill.STEADY}:
            return
        scope = deployment.model_scope
        [snapshot] = await self.store.snapshot([deployment])
        records = {quota.metric: quota.learnt for quota in snapshot.quotas if quota.learnt is not None}
        learnt_at = records[metric].learnt_at if metric in records else 0.0
        expected = {"any": None, "present": learnt_at, "other": learnt_at + 1.0}[replaces]
        raised = None if limit is None else limit + more
        entry = LearntLimit(metric, limit, LimitSource.INFERRED, raised, raise_after, expected)
        cooldown = Cooldown.learn(scope, entry)
        await self.store.cool_down(cooldown)
        self.model.cool_down(cooldown, self._now)

    async def quarantine(self, which: int, kind: int, seconds: float, strikes: int) -> None:
        """Quarantine a scope until one request tries it."""
        scope = self.world.deployments[which % len(self.world.deployments)].scopes[kind]
        reason = f"quarantined for {seconds}"
        cooldown = Cooldown(scope, self.clock.time() + seconds, reason, half_open=True, strikes=strikes)
        await self.store.cool_down(cooldown)
        self.model.cool_down(cooldown, self._now)

    async def try_again(self, which: int, kind: int) -> None:
        """Let one request try a scope at once, if it is quarantined."""
        cooldown = Cooldown.retry(self.world.deployments[which % len(self.world.deployments)].scopes[kind])
        await self.store.cool_down(cooldown)
        self.model.cool_down(cooldown, self._now)

    async def look(self) -> None:
        """Take two snapshots of everything: taking one changes nothing."""
        for _ in range(2):
            snapshots = await self.store.snapshot(self.world.deployments)
            for snapshot in snapshots:
                self.model.check_snapshot(snapshot, self._now)
        self.answers.append(snapshots)

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.shift(seconds)

    async def retry(self, early: float) -> None:
        """Repeat the last refused reserve at its ``retry_at``, or ``early`` seconds before."""
        wait = self._retry_at - early - self.clock.time()
        if self._refused is not None and wait < 3 * 86_400:
            self.clock.shift(max(0.0, wait))
            await self.reserve(*self._refused)


def worlds() -> SearchStrategy[World]:
    """Return a strategy for worlds: up to three projects with up to four quotas and two keys each."""
    limits = {
        Metric.RPM: st.sampled_from([0, 1, 2, 3, 5, 15, 60, 240, 300]),
        Metric.TPM: st.sampled_from([1, 50, 200, 240, 241, 1_000, 20_000]),
        Metric.RPD: st.sampled_from([1, 3, 10, 50]),
        Metric.TPD: st.sampled_from([100, 1_000, 50_000]),
    }

    @st.composite
    def quotas(draw: st.DrawFn) -> tuple[Quota, ...]:
        metrics = draw(st.lists(st.sampled_from(list(Metric)), unique=True, max_size=4))
        chosen = []
        for metric in metrics:
            limit, adaptive = draw(limits[metric]), draw(st.booleans())
            if metric.is_daily:
                chosen.append(Quota(metric, limit, Refill.DAILY, adaptive=adaptive))
            else:
                refill = draw(st.sampled_from([Refill.ROLLING, Refill.ROLLING, Refill.STEADY]))
                bursts = st.none() | st.integers(1, max(1, min(limit, 500)))
                burst = draw(bursts) if refill is Refill.STEADY else None
                guard = draw(st.sampled_from([0.3, 0.3, 0.3, 0.0, 2.0]))
                chosen.append(Quota(metric, limit, refill, guard=guard, burst=burst, adaptive=adaptive))
        return tuple(chosen)

    @st.composite
    def deployments(draw: st.DrawFn) -> tuple[Deployment, ...]:
        made = []
        for project in range(draw(st.integers(1, 3))):
            shared = draw(quotas())
            for key in range(draw(st.integers(1, 2))):
                credential = Key(f"key-{project}-{key}", Secret("secret"), project=f"project-{project}")
                made.append(Deployment(credential, "model", quotas=shared))
        return tuple(made)

    noon, midnight, spring = 1_800_041_000.25, 1_799_999_990.0, 1_804_924_790.5
    return st.builds(World, deployments(), st.sampled_from([noon, midnight, spring]))


def plays(most: int = 60) -> SearchStrategy[list[Operation]]:
    """Return a strategy for the calls of a play, at most ``most``."""
    index = st.integers(0, 5)
    requests = st.sampled_from([1, 1, 1, 1, 0, 2, 5, 40])
    tokens = st.sampled_from([0, 1, 1, 7, 7, 20, 50, 99, 200, 450, 3_000, 30_000])
    seconds = st.sampled_from(
        [0.000001, 0.01, 0.2, 0.25, 0.3, 1.0, 4.0, 17.3, 59.999, 60.0, 60.3, 3_600.0, 90_010.0, 604_800.0]
    )
    strikes = st.integers(1, 4)
    ttl = st.sampled_from([0.5, 5.0, 60.0, 600.0])
    ends = st.sampled_from([-5.0, 0.0, 1.0, 20.0, 70.0, math.inf] + [-math.inf] * 6)
    learnt = st.dictionaries(
        st.sampled_from(list(Metric)), st.sampled_from([0, 1, 4, 100, 5_000]), max_size=2
    )
    metrics, amounts = st.sampled_from(list(Metric)), st.sampled_from([None, 0, 1, 3, 100, 241, 5_000])
    more, rises = st.sampled_from([0, 1, 2, 200]), st.sampled_from([0.0, 1.0, 20.0, 90_010.0, math.inf])
    replaces = st.sampled_from(["any", "present", "other"])
    # The weight of each call, and its arguments.
    calls: dict[str, tuple[int, SearchStrategy[Any]]] = {
        "reserve": (12, st.tuples(st.lists(index, min_size=1, max_size=8), requests, tokens, ttl)),
        "settle": (4, st.tuples(index, requests, tokens)),
        "release": (1, st.tuples(index)),
        "wait": (3, st.tuples(seconds)),
        "retry": (4, st.tuples(st.sampled_from([0.0, 0.0, 0.001]))),
        "cool_down": (1, st.tuples(index, st.integers(0, 3), ends, learnt)),
        "learn": (2, st.tuples(index, metrics, amounts, more, rises, replaces)),
        "quarantine": (1, st.tuples(index, st.integers(0, 3), st.sampled_from([1.0, 20.0, 70.0]), strikes)),
        "try_again": (1, st.tuples(index, st.integers(0, 3))),
        "look": (1, st.tuples()),
    }
    names = [name for name, (weight, _) in calls.items() for _ in range(weight)]
    operation = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), calls[name][1]))
    return st.lists(operation, min_size=most // 3, max_size=most)  # on average twice the least

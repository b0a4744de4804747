"""Which deployments a request asks after its whole shortlist has refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, LeastLoaded, MemoryStore, Metric, Router
from llm_router.domain.limits import LearntLimit
from llm_router.engine.index import DeploymentState, FallbackOrder, ReadyRing
from llm_router.engine.pool import Pool
from llm_router.engine.search import FIRST_CANDIDATES, MAX_CANDIDATES, further, ranking, retry_at
from llm_router.stores import Decision
from llm_router.stores.base import Refusal
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.engine.conftest import MakeOrder, MakePool


NOW = 1_000.0


class Asking:
    """A request that every deployment refuses, and the deployments that it asked.

    Args:
        pool: The deployments.
        order: The fallback order.
        wake_after: Seconds after which a deployment that refused has room for the smallest request again;
            this request has to wait for 40 s.
    """

    def __init__(self, pool: Pool, order: FallbackOrder, wake_after: float) -> None:
        self.now = NOW
        self.order = order
        self.refused: dict[DeploymentState, Refusal] = {}
        self._pool = pool
        self._wake_after = wake_after

    def time(self) -> float:
        return self.now

    def lists(self) -> Iterator[Sequence[DeploymentState]]:
        """Yield list after list, each refused before the next is requested."""
        shortlist = self.order.draw(LeastLoaded(), self.now, FIRST_CANDIDATES)
        if shortlist:
            yield self._refuse(shortlist)
        for states in further(self.order, LeastLoaded(), self.time, self.refused):
            yield self._refuse(states)

    def _refuse(self, states: Sequence[DeploymentState]) -> Sequence[DeploymentState]:
        for state in states:
            assert state not in self.refused
            wake_at = self.now + self._wake_after
            refusal = self.refused[state] = Refusal(state.deployment, "tpm", self.now + 40.0, wake_at)
            self._pool.note_refusal(refusal, self.now)
        return states


@pytest.mark.parametrize("wake_after", [20.0, 0.0], ids=["parked", "still ready"])
def test_lists_grow_until_every_deployment_was_asked(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder, wake_after: float
) -> None:
    """The lists grow up to the maximum; no deployment is asked twice, and none is left out."""
    pool = make_pool(pools.many(300))
    asking = Asking(pool, make_order(pool), wake_after)
    assert [len(states) for states in asking.lists()] == [
        FIRST_CANDIDATES,
        32,
        MAX_CANDIDATES,
        MAX_CANDIDATES,
        4,
    ]
    assert set(asking.refused) == set(pool)


@pytest.mark.parametrize("wake_after", [20.0, 0.0], ids=["parked", "still ready"])
def test_the_fallback_order_holds_over_all_lists(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder, wake_after: float
) -> None:
    """The nearest workload comes first, then the lower priority number, however long the lists are."""
    deployments = [
        pools.one(workload=workload, priority=priority)
        for workload in ("light", "medium", "heavy")
        for priority in (0, 1)
        for _ in range(30)
    ]
    pool = make_pool(deployments)
    asking = Asking(pool, make_order(pool, "light"), wake_after)
    order = [(state.distance, state.deployment.priority) for states in asking.lists() for state in states]
    assert order == sorted(order)
    assert len(order) == 180


def test_those_that_wake_first_complete_the_list(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """After the ready deployments come the parked ones that wake before those that refused have room."""
    deployments = pools.many(20)
    pool = make_pool(deployments)
    for number, deployment in enumerate(deployments[10:]):
        at = NOW + 10.0 * (number + 1)
        pool.note_refusal(Refusal(deployment, "tpm", at, at), NOW)
    asking = Asking(pool, make_order(pool), 40.0)
    first, second = ([state.deployment for state in states] for states in asking.lists())
    assert len(first) == FIRST_CANDIDATES
    assert set(first + second[:2]) == set(deployments[:10])
    assert second[2:] == deployments[10:13]  # the next one wakes when those refused have room
    assert retry_at(asking.order, NOW, asking.refused) == NOW + 40.0


@pytest.mark.parametrize(
    ("reason", "ago", "is_asked"),
    [("rpm", 0.09, False), ("rpd", 0.0, False), ("rpm", 0.11, True), ("tpm", 0.0, True)],
)
def test_one_that_refused_any_request_a_moment_ago_is_not_asked_again(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder, reason: str, ago: float, is_asked: bool
) -> None:
    """Its refusal is reported instead, so that not each of many requests asks every deployment."""
    deployments = pools.many(20)
    pool = make_pool(deployments)
    for number, deployment in enumerate(deployments):
        at = NOW + 1.0 + number
        pool.note_refusal(Refusal(deployment, reason, at, at), NOW - ago)
    asking = Asking(pool, make_order(pool), 40.0)
    asked = [state.deployment for states in asking.lists() for state in states]
    assert (asked == deployments) is is_asked
    if not is_asked:
        assert asked == []
        assert [refusal.deployment for refusal in asking.refused.values()] == deployments[:1]
        assert retry_at(asking.order, NOW, asking.refused) == NOW + 1.0


async def test_a_crowd_that_is_refused_asks_each_deployment_once(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A hundred hopeless requests cost the store hardly more than one, and get the same answer."""

    class Counting(MemoryStore):
        looks = 0

        async def reserve(
            self, reservation_id: str, candidates: Sequence[Deployment], *args: Any
        ) -> Decision:
            decision = await super().reserve(reservation_id, candidates, *args)
            self.looks += len(decision.refusals)
            return decision

    store = Counting(clock=clock)
    async with make_router(pools.many(50, rpm=1), store=store) as router:
        for _ in range(50):
            assert (await router.send("x")).success
        clock.shift(1)
        store.looks = 0
        outcomes = [await router.send("x") for _ in range(100)]
        assert store.looks <= 50 + 100
        assert all(outcome.retry_after == pytest.approx(59.3) for outcome in outcomes)


def test_all_of_many_parked_ones_are_asked(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """A large request asks every parked deployment that may have room for it, the first to wake first."""
    deployments = pools.many(500)
    pool = make_pool(deployments)
    for number, deployment in enumerate(deployments):
        at = NOW + 1.0 + number * 0.05
        pool.note_refusal(Refusal(deployment, "tpm", at, at), NOW)
    asked = [state.deployment for states in Asking(pool, make_order(pool), 30.0).lists() for state in states]
    assert asked == deployments


def test_one_that_wakes_meanwhile_is_asked(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """A deployment that becomes ready while others are being asked is asked, too."""
    deployments = pools.many(9)
    pool = make_pool(deployments)
    pool.note_refusal(Refusal(deployments[8], "rpm", NOW + 50.0, NOW + 50.0), NOW)
    asking = Asking(pool, make_order(pool), 40.0)
    lists = asking.lists()
    assert len(next(lists)) == FIRST_CANDIDATES
    pool.rouse(deployments[8].model_scope, NOW)
    assert [state.deployment for state in next(lists)] == [deployments[8]]
    assert next(lists, None) is None


def test_one_avoided_by_this_process_is_not_asked(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """It is not asked, and its end is the time to retry if that is before those that refused have room."""
    deployments = pools.many(2)
    pool = make_pool(deployments)
    pool.avoid(pool.states[deployments[0]], NOW + 5.0, "it failed")
    asking = Asking(pool, make_order(pool), 40.0)
    assert [[state.deployment for state in states] for states in asking.lists()] == [[deployments[1]]]
    assert retry_at(asking.order, NOW, asking.refused) == NOW + 5.0


def test_no_deployment_will_ever_have_room(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """Where all are disabled for ever each is asked once, since it may be enabled by now; then none is."""
    deployments = pools.many(2)
    pool = make_pool(deployments)
    for deployment in deployments:
        pool.cool_down(Cooldown(deployment.key_scope, math.inf, "disabled"))
    order = make_order(pool)
    refused: dict[DeploymentState, Refusal] = {}
    for states in further(order, LeastLoaded(), lambda: NOW, refused):
        for state in states:
            assert state not in refused
            assert state.refusal is not None
            cooldown = state.refusal.cooldown
            refused[state] = Refusal(state.deployment, "disabled", math.inf, math.inf, cooldown)
            pool.note_refusal(refused[state], NOW)
    assert len(refused) == 2
    assert retry_at(order, NOW, refused) == math.inf
    assert list(further(order, LeastLoaded(), lambda: NOW + 0.05, {})) == []


class Counting(MemoryStore):
    """A store that records how many candidates it was given."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.sizes: list[int] = []

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.sizes.append(len(candidates))
        return await super().reserve(reservation_id, candidates, demand, ttl)


@pytest.mark.slow
async def test_the_last_of_many_with_room_is_found(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """However many refuse, a request fails only when none has room, and no list exceeds the maximum."""
    deployments = pools.many(700, rpm=1)
    store = Counting(clock)
    async with make_router(deployments[:-1], store=store) as other:
        for _ in deployments[:-1]:
            assert (await other.send("x")).success
    store.sizes.clear()
    async with make_router(deployments, store=store) as router:
        assert (await router.send("x")).key_id == deployments[-1].key.key_id
        assert max(store.sizes) <= MAX_CANDIDATES
        assert len(store.sizes) <= 8
        response = await router.send("x")
        assert not response.success
        assert response.retry_after == pytest.approx(60.3)


def test_ranking_changes_nothing(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """The ranking has every tier in order, and changes neither cursors nor parked deployments."""
    light, heavy = pools.many(3, workload="light"), pools.many(2, "model-b", "heavy", priority=0)
    pool = make_pool([*light, *heavy])
    pool.cool_down(Cooldown(light[0].model_scope, NOW + 10.0, "spent"))
    order = make_order(pool, "light")

    def snapshot() -> tuple[list[int], list[tuple[int, float, int]]]:
        rings = [ring for group in order.groups for _, ring in group.ready]
        cursors = [ring.cursor for ring in rings if isinstance(ring, ReadyRing)]
        assert len(cursors) == len(rings)
        return cursors, [(state.ring_index, state.headroom, state.distance) for state in pool]

    before = snapshot()
    first, second = ranking(order, LeastLoaded(), NOW)
    assert {candidate.deployment for candidate in first} == {*light[1:]}
    assert {candidate.deployment for candidate in second} == {*heavy}
    assert [candidate.distance for candidate in (*first, *second)] == [0, 0, 2, 2]
    assert len(ranking(order, LeastLoaded(), NOW + 10.0)[0]) == 3
    assert snapshot() == before


def test_a_provider_that_cannot_be_reached_is_not_asked(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """An open circuit breaker takes out its own provider only, and has the time of the next try."""
    near = pools.many(2)
    far = [pools.one(provider="other") for _ in range(2)]
    pool = make_pool([*near, *far])
    breaker = pool.states[near[0]].group.breaker
    for number in range(3):
        breaker.record_failure(f"key-{number}", NOW)
    order = make_order(pool)
    drawn = order.draw(LeastLoaded(), NOW, FIRST_CANDIDATES)
    assert {state.deployment for state in drawn} == {*far}
    assert retry_at(order, NOW, {}) == NOW + 1.0
    assert len(order.draw(LeastLoaded(), NOW + 1.0, FIRST_CANDIDATES)) == 4


async def test_what_never_fits_hides_nothing_that_has_room_later(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A large request finds out that it never fits where a small one did; it waits for another deployment."""
    store = MemoryStore(clock=clock)
    small, large = pools.one(rpm=None, tpm=10), pools.one(rpm=1, tpm=1_000)
    async with make_router([small, large], store=store) as router:
        assert all([(await router.send("x")).success for _ in range(2)])
        await store.cool_down(Cooldown(small.model_scope, clock.time() + 5.0, "elsewhere"))
        told = [(await router.send("x")).retry_after for _ in range(2)]
        assert told == [pytest.approx(5.0)] * 2
        response = await router.send("word " * 20)
        assert response.retry_after == pytest.approx(60.3)


async def test_what_has_room_before_its_time_is_ready(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, provider: FakeProvider
) -> None:
    """A limit of the day that another process forgets is noticed although another deployment still serves."""
    store = MemoryStore(clock=clock)
    day, minute = pools.one(key_id="day", rpm=None, rpd=100), pools.one(key_id="minute", rpm=1)
    await store.cool_down(Cooldown.learn(day.model_scope, LearntLimit(Metric.RPD, 2)))
    async with make_router([day, minute], store=store) as router:
        assert [(await router.send("x")).success for _ in range(4)] == [True] * 3 + [False]
        async with make_router([day, minute], store=store) as another:
            await another.keys.forget_limits("day")
        provider.calls.clear()
        await clock.advance(5.0)
        assert all([(await router.send("x")).success for _ in range(6)])
    assert [call.key_id for call in provider.calls] == ["day"] * 6

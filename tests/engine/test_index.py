"""The local index: ready and parked deployments."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pytest

from llm_router import Candidate, Cooldown, LeastLoaded
from llm_router.engine.index import DeploymentState
from llm_router.engine.search import FIRST_CANDIDATES, soonest
from llm_router.stores.base import Decision, Refusal

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.engine.conftest import MakeOrder, MakePool


def _ids(states: Iterable[DeploymentState]) -> list[str]:
    return [state.deployment.key.key_id for state in states]


def test_a_small_tier_is_on_the_shortlist_as_a_whole(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Up to eight deployments are all on the shortlist."""
    pool = make_pool(pools.many(8))
    assert len(set(_ids(make_order(pool).draw(LeastLoaded(), 0.0, 8)))) == 8


def test_every_deployment_of_a_large_tier_gets_a_turn(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """The window moves on, so that each of many deployments is offered first once per round."""
    pool = make_pool(pools.many(100))
    order = make_order(pool)

    class AsDrawn:
        def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
            return candidates

    firsts = [_ids(order.draw(AsDrawn(), 0.0, 8))[0] for _ in range(100)]
    assert len(set(firsts)) == 100


def test_the_lower_priority_number_comes_first_and_zero_is_a_number(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Priority 0 comes before 1, and 1 before 7."""
    pool = make_pool([pools.one(priority=p, key_id=f"p{p}") for p in (7, 1, 0)])
    assert _ids(make_order(pool).draw(LeastLoaded(), 0.0, 8)) == ["p0", "p1", "p7"]


def test_parked_deployments_leave_and_come_back_in_time(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """A parked deployment is not offered before its wake time, and is from then on."""
    deployments = pools.many(3)
    pool = make_pool(deployments)
    order = make_order(pool)
    pool.note_refusal(Refusal(deployments[0], "rpm", 50.0, 50.0), now=10.0)
    assert deployments[0].key.key_id not in _ids(order.draw(LeastLoaded(), 49.9, 8))
    assert deployments[0].key.key_id in _ids(order.draw(LeastLoaded(), 50.0, 8))


def test_a_refusal_of_a_large_request_parks_nothing(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """A deployment that still has room for the smallest request stays ready."""
    deployments = pools.many(1)
    pool = make_pool(deployments)
    pool.note_refusal(Refusal(deployments[0], "tpm", 50.0, 10.0), now=10.0)
    assert len(make_order(pool).draw(LeastLoaded(), 10.0, 8)) == 1


def test_the_later_wake_time_wins(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """Parking for a shorter time than before changes nothing."""
    deployments = pools.many(1)
    pool = make_pool(deployments)
    order = make_order(pool)
    pool.cool_down(Cooldown(deployments[0].model_scope, 100.0, "first"))
    pool.cool_down(Cooldown(deployments[0].model_scope, 60.0, "second"))
    assert order.draw(LeastLoaded(), 99.0, 8) == []
    assert len(order.draw(LeastLoaded(), 100.0, 8)) == 1


def test_a_quarantine_never_ends_by_itself(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """A quarantined deployment is offered again only when it is roused."""
    deployments = pools.many(1)
    pool = make_pool(deployments)
    order = make_order(pool)
    pool.cool_down(Cooldown(deployments[0].key_scope, math.inf, "dead"))
    assert order.draw(LeastLoaded(), 1e12, 8) == []
    pool.rouse(deployments[0].key_scope, 1e12)
    assert len(order.draw(LeastLoaded(), 1e12, 8)) == 1


def test_soonest_agrees_with_sorting(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """The k parked states that wake first are found without sorting all of them."""
    chance = random.Random(7)
    deployments = pools.many(200)
    pool = make_pool(deployments)
    order = make_order(pool)
    states = list(pool)
    for _ in range(400):
        pool.note_refusal(
            Refusal(chance.choice(deployments), "rpm", (at := chance.uniform(1, 100)), at), now=0.0
        )
    parked = sorted((state for state in states if state.is_parked), key=lambda state: state.wakes_at)
    assert soonest(order, 8) == parked[:8]


def test_random_parking_keeps_the_arrays_whole(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """However states come and go, each is either parked or ready exactly once."""
    chance = random.Random(11)
    deployments = [pools.one(priority=chance.randrange(3)) for _ in range(40)]
    pool = make_pool(deployments)
    order = make_order(pool)
    now = 0.0
    for _ in range(2_000):
        now += chance.random()
        victim = chance.choice(deployments)
        pool.note_refusal(Refusal(victim, "rpm", now + 5, now + chance.uniform(0.1, 20)), now)
        order.draw(LeastLoaded(), now, 8)
        ready = {state for state in pool if not state.is_parked}
        drawn = [s for group in order.groups for _, ring in group.ready for s in ring.draw(10**6)]
        assert len(drawn) == len(ready)
        assert set(drawn) == ready
        assert all(state.wakes_at > now for state in pool if state.is_parked)


def test_least_loaded_prefers_the_larger_share_and_the_healthy(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Within a priority the larger remaining share comes first; one that failed lately comes last."""
    pool = make_pool([pools.one(key_id=name) for name in ("full", "empty", "sick")])
    full, empty, sick = pool
    empty.observe(Decision(empty.deployment, 0.2, 1.0), 0.0)
    sick.failures = 1
    assert _ids(make_order(pool).draw(LeastLoaded(), 0.0, 8)) == ["full", "empty", "sick"]
    assert full.headroom == 1.0


def test_the_daily_share_does_not_recover_by_the_minute(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """A deployment short of its daily quota stays behind, however long it is not used."""
    pool = make_pool([pools.one(key_id=name) for name in ("short-of-day", "fresh")])
    short, _ = pool
    short.observe(Decision(short.deployment, 0.9, 0.1), 0.0)
    assert _ids(make_order(pool).draw(LeastLoaded(), 3600.0, 8)) == ["fresh", "short-of-day"]


@pytest.mark.parametrize("seed", range(10))
def test_a_copy_draws_the_same_and_moves_nothing(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder, seed: int
) -> None:
    """Whatever was parked and drawn before, a copy draws what comes next, and moves nothing."""
    draw = random.Random(seed)
    deployments = [
        pools.one(
            draw.choice(["model-a", "model-b"]), draw.choice(["light", "heavy"]), priority=draw.randrange(2)
        )
        for _ in range(30)
    ]
    pool = make_pool(deployments)
    order = make_order(pool, "light")
    for step in range(30):
        now = 1_000.0 + step
        for state in draw.sample(list(pool), 3):
            state.group.park(state, now + draw.randrange(1, 9))
        twin = order.copy()
        expected = [
            [state.deployment for state in twin.draw(LeastLoaded(), now, FIRST_CANDIDATES)] for _ in range(3)
        ]
        for state in [state for group in twin.groups for state in group.states]:
            state.group.park(state, math.inf)
        found = [
            [state.deployment for state in order.draw(LeastLoaded(), now, FIRST_CANDIDATES)] for _ in range(3)
        ]
        assert found == expected

"""The local index: ready and parked deployments."""

from __future__ import annotations

import math
import random

from llm_router import LeastLoaded
from llm_router.engine.plan import Planner
from llm_router.engine.pool import Pool
from llm_router.stores.base import Decision, Refusal

WORKLOADS = ("light", "medium", "heavy")


def _plan(pool, workload=None, model=None, fallback="any"):
    return Planner(pool, WORKLOADS).plan(workload, model, fallback)


def _ids(slots):
    return [slot.deployment.key.key_id for slot in slots]


def test_small_tier_is_seen_whole(pools):
    """With up to eight deployments every one of them is on the shortlist."""
    pool = Pool(pools.many(8))
    assert len(set(_ids(_plan(pool).shortlist(LeastLoaded(), 0.0)))) == 8


def test_large_tier_gives_everyone_a_turn(pools):
    """The window moves on, so that each of many deployments is offered first once in a round."""
    pool = Pool(pools.many(100))
    plan = _plan(pool)

    class AsDrawn:
        def order(self, candidates):
            return candidates

    firsts = [_ids(plan.shortlist(AsDrawn(), 0.0))[0] for _ in range(100)]
    assert len(set(firsts)) == 100


def test_lower_priority_number_comes_first_and_zero_is_a_number(pools):
    """Priority 0 goes before 1, and 1 before 7."""
    pool = Pool([pools.one(priority=p, key_id=f"p{p}") for p in (7, 1, 0)])
    assert _ids(_plan(pool).shortlist(LeastLoaded(), 0.0)) == ["p0", "p1", "p7"]


def test_parked_slots_leave_and_come_back_in_time(pools):
    """A parked deployment is not offered before its wake time, and is from then on."""
    deployments = pools.many(3)
    pool = Pool(deployments)
    plan = _plan(pool)
    pool.learn(Refusal(deployments[0], "rpm", 50.0, 50.0), now=10.0)
    assert deployments[0].key.key_id not in _ids(plan.shortlist(LeastLoaded(), 49.9))
    assert deployments[0].key.key_id in _ids(plan.shortlist(LeastLoaded(), 50.0))


def test_a_refusal_of_a_large_request_parks_nobody(pools):
    """What still has room for the smallest request stays ready."""
    deployments = pools.many(1)
    pool = Pool(deployments)
    pool.learn(Refusal(deployments[0], "tpm", 50.0, 10.0), now=10.0)
    assert len(_plan(pool).shortlist(LeastLoaded(), 10.0)) == 1


def test_later_end_wins(pools):
    """Parking for a shorter time than before changes nothing."""
    deployments = pools.many(1)
    pool = Pool(deployments)
    plan = _plan(pool)
    pool.park(deployments[0].model_scope, 100.0, "first")
    pool.park(deployments[0].model_scope, 60.0, "second")
    assert plan.shortlist(LeastLoaded(), 99.0) == []
    assert len(plan.shortlist(LeastLoaded(), 100.0)) == 1


def test_quarantine_never_wakes(pools):
    """An endless park ends only when it is lifted."""
    deployments = pools.many(1)
    pool = Pool(deployments)
    plan = _plan(pool)
    pool.park(deployments[0].key_scope, math.inf, "dead")
    assert plan.shortlist(LeastLoaded(), 1e12) == []
    pool.rouse(deployments[0].key_scope, 1e12)
    assert len(plan.shortlist(LeastLoaded(), 1e12)) == 1


def test_soonest_agrees_with_sorting(pools):
    """The k parked slots that wake first are found without sorting all of them."""
    chance = random.Random(7)
    deployments = pools.many(200)
    pool = Pool(deployments)
    plan = _plan(pool)
    slots = list(pool)
    for _ in range(400):
        pool.learn(Refusal(chance.choice(deployments), "rpm", (at := chance.uniform(1, 100)), at), now=0.0)
    parked = sorted((slot for slot in slots if slot.place < 0), key=lambda slot: slot.wake)
    assert plan.soonest(8) == parked[:8]


def test_random_parking_keeps_the_arrays_whole(pools):
    """However slots come and go, each is ready exactly once or parked."""
    chance = random.Random(11)
    deployments = [pools.one(priority=chance.randrange(3)) for _ in range(40)]
    pool = Pool(deployments)
    plan = _plan(pool)
    now = 0.0
    for _ in range(2_000):
        now += chance.random()
        victim = chance.choice(deployments)
        pool.learn(Refusal(victim, "rpm", now + 5, now + chance.uniform(0.1, 20)), now)
        plan.shortlist(LeastLoaded(), now)
        ready = {slot for slot in pool if slot.place >= 0}
        drawn = [s for cell in plan.cells for _, found in cell.draw(10**6) for s in found]
        assert len(drawn) == len(ready)
        assert set(drawn) == ready
        assert all(slot.wake > now for slot in pool if slot.place < 0)


def test_least_loaded_prefers_the_larger_share_and_the_healthy(pools):
    """Inside a priority the remaining share decides; who failed lately comes last."""
    pool = Pool([pools.one(key_id=name) for name in ("full", "empty", "sick")])
    full, empty, sick = pool
    empty.observe(Decision(empty.deployment, 0.2, 1.0), 0.0)
    sick.failures = 1
    assert _ids(_plan(pool).shortlist(LeastLoaded(), 0.0)) == ["full", "empty", "sick"]
    assert full.headroom == 1.0


def test_daily_share_does_not_recover_by_the_minute(pools):
    """A deployment short of its daily quota stays behind however long it rests."""
    pool = Pool([pools.one(key_id=name) for name in ("short-of-day", "fresh")])
    short, _ = pool
    short.observe(Decision(short.deployment, 0.9, 0.1), 0.0)
    assert _ids(_plan(pool).shortlist(LeastLoaded(), 3600.0)) == ["fresh", "short-of-day"]

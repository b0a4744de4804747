"""Whom a request asks when nobody on its shortlist took it."""

from __future__ import annotations

import math

import pytest

from llm_router import LeastLoaded, MemoryStore
from llm_router.engine.plan import LONGEST, SHORTLIST, Planner
from llm_router.engine.pool import Pool
from llm_router.stores.base import Refusal

NOW = 1_000.0


class Asking:
    """A request that everybody refuses, and whom it asked.

    Args:
        pool: The deployments.
        wake_after: Seconds after which who refused is of use to the smallest request again; this one has to
            wait for 40 s.
    """

    def __init__(self, pool, wake_after):
        self.now = NOW
        self.plan = Planner(pool, ("light", "medium", "heavy")).plan(None, None, "any")
        self.refused = {}
        self._pool = pool
        self._wake_after = wake_after

    def time(self):
        return self.now

    def lists(self):
        """Yield list after list, each refused before the next one is asked for."""
        shortlist = self.plan.shortlist(LeastLoaded(), self.now)
        if shortlist:
            yield self._refuse(shortlist)
        for slots in self.plan.further(LeastLoaded(), self.time, self.refused):
            yield self._refuse(slots)

    def _refuse(self, slots):
        for slot in slots:
            assert slot not in self.refused
            wake_at = self.now + self._wake_after
            refusal = self.refused[slot] = Refusal(slot.deployment, "tpm", self.now + 40.0, wake_at)
            self._pool.learn(refusal, self.now)
        return slots


@pytest.mark.parametrize("wake_after", [20.0, 0.0], ids=["parked", "still ready"])
def test_ever_more_are_asked_until_everybody_was(pools, wake_after):
    """The lists grow up to the longest, nobody is asked twice, and nobody is left out."""
    pool = Pool(pools.many(300))
    asking = Asking(pool, wake_after)
    assert [len(slots) for slots in asking.lists()] == [SHORTLIST, 32, LONGEST, LONGEST, 4]
    assert set(asking.refused) == set(pool)


@pytest.mark.parametrize("wake_after", [20.0, 0.0], ids=["parked", "still ready"])
def test_the_fallback_order_holds_over_all_lists(pools, wake_after):
    """Nearest workload first, then lower priority numbers, however long the lists are."""
    deployments = [
        pools.one(workload=workload, priority=priority)
        for workload in ("light", "medium", "heavy")
        for priority in (0, 1)
        for _ in range(30)
    ]
    asking = Asking(Pool(deployments), wake_after)
    asking.plan = Planner(asking._pool, ("light", "medium", "heavy")).plan("light", None, "any")
    order = [(slot.distance, slot.deployment.priority) for slots in asking.lists() for slot in slots]
    assert order == sorted(order)
    assert len(order) == 180


def test_those_who_wake_first_fill_the_list_up(pools):
    """Beside the ready ones are asked the parked ones that wake before those who refused have room."""
    deployments = pools.many(20)
    pool = Pool(deployments)
    for number, deployment in enumerate(deployments[10:]):
        at = NOW + 10.0 * (number + 1)
        pool.learn(Refusal(deployment, "tpm", at, at), NOW)
    asking = Asking(pool, 40.0)
    first, second = ([slot.deployment for slot in slots] for slots in asking.lists())
    assert len(first) == SHORTLIST
    assert set(first + second[:2]) == set(deployments[:10])
    assert second[2:] == deployments[10:13]  # the next one wakes when those refused have room
    assert asking.plan.retry_at(NOW, asking.refused) == NOW + 40.0


@pytest.mark.parametrize(
    ("reason", "ago", "is_asked"),
    [("rpm", 0.09, False), ("rpd", 0.0, False), ("rpm", 0.11, True), ("tpm", 0.0, True)],
)
def test_who_refused_anybody_a_moment_ago_is_not_asked_again(pools, reason, ago, is_asked):
    """Where many are refused at once each would ask everybody; it is told all the same who refused."""
    deployments = pools.many(20)
    pool = Pool(deployments)
    for number, deployment in enumerate(deployments):
        at = NOW + 1.0 + number
        pool.learn(Refusal(deployment, reason, at, at), NOW - ago)
    asking = Asking(pool, 40.0)
    asked = [slot.deployment for slots in asking.lists() for slot in slots]
    assert (asked == deployments) is is_asked
    if not is_asked:
        assert asked == []
        assert [refusal.deployment for refusal in asking.refused.values()] == deployments[:1]
        assert asking.plan.retry_at(NOW, asking.refused) == NOW + 1.0


async def test_a_crowd_that_is_refused_asks_everybody_once(make_router, pools, clock):
    """A hundred requests without a chance cost the store hardly more than one; they hear the same."""

    class Counting(MemoryStore):
        looks = 0

        async def reserve(self, reservation_id, candidates, *args):
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


def test_all_of_many_parked_ones_are_asked(pools):
    """A large request asks every parked deployment that may have room for it first, those that wake first."""
    deployments = pools.many(500)
    pool = Pool(deployments)
    for number, deployment in enumerate(deployments):
        at = NOW + 1.0 + number * 0.05
        pool.learn(Refusal(deployment, "tpm", at, at), NOW)
    asked = [slot.deployment for slots in Asking(pool, 30.0).lists() for slot in slots]
    assert asked == deployments


def test_one_that_wakes_meanwhile_is_asked(pools):
    """What becomes ready while others are being asked is not left out."""
    deployments = pools.many(9)
    pool = Pool(deployments)
    pool.learn(Refusal(deployments[8], "rpm", NOW + 50.0, NOW + 50.0), NOW)
    asking = Asking(pool, 40.0)
    lists = asking.lists()
    assert len(next(lists)) == SHORTLIST
    pool.rouse(deployments[8].model_scope, NOW)
    assert [slot.deployment for slot in next(lists)] == [deployments[8]]
    assert next(lists, None) is None


def test_one_held_by_this_process_is_not_asked(pools):
    """The store knows nothing of it; it tells when to try again, if that is before those who refused."""
    deployments = pools.many(2)
    pool = Pool(deployments)
    pool.hold(pool.slot(deployments[0]), NOW + 5.0, "it failed")
    asking = Asking(pool, 40.0)
    assert [[slot.deployment for slot in slots] for slots in asking.lists()] == [[deployments[1]]]
    assert asking.plan.retry_at(NOW, asking.refused) == NOW + 5.0


def test_nobody_at_all_will_ever_have_room(pools):
    """Where everything is quarantined nobody is asked, and waiting does not help."""
    deployments = pools.many(2)
    pool = Pool(deployments)
    for deployment in deployments:
        pool.park(deployment.key_scope, math.inf, "dead")
    asking = Asking(pool, 40.0)
    assert list(asking.lists()) == []
    assert asking.plan.retry_at(NOW, asking.refused) == math.inf


class Counting(MemoryStore):
    """A store that notes how many candidates it was given."""

    def __init__(self, clock):
        super().__init__(clock=clock)
        self.sizes = []

    async def reserve(self, reservation_id, candidates, demand, ttl):
        self.sizes.append(len(candidates))
        return await super().reserve(reservation_id, candidates, demand, ttl)


async def test_the_last_of_many_with_room_is_found(make_router, pools, clock):
    """However many refuse, a request fails only when nobody has room; the store sees no list too long."""
    deployments = pools.many(700, rpm=1)
    store = Counting(clock)
    async with make_router(deployments[:-1], store=store) as other:
        for _ in deployments[:-1]:
            assert (await other.send("x")).success
    store.sizes.clear()
    async with make_router(deployments, store=store) as router:
        assert (await router.send("x")).key_id == deployments[-1].key.key_id
        assert max(store.sizes) <= LONGEST
        assert len(store.sizes) <= 8
        response = await router.send("x")
        assert not response.success
        assert response.retry_after == pytest.approx(60.3)

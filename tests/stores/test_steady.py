"""The steady ledger of every store, beside a naive model: a queue of takings that drains from its front."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_router import RateLimitStore
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend
    from tests.stores.servers import redis_backends
else:
    from llm_router_tests_servers import redis_backends


START = 1_800_041_000.25
TPM = Quota(Metric.TPM, 6_000, Refill.STEADY, burst=3_000)
RATE = Fraction(6_000 - 3_000 + 1, 60_300_000)
FUZZ = Fraction(1, 100_000)
LIMITED = Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=(TPM,))


class Queue:
    """What has not drained of each taking, in the order in which they were made."""

    def __init__(self) -> None:
        self.left: dict[str, Fraction] = {}
        self.taken: dict[str, int] = {}

    def wait(self, microseconds: int) -> None:
        drains = microseconds * RATE
        for name, left in self.left.items():
            drained = min(left, drains)
            self.left[name] = left - drained
            drains -= drained

    def take(self, name: str, amount: int) -> None:
        self.left[name] = Fraction(amount)
        self.taken[name] = amount

    def settle(self, name: str, used: int) -> None:
        change = used - self.taken.pop(name)
        if change > 0:
            self.left[f"more of {name}"] = Fraction(change)
        else:
            self.left[name] -= min(self.left[name], Fraction(-change))

    def check(self, used: int) -> None:
        debt = sum(self.left.values())
        assert max(0, math.ceil(debt - FUZZ)) <= used <= math.ceil(debt + FUZZ)


plays = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from([1, 20, 250, 1_000]), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([10, 2_000_000, 7_000_000, 61_000_000]), st.just(0)),
        st.tuples(st.just("settle"), st.integers(0, 20), st.sampled_from([0, 0, 1, 100, 900, 1_500])),
    ),
    max_size=60,
)


async def used(store: RateLimitStore) -> int:
    [snapshot] = await store.snapshot([LIMITED])
    return snapshot.quotas[0].used


ELSEWHERE = [pytest.param(name, marks=pytest.mark.slow) for name in ("sqlite", *redis_backends())]


@pytest.mark.parametrize("store_backend", ["memory", *ELSEWHERE], indirect=True)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(play=plays)
async def test_what_has_not_drained_is_given_back_in_any_order(
    store_backend: Backend, play: list[tuple[str, int, int]]
) -> None:
    """Exactly that of the taking that is settled or released, and never more."""
    clock, queue = ManualClock(START), Queue()
    async with store_backend.open(clock) as store:
        for number, (name, argument, settled) in enumerate(play):
            if name == "take":
                decision = await store.reserve(f"r{number}", [LIMITED], Demand(1, argument), 600.0)
                if decision.deployment is not None:
                    queue.take(f"r{number}", argument)
            elif name == "wait":
                before = round(clock.time() * 1e6)
                clock.shift(argument / 1e6)
                queue.wait(round(clock.time() * 1e6) - before)
            elif queue.taken:
                chosen = sorted(queue.taken)[argument % len(queue.taken)]
                await store.settle(chosen, Demand(1, settled))
                queue.settle(chosen, settled)
            queue.check(await used(store))


async def test_releases_leave_nothing_in_whatever_order(store_backend: Backend) -> None:
    """Two takings, released as they were made, and the other way round."""
    for order in (["first", "second"], ["second", "first"]):
        async with store_backend.open(ManualClock(START)) as store:
            for name in ("first", "second"):
                await store.reserve(name, [LIMITED], Demand(1, 1_500), 600.0)
            for name in order:
                await store.release(name)
            assert await used(store) == 0


@pytest.mark.slow
async def test_what_is_remembered_of_releases_is_bounded(store_backend: Backend) -> None:
    """After thousands of partly settled takings; too little is given back rather than too much."""
    clock = ManualClock(START)
    async with store_backend.open(clock) as store:
        for number in range(700):
            await store.reserve(f"r{number}", [LIMITED], Demand(1, 4), 600.0)
        for number in range(700):
            await store.settle(f"r{number}", Demand(1, 3))
        assert await used(store) == 2_100
        clock.shift(30.0)
        assert 2_100 - 30 * 50 <= await used(store) <= 2_100 - 30 * 49

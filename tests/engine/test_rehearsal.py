"""Rehearsals: what is found out about a send on copies and on a snapshot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from llm_router import LeastLoaded, Metric, Quota, Refill
from llm_router.domain.limits import LimitRecord, LimitSource
from llm_router.engine.estimates import TEXT
from llm_router.engine.index import DeploymentState
from llm_router.engine.rehearsal import choose, demand_on, room_at
from llm_router.stores.base import QuotaSnapshot, Refusal

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.engine.conftest import MakeOrder, MakePool, MakeSend

NOW = 1_800_014_400.0


@pytest.fixture
def state(pools: Pools, make_pool: MakePool) -> DeploymentState:
    """A deployment with ten requests and a hundred tokens a minute."""
    [state] = make_pool([pools.one(rpm=10, tpm=100)])
    return state


def rpm(used: int, limit: int = 10, learnt: LimitRecord | None = None) -> QuotaSnapshot:
    return QuotaSnapshot(Metric.RPM, limit, used, NOW + 50.0, learnt)


def rising(at: float, raised: int) -> LimitRecord:
    return LimitRecord(5, LimitSource.INFERRED, NOW, raised, at)


def test_what_fits_fits_now(state: DeploymentState) -> None:
    """Up to the limit there is room, above it when all is back, and for more than the limit never."""
    assert room_at(rpm(9), state, 1, NOW) == NOW
    assert room_at(rpm(10), state, 1, NOW) == NOW + 50.0
    assert room_at(rpm(0), state, 11, NOW) == math.inf
    assert room_at(rpm(0, limit=0), state, 1, NOW) == math.inf


def test_a_refusal_shows_that_some_is_back_earlier(state: DeploymentState) -> None:
    """What a store said of one request holds for the next, but not for tokens, nor for another quota."""
    state.note(Refusal(state.deployment, "rpm", NOW + 7.0, NOW + 7.0), NOW)
    assert room_at(rpm(10), state, 1, NOW) == NOW + 7.0
    assert room_at(rpm(10), state, 1, NOW + 8.0) == NOW + 50.0
    state.note(Refusal(state.deployment, "tpm", NOW + 7.0, NOW + 7.0))
    assert room_at(rpm(10), state, 1, NOW) == NOW + 50.0
    assert room_at(QuotaSnapshot(Metric.TPM, 100, 100, NOW + 50.0), state, 9, NOW) == NOW + 50.0


def test_a_refusal_says_nothing_of_what_happened_after_it(state: DeploymentState) -> None:
    """If something was taken since then, or another limit was learnt, all of the quota is waited for."""
    refusal = Refusal(state.deployment, "rpm", NOW + 7.0, NOW + 7.0)
    learnt = LimitRecord(10, LimitSource.INFERRED, NOW - 2.0, 10, math.inf)
    for refused_at, last, later in ((-1.0, NOW + 7.0, NOW + 7.0), (-5.0, NOW + 7.0, NOW + 50.0)):
        state.note(refusal, NOW + refused_at)
        assert room_at(rpm(10), state, 1, NOW) == last
        assert room_at(rpm(10, 10, learnt), state, 1, NOW) == later
    state.note(refusal, NOW - 11.0)  # what was taken last comes back a minute and a guard later
    assert room_at(rpm(10), state, 1, NOW) == NOW + 50.0


def test_a_learnt_limit_that_rises(state: DeploymentState) -> None:
    """A rise counts if it is enough, or if nothing else ever helps."""
    assert room_at(rpm(5, 5, rising(NOW + 9.0, 6)), state, 1, NOW) == NOW + 9.0
    assert room_at(rpm(8, 5, rising(NOW + 9.0, 6)), state, 1, NOW) == NOW + 50.0
    assert room_at(rpm(0, 5, rising(NOW + 9.0, 6)), state, 8, NOW) == NOW + 9.0
    assert room_at(rpm(0, 5, rising(math.inf, 6)), state, 8, NOW) == math.inf
    assert room_at(rpm(10, 10, rising(NOW + 9.0, 20)), state, 1, NOW) == NOW + 50.0  # the number is a cap
    state.note(Refusal(state.deployment, "rpm", NOW + 9.0, NOW + 9.0))
    assert room_at(rpm(8, 5, rising(NOW + 9.0, 6)), state, 1, NOW) == NOW + 50.0


def test_a_steady_quota_comes_back_one_by_one(pools: Pools, make_pool: MakePool) -> None:
    """A steady quota has room when what is missing has drained, and never for more than its bucket."""
    quota = Quota(Metric.RPM, 61, Refill.STEADY, guard=0.0, burst=1)
    [state] = make_pool([pools.one(rpm=None)])
    object.__setattr__(state.deployment, "quotas", (quota,))
    snapshot = QuotaSnapshot(Metric.RPM, 61, 3, NOW + 50.0)
    assert room_at(snapshot, state, 1, NOW) == pytest.approx(NOW + 3.0)
    assert room_at(snapshot, state, 2, NOW) == math.inf


def test_the_demand_is_the_largest_estimate(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder, make_send: MakeSend
) -> None:
    """Among several models the one that may count most decides how many tokens are reserved."""
    pool = make_pool([pools.one("model-a"), pools.one("model-b")])
    first, second = pool
    second.group.corrections[TEXT].factor = 2.5
    send = make_send(make_order(pool), tokens=10)
    assert demand_on(send, [first]).tokens == 10
    assert demand_on(send, [first, second]).tokens == 25


def test_few_are_chosen_as_a_whole(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """All deployments of a small pool are looked at, and of a large one the next to be drawn."""
    few = pools.many(128)
    assert {*choose(make_order(make_pool(few)), LeastLoaded(), NOW)} == {*few}
    pool = make_pool(pools.many(300))
    order = make_order(pool)
    for state in list(pool)[:250]:
        state.group.park(state, NOW + 5.0)
    chosen = choose(order, LeastLoaded(), NOW)
    assert len(chosen) == len({*chosen}) == 128
    assert {state.deployment for state in list(pool)[250:]} == {*chosen[:50]}
    drawn = [state.deployment for state in order.draw(LeastLoaded(), NOW, 8)]
    assert chosen[:8] == drawn

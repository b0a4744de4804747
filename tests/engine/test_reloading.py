"""A pool holds other deployments in one step, and its index stays whole."""

from __future__ import annotations

import random
from collections import Counter

import attrs
import pytest

from llm_router import Cooldown, Deployment, Key, Metric, Quota, Secret
from llm_router.domain.reload import ReloadReport
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.index import is_stale
from llm_router.engine.pool import Pool
from llm_router.engine.upstream import Upstreams
from llm_router.stores import Refusal
from llm_router.strategies import LeastLoaded
from llm_router.testing import FakeProvider

SHARDS = 3
WORKLOADS = ("light", "heavy")


class Shards:
    """A store in shards, as far as a pool asks it."""

    shards = SHARDS

    def shard_of(self, deployment: Deployment) -> int:
        return len(deployment.key.project) % SHARDS


def check(pool: Pool, orders: FallbackOrders) -> None:
    """See that each deployment is ready or parked once, in the group that it belongs to."""
    places: Counter[Deployment] = Counter()
    for kind, group in pool.groups.items():
        assert group.states
        for state in group.states:
            deployment = state.deployment
            assert state.group is group
            assert pool.holds(state)
            assert (
                deployment.key.provider,
                deployment.workload,
                deployment.model,
                deployment.methods,
            ) == kind
        for priority, ring in group.ready:
            drawn = ring.draw(len(ring))
            assert drawn
            assert {state.deployment.priority for state in drawn} == {priority}
            places.update(state.deployment for state in drawn)
        parked = [state for *_, state in filter(lambda entry: not is_stale(entry), group.parked)]
        assert all(state.group is group for state in parked)
        places.update(state.deployment for state in parked)
    assert places == dict.fromkeys(pool.states, 1)
    for order in orders.values():
        assert order.groups
        assert set(order.groups) <= set(pool.groups.values())


def changed(
    held: list[Deployment], chance: random.Random
) -> tuple[list[Deployment], dict[Deployment, Deployment]]:
    """Return what to hold next: some are gone, some on other terms, some new; and what the second were."""
    before: dict[Deployment, Deployment] = {}
    wanted: list[Deployment] = []
    for deployment in held:
        fate = chance.random()
        terms = deployment
        if fate < 0.3:
            quotas = (Quota(Metric.RPM, chance.randrange(9)),)
            workload = chance.choice(WORKLOADS)
            terms = attrs.evolve(deployment, workload=workload, priority=chance.randrange(3), quotas=quotas)
            before[terms] = deployment
        if fate < 0.8:
            wanted.append(terms)
    for _ in range(chance.randrange(1, 4)):
        project, provider = "x" * chance.randrange(1, 9), chance.choice(["p", "q"])
        key = Key(f"k{chance.randrange(50)}", Secret("s"), provider, project)
        wanted.append(Deployment(key, chance.choice(["a", "b"]), chance.choice(WORKLOADS)))
    return wanted, before


def use(pool: Pool, deployment: Deployment, now: float, chance: random.Random) -> None:
    """Do what requests do to a deployment."""
    until = now + chance.choice([0.5, 3.0, 1e9])
    match chance.randrange(5):
        case 0:
            pool.note_refusal(Refusal(deployment, "rpm", until, until), now)
        case 1 if (state := pool.states.get(deployment)) is not None:
            pool.avoid(state, now + 2.0, "down")
        case 2:
            pool.cool_down(Cooldown(deployment.model_scope, until, "rpm spent"))
        case 3:
            pool.forgive(deployment)
        case _:
            pool.rouse(deployment.key_scope, now)


@pytest.mark.parametrize("shards", [None, Shards()])
def test_an_index_that_changes_stays_whole(shards: Shards | None) -> None:
    """Whatever is added, removed, moved, parked and roused, and on whichever terms it goes on."""
    chance = random.Random(7)
    upstreams = Upstreams(FakeProvider())
    pool = Pool([], {}, shards)
    orders = FallbackOrders(pool, WORKLOADS)
    for now in range(100):
        held = dict(pool.states)
        wanted, before = changed(list(held), chance)
        pool.replace(wanted, upstreams.of(wanted), before, float(now))
        orders.refresh(WORKLOADS)
        assert list(pool.states) == wanted
        kept = {each: held[old] for each in wanted if (old := before.get(each, each)) in held}
        assert all(pool.states[each] is state for each, state in kept.items())
        check(pool, orders)
        for gone in set(held.values()) - set(kept.values()):
            assert not pool.holds(gone)
            pool.avoid(gone, now + 9.0, "late")  # what a request finds that was sent before
        for deployment in [*chance.sample(wanted, k=len(wanted) // 2), *held]:
            use(pool, deployment, float(now), chance)
        orders[None, None, "any", frozenset(), "generateContent"].draw(LeastLoaded(), now, 8)
        check(pool, orders)


def test_a_report_reads_well() -> None:
    """It names what has changed, of many the first ones, and is false if there is nothing."""
    assert (bool(ReloadReport()), str(ReloadReport())) == (False, "nothing has changed")
    many = tuple(f"k{number}/m" for number in range(25))
    report = ReloadReport(many, ("old/m",), {"a/m": ("secret", "rpm 1 → 2")}, ("workloads",))
    assert str(report).startswith("added: k0/m, k1/m,")
    assert str(report).endswith(
        "k19/m and 5 more; removed: old/m; changed: a/m (secret, rpm 1 → 2); settings: workloads"
    )

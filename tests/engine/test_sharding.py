"""The local index for a store that keeps its deployments in several shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from llm_router import Cooldown, Demand, Deployment, LeastLoaded, MemoryStore, Router
from llm_router.engine.index import DeploymentState, FallbackOrder
from llm_router.engine.search import FIRST_CANDIDATES, further
from llm_router.engine.sharding import ShardedRing
from llm_router.stores import Decision
from llm_router.stores.base import Refusal
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.engine.conftest import MakeOrder, MakePool


NOW = 1_000.0


class ShardedStore(MemoryStore):
    """A store that shards deployments by the number in their key's name, and records the shards of each call.

    Args:
        clock: The source of time.
        shards: The number of shards.
    """

    def __init__(self, clock: ManualClock | None = None, shards: int = 4) -> None:
        super().__init__(clock=clock)
        self.shards = shards
        self.asked: list[list[int]] = []

    def shard_of(self, deployment: Deployment) -> int:
        return int(deployment.key.key_id.removeprefix("key-")) % self.shards

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.asked.append([self.shard_of(candidate) for candidate in candidates])
        return await super().reserve(reservation_id, candidates, demand, ttl)


def _shortlists(order: FallbackOrder, count: int) -> list[Sequence[DeploymentState]]:
    return [order.draw(LeastLoaded(), NOW, FIRST_CANDIDATES) for _ in range(count)]


def test_a_copy_can_be_drawn_from(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """A copy has the same deployments in every shard, and what is drawn from it moves nothing here."""
    order = make_order(make_pool(pools.many(20), ShardedStore()))
    [group] = order.groups
    [(_, ring)] = group.ready
    assert isinstance(ring, ShardedRing)
    before = {shard: (inner.cursor, list(inner.states)) for shard, inner in ring._rings.items()}
    twin = order.copy()
    drawn = twin.draw(LeastLoaded(), NOW, 20)
    assert {state.deployment for state in drawn} == {state.deployment for state in group.states}
    assert not {*drawn} & {*group.states}
    assert {shard: (inner.cursor, list(inner.states)) for shard, inner in ring._rings.items()} == before


def test_a_shortlist_stays_inside_one_shard(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """While a shard has eight ready deployments a shortlist lies in it; every shard gets its turn."""
    drawn = _shortlists(make_order(make_pool(pools.many(100), ShardedStore())), 200)
    assert all(len(states) == FIRST_CANDIDATES for states in drawn)
    shards = [{state.shard for state in states} for states in drawn]
    assert all(len(each) == 1 for each in shards)
    assert set.union(*shards) == {0, 1, 2, 3}


def test_a_shard_is_chosen_by_what_is_left_in_it(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """A shard whose deployments are all parked is not drawn from, and one with few ready seldom is."""
    deployments = pools.many(200)
    store = ShardedStore()
    pool = make_pool(deployments, store)
    kept: Counter[int] = Counter()
    for deployment in deployments:
        shard = store.shard_of(deployment)
        kept[shard] += 1
        if shard == 0 or (shard == 1 and kept[shard] > 10):
            pool.cool_down(Cooldown(deployment.model_scope, NOW + 60.0, "spent"))
    first = Counter(states[0].shard for states in _shortlists(make_order(pool), 600))
    assert first[0] == 0
    assert 0 < first[1] < min(first[2], first[3])


def test_small_shards_fill_a_list_together(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """With fewer than eight in a shard the list goes on with the next, and leaves none out."""
    [states] = _shortlists(make_order(make_pool(pools.many(8), ShardedStore())), 1)
    assert len({state.deployment.id for state in states}) == 8


def test_further_lists_have_each_shard_once(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """However long a list is, it needs no more round trips than there are shards."""
    pool = make_pool(pools.many(400), ShardedStore())
    order = make_order(pool)
    refused: dict[DeploymentState, Refusal] = {}
    for states in further(order, LeastLoaded(), lambda: NOW, refused):
        runs = [shard for shard, _ in groupby(state.shard for state in states)]
        assert len(runs) == len(set(runs))
        for state in states:
            refusal = refused[state] = Refusal(state.deployment, "rpm", NOW + 60.0, NOW + 60.0)
            pool.note_refusal(refusal, NOW)
    assert len(refused) == 400


def test_priority_goes_before_the_shard(pools: Pools, make_pool: MakePool, make_order: MakeOrder) -> None:
    """The lower number is offered first, whatever its shard."""
    low = pools.many(2, priority=0)
    order = make_order(make_pool([*pools.many(60, priority=1), *low], ShardedStore()))
    for states in _shortlists(order, 20):
        assert {state.deployment.id for state in states[:2]} == {deployment.id for deployment in low}


def test_deployments_leave_and_come_back_to_their_shard(
    pools: Pools, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Parked and woken deployments are each offered again, once."""
    deployments = pools.many(40)
    pool = make_pool(deployments, ShardedStore())
    for number, deployment in enumerate(deployments):
        pool.cool_down(Cooldown(deployment.model_scope, NOW + number, "spent"))
    order = make_order(pool)
    assert order.draw(LeastLoaded(), NOW - 1.0, FIRST_CANDIDATES) == []
    for group in order.groups:
        group.wake(NOW + 100.0)
        [(_, ring)] = group.ready
        states = ring.draw(100)
        assert {state.deployment.id for state in states} == {deployment.id for deployment in deployments}


async def test_a_router_asks_one_shard_at_a_time(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A send reserves in one shard while it has room, and all quotas are used up in the end."""
    store = ShardedStore(clock)
    async with make_router(pools.many(64, rpm=2), store=store) as router:
        responses = [await router.send("x") for _ in range(128)]
        assert all(response.success for response in responses)
        assert not (await router.send("x")).success
    in_one = [len(set(asked)) == 1 for asked in store.asked]
    assert sum(in_one[:64]) >= 60  # while there is enough in each

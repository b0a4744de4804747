"""What the memory store promises beyond the contract: bounded state for any number of deployments."""

from __future__ import annotations

import asyncio
import logging
import os
import tracemalloc
from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.stores import MemoryStore
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.store_model import Operation, Player, World, plays, worlds
else:
    from llm_router_tests_store_model import Player, plays, worlds


def _deployment(*quotas: Quota, key: str = "key") -> Deployment:
    return Deployment(Key(key, Secret("secret")), "model", quotas=quotas)


def _size(value: object, seen: set[int]) -> int:
    """Count the objects that a store holds, through its slots, containers and attributes."""
    if id(value) in seen or isinstance(value, (type, Deployment, Quota, str, int, float)) or callable(value):
        return 0
    seen.add(id(value))
    parts: list[object] = []
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, deque)):
        parts = list(value)
    else:
        names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [getattr(value, name) for name in [*names, *getattr(value, "__dict__", {})]]
    return 1 + len(parts) + sum(_size(part, seen) for part in parts)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds(), operations=plays(90))
async def test_the_memory_store_decides_as_the_model_does(world: World, operations: list[Operation]) -> None:
    """In longer and more plays than are practical for a store that does I/O."""
    clock = ManualClock(world.start)
    await Player(MemoryStore(clock=clock), clock, world).play([*operations, ("look", ())])


@pytest.mark.slow
async def test_state_does_not_grow_with_the_number_of_requests() -> None:
    """After 200,000 cycles of reserve and settle or release it is as large as after 20,000."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    deployments = [
        _deployment(
            Quota(Metric.RPM, 100_000),
            Quota(Metric.TPM, 10**9),
            Quota(Metric.RPD, 10**9, Refill.DAILY),
            key=f"key-{n}",
        )
        for n in range(4)
    ]
    sizes = []
    for cycle in range(200_001):
        reservation_id = f"reservation-{cycle}"
        await store.reserve(reservation_id, (deployments[cycle % 4],), Demand(1, 100), 5.0)
        match cycle % 4:
            case 0:
                await store.settle(reservation_id, Demand(1, 100))
            case 1:
                await store.settle(reservation_id, Demand(1, 70))
            case 2:
                await store.release(reservation_id)
            case 3:
                pass  # as if its process had died: it expires
        clock.shift(0.005)
        if cycle and cycle % 20_000 == 0:
            sizes.append(_size(store, set()))
    assert max(sizes) <= 1.05 * sizes[0]
    assert sizes[0] < 40_000


@pytest.mark.parametrize(("metrics", "most"), [(2, 600), (4, 1_000)])
async def test_learnt_limits_take_little_memory(metrics: int, most: int) -> None:
    """Two take 472 bytes as objects, four 784: what every decision reads is not packed in memory."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    scopes = [_deployment(key=f"key-{n}").model_scope for n in range(1_000)]
    for scope in scopes:
        await store.cool_down(Cooldown.learn(scope, LearntLimit(Metric.RPM, None)))
    tracemalloc.start()
    try:
        for metric in tuple(Metric)[:metrics]:
            for scope in scopes:
                clock.shift(0.001)
                rises = LearntLimit(metric, 1_000, LimitSource.INFERRED, raised=2_000, raise_after=3600.0)
                await store.cool_down(Cooldown.learn(scope, rises))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / len(scopes) < most


async def test_releases_at_a_small_limit_leave_nothing_behind() -> None:
    """Where every taking has an entry of its own, those given back completely are swept out."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    limited = _deployment(Quota(Metric.RPM, 15))
    for cycle in range(5_000):
        clock.shift(0.001)
        decision = await store.reserve(str(cycle), (limited,), Demand(), 60.0)
        assert decision.deployment is limited
        await store.release(str(cycle))
    assert _size(store, set()) < 4_000


@pytest.mark.slow
async def test_unexpected_use_at_a_small_limit_stays_bounded() -> None:
    """Reservations estimated at nothing that used something take a bounded amount of memory."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    limited = _deployment(Quota(Metric.TPM, 100))
    for cycle in range(5_000):
        clock.shift(0.001)
        await store.reserve(str(cycle), (limited,), Demand(1, 0), 60.0)
        await store.settle(str(cycle), Demand(1, 1))
    [snapshot] = await store.snapshot([limited])
    assert snapshot.quotas[0].used == 5_000
    assert _size(store, set()) < 4_000


@pytest.mark.slow
async def test_ten_thousand_deployments_keep_every_limit() -> None:
    """Each of 10,000 grants exactly its limit: no count is evicted to make room for another."""
    store = MemoryStore(clock=ManualClock())
    deployments = [_deployment(Quota(Metric.RPM, 5), key=f"key-{n}") for n in range(10_000)]
    granted = 0
    for attempt in range(8):
        for n, limited in enumerate(deployments):
            decision = await store.reserve(f"{n}-{attempt}", (limited,), Demand(), 60.0)
            granted += decision.deployment is not None
    assert granted == 50_000


async def test_a_reloaded_router_leaves_no_deployments_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """New deployment objects for the same keys share the old counts, and the old objects are dropped."""
    monkeypatch.setattr("llm_router.stores.memory._MAX_QUOTA_SETS", 100)
    store = MemoryStore(clock=ManualClock())
    for reload in range(50):
        deployments = [_deployment(Quota(Metric.RPM, 50), key=f"key-{n}") for n in range(10)]
        for n, limited in enumerate(deployments):
            decision = await store.reserve(f"{reload}-{n}", (limited,), Demand(), 60.0)
            assert decision.deployment is limited
    [snapshot] = await store.snapshot([_deployment(Quota(Metric.RPM, 50), key="key-0")])
    assert snapshot.quotas[0].used == 50
    assert len(store._quota_sets) <= 100


async def test_ended_cooldowns_are_forgotten() -> None:
    """A later cooldown sweeps out those that have ended."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    for n in range(1_000):
        await store.cool_down(Cooldown(_deployment(key=f"key-{n}").model_scope, clock.time() + 1.0, "busy"))
        clock.shift(2.0)
    assert len(store._cooldowns) == 1


async def test_the_memory_store_never_suspends() -> None:
    """Each call runs in one step of the event loop, so it is atomic and cannot be cancelled half-way."""
    store = MemoryStore(clock=ManualClock())
    limited = _deployment(Quota(Metric.RPM, 5))
    others_ran: list[str] = []
    asyncio.get_running_loop().call_soon(others_ran.append, "another task")
    await store.reserve("one", (limited,), Demand(), 60.0)
    await store.settle("one", Demand(2, 2))
    await store.release("one")
    await store.cool_down(Cooldown.lift(limited.key_scope))
    await store.snapshot([limited])
    await store.aclose()
    assert not others_ran


async def test_the_memory_store_can_be_used_from_one_event_loop_after_another() -> None:
    """It holds nothing of a loop: the state made in one is available in the next."""
    store = MemoryStore(clock=ManualClock())
    limited = _deployment(Quota(Metric.RPM, 1))

    def in_its_own_loop() -> bool:
        decision = asyncio.run(store.reserve(f"{id(object())}", (limited,), Demand(), 60.0))
        return decision.deployment is limited

    granted = [await asyncio.to_thread(in_its_own_loop) for _ in range(2)]
    assert granted == [True, False]


def test_a_forked_child_is_warned_once(clock: ManualClock, pools: Pools) -> None:
    """Two processes cannot use one memory store without a warning."""
    store, deployment = MemoryStore(clock=clock), pools.one(rpm=None)

    async def reserve(name: str) -> None:
        clock.shift(2)
        await store.reserve(name, [deployment], Demand(), 60)

    asyncio.run(reserve("parent"))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        handler = logging.StreamHandler(os.fdopen(write_end, "w"))
        logging.getLogger("llm_router").addHandler(handler)
        asyncio.run(reserve("child"))
        asyncio.run(reserve("child again"))
        handler.stream.close()
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    assert len(lines) == 1
    assert "forked process" in lines[0]


@pytest.mark.slow
async def test_many_abandoned_reservations_are_swept_within_a_minute(clock: ManualClock) -> None:
    """By the calls of others, one a second, each of which looks at a bounded part of them."""
    store = MemoryStore(clock=clock)
    limited = _deployment(Quota(Metric.RPD, 10**9, Refill.DAILY))
    for number in range(100_000):
        await store.reserve(f"dead {number}", [limited], Demand(), 5.0)
    clock.shift(5.0)
    for number in range(40):
        before = len(store._reservations)
        await store.reserve(f"alive {number}", [limited], Demand(), 600.0)
        assert before - len(store._reservations) <= 5_000
        clock.shift(1.0)
    assert len(store._reservations) == 40
    [snapshot] = await store.snapshot([limited])
    assert snapshot.quotas[0].used == 100_040

"""The dispatch gate: a few permits between reservation and network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from llm_router import Deployment, Reply, Request, Router
from llm_router.domain.clock import Timer
from llm_router.domain.quota import GUARD
from llm_router.engine.gate import PERMITS, DispatchGate
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


class Slow(FakeProvider):
    """A provider that takes long to dispatch a request."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.gate = asyncio.Event()
        self.preparing = self.most = 0

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        self.preparing += 1
        self.most = max(self.most, self.preparing)
        await self.gate.wait()
        self.preparing -= 1
        dispatched()
        return await super().generate(deployment, request, lambda: None)


async def test_only_a_few_are_between_reservation_and_network(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """Of a hundred concurrent sends a few prepare at a time; the others have not taken quota yet."""
    provider = Slow(clock)
    async with make_router([pools.one(rpm=200)], provider=provider) as router:
        await _warm_up(router, provider, clock)
        tasks = [asyncio.create_task(router.send("x")) for _ in range(100)]
        await clock.advance(GUARD / 2)
        assert provider.most == PERMITS
        used = (await router.get_all_key_statuses())[0]["rpm_usage"]
        assert used == f"{2 * PERMITS}/200"
        provider.gate.set()
        await clock.advance(0)
        assert all(task.result().success for task in tasks)
        assert provider.most == PERMITS


async def _warm_up(router: Router, provider: Slow, clock: ManualClock) -> None:
    """Send as many requests as it takes to issue all permits."""
    provider.gate.set()
    first = [asyncio.create_task(router.send("x")) for _ in range(PERMITS)]
    await clock.advance(0)
    assert all(task.result().success for task in first)
    provider.gate.clear()


async def test_the_first_goes_alone(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """While the first request of a process finds everything cold, no other has taken its quota."""
    provider = Slow(clock)
    async with make_router([pools.one(rpm=100)], provider=provider) as router:
        tasks = [asyncio.create_task(router.send("x")) for _ in range(20)]
        await clock.advance(GUARD / 2)
        assert provider.preparing == 1
        provider.gate.set()
        await clock.advance(0)
        assert all(task.result().success for task in tasks)


async def test_a_slow_path_delays_no_request_for_long(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A request that waits for a permit goes ahead after a moment, whatever those before it do."""
    provider = Slow(clock)
    async with make_router([pools.one(rpm=100)], provider=provider) as router:
        tasks = [asyncio.create_task(router.send("x")) for _ in range(100)]
        await clock.advance(GUARD - 0.01)
        assert provider.most == 1
        await clock.advance(GUARD)
        assert provider.most == 100
        provider.gate.set()
        await clock.advance(0)
        assert all(task.result().success for task in tasks)
        assert router._sender.selector._gate.busy == 0


class Late(ManualClock):
    """The clock of an event loop that does not keep up: every timer fires late."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return super().call_later(delay + 0.03, callback)


Crowd = tuple[Late, DispatchGate, list[asyncio.Task[None]]]


@pytest.fixture
async def late() -> AsyncIterator[Crowd]:
    """Return a gate on a clock whose timers are late, with its first permit taken and ten in line."""
    clock = Late()
    gate = DispatchGate(clock, GUARD)
    await gate.enter()
    tasks = [asyncio.create_task(gate.enter()) for _ in range(10)]
    await asyncio.sleep(0)
    yield clock, gate, tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert clock.pending == 0


async def test_a_busy_event_loop_is_not_given_more_to_do(late: Crowd) -> None:
    """As long as requests leave the gate, however slowly, none goes ahead of its turn."""
    clock, gate, tasks = late
    through = []
    for _ in range(7):
        await clock.advance(GUARD / 2)
        gate.leave()
        await asyncio.sleep(0)
        through.append(sum(task.done() for task in tasks))
    assert through == [2, 4, 6, 7, 8, 9, 10]


async def test_a_busy_event_loop_is_not_blocked_for_ever(late: Crowd) -> None:
    """If no request leaves the gate, they go ahead one at a time."""
    clock, _, tasks = late
    through = []
    for _ in range(4):
        await clock.advance(GUARD + 0.1)
        through.append(sum(task.done() for task in tasks))
    assert through == [1, 2, 3, 4]


async def test_a_refusal_and_a_failure_free_their_permits(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """A request returns its permit whatever becomes of it."""
    provider.script(RuntimeError("a bug"), times=3)
    async with make_router([pools.one(rpm=10)]) as router:
        results = await asyncio.gather(*(router.send("x") for _ in range(200)), return_exceptions=True)
        assert sum(isinstance(result, RuntimeError) for result in results) == 3
        assert router._sender.selector._gate.busy == 0


@pytest.mark.parametrize("granted", [False, True])
async def test_a_cancelled_waiter_passes_its_permit_on(clock: ManualClock, granted: bool) -> None:
    """A waiter cancelled in the queue, or just when its turn came, loses no permit."""
    gate = DispatchGate(clock, GUARD)
    await gate.enter()
    first, second = asyncio.create_task(gate.enter()), asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    if granted:
        gate.leave()
    first.cancel()
    await asyncio.sleep(0)
    if not granted:
        gate.leave()
    await second
    assert first.cancelled()
    gate.leave()
    assert gate.busy == 0
    assert clock.pending == 0

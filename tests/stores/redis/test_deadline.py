"""The store's timeout if the event loop itself is blocked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import ModuleType

import pytest

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.errors import StoreTimeoutError
from llm_router.stores.redis import RedisStore
from llm_router.stores.redis.deadline import GRACE, Deadline

pytestmark = pytest.mark.slow

TIMEOUT = 0.25
BLOCKED = 2.5 * TIMEOUT
ONE = Demand(1, 0)


@pytest.fixture
def a() -> Deployment:
    return Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=(Quota(Metric.RPM, 100_000),))


@pytest.fixture
def binary(servers: ModuleType) -> Path:
    binary: Path = next(iter(servers.find_servers().values()))
    return binary


async def _run_for(steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


# --- the context manager ------------------------------------------------------------------------------------


async def test_a_deadline_that_is_noticed_in_time_has_no_grace() -> None:
    """On an event loop that is not blocked the timeout is exact."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 0.05
    timeout = Deadline(deadline)
    with pytest.raises(TimeoutError):
        async with timeout:
            await asyncio.sleep(60)
    assert timeout.when == deadline


async def test_leaving_in_time_ends_the_timeout() -> None:
    """Nothing is raised, then or later."""
    async with Deadline(asyncio.get_running_loop().time() + 0.01):
        pass
    await asyncio.sleep(0.03)


async def test_answers_that_arrived_while_the_loop_was_blocked_are_accepted() -> None:
    """A deadline that is noticed late lets what is ready run first."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Deadline(began + 0.01) as deadline:
        arrived = loop.create_future()
        loop.call_later(0.02, arrived.set_result, "answer")
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - to block the event loop
        assert await arrived == "answer"
    assert deadline.when > began + 0.1 + GRACE


async def test_grace_is_given_once() -> None:
    """If the loop is blocked again and again, no caller waits for ever."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def stumble() -> None:
        async with Deadline(began + 0.01):
            for _ in range(1000):
                time.sleep(0.1)  # noqa: ASYNC251 - to block the event loop
                await asyncio.sleep(0.001)

    with pytest.raises(TimeoutError):
        await stumble()
    assert loop.time() - began < GRACE + 1.0


# --- the store ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 5, 8))])
@pytest.mark.parametrize("is_connected", [True, False], ids=["connected", "unconnected"])
async def test_a_blocked_event_loop_does_not_blame_the_server(
    servers: ModuleType, a: Deployment, steps: int, is_connected: bool
) -> None:
    """Whether the call was queued, on its way or answered meanwhile, it is granted."""
    server = servers.shared_server(next(iter(servers.find_servers())))
    store = RedisStore(server.url, namespace=f"blocked-{steps}-{is_connected}", timeout=TIMEOUT)
    if is_connected:
        await store.reserve("first", [a], ONE, 60)
    calls = [asyncio.create_task(store.reserve(f"r{n}", [a], ONE, 60)) for n in range(600)]
    await _run_for(steps)
    time.sleep(BLOCKED)  # noqa: ASYNC251 - to block the event loop
    decisions = await asyncio.gather(*calls)
    assert all(decision.deployment is a for decision in decisions)
    [snapshot] = await store.snapshot([a])
    assert snapshot.quotas[0].used == 600 + is_connected
    await store.aclose()


@pytest.mark.slow
async def test_a_frozen_server_times_out_even_if_the_loop_was_blocked(
    servers: ModuleType, binary: Path, a: Deployment
) -> None:
    """Only the grace is added, and what timed out takes no effect later."""
    with servers.running(binary) as server:
        store = RedisStore(server.url, timeout=TIMEOUT)
        await store.reserve("first", [a], ONE, 60)
        loop = asyncio.get_running_loop()
        began = loop.time()
        server.freeze()
        calls = [asyncio.create_task(store.reserve(f"r{n}", [a], ONE, 60)) for n in range(600)]
        await _run_for(3)
        time.sleep(BLOCKED)  # noqa: ASYNC251 - to block the event loop
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreTimeoutError}
        assert loop.time() - began < BLOCKED + GRACE + 1.0
        server.thaw()
        [snapshot] = await store.snapshot([a])
        assert snapshot.quotas[0].used == 1
        await store.aclose()

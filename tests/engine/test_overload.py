"""An outage of a model: when it is one, whose turn it is to look whether it is over, and how it ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import ProviderError, Reply, Router
from llm_router.engine.overload import Overload
from llm_router.stores import MemoryStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

NOW = 1_000.0
BUSY = ProviderError("The model is overloaded.", kind="server", code=503)


def _doubling(taken: int) -> float:
    return 0.5 * 2.0 ** (taken - 1)


def test_three_deployments_without_an_answer_between_them_are_an_outage(pools: Pools) -> None:
    """One that fails again and again is not, and an answer begins the count anew."""
    overload, [first, second, third] = Overload(), pools.many(3)
    assert not any(overload.record(each) for each in (first, first, first, second))
    overload.end()
    assert not any(overload.record(each) for each in (third, second))
    assert overload.record(first)


def test_turns_follow_each_other_ever_more_slowly(pools: Pools) -> None:
    """Those that failed before get one as well; from the sixth on they are 14 s apart."""
    overload, deployments = Overload(), pools.many(6)
    for each in deployments[:3]:
        overload.record(each)
    taken = overload.take_turns(deployments[2], NOW, (), 6, _doubling)
    assert set(taken) == set(deployments[:3])
    assert sorted(taken.values()) == [NOW + 0.5, NOW + 1.5, NOW + 3.5]
    assert taken[deployments[2]] == NOW + 3.5
    turns = []
    for each in (*deployments[3:], *deployments[:3]):
        overload.record(each)
        turns.append(overload.take_turns(each, NOW + 1, (), 6, _doubling)[each] - NOW)
    assert turns == [7.5, 15.5, 29.5, 43.5, 57.5, 71.5]


def test_turns_come_after_those_of_other_processes(pools: Pools) -> None:
    """A cooldown that ends later than all turns together cannot be a turn."""
    overload, deployments = Overload(), pools.many(3)
    for each in deployments:
        overload.record(each)
    taken = overload.take_turns(deployments[0], NOW, (NOW + 40.0, NOW + 900.0), 3, _doubling)
    assert min(taken.values()) == NOW + 40.5


def test_the_end_of_an_outage_names_those_that_wait_for_their_turn(pools: Pools) -> None:
    """Once; and the next outage begins with short intervals again."""
    overload, deployments = Overload(), pools.many(3)
    for _ in range(2):
        for each in deployments:
            overload.record(each)
        taken = overload.take_turns(deployments[0], NOW, (), 3, _doubling)
        assert min(taken.values()) == NOW + 0.5
        assert set(overload.end()) == set(deployments)
        assert overload.end() == []
        assert not overload.failed


async def test_an_outage_is_left_alone_for_as_long_as_the_server_asks(
    pools: Pools, clock: ManualClock
) -> None:
    """No deployment of the model is tried before, whichever of them was told."""
    provider = FakeProvider(clock=clock)
    busy = ProviderError("The model is overloaded.", kind="server", code=503, retry_delay=30.0)
    provider.script(BUSY, BUSY, busy)
    async with Router(
        pools.many(3, rpm=1_000), provider=provider, clock=clock, max_retries=2, base_backoff=0.0
    ) as router:
        assert not (await router.send("x")).success
        assert len({call.key_id for call in provider.calls}) == 3
        clock.shift(29.0)
        assert not (await router.send("x")).success
        assert len(provider.calls) == 3
        clock.shift(2.0)
        assert (await router.send("x")).success


class _Model(FakeProvider):
    """A model that is out of service for a while."""

    is_out = True

    async def generate(self, *args: Any) -> Reply:
        if self.is_out:
            self.script(BUSY)
        return await super().generate(*args)


@pytest.mark.parametrize("routers", [1, 2])
async def test_the_first_answer_ends_it_for_all(pools: Pools, clock: ManualClock, routers: int) -> None:
    """Meanwhile few requests are sent; then the others are tried at once, and all serve again."""
    provider, store, deployments = _Model(clock=clock), MemoryStore(clock=clock), pools.many(6, rpm=1_000)
    async with AsyncExitStack() as stack:
        ours = [Router(deployments, provider=provider, clock=clock, store=store) for _ in range(routers)]
        for router in ours:
            await stack.enter_async_context(router)
        sends = []
        for _ in range(150):
            sends += [asyncio.create_task(router.send("x")) for router in ours]
            await clock.advance(1)
        assert len(provider.calls) <= 25
        provider.is_out = False
        for _ in range(15):
            sends += [asyncio.create_task(router.send("x")) for router in ours]
            await clock.advance(1)
        responses = await asyncio.gather(*sends)
        assert not any(response.success for response in responses[: 150 * routers - 8])
        assert responses[-1].success
        provider.calls.clear()
        for _ in range(20):
            for router in ours:
                assert (await router.send("x")).success
        assert {call.key_id for call in provider.calls} == {each.key.key_id for each in deployments}


async def test_a_reload_in_an_outage(pools: Pools, clock: ManualClock) -> None:
    """A deployment that waits for its turn may go away; the others end the outage."""
    provider, deployments = _Model(clock=clock), pools.many(4, rpm=1_000)
    async with Router(deployments, provider=provider, clock=clock) as router:
        sends = []
        for _ in range(20):
            sends.append(asyncio.create_task(router.send("x")))
            await clock.advance(1)
        await router.reload(deployments[2:])
        for _ in range(20):
            sends.append(asyncio.create_task(router.send("x")))
            await clock.advance(1)
        provider.is_out = False
        for _ in range(20):
            sends.append(asyncio.create_task(router.send("x")))
            await clock.advance(1)
        assert (await asyncio.gather(*sends))[-1].success
        provider.calls.clear()
        for _ in range(10):
            assert (await router.send("x")).success
        assert {call.key_id for call in provider.calls} == {each.key.key_id for each in deployments[2:]}

"""How long the head of a waiting line sleeps: briefly when alone, longer among many."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import MemoryStore, ProviderError, Router
from llm_router.engine.backoff import LONGEST_SLEEP, SHORTEST_SLEEP, ProbeBackoff
from llm_router.stores import Decision
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


def test_the_first_sleep_is_until_there_is_room() -> None:
    """The first sleep ends when there is room, or is as short as possible if there is room now."""
    assert ProbeBackoff().until(100.0, 160.3) == 160.3
    assert 100.0 + SHORTEST_SLEEP / 2 <= ProbeBackoff().until(100.0, 100.0) <= 100.0 + 1.5 * SHORTEST_SLEEP


def _after_failures(count: int) -> ProbeBackoff:
    backoff = ProbeBackoff()
    for _ in range(count):
        backoff.failed()
    return backoff


def test_it_grows_with_failures_and_shrinks_with_successes() -> None:
    """Within its bounds, a failure doubles the sleep, and a success adds one try per second."""
    backoff = _after_failures(20)
    assert all(LONGEST_SLEEP / 2 <= backoff.until(0.0, 0.0) <= 1.5 * LONGEST_SLEEP for _ in range(20))
    for _ in range(3):
        backoff.succeeded()
    assert LONGEST_SLEEP / 8 <= backoff.until(0.0, 0.0) <= 1.5 * LONGEST_SLEEP / 4
    for _ in range(200):
        backoff.succeeded()
    assert SHORTEST_SLEEP / 2 <= backoff.until(0.0, 0.0) <= 1.5 * SHORTEST_SLEEP


@pytest.mark.parametrize("wait", [0.05, 0.5, 5.0])
def test_a_deadline_does_not_pass_unused(wait: float) -> None:
    """However long the sleep has grown, there is a try right before the deadline."""
    backoff, now, tries = _after_failures(20), 0.0, 0
    while (until := backoff.until(now, 0.0, wait)) < wait:
        now, tries = until, tries + 1
    assert wait - now <= 2 * SHORTEST_SLEEP
    assert 1 <= tries <= 30
    assert math.isfinite(backoff.until(0.0, 0.0, math.inf))


class _Counting(MemoryStore):
    reserves = 0

    async def reserve(self, *args: Any) -> Decision:
        self.reserves += 1
        return await super().reserve(*args)


@pytest.mark.slow
async def test_many_routers_in_line_do_not_all_ask_for_the_same_quota(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """Quota comes back ten times a second for one of twenty routers: all is used, and few ask in vain."""
    store, keys = _Counting(clock=clock), pools.many(40, rpm=15)
    first = make_router(keys, store=store)
    for _ in range(600):
        assert (await first.send("x")).success
        clock.shift(0.1)
    store.reserves = 0
    routers = [make_router(keys, store=store) for _ in range(20)]
    sends = [asyncio.create_task(router.send("x", max_wait=600)) for router in routers for _ in range(15)]
    await clock.advance(28)
    granted = sum(task.done() for task in sends)
    assert 265 <= granted <= 285
    assert store.reserves < 11 * granted
    for task in sends:
        task.cancel()
    await asyncio.gather(*sends, return_exceptions=True)


async def test_quota_that_comes_back_early_makes_no_request_late(pools: Pools, clock: ManualClock) -> None:
    """A head that early quota woke in vain still has its turn at the time it was given."""
    provider = FakeProvider(clock=clock)
    async with Router([pools.one(rpm=None, tpm=1_000)], provider=provider, clock=clock) as router:
        await router.send("word " * 600)
        waiting = asyncio.create_task(router.send("word " * 900, max_wait=100))
        await clock.advance(59)
        for _ in range(20):
            provider.script(ProviderError("not sent", kind="request", charged=False))
            assert (await router.send("word " * 50)).attempts == 1
            await clock.advance(0.05)
        await clock.advance(5)
        assert waiting.result().success
        assert waiting.result().waited == pytest.approx(60.3, abs=0.03)

"""How long the head of a line sleeps: alone as short as can be, among many no more often than it pays."""

from __future__ import annotations

import asyncio
import math

import pytest

from llm_router import MemoryStore
from llm_router.engine.doze import LONGEST, SHORTEST, Doze


def test_the_first_sleep_is_until_there_is_room():
    """Or as short as can be, where that is now."""
    assert Doze().until(100.0, 160.3) == 160.3
    assert 100.0 + SHORTEST / 2 <= Doze().until(100.0, 100.0) <= 100.0 + 1.5 * SHORTEST


def test_it_grows_with_failures_and_shrinks_with_successes():
    """Between its bounds."""
    doze = Doze()
    slept = [doze.until(0.0, 0.0) for _ in range(20)]
    assert all(LONGEST / 2 <= seconds <= 1.5 * LONGEST for seconds in slept[7:])
    for _ in range(3):
        doze.succeeded()
    assert LONGEST / 16 <= doze.until(0.0, 0.0) <= 1.5 * LONGEST / 8
    for _ in range(20):
        doze.succeeded()
    assert doze.until(0.0, 0.0) <= 1.5 * SHORTEST


@pytest.mark.parametrize("patience", [0.05, 0.5, 5.0])
def test_a_deadline_does_not_pass_unused(patience):
    """However long it has grown, there is a try right before the end."""
    doze, now = Doze(), 0.0
    for _ in range(10):
        doze.until(0.0, 0.0)
    tries = 0
    while (until := doze.until(now, 0.0, patience)) < patience:
        now, tries = until, tries + 1
    assert patience - now <= 2 * SHORTEST
    assert 1 <= tries <= 20
    assert math.isfinite(doze.until(0.0, 0.0, math.inf))


class _Counting(MemoryStore):
    reserves = 0

    async def reserve(self, *args):
        self.reserves += 1
        return await super().reserve(*args)


async def test_many_routers_in_line_ask_a_store_hardly_more_often_than_one(make_router, pools, clock):
    """Of 40 that wait for the same quota one gets it; all of it is used, and in time."""
    store, keys = _Counting(clock=clock), pools.many(4, rpm=15)
    routers = [make_router(keys, store=store) for _ in range(40)]
    sends = [asyncio.create_task(router.send("x", max_wait=3_600)) for router in routers for _ in range(6)]
    await clock.advance(1)
    assert sum(task.done() for task in sends) == 60
    for minute in range(1, 4):
        await clock.advance(60.3)
        assert sum(task.done() for task in sends) == 60 + 60 * minute
    assert store.reserves < 10 * len(sends)

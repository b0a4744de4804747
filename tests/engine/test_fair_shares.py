"""Routers that wait for the same quota get equal shares of it, and do not all ask for each bit of it."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import Clock, Demand, Deployment, MemoryStore, RateLimitStore, Router, open_store
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from tests.conftest import Pools

_METHODS = (
    *("reserve", "settle", "release", "charge", "cool_down", "snapshot"),
    *("aclose", "announce", "standing"),
)
WAITERS = 16


class _Jumping(selectors.DefaultSelector):
    """A selector that moves the time on instead of waiting, unless a thread is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.threads or timeout is None:
            return super().select(None if timeout is None or timeout > 0 else 0)
        if timeout > 0:
            self.now += timeout + 1e-6  # timers fire late, never early
        return []


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that jumps from one timer to the next."""

    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now

    def in_thread(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return ``call``, but time stands still until it returns."""

        async def waiting(*args: Any) -> Any:
            self.jumping.threads += 1
            try:
                return await call(*args)
            finally:
                self.jumping.threads -= 1

        return waiting


class _LoopClock(Clock):
    """The time of a loop."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop

    def time(self) -> float:
        return 1_800_014_400.0 + self._loop.time()

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, callback)


@attrs.define
class _Race:
    """Routers that share quota, and what each gets.

    Attributes:
        deployments: The pool of each router.
        per_minute: The requests that all of it allows.
        spread: Whether quota comes back bit by bit, or a whole minute's at once.
        enough: How many grants of each router are enough: the fewer, the more chance there is in them.
        grants: How many requests of each router were answered.
        asked: How often the store was asked.
    """

    deployments: list[Deployment]
    per_minute: int
    spread: bool
    enough: int
    grants: list[int] = attrs.field(factory=list)
    asked: int = 0

    def run(self, make_stores: Callable[[Clock], list[RateLimitStore]]) -> None:
        """Let a router on each store have many callers, until there were enough grants for each."""
        random.seed(1)
        with asyncio.Runner(loop_factory=_Loop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, _Loop)
            runner.run(self._run(loop, make_stores))

    async def _run(self, loop: _Loop, make_stores: Callable[[Clock], list[RateLimitStore]]) -> None:
        clock = _LoopClock(loop)
        stores = make_stores(clock)
        for store in dict.fromkeys(stores):
            if not isinstance(store, MemoryStore):
                for name in _METHODS:
                    setattr(store, name, loop.in_thread(getattr(store, name)))
            self._count_reserves(store)
        if self.spread:
            for number in range(self.per_minute):
                await stores[0].reserve(f"before-{number}", self.deployments, Demand(1, 1), 1.0)
                await asyncio.sleep(60 / self.per_minute)
        self.asked, self.grants = 0, [0] * len(stores)
        routers = [
            Router(self.deployments, store=store, provider=FakeProvider(), clock=clock) for store in stores
        ]
        callers = [
            asyncio.ensure_future(self._call(router, number))
            for number, router in enumerate(routers)
            for _ in range(WAITERS)
        ]
        await asyncio.sleep((self.enough + 30) * len(stores) / self.per_minute * 60.3)
        await _end(callers)
        for router in routers:
            await router.aclose()
        for store in dict.fromkeys(stores):
            await store.aclose()

    async def _call(self, router: Router, number: int) -> None:
        while True:
            response = await router.send("x", max_wait=600)
            self.grants[number] += response.success

    def _count_reserves(self, store: RateLimitStore) -> None:
        reserve = store.reserve

        async def counting(*args: Any) -> Any:
            self.asked += 1
            await asyncio.sleep(random.uniform(0.0005, 0.002))  # the way there
            return await reserve(*args)

        store.reserve = counting  # type: ignore[method-assign, assignment]

    def check(self, calls: float) -> None:
        """See that shares are equal, and that the store was asked at most so often for each grant."""
        mean = sum(self.grants) / len(self.grants)
        assert mean >= self.enough
        assert min(self.grants) >= 0.9 * mean
        assert max(self.grants) <= 1.1 * mean
        assert self.asked <= calls * sum(self.grants)


async def _end(tasks: Iterable[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("routers", "spread", "enough", "calls"),
    [(2, True, 500, 4), (2, False, 300, 2), (8, True, 1_000, 7), (8, False, 300, 4), (32, False, 300, 8)],
)
def test_routers_on_one_memory_store_get_equal_shares(
    pools: Pools, routers: int, spread: bool, enough: int, calls: float
) -> None:
    """Whether quota comes back bit by bit or all at once, each router gets as much, for few calls."""
    race = _Race(pools.many(5, rpm=120), 600, spread, enough)
    race.run(lambda clock: [MemoryStore(clock=clock)] * routers)
    race.check(calls)


@pytest.mark.slow
def test_routers_on_one_sqlite_file_get_equal_shares(pools: Pools, tmp_path: Path) -> None:
    """Two handles on one file are two processes to the store."""
    race = _Race(pools.many(5, rpm=120), 600, spread=True, enough=500)
    url = f"sqlite:///{tmp_path / 'state.sqlite3'}"
    race.run(lambda clock: [open_store(url, clock=clock) for _ in range(2)])
    race.check(4)

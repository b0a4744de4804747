"""Cancellation at any point leaves no reservation behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal

import anyio
import pytest

from llm_router import (
    Cooldown,
    DeadlineExceededError,
    Demand,
    Deployment,
    MemoryStore,
    ProviderError,
    Reply,
    Request,
    Router,
    RouterClosedError,
)
from llm_router.engine.timing import finish
from llm_router.providers.gemini import GeminiProvider
from llm_router.testing import FakeProvider, GeminiEmulator, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


class SlowStore(MemoryStore):
    """A store that suspends before and after it acts, like a remote one; no action is cut short."""

    async def _slowly(self, work: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)

        async def act() -> Any:
            await asyncio.sleep(0)
            return await work(*args)

        task = asyncio.ensure_future(act())
        result = await asyncio.shield(task)
        await asyncio.sleep(0)
        return result

    async def reserve(self, *args: Any) -> Any:
        return await self._slowly(super().reserve, *args)

    async def settle(self, *args: Any) -> Any:
        return await self._slowly(super().settle, *args)

    async def cool_down(self, *args: Any) -> Any:
        return await self._slowly(super().cool_down, *args)


class SlowProvider(FakeProvider):
    """A provider that suspends a few times.

    Attributes:
        asked: How often it was asked to send.
    """

    asked = 0

    async def generate(self, deployment: Deployment, request: Request, launched: Callable[[], None]) -> Reply:
        self.asked += 1
        for _ in range(3):
            await asyncio.sleep(0)
        return await super().generate(deployment, request, launched)


async def _cancel_after(steps: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Run ``work`` for ``steps`` steps of the loop, cancel it, and return whether it was cut short."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("store_type", [MemoryStore, SlowStore])
async def test_cancelling_at_every_await_leaves_nothing(pools: Pools, store_type: type[MemoryStore]) -> None:
    """A send cancelled after 0, 1, 2, … steps leaves no reservation, and is really cancelled."""
    cut = 0
    for steps in range(40):
        store = store_type()
        router = Router([pools.one(tpm=1_000)], store=store, provider=SlowProvider())
        cut += await _cancel_after(steps, router.send("hello"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert "0 reservations" in repr(store), f"cancelled after {steps} steps"
    assert 3 < cut < 40  # some were cut short at each stage, the last ones ran through


@pytest.mark.parametrize("store_type", [MemoryStore, SlowStore])
async def test_a_send_cancelled_before_it_left_uses_nothing(
    pools: Pools, store_type: type[MemoryStore]
) -> None:
    """Exactly what was dispatched counts, if the provider reports that; else all of which it was asked."""
    for reports, steps in itertools.product((True, False), range(30)):
        store, provider = store_type(), SlowProvider()
        provider.reports_dispatch = reports
        deployment = pools.one()
        router = Router([deployment], store=store, provider=provider)
        await _cancel_after(steps, router.send("hello"))
        for _ in range(20):
            await asyncio.sleep(0)
        used = (await store.snapshot([deployment]))[0].quotas[0].used
        assert used == (len(provider.calls) if reports else provider.asked)


class OwnWay(FakeProvider):
    """A subclass that sends in a way of its own, and does not report it."""

    async def generate(self, deployment: Deployment, request: Request, launched: Callable[[], None]) -> Reply:
        await asyncio.Event().wait()
        return Reply("")


class OwnPromise(OwnWay):
    """One that says that it does: what it never reported was never sent."""

    reports_dispatch = True


@pytest.mark.parametrize(("provider", "used"), [(OwnWay(), 1), (OwnPromise(), 0)])
async def test_a_subclass_does_not_inherit_the_promise_to_report(
    pools: Pools, provider: FakeProvider, used: int
) -> None:
    """What a provider of one's own was asked to send counts, unless that says that it reports dispatches."""
    async with Router([pools.one()], provider=provider) as router:
        assert await _cancel_after(10, router.send("hello"))
        [snapshot] = await router.keys.snapshots()
        assert snapshot.quotas[0].used == used


class Slowly(SlowStore):
    """A store that is slow in all but its decisions, which say how often one was asked for."""

    asked = 0

    async def reserve(self, *args: Any) -> Any:
        self.asked += 1
        return await MemoryStore.reserve(self, *args)


@pytest.mark.parametrize("answer", ["fine", ProviderError("overloaded", kind="server", code=503)])
async def test_a_probe_that_is_cancelled_keeps_nobody_waiting(
    pools: Pools, clock: ManualClock, answer: str | ProviderError
) -> None:
    """At whichever await: in its call, or while what came of it is settled and shared."""
    cut = 0
    for steps in range(40):
        store, provider, deployment = Slowly(clock=clock), SlowProvider([answer]), pools.one()
        router = Router([deployment], store=store, provider=provider, clock=clock, max_retries=0)
        until = clock.time() + 1.0
        await store.cool_down(Cooldown(deployment.model_scope, until, "x", half_open=True, strikes=1))
        clock.shift(1.0)
        cut += await _cancel_after(steps, router.send("hello"))
        for _ in range(30):
            await asyncio.sleep(0)
        [snapshot] = await store.snapshot([deployment])
        # A probe that failed has a short cooldown of its own.
        left = 0.0 if snapshot.cooldown is None else snapshot.cooldown.until - clock.time()
        assert left < 2.0, f"cancelled after {steps} steps"
    assert 10 < cut < 40


@pytest.mark.parametrize("reloaded", [False, True])
async def test_a_probe_that_is_not_sent_any_more_is_passed_on(
    pools: Pools, clock: ManualClock, *, reloaded: bool
) -> None:
    """Where the router is closed, or loses the deployment, between the grant and the request."""
    deployment, other, granted, go_on = pools.one(), pools.one(), asyncio.Event(), asyncio.Event()

    class Hesitant(MemoryStore):
        async def reserve(self, *args: Any) -> Any:
            decision = await super().reserve(*args)
            if decision.probes:
                granted.set()
                await go_on.wait()
            return decision

    store, until = Hesitant(clock=clock), clock.time() + 1.0
    router = Router([deployment], store=store, provider=FakeProvider(), clock=clock)
    await store.cool_down(Cooldown(deployment.model_scope, until, "x", half_open=True, strikes=1))
    clock.shift(1.0)
    sending = asyncio.create_task(router.send("hello"))
    await granted.wait()
    change = asyncio.create_task(router.reload([other]) if reloaded else router.aclose())
    await asyncio.sleep(0.01)
    go_on.set()
    if reloaded:
        assert (await sending).key_id == other.key.key_id
    else:
        with pytest.raises(RouterClosedError):
            await sending
    await change
    go_on.clear()
    decision = await MemoryStore.reserve(store, "next", [deployment], Demand(1, 1), 60.0)
    assert decision.probes
    await router.aclose()


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_runs_out_of_time_before_it_left_uses_nothing(
    pools: Pools, clock: ManualClock, *, streamed: bool
) -> None:
    """A connection that does not come about must not cost quota."""
    provider, deployment = FakeProvider(clock=clock), pools.one()
    provider.dispatch = asyncio.Event()
    async with Router([deployment], provider=provider, clock=clock) as router:

        async def ask() -> None:
            if streamed:
                async with router.stream("hello", timeout=5) as stream:
                    await anext(aiter(stream))
            else:
                (await router.send("hello", timeout=5)).raise_for_error()

        task = asyncio.create_task(ask())
        await clock.advance(5.0)
        with pytest.raises(DeadlineExceededError):
            await task
        [snapshot] = await router.keys.snapshots()
        assert snapshot.quotas[0].used == 0


@pytest.mark.parametrize("backend", ["aiohttp", "httpx"])
@pytest.mark.slow
async def test_what_is_counted_of_cancelled_requests_is_what_arrived(
    pools: Pools, backend: Literal["aiohttp", "httpx"]
) -> None:
    """Over HTTP, wherever a send is cut short: in its request, its connection or its answer."""
    async with GeminiEmulator() as emulator:
        provider = GeminiProvider(base_url=emulator.url, http_backend=backend)
        async with Router([pools.one(rpm=1_000)], provider=provider) as router:
            for steps in range(0, 80, 4):
                await _cancel_after(steps, router.send("hello"))
                await asyncio.gather(*(_cancel_after(steps, router.send("hello")) for _ in range(3)))
            async with asyncio.timeout(5):
                [snapshot] = await router.keys.snapshots()
                while emulator.requests < snapshot.quotas[0].used:  # noqa: ASYNC110 - it happens in a socket
                    await asyncio.sleep(0.01)
            assert emulator.requests == snapshot.quotas[0].used
        await provider.aclose()


async def test_an_anyio_scope_cancels_a_send(pools: Pools) -> None:
    """Level cancellation leaves nothing behind either."""
    for steps in range(12):
        store = SlowStore()
        router = Router([pools.one()], store=store, provider=SlowProvider())
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(router.send, "hello")
                for _ in range(steps):
                    await asyncio.sleep(0)
                scope.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert "0 reservations" in repr(store)


async def test_finish_runs_to_the_end_and_then_delivers_the_cancellation() -> None:
    """Shielded work runs to its end; its caller is cancelled afterwards."""
    done = []

    async def work() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        done.append(True)

    assert await _cancel_after(2, finish(work()))
    assert done == [True]


async def test_finish_returns_and_raises_what_the_work_does() -> None:
    """Without a cancellation ``finish`` is a plain await."""

    async def answer() -> int:
        return 42

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    assert await finish(answer()) == 42
    with pytest.raises(KeyError):
        await finish(fail())

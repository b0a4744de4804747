"""Cancellation at any point leaves no reservation behind."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from llm_router import MemoryStore, Router
from llm_router.engine.timing import finish
from llm_router.testing import FakeProvider


class SlowStore(MemoryStore):
    """A store that suspends before and after it acts, like a remote one; no action is cut short."""

    async def _slowly(self, work, *args):
        await asyncio.sleep(0)

        async def act():
            await asyncio.sleep(0)
            return await work(*args)

        task = asyncio.ensure_future(act())
        result = await asyncio.shield(task)
        await asyncio.sleep(0)
        return result

    async def reserve(self, *args):
        return await self._slowly(super().reserve, *args)

    async def settle(self, *args):
        return await self._slowly(super().settle, *args)

    async def cool_down(self, *args):
        return await self._slowly(super().cool_down, *args)


class SlowProvider(FakeProvider):
    """A provider that suspends a few times."""

    async def generate(self, deployment, request, launched):
        for _ in range(3):
            await asyncio.sleep(0)
        return await super().generate(deployment, request, launched)


async def _cancel_after(steps: int, work) -> bool:
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
async def test_cancelling_at_every_await_leaves_nothing(pools, store_type):
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
async def test_a_send_cancelled_before_it_was_sent_uses_nothing(pools, store_type):
    """If the provider was not called yet, all quota is returned; after that it counts as used."""
    for steps in range(30):
        store, provider = store_type(), SlowProvider()
        deployment = pools.one()
        router = Router([deployment], store=store, provider=provider)
        await _cancel_after(steps, router.send("hello"))
        for _ in range(20):
            await asyncio.sleep(0)
        used = (await store.snapshot([deployment]))[0].quotas[0].used
        assert used <= 1
        assert used >= len(provider.calls)


async def test_an_anyio_scope_cancels_a_send(pools):
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


async def test_finish_runs_to_the_end_and_then_delivers_the_cancellation():
    """Shielded work runs to its end; its caller is cancelled afterwards."""
    done = []

    async def work():
        for _ in range(5):
            await asyncio.sleep(0)
        done.append(True)

    assert await _cancel_after(2, finish(work()))
    assert done == [True]


async def test_finish_returns_and_raises_what_the_work_does():
    """Without a cancellation ``finish`` is a plain await."""

    async def answer():
        return 42

    async def fail():
        await asyncio.sleep(0)
        raise KeyError("x")

    assert await finish(answer()) == 42
    with pytest.raises(KeyError):
        await finish(fail())

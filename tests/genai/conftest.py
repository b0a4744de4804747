"""A drop-in client, and the emulator that its router sends to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import GeminiEmulator, QuotaSpec
from llm_router.engine.relaying import Relay
from llm_router.genai import Client, passage

KEYS = {"AIzaOfAlpha": "alpha", "AIzaOfBeta": "beta"}
MODELS = {"flash": "medium", "lite": "light", "text-embedding-9": "medium"}


@pytest.fixture
def emulator() -> Iterator[GeminiEmulator]:
    """Provide an emulator that both projects may send ten requests a minute of each model to."""
    emulator = GeminiEmulator(keys=KEYS, models=MODELS, default_quota=QuotaSpec(rpm=10))
    with emulator.run_in_thread():
        yield emulator


@pytest.fixture
def make_router(emulator: GeminiEmulator) -> Callable[..., Router]:
    """Make a router that knows what the emulator allows."""
    pool = [
        Deployment(Key(project, Secret(secret)), model, workload, quotas=(Quota(Metric.RPM, 10),))
        for secret, project in KEYS.items()
        for model, workload in MODELS.items()
    ]
    return partial(Router, pool, base_url=emulator.url, base_backoff=0.001)


@pytest.fixture
def client(make_router: Callable[..., Router]) -> Iterator[Client]:
    """Provide a client that waits for no quota, and see that nothing is under way in the end."""
    client = Client(router=make_router, max_wait=0)
    yield client
    home, give_up = client._bridge._home, time.monotonic() + 5
    while home is not None and home.under_way:  # in another thread, nothing else says that it has ended
        assert time.monotonic() < give_up
        time.sleep(0.001)
    client.close()


@pytest.fixture
def until_idle() -> Callable[[Client], Coroutine[Any, Any, None]]:
    """Wait until nothing of a client is under way, as it is soon after a stream was left."""

    async def wait(client: Client) -> None:
        home = client._bridge._home
        assert home is not None
        async with asyncio.timeout(5):
            while home.under_way:  # noqa: ASYNC110 - what is waited for happens in another thread
                await asyncio.sleep(0.001)

    return wait


async def used(client: Client, model: str = "flash") -> int:
    """Return how many requests of a model are counted in all."""
    bridge = client._bridge
    statuses = asyncio.run_coroutine_threadsafe(bridge.router.get_all_key_statuses(), bridge.home().loop)
    counts = [each["rpm_usage"] for each in await asyncio.wrap_future(statuses) if each["model"] == model]
    return sum(int(each.partition("/")[0]) for each in counts)


@pytest.fixture
def count_used() -> Callable[..., Coroutine[Any, Any, int]]:
    """Count what the quotas of a client's router say."""
    return used


async def in_slices(answer: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield an answer in pieces of twenty bytes."""
    while piece := await anext(answer, b""):
        for at in range(0, len(piece), 20):
            yield piece[at : at + 20]


@pytest.fixture
def sliced(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Provide a client that reads only ten bytes ahead of its callers, of answers in many pieces."""
    monkeypatch.setattr(passage, "_AHEAD", 10)
    monkeypatch.setattr(Relay, "__aiter__", in_slices)
    return client

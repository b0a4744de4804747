"""The record stores on which every test of the contract runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import fakeredis
import pytest

from llm_router.records import Bounds, MemoryRecords, RecordStore
from llm_router.records.redis import RedisRecords
from llm_router.records.sqlite import SQLiteRecords
from llm_router.testing import ManualClock

KINDS: list[Any] = ["memory", "sqlite", "fakeredis", "server"]
KINDS += [pytest.param(name, marks=pytest.mark.slow) for name in ("other server", "cluster")]

Opener = Callable[..., RecordStore]


@pytest.fixture(params=KINDS)
async def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, servers_module: ModuleType
) -> AsyncIterator[Opener]:
    """Open stores of each kind in turn; all that one test opens share their records."""
    kind: str = request.param
    memory: list[MemoryRecords] = []
    async with AsyncExitStack() as stack:
        server = fakeredis.FakeServer() if kind == "fakeredis" else None
        url = ""
        if kind in {"server", "other server"}:
            names = list(servers_module.find_servers())
            shared = servers_module.shared_server(names[0 if kind == "server" else -1])
            url = shared.url
            with shared.client() as client:
                client.flushall()
        elif kind == "cluster":
            cluster = servers_module.shared_cluster()
            url = cluster.url
            cluster.flush()

        def make(bounds: Mapping[str, Bounds] | None) -> RecordStore:
            if kind == "memory":
                memory.extend([] if memory else [MemoryRecords(bounds=bounds, clock=clock)])
                return memory[0]
            if kind == "sqlite":
                return SQLiteRecords(tmp_path / "new" / "records.db", bounds=bounds, clock=clock)
            target = url if server is None else fakeredis.FakeAsyncRedis(server=server)
            return RedisRecords(target, bounds=bounds, clock=clock, timeout=10)

        def open_one(bounds: Mapping[str, Bounds] | None = None) -> RecordStore:
            store = make(bounds)
            stack.push_async_exit(aclosing(store))
            return store

        yield open_one

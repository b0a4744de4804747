from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Router
from llm_router.engine.fair_queue import Ticket
from llm_router.engine.lines import Queued, SharedLines
from llm_router.records import MemoryRecords
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]


class Shared(MemoryRecords):
    """Records of which other processes hear."""

    fails = False

    async def names(self, *args: Any, **kwargs: Any) -> list[str]:
        if self.fails:
            raise ZeroDivisionError
        return await super().names(*args, **kwargs)


async def test_what_waits_in_one_process_is_seen_in_another(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By urgency and tenant, within five seconds; and no longer once it waits no more."""
    monkeypatch.setattr("llm_router.engine.assembly.MemoryRecords", type("Other", (), {}))
    records = Shared(clock=clock)
    async with (
        make_router([pools.one(rpm=1)], records=records) as busy,
        make_router([pools.one(rpm=1)], records=records) as idle,
    ):
        await busy.send("x")
        kinds: list[Any] = [("interactive", "acme"), ("batch", "acme"), ("batch", "zoo")]
        tasks = [
            asyncio.create_task(busy.send("x", max_wait=300, urgency=urgency, metadata={"tenant": tenant}))
            for urgency, tenant in kinds
        ]
        await clock.advance(5.1)
        expected = {"requests": 3, "interactive": 1, "batch": 2, "tenants": {"acme": 2, "zoo": 1}}
        for router in (busy, idle):
            assert (await router.health_check())["line"] == expected
        assert (await idle.health_check())["waiting"] == 0
        await clock.advance(20.0)
        assert (await idle.health_check())["line"] == expected
        records.fails = True
        assert (await idle.health_check())["line"]["requests"] == 0
        assert (await busy.health_check())["line"] == expected
        records.fails = False
        for task in tasks:
            task.cancel()
        await clock.advance(5.1)
        assert (await idle.health_check())["line"]["requests"] == 0
        await clock.advance(60.0)
    assert clock.pending <= 2


async def test_what_is_told_is_bounded(clock: ManualClock) -> None:
    """Twenty tenants by name, the others without; a name that is too long is not told."""
    records, queued = MemoryRecords(clock=clock), Queued()
    for number in range(30):
        queued.counts["batch", f"tenant-{number}"] = 100 - number
    queued.counts["interactive", "x" * 101] = 500
    await SharedLines(queued, records).publish()
    line = await SharedLines(Queued(), records).known()
    assert (line["requests"], line["interactive"], len(line["tenants"])) == (500 + 2565, 500, 19)
    with queued.counted(Ticket("batch", "new")):
        assert queued.counts["batch", "new"] == 1
    assert ("batch", "new") not in queued.counts


async def test_records_that_fail_are_told_nothing(clock: ManualClock) -> None:
    """It is tried again, and others forget it after a quarter of a minute."""
    records, queued = Shared(clock=clock), Queued()
    queued.counts["batch", ""] = 1
    lines = SharedLines(queued, records)

    async def fail(*_: Any, **__: Any) -> int:
        raise ZeroDivisionError

    put, records.put = records.put, fail  # type: ignore[method-assign]
    await lines.publish()
    records.put = put  # type: ignore[method-assign]
    assert lines.is_busy
    await lines.publish()
    stranger = SharedLines(Queued(), records)
    assert (await stranger.known())["batch"] == 1
    clock.shift(16.0)
    assert (await stranger.known())["batch"] == 0

"""Waiting: what a grant costs while ten, a thousand or ten thousand requests wait, in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from _harness import Measure, Report, Row, Scale, Table, in_turn
from _subjects import Instant, deployments

from llm_router import Demand, Deployment, MemoryStore, Router
from llm_router.stores import Decision
from llm_router.testing import virtual

__all__ = ["run"]

_RPM = 1_000
_MINUTE = 60.5
_WAITING = (10, 1_000, 10_000)


class _Counting(MemoryStore):
    """A store that counts how often it is asked."""

    asked = 0

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.asked += 1
        return await super().reserve(reservation_id, candidates, demand, ttl)


async def run(scale: Scale) -> Report:
    """Measure grants by the number of requests that wait, and by the number of tenants."""
    table = Table.about(
        "CPU time of a send that waits, and how often the store is asked for it",
        f"one deployment of {_RPM:,} requests a minute; those that were answered send again at once",
        "the time is that of the whole send: its check, its turn, its call, and its settlement",
    )
    cases: dict[str, tuple[int, int]] = {}
    for waiting in _WAITING[:2] if scale.short else _WAITING:
        for tenants in dict.fromkeys((1, waiting)):
            word = "tenant" if tenants == 1 else "tenants"
            cases[f"{waiting:,} wait, {tenants:,} {word}"] = (waiting, tenants)
    samples: dict[str, Callable[[], Awaitable[Mapping[str, float]]]] = {
        case: partial(asyncio.to_thread, _sample, *sizes) for case, sizes in cases.items()
    }
    baseline = next(iter(cases))
    for case, found in (await in_turn(samples, scale.runs)).items():
        measures = {
            "CPU per grant": Measure(found["CPU per grant"], "µs"),
            "calls per grant": Measure(found["calls per grant"], ""),
        }
        table.add(Row(case, "llm_router", measures, (baseline, "llm_router")))
    return Report("waiting", [table])


def _sample(waiting: int, tenants: int) -> Mapping[str, float]:
    return virtual.run(lambda loop: _grants(loop, waiting, tenants))


async def _grants(loop: asyncio.AbstractEventLoop, waiting: int, tenants: int) -> Mapping[str, float]:
    clock = virtual.VirtualClock(loop)
    store = _Counting(clock=clock)
    granted = 0
    async with Router(deployments(1, rpm=_RPM), store=store, provider=Instant(), clock=clock) as router:

        async def call(tenant: str) -> None:
            nonlocal granted
            while True:
                response = await router.send("hello", max_wait=1e6, timeout=None, tenant=tenant)
                granted += response.success

        callers = [asyncio.create_task(call(f"tenant-{number % tenants}")) for number in range(waiting)]
        await asyncio.sleep(1.5 * _MINUTE)  # what is granted at once, and the first that is waited for
        granted, store.asked = 0, 0
        began = time.thread_time()
        await asyncio.sleep(_MINUTE)
        spent = time.thread_time() - began
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    return {"CPU per grant": spent / granted * 1e6, "calls per grant": store.asked / granted}

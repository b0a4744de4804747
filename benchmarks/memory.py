"""Memory and imports: bytes per deployment, waiting caller and conversation; import time; RSS over time."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Mapping

from _fleet import run_together
from _harness import Measure, Report, Row, Scale, Table, in_turn
from _subjects import Instant, deployments

from llm_router import Deployment, MemoryHistory, Router
from llm_router.testing import ManualClock

__all__ = ["run"]

_IMPORTS = {
    "python, nothing imported": "pass",
    "llm_router": "import llm_router",
    "google.genai": "import google.genai",
    "redis.asyncio": "import redis.asyncio",
    "litellm": "import os; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'; import litellm",
}
_IMPORT_TIMEOUT = 120.0


async def run(scale: Scale) -> Report:
    """Measure memory and import time."""
    return Report("memory", [await _bytes(scale), await _imports(scale), await _resident(scale)])


# --- bytes --------------------------------------------------------------------------------------------


async def _bytes(scale: Scale) -> Table:
    n = 200 if scale.short else 10_000
    table = Table(f"bytes each, averaged over {n:,} (tracemalloc)")
    cases: dict[str, Callable[[int], Awaitable[float]]] = {
        "deployment: its values, rpm + tpm + rpd": _values,
        "deployment: in a router": _in_router,
        "deployment: in a router, used once": _used_once,
        "caller waiting in line": _waiting,
        "conversation of one turn": _conversing,
    }
    for case, measure in cases.items():
        table.add(Row(case, "llm_router", {"bytes": Measure((await measure(n),), "B")}))
    table.remarks.append('"in a router" comes on top of the values; "used once" includes "in a router"')
    return table


class _Meter:
    """Counts the bytes that were allocated since its creation and are still in use."""

    def __init__(self) -> None:
        gc.collect()
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]

    def stop(self) -> int:
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - self._before
        tracemalloc.stop()
        return grown


async def _values(n: int) -> float:
    meter = _Meter()
    made = deployments(n)
    return meter.stop() / len(made)


async def _in_router(n: int) -> float:
    pool = deployments(n)
    meter = _Meter()
    async with Router(pool, provider=Instant()):
        return meter.stop() / n


async def _used_once(n: int) -> float:
    pool = deployments(n)
    meter = _Meter()
    async with Router(pool, provider=Instant()) as router:
        for _ in range(2 * n):
            await router.send("hello")
        return meter.stop() / n


async def _waiting(n: int) -> float:
    clock = ManualClock()
    async with Router(_spent(), provider=Instant(), clock=clock) as router:
        await router.send("hello")
        meter = _Meter()
        callers = [asyncio.create_task(router.send("hello", max_wait=1e6, timeout=None)) for _ in range(n)]
        await asyncio.sleep(0.1)
        grown = meter.stop()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    return grown / n


def _spent() -> list[Deployment]:
    return deployments(1, rpm=1)


async def _conversing(n: int) -> float:
    histories = MemoryHistory(most=n)
    async with Router(deployments(10), provider=Instant(), histories=histories) as router:
        meter = _Meter()
        for number in range(n):
            await router.conversation(f"user-{number}").send("What is the weather like?")
        return meter.stop() / n


# --- imports ------------------------------------------------------------------------------------------


async def _imports(scale: Scale) -> Table:
    table = Table.about(
        "starting an interpreter and importing",
        "the bytecode is compiled already; the baseline is an interpreter that imports nothing",
    )
    names = list(_IMPORTS)[: 2 if scale.short else None]

    def sampler(name: str) -> Callable[[], Awaitable[Mapping[str, float]]]:
        return lambda: asyncio.to_thread(_import, name)

    found = await in_turn({name: sampler(name) for name in names}, min(scale.runs, 3))
    baseline = ("import", names[0])
    for name, samples in found.items():
        if "missing" in samples:
            table.add(Row("import", name, note="not installed"))
        else:
            table.add(Row("import", name, {"time": Measure(samples["time"], "ms")}, baseline))
    return table


def _import(name: str) -> Mapping[str, float]:
    """Time an interpreter from start to exit, as its user waits for it."""
    path = [entry for entry in sys.path if entry]
    code = f"import sys; sys.path[:0] = {path!r}\n{_IMPORTS[name]}"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=_IMPORT_TIMEOUT, check=False
    )
    took = time.perf_counter() - began
    return {"time": 1e3 * took} if done.returncode == 0 else {"missing": 1.0}


# --- resident memory ----------------------------------------------------------------------------------


async def _resident(scale: Scale) -> Table:
    sends = 1_000 if scale.short else 1_000_000
    sizes = (await asyncio.to_thread(run_together, "sends", [{"sends": sends}], timeout=600.0))[0]
    table = Table.about(
        f"resident memory over {sends:,} sends",
        "a separate process with 100 deployments; flat means that nothing grows with the number of requests",
    )
    baseline = (_after(sends // 10), "llm_router")
    for tenth in (1, 2, 5, 10):
        measures = {"resident": Measure((sizes[tenth - 1] / 2**20,), "MiB")}
        table.add(Row(_after(sends * tenth // 10), "llm_router", measures, baseline))
    return table


def _after(sends: int) -> str:
    return f"after {sends:,} sends"

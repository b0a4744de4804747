"""Selection: strategy + reserve + settle for one to 100,000 deployments, compared with LiteLLM's choice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import attrs
from _harness import Measure, Report, Row, Scale, Table, calls_per_second, in_turn
from _peers import NotInstalledError, litellm_router
from _subjects import FREE, PROMPT_TOKENS, deployments, open_store, redis_server, use_each_once

from llm_router import Clock, Deployment, LeastLoaded, RateLimitStore, Request, SystemClock
from llm_router.domain.methods import GENERATE
from llm_router.domain.quota import GUARD
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.gate import DispatchGate
from llm_router.engine.lease import Lease
from llm_router.engine.pool import Pool
from llm_router.engine.reserving import Selector
from llm_router.engine.state import SendState
from llm_router.engine.timing import Deadlines
from llm_router.engine.upstream import Upstream
from llm_router.testing import FakeProvider, ManualClock

__all__ = ["Selecting", "run"]

SIZES = {
    "memory": (1, 10, 100, 1_000, 10_000, 100_000),
    "sqlite": (1, 10, 1_000, 100_000),
    "redis": (1, 10, 1_000, 100_000),
}
LITELLM_SIZES = (10, 100, 1_000)
LITELLM_STRATEGIES = ("simple-shuffle", "usage-based-routing-v2")
_SPAN = 60.3
_STRIDE = 8
_TTL = 120.0
_REQUEST = Request(contents="hello")


class Selecting:
    """The engine without a provider: it acquires a lease and settles it.

    Args:
        store: The store that decides.
        pool: The deployments.
        clock: The source of time.
        step: Seconds by which a manual clock advances before each selection.
    """

    def __init__(
        self,
        store: RateLimitStore,
        pool: list[Deployment],
        clock: Clock | None = None,
        step: float = 0.0,
    ) -> None:
        time_source = clock or SystemClock()
        upstream = Upstream("gemini", FakeProvider())
        index = Pool(pool, {upstream.name: upstream})
        gate, deadlines = DispatchGate(time_source, GUARD), Deadlines(time_source)
        self._selector = Selector(store, index, LeastLoaded(), time_source, deadlines, gate)
        orders = FallbackOrders(index, ("light", "medium", "heavy"))
        self._order = orders[None, None, "any", frozenset(), GENERATE]
        self._tokens = {upstream: PROMPT_TOKENS}
        self._time = time_source.time
        self._clock = clock
        self._step = step
        self.refused = 0

    async def select(self) -> None:
        """Choose a deployment, reserve on it and settle."""
        if self._step and isinstance(self._clock, ManualClock):
            self._clock.shift(self._step)
        send = SendState(_REQUEST, self._order, self._tokens, 60.0, 0.0, _TTL, self._time())
        lease = await self._selector.acquire(send, 0.0)
        if isinstance(lease, Lease):
            lease.mark_sent()
            lease.mark_dispatched()
            lease.settle_at(PROMPT_TOKENS)
            await lease.close()
        else:
            self.refused += 1


async def run(scale: Scale) -> Report:
    """Measure selections."""
    with redis_server() as url:
        free = await _free(scale, url)
        saturated = await _saturated(scale, url)
    litellm = await _litellm(scale)
    return Report("selection", [free, saturated, litellm, _targets(free, saturated)])


def _sizes(scale: Scale, url: str | None) -> list[tuple[str, int]]:
    kinds = [kind for kind in SIZES if kind != "redis" or url is not None]
    return [(kind, n) for kind in kinds for n in ((1, 10) if scale.short else SIZES[kind])]


async def _free(scale: Scale, url: str | None) -> Table:
    table = Table.about(
        "every deployment free",
        "time per selection, over all in flight together; the baseline is 10 deployments",
    )
    for kind, n in _sizes(scale, url):
        async with open_store(kind, redis_url=url) as store:
            pool = deployments(n)
            await use_each_once(store, pool)
            selecting = Selecting(store, pool)
            table.add(*await _rows(scale, kind, n, selecting))
    return table


async def _saturated(scale: Scale, url: str | None) -> Table:
    table = Table.about(
        "every grant parks a deployment (rpm = 1, requests arrive as fast as quota comes back)",
        "a manual clock advances by 60.3 s / n before each selection, so that one deployment is free each "
        "time; refused: selections that found none because another in flight had taken it",
    )
    for kind, n in _sizes(scale, url):
        clock = ManualClock()
        async with open_store(kind, redis_url=url, clock=clock) as store:
            pool = deployments(n, rpm=1)
            selecting = Selecting(store, pool, clock, step=1.001 * _SPAN / n)
            await _exhaust(selecting, n)
            table.add(*await _rows(scale, kind, n, selecting))
    return table


async def _exhaust(selecting: Selecting, n: int) -> None:
    """Bring the pool into its steady state: nearly all are parked, and one wakes at a time."""
    left = iter(range(2 * n))

    async def worker() -> None:
        for _ in left:
            await selecting.select()

    await asyncio.gather(*(worker() for _ in range(min(100, n))))


async def _rows(scale: Scale, kind: str, n: int, selecting: Selecting) -> list[Row]:
    found: list[Row] = []
    for in_flight in (1, 100):

        async def sample(in_flight: int = in_flight) -> Mapping[str, float]:
            before, began = selecting.refused, time.perf_counter()
            stride = _STRIDE if kind == "memory" else 1
            rate = await calls_per_second(selecting.select, in_flight, scale.seconds, stride)
            calls = rate * (time.perf_counter() - began)
            return {"time": 1e6 / rate, "refused": 100 * (selecting.refused - before) / calls}

        samples = (await in_turn({"llm_router": sample}, scale.runs))["llm_router"]
        measures = {"time": Measure(samples["time"], "µs")}
        if any(samples["refused"]):
            measures["refused"] = Measure(samples["refused"], "%")
        baseline = (_case(kind, 10, in_flight), "llm_router")
        found.append(Row(_case(kind, n, in_flight), "llm_router", measures, baseline))
    return found


def _case(kind: str, n: int, in_flight: int) -> str:
    return f"{kind}, {n:,} deployments, {in_flight} in flight"


# --- LiteLLM ------------------------------------------------------------------------------------------


@attrs.frozen
class _Choice:
    """LiteLLM's choice of a deployment."""

    router: object

    async def choose(self) -> object:
        messages = [{"role": "user", "content": "hello"}]
        return await self.router.async_get_available_deployment(  # type: ignore[attr-defined]
            model="group", request_kwargs={}, messages=messages
        )


async def _litellm(scale: Scale) -> Table:
    table = Table.about(
        "LiteLLM's async_get_available_deployment, every deployment free",
        "it reads counters and reserves nothing; it counts calendar minutes, so that saturation cannot be "
        "held steady; more than 1,000 deployments would take minutes",
    )
    for n in LITELLM_SIZES[: 1 if scale.short else None]:
        for in_flight in (1, 100)[: 1 if scale.short else None]:
            table.add(*await _compare(scale, n, in_flight))
    return table


async def _compare(scale: Scale, n: int, in_flight: int) -> list[Row]:
    case = _case("memory", n, in_flight)
    subjects: dict[str, Callable[[], Awaitable[object]]] = {}
    missing: list[Row] = []
    for strategy in LITELLM_STRATEGIES:
        name = f"LiteLLM {strategy}"
        try:
            router = litellm_router(n, strategy=strategy, rpm=FREE, tpm=FREE * PROMPT_TOKENS)
        except NotInstalledError as error:
            missing.append(Row(case, name, note=str(error)))
        else:
            subjects[name] = _Choice(router).choose
    async with open_store("memory") as store:
        subjects = {"llm_router": Selecting(store, deployments(n)).select, **subjects}
        found = await in_turn(
            {name: _timed(work, in_flight, scale) for name, work in subjects.items()}, scale.runs
        )
    rows = [
        Row(case, name, {"time": Measure(samples["time"], "µs")}, (case, "llm_router"), _lacks(name))
        for name, samples in found.items()
    ]
    return rows + missing


def _timed(
    work: Callable[[], Awaitable[object]], in_flight: int, scale: Scale
) -> Callable[[], Awaitable[Mapping[str, float]]]:
    async def sample() -> Mapping[str, float]:
        return {"time": 1e6 / await calls_per_second(work, in_flight, scale.seconds)}

    return sample


def _lacks(name: str) -> str:
    return "no reserve, no settle, no rpd" if name.startswith("LiteLLM") else ""


def _targets(free: Table, saturated: Table) -> Table:
    table = Table("targets")

    def reached(target: str, value: float | None, unit: str) -> None:
        if value is not None:
            table.add(Row(target, "llm_router", {"reached": Measure((value,), unit)}))

    def ratio(source: Table) -> float | None:
        row = source.find(_case("memory", 100_000, 1), "llm_router")
        return source.ratio(row) if row is not None else None

    ten = free.find(_case("memory", 10, 1), "llm_router")
    reached(
        "memory, 10 deployments: shortlist + reserve + settle ≤ 10 µs",
        ten.measures["time"].median if ten else None,
        "µs",
    )
    reached("memory, free, 10 → 100,000: ≤ 1.3 ×", ratio(free), "×")
    reached("memory, saturated, 10 → 100,000: ≤ 2.5 ×", ratio(saturated), "×")
    return table

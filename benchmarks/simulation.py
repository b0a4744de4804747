"""Simulation: many processes with stale local indexes on one store. No time is measured.

A discrete-event simulation in virtual time, which can be repeated to the last count. It is driven by the
library's own index (``Pool``, ``FallbackOrder``, ``LeastLoaded``), one for each process, and one
``MemoryStore`` on a ``ManualClock`` for all of them, behind a network with a delay. The standard sizes have
ten keys a process, as 1,000 × 10,000 have; run it by itself for others: ``python benchmarks/simulation.py
--processes 1000 --keys 10000`` (5 GB of memory, and time).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import itertools
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import attrs
from _harness import Measure, Report, Row, Scale, Table, percentile

from llm_router import Demand, Deployment, Key, LeastLoaded, MemoryStore, Metric, Quota, Refill, Secret
from llm_router.engine.backoff import ProbeBackoff
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.index import DeploymentState, FallbackOrder
from llm_router.engine.pool import Pool
from llm_router.engine.search import FIRST_CANDIDATES, further, retry_at
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import Decision, Refusal
from llm_router.testing import FakeProvider, ManualClock

__all__ = ["World", "run", "simulate"]

_T = TypeVar("_T")
SIZES = ((1, 100), (10, 100), (1, 320), (32, 320))
LOADS = (0.5, 0.9, 1.0, 1.2)
_RPM = 15
_RPD = 10**6
_DELAY = (0.0002, 0.0005)
"""Seconds from a process to the store, or back."""

_WARM_UP, _MEASURED = 95.0, 60.3
_MOST_CHECKS = 200
"""Refusals for which the whole store is searched for room: a search looks at every key."""


@attrs.frozen
class World:
    """What is simulated.

    Attributes:
        processes: How many routers share the store.
        keys: How many keys they share, each with 15 requests a minute.
        load: Demand as a share of the quota; arrivals are a Poisson process, evenly over the processes.
        waits: Whether requests wait in line for capacity, one line a process, or take no for an answer.
        warm_up: Seconds before anything is counted.
        measured: Seconds that are.
        seed: Of all randomness.
    """

    processes: int
    keys: int
    load: float
    waits: bool = False
    warm_up: float = _WARM_UP
    measured: float = _MEASURED
    seed: int = 20_240_601


@attrs.define
class Counts:
    """What was counted.

    Attributes:
        requests: Requests that ended.
        granted: Those that got a key.
        trips: Round trips of each request, in order of their end.
        checked: Refused requests for which the store was searched for room.
        false: Those of them for which there was room.
    """

    requests: int = 0
    granted: int = 0
    trips: list[int] = attrs.field(factory=list)
    looks: int = 0
    checked: int = 0
    false: int = 0


@attrs.define
class _Process:
    """One router.

    Attributes:
        index: What it knows.
        order: Where its requests look.
        line: How many of them wait, including the one that is being tried.
        backoff: How long the head of the line sleeps.
    """

    index: Pool
    order: FallbackOrder
    line: int = 0
    backoff: ProbeBackoff = attrs.field(factory=ProbeBackoff)


@attrs.define
class _Asking:
    """One request on its way, and what it has cost so far."""

    process: _Process
    refused: dict[DeploymentState, Refusal] = attrs.field(factory=dict)
    further: Iterator[list[DeploymentState]] | None = None
    has_begun: bool = False
    has_slept: bool = False
    trips: int = 0
    looks: int = 0


class _Simulation:
    """The heap of what happens next, and what happens."""

    def __init__(self, world: World) -> None:
        random.seed(world.seed)  # the cursors of the pools
        self.counts = Counts()
        self._world = world
        self._random = random.Random(world.seed)
        self._network = random.Random(world.seed + 1)  # whatever becomes of them, the same requests come
        self._clock = ManualClock()
        self._store = MemoryStore(clock=self._clock)
        self._strategy = LeastLoaded()
        self._pool = _keys(world.keys)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._starts = self._clock.time()
        self._ends = self._starts + world.warm_up + world.measured
        self._refusals = 0
        expected = max(world.load - 0.9, 0.05) * world.keys * _RPM * world.measured / 60.0
        self._check_every = max(1, int(expected / _MOST_CHECKS))

    def run(self) -> Counts:
        for _ in range(self._world.processes):
            index = Pool(self._pool, {"gemini": Upstream("gemini", FakeProvider())})
            order = FallbackOrders(index, ("light",))[None, None, "any", frozenset()]
            process = _Process(index, order)
            self._after(self._pause(), self._arrive, process)
        while self._events:
            at, _, what, arguments = heapq.heappop(self._events)
            if at > self._ends:
                break
            self._clock.shift(at - self._clock.time())
            what(*arguments)
        return self.counts

    def _after(self, delay: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self._clock.time() + delay, next(self._numbers), what, arguments))

    def _pause(self) -> float:
        world = self._world
        return self._random.expovariate(world.load * world.keys * _RPM / 60.0 / world.processes)

    def _delay(self) -> float:
        return self._network.uniform(*_DELAY)

    # --- a request: the same steps as engine.reserving.Selector takes ----------------------------------

    def _arrive(self, process: _Process) -> None:
        self._after(self._pause(), self._arrive, process)
        process.line += 1
        if process.line == 1 or not self._world.waits:
            self._choose(_Asking(process))

    def _choose(self, asking: _Asking) -> None:
        order, states = asking.process.order, list[DeploymentState]()
        if not asking.has_begun:
            asking.has_begun = True
            states = order.draw(self._strategy, self._clock.time(), FIRST_CANDIDATES)
        if not states:
            if asking.further is None:
                asking.further = further(order, self._strategy, self._clock.time, asking.refused)
            states = next(asking.further, [])
        if states:
            asking.trips += 1
            self._after(self._delay(), self._decide, asking, states)
        elif self._world.waits:
            self._sleep(asking)
        else:
            self._end(asking, granted=False)

    def _sleep(self, asking: _Asking) -> None:
        """Let the head of a line sleep until it makes sense to try again."""
        now = self._clock.time()
        room_at = retry_at(asking.process.order, now, asking.refused)
        if asking.has_slept:
            asking.process.backoff.failed()
        asking.refused, asking.further, asking.has_begun, asking.has_slept = {}, None, False, True
        self._after(asking.process.backoff.until(now, room_at) - now, self._choose, asking)

    def _decide(self, asking: _Asking, states: Sequence[DeploymentState]) -> None:
        """Let the store decide."""
        name = f"{next(self._numbers):x}"
        candidates = [state.deployment for state in states]
        decision = _at_once(self._store.reserve(name, candidates, Demand(1, 0), 60.0))
        if decision.deployment is not None:
            _at_once(self._store.settle(name, Demand(1, 0)))
        self._after(self._delay(), self._learn, asking, decision)

    def _learn(self, asking: _Asking, decision: Decision) -> None:
        now, index = self._clock.time(), asking.process.index
        asking.looks += len(decision.refusals) + (decision.deployment is not None)
        for refusal in decision.refusals:
            index.note_refusal(refusal, now)
            asking.refused[index.states[refusal.deployment]] = refusal
        if decision.deployment is None:
            self._choose(asking)
            return
        index.states[decision.deployment].observe(decision, now)
        self._end(asking, granted=True)

    def _end(self, asking: _Asking, *, granted: bool) -> None:
        self._count(asking, granted=granted)
        process = asking.process
        if granted:
            process.backoff.succeeded()
        process.line -= 1
        if process.line and self._world.waits:
            self._choose(_Asking(process))

    def _count(self, asking: _Asking, *, granted: bool) -> None:
        if self._clock.time() < self._starts + self._world.warm_up:
            return
        counts = self.counts
        counts.requests += 1
        counts.granted += granted
        counts.trips.append(asking.trips)
        counts.looks += asking.looks
        if not granted:
            self._refusals += 1
            if self._refusals % self._check_every == 0:
                counts.checked += 1
                counts.false += self._has_room()

    def _has_room(self) -> bool:
        snapshots = _at_once(self._store.snapshot(self._pool))
        return any(all(quota.used < quota.limit for quota in each.quotas) for each in snapshots)


def simulate(world: World) -> Counts:
    """Let a world run, and return what was counted after its warm-up."""
    enabled = gc.isenabled()
    gc.disable()  # millions of states that live as long as the world: looking through them finds nothing
    try:
        return _Simulation(world).run()
    finally:
        if enabled:
            gc.enable()


def _keys(count: int) -> list[Deployment]:
    quotas = (Quota(Metric.RPM, _RPM), Quota(Metric.RPD, _RPD, Refill.DAILY))
    return [
        Deployment(Key(f"key-{n}", Secret("none")), "model", "light", quotas=quotas) for n in range(count)
    ]


def _at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of a coroutine that never suspends, as those of the memory store."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("the memory store suspended")


# --- the report ---------------------------------------------------------------------------------------


async def run(scale: Scale) -> Report:
    """Simulate the standard sizes."""
    if scale.short:
        worlds = [World(4, 40, 1.2, waits, warm_up=5.0, measured=5.0) for waits in (False, True)]
    else:
        worlds = [World(*size, load) for size in SIZES for load in LOADS]
        worlds += [World(*size, LOADS[-1], waits=True) for size in SIZES]
    return Report("simulation", [await asyncio.to_thread(_table, worlds)])


def _table(worlds: list[World]) -> Table:
    table = Table.about(
        "processes with an index of their own on one store (virtual time, rpm 15 a key)",
        f"after {_WARM_UP:.0f} s, over {_MEASURED} s; {_DELAY[0] * 1e3:g}-{_DELAY[1] * 1e3:g} ms each way to "
        "the store; nobody waits for quota but those «in line»",
        "utilisation: grants in that time, of what the quota allows in it; false refusals: refused requests "
        "for which some key had room at that moment, of all requests (found by samples)",
        "one process knows all that happens: it is the measure of what can be had. The guard costs 0.5 % (a "
        "window is 60.3 s); chance costs the rest, for quota that nobody asks for at the moment it is free "
        "is lost",
    )
    for world in worlds:
        table.add(_row(world, simulate(world)))
    return table


def _row(world: World, counts: Counts) -> Row:
    quota = world.keys * _RPM * world.measured / 60.0
    refused = counts.requests - counts.granted
    false = refused * counts.false / counts.checked if counts.checked else 0.0
    ordered = sorted(map(float, counts.trips)) or [0.0]
    figures = {
        "trips/grant": (sum(counts.trips) / max(counts.granted, 1), ""),
        "p99 trips": (percentile(ordered, 0.99), ""),
        "looks/grant": (counts.looks / max(counts.granted, 1), ""),
        "most": (ordered[-1], ""),
        "refused": (100 * refused / max(counts.requests, 1), "%"),
        "false refusals": (100 * false / max(counts.requests, 1), "%"),
        "utilisation": (100 * counts.granted / quota, "%"),
    }
    case = f"{world.processes:,} processes × {world.keys:,} keys, load {world.load:g}"
    case += ", in line" if world.waits else ""
    return Row(case, "llm_router", {name: Measure((value,), unit) for name, (value, unit) in figures.items()})


def _main() -> None:
    parser = argparse.ArgumentParser(description="Simulate one size.")
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--loads", type=float, nargs="*", default=list(LOADS))
    parser.add_argument("--wait", action="store_true", help="let requests wait in line for capacity")
    options = parser.parse_args()
    worlds = [World(options.processes, options.keys, load, options.wait) for load in options.loads]
    print(_table(worlds).text())


if __name__ == "__main__":
    _main()

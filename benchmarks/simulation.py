"""Simulation: many processes with stale local indexes on one store. No time is measured.

A discrete-event simulation in virtual time, repeatable to the last count. Each process has an index of the
library's own (``Pool``, ``FallbackOrder``, ``LeastLoaded``); all share one ``MemoryStore`` on a
``ManualClock``, behind a network with a delay. The standard sizes have ten keys per process, as
1,000 × 10,000 does. For other sizes run this file by itself: ``python benchmarks/simulation.py --processes
1000 --keys 10000`` (which needs 5 GB of memory, and time).
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
from _store_index import StoreIndex

from llm_router import Demand, Deployment, Key, LeastLoaded, MemoryStore, Metric, Quota, Refill, Secret
from llm_router.domain.methods import GENERATE
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
"""Bounds of the seconds from a process to the store, or back."""

_WARM_UP, _MEASURED = 95.0, 60.3
_CHECKS = 200
"""About how many refusals are checked by a search of the whole store, which looks at every key."""


@attrs.frozen
class World:
    """What is simulated.

    Attributes:
        processes: The routers that share the store.
        keys: The keys that they share, each with 15 requests per minute.
        load: Demand as a share of the quota; arrivals are a Poisson process, even over the processes.
        waits: Whether requests wait in line for capacity, one line per process, or are refused at once.
        warm_up: Seconds before counting starts.
        measured: Seconds of counting.
        seed: The seed of all randomness.
        indexed: Whether the store has an index, too, and names some of it when it refuses a whole list.
    """

    processes: int
    keys: int
    load: float
    waits: bool = False
    warm_up: float = _WARM_UP
    measured: float = _MEASURED
    seed: int = 20_240_601
    indexed: bool = False


@attrs.define
class Counts:
    """What was counted.

    Attributes:
        requests: Requests that ended.
        granted: Requests that got a key.
        trips: Round trips of each request, in the order in which they ended.
        lookups: Keys that the store looked at for all requests together.
        checked: Refused requests after which the store was searched for room.
        false: Checked requests for which there was room.
    """

    requests: int = 0
    granted: int = 0
    trips: list[int] = attrs.field(factory=list)
    lookups: int = 0
    checked: int = 0
    false: int = 0


@attrs.define
class _Process:
    """One router.

    Attributes:
        index: Its local index.
        order: The fallback order of its requests.
        line: Its requests in line, including the one that is being tried.
        backoff: How long the head of the line sleeps.
    """

    index: Pool
    order: FallbackOrder
    line: int = 0
    backoff: ProbeBackoff = attrs.field(factory=ProbeBackoff)


@attrs.define
class _Search:
    """The search of one request for a key, and what it has cost so far."""

    process: _Process
    named: list[Deployment] | None = None
    refused: dict[DeploymentState, Refusal] = attrs.field(factory=dict)
    further: Iterator[list[DeploymentState]] | None = None
    has_begun: bool = False
    has_slept: bool = False
    trips: int = 0
    lookups: int = 0


class _Simulation:
    """A heap of coming events, and what each of them does."""

    def __init__(self, world: World) -> None:
        random.seed(world.seed)  # the cursors of the pools
        self.counts = Counts()
        self._world = world
        self._random = random.Random(world.seed)
        self._network = random.Random(world.seed + 1)  # its own: the same requests arrive whatever it draws
        self._clock = ManualClock()
        self._store = MemoryStore(clock=self._clock)
        self._strategy = LeastLoaded()
        self._pool = _keys(world.keys)
        self._index = StoreIndex(self._pool, world.seed + 2) if world.indexed else None
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._starts = self._clock.time()
        self._ends = self._starts + world.warm_up + world.measured
        self._refusals = 0
        expected = max(world.load - 0.9, 0.05) * world.keys * _RPM * world.measured / 60.0
        self._check_every = max(1, int(expected / _CHECKS))

    def run(self) -> Counts:
        for _ in range(self._world.processes):
            index = Pool(self._pool, {"gemini": Upstream("gemini", FakeProvider())})
            order = FallbackOrders(index, ("light",))[None, None, "any", frozenset(), GENERATE]
            process = _Process(index, order)
            self._after(self._pause(), self._arrive, process)
        while self._events:
            at, _, action, arguments = heapq.heappop(self._events)
            if at > self._ends:
                break
            self._clock.shift(at - self._clock.time())
            action(*arguments)
        return self.counts

    def _after(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self._clock.time() + delay, next(self._numbers), action, arguments))

    def _pause(self) -> float:
        world = self._world
        return self._random.expovariate(world.load * world.keys * _RPM / 60.0 / world.processes)

    def _delay(self) -> float:
        return self._network.uniform(*_DELAY)

    # --- a request: the same steps as in engine.reserving.Selector --------------------------------------

    def _arrive(self, process: _Process) -> None:
        self._after(self._pause(), self._arrive, process)
        process.line += 1
        if process.line == 1 or not self._world.waits:
            self._choose(_Search(process))

    def _choose(self, search: _Search) -> None:
        order, states = search.process.order, list[DeploymentState]()
        if search.named is not None:
            every = search.process.index.states
            states = [state for state in map(every.__getitem__, search.named) if state not in search.refused]
        elif not search.has_begun:
            search.has_begun = True
            states = order.draw(self._strategy, self._clock.time(), FIRST_CANDIDATES)
        if not states and search.named is None:
            if search.further is None:
                search.further = further(order, self._strategy, self._clock.time, search.refused)
            states = next(search.further, [])
        if states:
            search.trips += 1
            self._after(self._delay(), self._decide, search, states)
        elif self._world.waits:
            self._sleep(search)
        else:
            self._end(search, granted=False)

    def _sleep(self, search: _Search) -> None:
        """Let the head of a line sleep until another try makes sense."""
        now = self._clock.time()
        room_at = retry_at(search.process.order, now, search.refused)
        if search.has_slept:
            search.process.backoff.failed()
        search.refused, search.further, search.has_begun, search.has_slept = {}, None, False, True
        search.named = None
        self._after(search.process.backoff.until(now, room_at) - now, self._choose, search)

    def _decide(self, search: _Search, states: Sequence[DeploymentState]) -> None:
        """Let the store decide."""
        name = f"{next(self._numbers):x}"
        candidates = [state.deployment for state in states]
        decision = _at_once(self._store.reserve(name, candidates, Demand(1, 0), 60.0))
        if decision.deployment is not None:
            _at_once(self._store.settle(name, Demand(1, 0)))
        if self._index is not None:
            self._index.note(decision)
            if decision.deployment is None:
                search.named = self._index.draw(self._clock.time(), FIRST_CANDIDATES)
        self._after(self._delay(), self._learn, search, decision)

    def _learn(self, search: _Search, decision: Decision) -> None:
        now, index = self._clock.time(), search.process.index
        search.lookups += len(decision.refusals) + (decision.deployment is not None)
        for refusal in decision.refusals:
            index.note_refusal(refusal, now)
            search.refused[index.states[refusal.deployment]] = refusal
        if decision.deployment is None:
            self._choose(search)
            return
        index.states[decision.deployment].observe(decision, now)
        self._end(search, granted=True)

    def _end(self, search: _Search, *, granted: bool) -> None:
        self._count(search, granted=granted)
        process = search.process
        if granted:
            process.backoff.succeeded()
        process.line -= 1
        if process.line and self._world.waits:
            self._choose(_Search(process))

    def _count(self, search: _Search, *, granted: bool) -> None:
        if self._clock.time() < self._starts + self._world.warm_up:
            return
        counts = self.counts
        counts.requests += 1
        counts.granted += granted
        counts.trips.append(search.trips)
        counts.lookups += search.lookups
        if not granted:
            self._refusals += 1
            if self._refusals % self._check_every == 0:
                counts.checked += 1
                counts.false += self._has_room()

    def _has_room(self) -> bool:
        snapshots = _at_once(self._store.snapshot(self._pool))
        return any(all(quota.used < quota.limit for quota in each.quotas) for each in snapshots)


def simulate(world: World) -> Counts:
    """Run a world; return what was counted after its warm-up."""
    enabled = gc.isenabled()
    gc.disable()  # millions of states live as long as the world: collecting would find nothing
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
    """Return the result of a coroutine that never suspends, such as those of the memory store."""
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
        "processes with their own indexes on one store (virtual time, rpm = 15 per key)",
        f"after {_WARM_UP:.0f} s, over {_MEASURED} s; {_DELAY[0] * 1e3:g}-{_DELAY[1] * 1e3:g} ms each way to "
        'the store; requests wait for quota only in the rows marked "in line"',
        "utilisation: grants in that time, as a share of what the quota allows; false refusals: requests "
        "that were refused while some key had room, as a share of all requests (from samples)",
        "one process alone knows everything and shows what is attainable. The guard costs 0.5 % (a window is "
        "60.3 s); chance costs the rest, since quota that no request wants while it is free is lost",
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
        "lookups/grant": (counts.lookups / max(counts.granted, 1), ""),
        "max trips": (ordered[-1], ""),
        "refused": (100 * refused / max(counts.requests, 1), "%"),
        "false refusals": (100 * false / max(counts.requests, 1), "%"),
        "utilisation": (100 * counts.granted / quota, "%"),
    }
    case = f"{world.processes:,} processes × {world.keys:,} keys, load {world.load:g}"
    case += ", in line" if world.waits else ""
    case += ", index in the store" if world.indexed else ""
    return Row(case, "llm_router", {name: Measure((value,), unit) for name, (value, unit) in figures.items()})


def _main() -> None:
    parser = argparse.ArgumentParser(description="Simulate one size.")
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--loads", type=float, nargs="*", default=list(LOADS))
    parser.add_argument("--wait", action="store_true", help="let requests wait in line for capacity")
    parser.add_argument("--index", action="store_true", help="as if the store had an index of all keys, too")
    options = parser.parse_args()
    worlds = [
        World(options.processes, options.keys, load, options.wait, indexed=options.index)
        for load in options.loads
    ]
    print(_table(worlds).text())


if __name__ == "__main__":
    _main()

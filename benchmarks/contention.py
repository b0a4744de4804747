"""Contention: several processes on the same strict quotas, and what the provider saw of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
from _fleet import run_together
from _harness import Measure, Report, Row, Scale, Table
from _peers import NotInstalledError, check
from _subjects import redis_server, scratch

from llm_router.emulator import GeminiEmulator, QuotaSpec

__all__ = ["run"]

_MINUTE = 60
_LONGEST_BURST = 20.0
_BY_MINUTE = "counts by the calendar's minute"
_REMARKS = [
    "utilisation: the most that was accepted in any 60 s, of what the quota allows",
    "upstream 429: requests that were sent although the quota was spent, and that the provider refused",
]


@attrs.frozen
class _Size:
    """How much traffic there is."""

    processes: int = 4
    keys: int = 20
    rpm: int = 15

    @property
    def quota(self) -> int:
        """Requests that all keys together allow in a minute."""
        return self.keys * self.rpm


@attrs.frozen
class _Client:
    """Who sends: llm_router on some store, or LiteLLM in some configuration."""

    name: str
    task: dict[str, Any]
    note: str = ""


@attrs.frozen
class _Seen:
    """What the emulator counted of one client, and from when to when."""

    client: _Client
    emulator: GeminiEmulator
    began: float
    ended: float

    @property
    def peak(self) -> int:
        """The most requests accepted in any 60 s, over all keys."""
        return sum(counts.peak_requests for counts in self.emulator.by_bucket.values())


@attrs.define
class _Ground:
    """Where the stores of the clients are: each traffic begins with an empty one."""

    directory: Path
    redis_url: str | None
    _count: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    def fresh(self, kind: str) -> str:
        """Return the URL of an empty store."""
        number = next(self._count)
        if kind == "sqlite":
            return f"sqlite:///{self.directory / f'shared-{number}.sqlite3'}"
        if kind == "redis" and self.redis_url is not None:
            return f"{self.redis_url.rpartition('/')[0]}/{number}"
        return "memory://"


async def run(scale: Scale) -> Report:
    """Measure several processes on the same quotas."""
    size = _Size(processes=2, keys=2, rpm=3) if scale.short else _Size()
    with scratch() as directory, redis_server() as url:
        ground = _Ground(directory, url)
        alone, *ours = _our_clients(url)
        if scale.short:
            return Report("contention", [await _burst(ground, size, ours[:1], [])])
        peers, missing = _litellm_clients(url)
        burst = await _burst(ground, size, [*ours, *peers], missing)
        single = attrs.evolve(size, processes=1)
        burst.rows[:0] = (await _burst(ground, single, [alone], [])).rows
        idle = await _idle_then_burst(ground, size, [*ours, *peers])
        tables = [burst, idle, await _drain(ground, size, ours)]
    return Report("contention", [*tables, _aims(tables)])


def _our_clients(url: str | None) -> list[_Client]:
    kinds = ["memory", "sqlite", *(["redis"] if url is not None else [])]
    return [
        _Client(f"llm_router, {kind}", {"client": "llm_router", "kind": kind, "guard": 0.3, "max_wait": 0.0})
        for kind in kinds
    ]


def _litellm_clients(url: str | None) -> tuple[list[_Client], list[Row]]:
    configurations = {
        "LiteLLM usage-based-routing-v2": {"strategy": "usage-based-routing-v2", "checks": []},
        "LiteLLM enforce_model_rate_limits": {
            "strategy": "simple-shuffle",
            "checks": ["enforce_model_rate_limits"],
        },
    }
    try:
        check("litellm")
    except NotInstalledError as error:
        return [], [Row("burst", name, note=str(error)) for name in configurations]
    if url is None:
        return [], [Row("burst", name, note="no Redis server") for name in configurations]
    return [
        _Client(name, {"client": "litellm", "kind": "", "redis": url, **options}, _BY_MINUTE)
        for name, options in configurations.items()
    ], []


# --- traffic ------------------------------------------------------------------------------------------


async def _burst(ground: _Ground, size: _Size, clients: list[_Client], missing: list[Row]) -> Table:
    demand = 2 * size.quota
    case = f"{demand} at once on {size.quota} of quota, {size.processes} processes"
    table = Table.about("burst: twice the quota at once, nobody waits", *_REMARKS)
    for client in clients:
        seen = await _send(ground, size, client, _now, demand // size.processes)
        table.add(_row(case, size, seen))
    table.add(*(attrs.evolve(row, case=case) for row in missing))
    return table


async def _idle_then_burst(ground: _Ground, size: _Size, clients: list[_Client]) -> Table:
    """Burst shortly before and shortly after the wall clock's minute turns, idle before."""
    table = Table.about(
        f"burst, then burst: the whole quota {_LONGEST_BURST:.0f} s before a minute turns, and 5 s after",
        "idle before; each client on an emulator and keys of its own, all of them at once and with half the "
        "processes, for only counts matter here",
        "a provider that counts calendar minutes would accept both bursts; this one counts any 60 s",
    )
    half = attrs.evolve(size, processes=size.processes // 2)
    found = await asyncio.gather(
        *(_send(ground, half, client, _around_a_turn, half.quota // half.processes) for client in clients)
    )
    table.add(*(_row(f"2 × {half.quota}, {half.processes} processes", half, seen) for seen in found))
    return table


async def _drain(ground: _Ground, size: _Size, clients: list[_Client], guard: float = 0.3) -> Table:
    """Send twice the quota with patience, and see how long it takes until all are answered."""
    demand = 2 * size.quota
    table = Table.about(
        "drain: twice the quota at once, everybody waits",
        f"the least possible time is {_MINUTE} s; with the guard, {guard} s by default, {_MINUTE + guard} s",
    )

    async def one(client: _Client) -> Row:
        patient = attrs.evolve(client, task={**client.task, "guard": guard, "max_wait": 300.0})
        seen = await _send(ground, size, patient, _now, demand // size.processes)
        row = _row(f"{demand} on {size.quota} of quota, {size.processes} processes", size, seen)
        drained = {"time to drain": Measure((seen.ended - seen.began,), "s")}
        return attrs.evolve(row, measures={**row.measures, **drained})

    for client in clients:
        table.add(await one(client))
    return table


async def _send(
    ground: _Ground, size: _Size, client: _Client, moments: Callable[[], list[float]], requests: int
) -> _Seen:
    """Let the processes of one client send so many requests each, at each of the moments."""
    async with _emulator(size) as emulator:
        task = {
            **client.task,
            "store": ground.fresh(client.task["kind"]),
            "keys": size.keys,
            "rpm": size.rpm,
            "emulator": emulator.url,
            "requests": requests,
        }
        found = await asyncio.to_thread(
            run_together, "contender", [task] * size.processes, word=moments, timeout=240.0
        )
    return _Seen(client, emulator, min(each["began"] for each in found), max(each["ended"] for each in found))


@contextlib.asynccontextmanager
async def _emulator(size: _Size) -> AsyncIterator[GeminiEmulator]:
    emulator = GeminiEmulator(default_quota=QuotaSpec(rpm=size.rpm))
    with emulator.run_in_thread():
        yield emulator


def _now() -> list[float]:
    """Return this moment, or the beginning of the next minute, lest a burst lie across the turn."""
    now = time.time()
    turn = _next_turn(now)
    return [now if turn - now > _LONGEST_BURST else turn + 0.1]


def _around_a_turn() -> list[float]:
    turn = _next_turn(time.time() + _LONGEST_BURST)
    return [turn - _LONGEST_BURST, turn + 5.0]


def _next_turn(after: float) -> float:
    return (int(after) // _MINUTE + 1) * float(_MINUTE)


def _row(case: str, size: _Size, seen: _Seen) -> Row:
    emulator = seen.emulator
    measures = {
        "accepted": Measure((emulator.accepted,), ""),
        "upstream 429": Measure((emulator.refused,), ""),
        "utilisation": Measure((100 * seen.peak / size.quota,), "%"),
    }
    return Row(case, seen.client.name, measures, None, seen.client.note)


def _aims(tables: list[Table]) -> Table:
    aims = Table("aims")
    rows = [row for table in tables for row in table.rows if row.subject.startswith("llm_router")]
    refused = sum(row.measures["upstream 429"].median for row in rows)
    least = min(row.measures["utilisation"].median for row in rows)
    aims.add(Row("all traffic: no upstream 429", "llm_router", {"reached": Measure((refused,), "")}))
    aims.add(Row("all traffic: utilisation ≥ 99 %", "llm_router", {"reached": Measure((least,), "%")}))
    return aims

"""Contention: several processes on the same strict quotas, and what reached the provider.

``python benchmarks/contention.py --events`` shows what reaches it when the store fails or forgets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
from _events import measure_events
from _fleet import run_together
from _harness import Measure, Report, Row, Scale, Table
from _peers import NotInstalledError, check
from _subjects import redis_server, scratch

from llm_router.emulator import GeminiEmulator, QuotaSpec

__all__ = ["main", "run"]

_MINUTE = 60
_LONGEST_BURST = 20.0
_BY_MINUTE = "counts calendar minutes"
_REMARKS = [
    "utilisation: the most requests accepted in any 60 s, as a share of the quota",
    "upstream 429: requests sent although the quota was spent, and refused by the provider",
]


@attrs.frozen
class _Size:
    """The amount of traffic."""

    processes: int = 4
    keys: int = 20
    rpm: int = 15

    @property
    def quota(self) -> int:
        """Requests per minute that all keys together allow."""
        return self.keys * self.rpm


@attrs.frozen
class _Client:
    """A sender: llm_router on some store, or LiteLLM in some configuration."""

    name: str
    task: dict[str, Any]
    note: str = ""


@attrs.frozen
class _Outcome:
    """What the emulator counted of one client, and from when to when."""

    client: _Client
    emulator: GeminiEmulator
    began: float
    ended: float

    @property
    def peak(self) -> int:
        """The most requests accepted in any 60 s, summed over the keys."""
        return sum(counts.peak_requests for counts in self.emulator.by_bucket.values())


@attrs.define
class _StoreUrls:
    """Where the stores of the clients are; each measurement begins with an empty one."""

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
    """Measure several processes that share quotas."""
    size = _Size(processes=2, keys=2, rpm=3) if scale.short else _Size()
    with scratch() as directory, redis_server() as url:
        urls = _StoreUrls(directory, url)
        alone, *ours = _our_clients(url)
        if scale.short:
            return Report("contention", [await _burst(urls, size, ours[:1], [])])
        peers, missing = _litellm_clients(url)
        burst = await _burst(urls, size, [*ours, *peers], missing)
        single = attrs.evolve(size, processes=1)
        burst.rows[:0] = (await _burst(urls, single, [alone], [])).rows
        idle = await _idle_then_burst(urls, size, [*ours, *peers])
        tables = [burst, idle, await _drain(urls, size, ours)]
    return Report("contention", [*tables, _targets(tables)])


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


async def _burst(urls: _StoreUrls, size: _Size, clients: list[_Client], missing: list[Row]) -> Table:
    demand = 2 * size.quota
    case = f"{demand} at once on {size.quota} of quota, {size.processes} processes"
    table = Table.about("burst: twice the quota at once, no request waits", *_REMARKS)
    for client in clients:
        outcome = await _send(urls, size, client, _now, demand // size.processes)
        table.add(_row(case, size, outcome))
    table.add(*(attrs.evolve(row, case=case) for row in missing))
    return table


async def _idle_then_burst(urls: _StoreUrls, size: _Size, clients: list[_Client]) -> Table:
    """After an idle time, send one burst shortly before a calendar minute ends and one shortly after."""
    table = Table.about(
        f"two bursts: the whole quota {_LONGEST_BURST:.0f} s before a calendar minute, and again 5 s into it",
        "idle before; each client has its own emulator and keys; all run at once, with half the processes, "
        "since only counts matter here",
        "a provider that counts calendar minutes would accept both bursts; this one counts any 60 s",
    )
    half = attrs.evolve(size, processes=size.processes // 2)
    outcomes = await asyncio.gather(
        *(_send(urls, half, client, _around_a_turn, half.quota // half.processes) for client in clients)
    )
    table.add(*(_row(f"2 × {half.quota}, {half.processes} processes", half, outcome) for outcome in outcomes))
    return table


async def _drain(urls: _StoreUrls, size: _Size, clients: list[_Client], guard: float = 0.3) -> Table:
    """Send twice the quota at once, let requests wait, and measure how long it takes to answer all."""
    demand = 2 * size.quota
    table = Table.about(
        "drain: twice the quota at once, all requests wait",
        f"the least possible time is {_MINUTE} s; with the guard ({guard} s by default), {_MINUTE + guard} s",
    )

    async def one(client: _Client) -> Row:
        waiting = attrs.evolve(client, task={**client.task, "guard": guard, "max_wait": 300.0})
        outcome = await _send(urls, size, waiting, _now, demand // size.processes)
        row = _row(f"{demand} on {size.quota} of quota, {size.processes} processes", size, outcome)
        drained = {"time to drain": Measure((outcome.ended - outcome.began,), "s")}
        return attrs.evolve(row, measures={**row.measures, **drained})

    for client in clients:
        table.add(await one(client))
    return table


async def _send(
    urls: _StoreUrls, size: _Size, client: _Client, starts: Callable[[], list[float]], requests: int
) -> _Outcome:
    """Let each process of one client send ``requests`` requests at each of the start times."""
    async with _emulator(size) as emulator:
        task = {
            **client.task,
            "store": urls.fresh(client.task["kind"]),
            "keys": size.keys,
            "rpm": size.rpm,
            "emulator": emulator.url,
            "requests": requests,
        }
        found = await asyncio.to_thread(
            run_together, "contender", [task] * size.processes, message=starts, timeout=240.0
        )
    began, ended = min(each["began"] for each in found), max(each["ended"] for each in found)
    return _Outcome(client, emulator, began, ended)


@contextlib.asynccontextmanager
async def _emulator(size: _Size) -> AsyncIterator[GeminiEmulator]:
    emulator = GeminiEmulator(default_quota=QuotaSpec(rpm=size.rpm))
    with emulator.run_in_thread():
        yield emulator


def _now() -> list[float]:
    """Return the present time, or the start of the next minute if a burst might reach into it."""
    now = time.time()
    turn = _next_turn(now)
    return [now if turn - now > _LONGEST_BURST else turn + 0.1]


def _around_a_turn() -> list[float]:
    turn = _next_turn(time.time() + _LONGEST_BURST)
    return [turn - _LONGEST_BURST, turn + 5.0]


def _next_turn(after: float) -> float:
    return (int(after) // _MINUTE + 1) * float(_MINUTE)


def _row(case: str, size: _Size, outcome: _Outcome) -> Row:
    emulator = outcome.emulator
    measures = {
        "accepted": Measure((emulator.accepted,), ""),
        "upstream 429": Measure((emulator.refused,), ""),
        "utilisation": Measure((100 * outcome.peak / size.quota,), "%"),
    }
    return Row(case, outcome.client.name, measures, None, outcome.client.note)


def _targets(tables: list[Table]) -> Table:
    targets = Table("targets")
    rows = [row for table in tables for row in table.rows if row.subject.startswith("llm_router")]
    refused = sum(row.measures["upstream 429"].median for row in rows)
    least = min(row.measures["utilisation"].median for row in rows)
    targets.add(Row("all traffic: no upstream 429", "llm_router", {"reached": Measure((refused,), "")}))
    targets.add(Row("all traffic: utilisation ≥ 99 %", "llm_router", {"reached": Measure((least,), "%")}))
    return targets


def main() -> None:
    """Measure contention as ``run.py`` does, or only the events."""
    parser = argparse.ArgumentParser(description="Several processes on the same quotas.")
    parser.add_argument(
        "--events", action="store_true", help="only let the store fail and forget (5 minutes)"
    )
    parser.add_argument("--short", action="store_true", help="only check that it runs")
    options = parser.parse_args()
    if options.events:
        print(asyncio.run(measure_events()).text())
    else:
        print(asyncio.run(run(Scale.smallest() if options.short else Scale())).text())


if __name__ == "__main__":
    main()

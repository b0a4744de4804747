"""Run the benchmarks: ``python benchmarks/run.py [NAME …] [--short] [--json FILE] [--plots DIR]``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from _harness import Report, Scale, machine

__all__ = ["BENCHMARKS", "main", "measure"]

BENCHMARKS = (
    *("stores", "selection", "overhead", "memory", "waiting"),
    *("sdk", "dropin", "gateway", "contention", "simulation"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks named on the command line."""
    options = _options().parse_args(arguments)
    scale = Scale.smallest() if options.short else Scale(runs=options.runs, seconds=options.seconds)
    where = machine()
    print(_heading(where, scale), flush=True)
    reports = []
    for name in options.names or BENCHMARKS:
        reports.append(measure(name, scale))
        print(f"\n{reports[-1].text()}\n\n({name}: {reports[-1].seconds:.0f} s)", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(_data(where, scale, reports), indent=1) + "\n", encoding="utf-8")
    if options.plots is not None:
        from _plots import draw  # noqa: PLC0415 - matplotlib is slow to import, and only needed here

        for path in draw(reports, options.plots):
            print(f"wrote {path}")
    return 0


def measure(name: str, scale: Scale) -> Report:
    """Run one benchmark by its name."""
    gc.collect()
    began = time.perf_counter()
    report: Report = asyncio.run(importlib.import_module(name).run(scale))
    report.seconds = time.perf_counter() - began
    return report


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure llm_router and its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--short", action="store_true", help="only check that everything runs (under 60 s)")
    parser.add_argument("--runs", type=int, default=Scale().runs, help="runs per figure (%(default)s)")
    parser.add_argument("--seconds", type=float, default=Scale().seconds, help="of each run (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into DIR (needs matplotlib)")
    return parser


def _heading(where: dict[str, Any], scale: Scale) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    lines = [
        "# llm_router benchmarks",
        "",
        f"{where['date']}; {where['cpu']}, {where['cores']} cores; {where['system']}; {where['python']}",
        packages,
        f"each figure: median of {scale.runs} runs, ± half of their range",
    ]
    if where["not installed"]:
        lines.append(f"not installed: {', '.join(where['not installed'])}")
    if scale.short:
        lines.append("SHORT MODE: this only shows that the suite runs; the figures mean nothing")
    return "\n".join(lines)


def _data(where: dict[str, Any], scale: Scale, reports: list[Report]) -> dict[str, Any]:
    return {
        "machine": where,
        "runs": scale.runs,
        "seconds": scale.seconds,
        "short": scale.short,
        "reports": [report.data() for report in reports],
    }


if __name__ == "__main__":
    sys.exit(main())

"""A plan as a picture; it needs matplotlib (extra ``plot``), which is imported when one is drawn."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from llm_router.planning.figures import Plan, percentile
from llm_router.planning.simulation import Outcome
from llm_router.planning.traffic import Arrival

__all__ = ["can_draw", "draw"]

_BINS = 240
_HOUR = 3600.0


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(path: Path, traffic: Sequence[Arrival], outcome: Outcome, plan: Plan) -> None:
    """Write a PNG: requests a minute and what became of them, and their waits, over the hours.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and only needed here

    width = max((plan.ends - plan.begins) / _BINS, 60.0)
    bins: list[list[float]] = [[] for _ in range(int((plan.ends - plan.begins) / width) + 1)]
    for arrival, wait in zip(traffic, outcome.waits, strict=True):
        bins[int((arrival.at - plan.begins) / width)].append(wait)
    hours = [number * width / _HOUR for number in range(len(bins))]
    figure = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    per_minute = 60.0 / width
    above.plot(hours, [len(waits) * per_minute for waits in bins], label="requests", color="tab:gray")
    answered = [sum(wait < math.inf for wait in waits) * per_minute for waits in bins]
    above.plot(hours, answered, label="answered", color="tab:blue")
    above.set_ylabel("a minute, by their arrival")
    for share, colour in ((0.5, "tab:green"), (0.95, "tab:orange"), (0.99, "tab:red")):
        waits = [percentile(sorted(each), share) if each else math.nan for each in bins]
        below.plot(
            hours, [w if w < math.inf else math.nan for w in waits], label=f"p{share * 100:.0f}", color=colour
        )
    below.set_ylabel("wait, s (gap: not answered)")
    below.set_xlabel("hours since the first request")
    for model, at in plan.spent_at.items():
        hour = (at - plan.begins) / _HOUR
        above.axvline(hour, linestyle=":", color="black")
        below.axvline(hour, linestyle=":", color="black")
        below.text(hour, 0.0, f" {model}: day spent", rotation=90, va="bottom", ha="right", fontsize="small")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", fontsize="small")
    figure.savefig(path, format="png", dpi=120)

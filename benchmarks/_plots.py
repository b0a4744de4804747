"""Plots of the results; they need matplotlib, which is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _harness import Report, Row, Table

__all__ = ["draw"]

_NOT_DRAWN = ("targets",)


def draw(reports: Sequence[Report], directory: Path) -> Iterator[Path]:
    """Draw one PNG per table into ``directory``, which is made if missing; yield their paths."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only needed here

    mpl.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    for report in reports:
        for number, table in enumerate(report.tables):
            rows = [row for row in table.rows if row.measures]
            if rows and table.title not in _NOT_DRAWN:
                path = directory / f"{report.name}-{number + 1}.png"
                _bars(table, rows, path)
                yield path


def _bars(table: Table, rows: Sequence[Row], path: Path) -> None:
    """Draw the first quantity of every row, on a logarithmic scale if the values differ widely."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - see draw()

    quantity, measure = next(iter(rows[0].measures.items()))
    rows = [row for row in rows if quantity in row.measures]
    figure, axes = plt.subplots(figsize=(10, 0.6 + 0.28 * len(rows)), layout="constrained")
    _fill(axes, rows, quantity)
    axes.set_title(table.title, fontsize="medium")
    axes.set_xlabel(f"{quantity} ({measure.unit})" if measure.unit else quantity)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _fill(axes: Any, rows: Sequence[Row], quantity: str) -> None:
    medians = [row.measures[quantity].median for row in rows]
    lows = [row.measures[quantity].median - min(row.measures[quantity].samples) for row in rows]
    highs = [max(row.measures[quantity].samples) - row.measures[quantity].median for row in rows]
    subjects = list(dict.fromkeys(row.subject for row in rows))
    colours = [f"C{subjects.index(row.subject) % 10}" for row in rows]
    positions = range(len(rows))
    axes.barh(positions, medians, xerr=(lows, highs), color=colours, error_kw={"elinewidth": 1})
    axes.set_yticks(positions, [f"{row.case}: {row.subject}" for row in rows], fontsize="x-small")
    axes.invert_yaxis()
    if min(medians) > 0 and max(medians) > 20 * min(medians):
        axes.set_xscale("log")

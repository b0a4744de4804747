"""The output of the demonstration: counts, and on a terminal the keys and quotas as they change."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, TypedDict

import attrs

from llm_router.cli.words import fraction
from llm_router.domain.response import Response
from llm_router.domain.status import KeyStatus
from llm_router.router import Router

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["DemoRecord", "Tally", "plain_summary", "watch"]

_PERIOD = 0.1
"""Seconds between two updates."""

_ROWS = 24
"""Most deployments shown."""

_SHORTEST, _LONGEST = 4, 20
"""Characters of a bar."""

_GAP = 2
"""Characters between two columns."""


class DemoRecord(TypedDict):
    """The summary, in the form of JSON."""

    sent: int
    succeeded: int
    failed: int
    upstream_requests: int
    """Requests that arrived at the emulator."""
    upstream_429: int
    """Requests that the emulator refused for lack of quota."""
    by_model: dict[str, int]
    """Answers by model."""
    elapsed_seconds: float


@attrs.define
class Tally:
    """The progress of the demonstration.

    Attributes:
        prompts: All prompts.
        factor: The factor by which every quota was raised.
        sent: Prompts passed to the router.
        succeeded: Prompts answered.
        failed: Prompts that failed.
        by_model: Answers by model.
        by_deployment: Answers by key and model.
        elapsed: Seconds from start to end.
        error: The last error, in words.
    """

    prompts: int
    factor: int
    sent: int = 0
    succeeded: int = 0
    failed: int = 0
    by_model: Counter[str] = attrs.field(factory=Counter)
    by_deployment: Counter[tuple[str | None, str]] = attrs.field(factory=Counter)
    elapsed: float = 0.0
    error: str = ""

    def note(self, response: Response) -> None:
        """Count a response."""
        if response.error is not None:
            self.failed += 1
            self.error = str(response.error)
            return
        model = response.model or "?"
        self.succeeded += 1
        self.by_model[model] += 1
        self.by_deployment[response.key_id, model] += 1

    def record(self, requests: int, refused: int) -> DemoRecord:
        """Return the summary in the form of JSON."""
        return DemoRecord(
            sent=self.sent,
            succeeded=self.succeeded,
            failed=self.failed,
            upstream_requests=requests,
            upstream_429=refused,
            by_model=dict(self.by_model.most_common()),
            elapsed_seconds=round(self.elapsed, 3),
        )


def plain_summary(tally: Tally, requests: int, refused: int) -> str:
    """Return the summary as text."""
    width = max(map(len, tally.by_model), default=0)
    outcome = (
        f"{tally.succeeded} of {tally.sent} prompts answered in {tally.elapsed:.1f} s; "
        f"the provider received {requests} requests and refused {refused} for quota (429)."
    )
    lines = [
        outcome,
        *(f"  {model:{width}}  {count:5}" for model, count in tally.by_model.most_common()),
    ]
    if tally.failed:
        lines.append(f"{tally.failed} failed; the last error: {tally.error}")
    return "\n".join(lines)


async def watch(router: Router, tally: Tally) -> None:
    """Draw the router's keys on the terminal until all prompts are done."""
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.live import Live  # noqa: PLC0415

    with Live(auto_refresh=False, console=Console()) as live:
        while True:
            live.update(
                _picture(await router.get_all_key_statuses(), tally, live.console.width), refresh=True
            )
            if tally.succeeded + tally.failed >= tally.prompts:
                return
            await asyncio.sleep(_PERIOD)


def _picture(statuses: list[KeyStatus], tally: Tally, width: int) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415 - only for a terminal
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    done = tally.succeeded + tally.failed
    words = f"{done} of {tally.prompts} done, {tally.sent - done} in progress or waiting for quota"
    if hidden := len(statuses) - _ROWS:
        words += f"; {hidden} more rows not shown" if hidden > 0 else ""
    note = f"the clock runs fast, and every quota is {tally.factor} times that of the keys file"
    below = Table.grid(expand=True)
    for part in (ProgressBar(tally.prompts, done), Text(words), Text(note, style="dim")):
        below.add_row(part)
    return Group(_table(statuses[:_ROWS], tally, width), below)


def _table(statuses: list[KeyStatus], tally: Tally, width: int) -> Table:
    """Return the keys and their quotas; where that is too wide, bars shrink first, then names are folded."""
    from rich import box  # noqa: PLC0415 - only for a terminal
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    daily = any("rpd" in row["limits"] for row in statuses)
    columns = ("key", "model", "workload", "requests", *(("today",) if daily else ()), "answers")
    lines = [
        (
            row["key_id"],
            row["model"],
            row["workload"],
            fraction(row["limits"].get("rpm")),
            *((fraction(row["limits"].get("rpd")),) if daily else ()),
            str(tally.by_deployment[row["key_id"], row["model"]]),
        )
        for row in statuses
    ]
    taken = sum(max(map(len, column)) + _GAP for column in zip(columns, *lines, strict=True))
    bar = min(max(width - taken - _GAP, _SHORTEST), _LONGEST)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in (*columns[:3], "this minute", *columns[3:]):
        table.add_column(column, overflow="fold")
    for row, line in zip(statuses, lines, strict=True):
        minute = row["limits"].get("rpm")
        used, limit = (0, None) if minute is None else (minute["used"], minute["limit"])
        cells = [Text(cell, overflow="fold") for cell in line]
        table.add_row(*cells[:3], ProgressBar(limit or 1, used if limit else 0, width=bar), *cells[3:])
    return table

"""``llm-router status``: the state of every key, and the health of the pool."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import Annotated

import typer

from llm_router.cli import status_view
from llm_router.cli.options import KEYS, AsJson, Keys, Store
from llm_router.cli.output import (
    FAILED,
    complain,
    is_terminal,
    print_json,
    printable,
    say,
    show_table,
)
from llm_router.cli.routers import open_router
from llm_router.cli.status_view import blocks, notes, table, wrapped
from llm_router.cli.words import health_words, line_words, saved_words
from llm_router.config import load_settings
from llm_router.domain.status import Health, KeyStatus, without_deprecated
from llm_router.engine.overview import Report
from llm_router.engine.totals import DAYS_KEPT

__all__ = ["status"]


Days = Annotated[
    int | None,
    typer.Option(
        "--days", min=1, max=DAYS_KEPT, help="Show what each key did on so many days, today included."
    ),
]


def status(*, days: Days = None, as_json: AsJson = False, keys: Keys = KEYS, store: Store = None) -> None:
    """Show the state and the quotas of every key, and what it did.

    Limits are as configured, or as the provider stated them (!), inferred from its refusals (~), or unknown,
    since nothing was refused so far (?). Of what is not counted for a whole minute or day yet, more may be
    used than is shown (≥). What only a running program knows is not shown: which deployments it
    avoids, or keeps for later in the day (rpd_pacing). The last line says whether a send can succeed now; if
    none can, or the store does not answer, the exit code is 1. Long reasons are shortened; --json has them in
    full.
    """
    settings = load_settings(keys, store_needed=store is None)

    async def ask() -> Report:
        async with open_router(settings, store) as router:
            return await router.keys.report(days=days or 1)

    report = asyncio.run(ask())
    health, statuses = report.health, report.keys
    if as_json:
        print_json({"health": health, "keys": [without_deprecated(row) for row in statuses]})
    else:
        _show(health, statuses, by_day=days is not None)
    if not health["healthy"] or not health["store_ok"]:
        raise typer.Exit(FAILED)


def _show(health: Health, statuses: list[KeyStatus], *, by_day: bool) -> None:
    width = shutil.get_terminal_size().columns if is_terminal() else None
    if statuses:
        columns, rows, needed = table(statuses)
        if width is None or needed <= width:
            show_table(columns, rows)
        else:
            for line in blocks(statuses, width):
                say(line)
        if by_day:
            say()
            show_table(*status_view.days(statuses))
            say()
    counts = (
        f", {health['in_cooldown']} in cooldown, {health['quarantined']} quarantined, "
        f"{health['disabled']} disabled, {health['spent']} spent"
    )
    summary = (
        f"{health_words(health)}: {health['active_keys']} of {health['total_keys']} keys active"
        f"{counts if statuses else ''}; "
        f"{health['store']} {'answers' if health['store_ok'] else 'does not answer'}"
    )
    more = [words for words in (line_words(health["line"]), saved_words(health["cache"])) if words]
    for text in (*notes(statuses, time.time()), *more, summary):
        for line in [text] if width is None else wrapped(text, width, ""):
            say(line)
    for problem in health["problems"]:
        complain(printable(problem))

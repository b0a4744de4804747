"""``llm-router explain``: what a send would decide now, and why."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import attrs
import typer

from llm_router.cli.options import (
    KEYS,
    AsJson,
    Keys,
    Prompt,
    Store,
    System,
    WithinFallback,
    fallback_named,
    prompt_text,
)
from llm_router.cli.output import FAILED, print_json, printable, say, show_table
from llm_router.cli.routers import open_router
from llm_router.config import load_settings
from llm_router.domain.explanation import ExplainedCandidate, Explanation
from llm_router.domain.status import DEPRECATED

__all__ = ["explain"]

_COLUMNS = ("tier", "rank", "key", "model", "workload", "priority", "left", "decision", "quotas")

_TIMES = {"retry_after": "retry_at", "usable_in": "usable_at", "fits_in": "fits_at"}
"""The times of an explanation in seconds, and what they are called since the epoch."""


def explain(
    prompt: Prompt,
    *,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Preferred workload, such as light, medium or heavy.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Preferred model.")] = None,
    fallback: WithinFallback = "any",
    system: System = None,
    as_json: AsJson = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Explain where a prompt would be sent now, and why not elsewhere.

    Nothing is sent, and no quota is taken. What only a running program knows is not shown, such as which
    deployments it avoids. If nothing has room now, the exit code is 1.
    """
    text = prompt_text(prompt)
    settings = load_settings(keys, store_needed=store is None)
    within = fallback_named(fallback)

    async def ask() -> Explanation:
        async with open_router(settings, store) as router:
            return await router.explain(
                text,
                workload=workload,
                model_preference=model,
                fallback=within,
                system_instruction=system,
            )

    explanation = asyncio.run(ask())
    if as_json:
        found = _timed(attrs.asdict(explanation), time.time())
        print_json({"available": explanation.taken is not None, **found})
    else:
        _show(explanation)
    if explanation.taken is None:
        raise typer.Exit(FAILED)


def _timed(found: Any, now: float) -> Any:
    """Return an explanation with the unit in the names of its times, and each time also since the epoch."""
    if isinstance(found, list | tuple):
        return [_timed(each, now) for each in found]
    if not isinstance(found, dict):
        return found
    timed: dict[str, Any] = {}
    for name, value in found.items():
        if name in _TIMES:
            timed[f"{name}_seconds"] = value
            timed[_TIMES[name]] = None if value is None else now + value
        elif name not in DEPRECATED:
            timed[name] = _timed(value, now)
    return timed


def _show(explanation: Explanation) -> None:
    rows = [
        _row(number, candidate)
        for number, tier in enumerate(explanation.tiers, 1)
        for candidate in tier.candidates
    ]
    show_table(_COLUMNS, rows)
    if explanation.left_out:
        say(f"and {explanation.left_out} more deployments, which would be asked later")
    say(explanation.verdict)


def _row(tier: int, candidate: ExplainedCandidate) -> tuple[str, ...]:
    return (
        str(tier),
        "-" if candidate.rank is None else str(candidate.rank),
        candidate.key_id,
        candidate.model,
        candidate.workload,
        str(candidate.priority),
        f"{candidate.remaining:.0%}",
        printable(candidate.decision),
        candidate.counts,
    )

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
from llm_router.cli.output import FAILED, count, print_json, printable, say, shortened, show_table
from llm_router.cli.routers import open_router
from llm_router.cli.words import metric_words
from llm_router.config import load_settings
from llm_router.domain.explanation import Exclusion, ExplainedCandidate, ExplainedQuota, Explanation
from llm_router.domain.status import DEPRECATED
from llm_router.domain.wording import seconds_words

__all__ = ["explain"]

_COLUMNS = ("tier", "rank", "key", "model", "workload", "priority", "left", "decision", "quotas")

_WORDS = {
    Exclusion.QUARANTINED: "quarantined: {}",
    Exclusion.COOLING_DOWN: "cooling down: {}",
    Exclusion.AVOIDED: "avoided: {}",
    Exclusion.PACED: "paced: {}",
    Exclusion.QUOTA: "{} has no room",
    Exclusion.PARKED: "parked: {}",
}

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
    taken = explanation.taken
    if taken is not None:
        tokens = count(taken.tokens, "token")
        say(printable(f"would be sent through {taken.key_id}/{taken.model}, reserving {tokens}"))
    elif explanation.retry_after is None:
        say("nothing has room, and waiting does not help")
    else:
        say(f"nothing has room now: retry in {seconds_words(explanation.retry_after)}")


def _row(tier: int, candidate: ExplainedCandidate) -> tuple[str, ...]:
    quotas = (*candidate.quotas, *candidate.project_quotas)
    shown = [*map(_quota, candidate.quotas)]
    shown += (f"all models: {_quota(quota)}" for quota in candidate.project_quotas)
    return (
        str(tier),
        "-" if candidate.rank is None else str(candidate.rank),
        candidate.key_id,
        candidate.model,
        candidate.workload,
        str(candidate.priority),
        f"{min((quota.remaining for quota in quotas), default=1.0):.0%}",
        printable(_decision(candidate)),
        ", ".join(shown) or "no limits",
    )


def _decision(candidate: ExplainedCandidate) -> str:
    """Say in words whether a deployment would be taken, and if not, why and until when."""
    if candidate.exclusion is None:
        return "taken" if candidate.is_taken else "has room"
    reason = shortened(candidate.reason or candidate.exclusion.value)
    words = _WORDS.get(candidate.exclusion, "{}").format(reason)
    if candidate.usable_in is not None:
        return f"{words}, for {seconds_words(candidate.usable_in)}"
    return f"{words}, for good" if candidate.exclusion is Exclusion.QUOTA else words


def _quota(quota: ExplainedQuota) -> str:
    limit = quota.status["limit"]
    amount = f" + {quota.amount}" if quota.metric.counts_tokens else ""
    least = "" if quota.status["counted_since"] is None else "≥"
    shown = f"{least}{quota.status['used']}{amount}/{'∞' if limit is None else limit}"
    return f"{metric_words(quota.name)} {shown} {quota.status['source']}"

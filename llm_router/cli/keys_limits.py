"""``llm-router keys limits``: the limits of a key, how they are known, and how to have them learnt anew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated, TypedDict

import typer

from llm_router.cli.options import KEYS, AsJson, KeyId, Keys, OneModel, Store
from llm_router.cli.output import print_json, printable, say, show_table
from llm_router.cli.routers import choose_shared_store, open_router
from llm_router.cli.words import moment
from llm_router.config import load_settings
from llm_router.domain.deployment import EVERY_MODEL
from llm_router.domain.status import KeyStatus, LimitStatus, LimitTerms
from llm_router.domain.wording import known_words, metric_words, span

__all__ = ["LimitRecord", "how_known", "limit_records", "limits"]

_COLUMNS = ("model", "quota", "limit", "configured", "how it is known", "used", "back in")


class LimitRecord(TypedDict):
    """One quota, in the form of JSON; the model is ``*`` where all models of the project share it."""

    key_id: str
    project: str
    model: str
    metric: str
    limit: int | None
    configured: int | None
    configured_as: LimitTerms
    source: str
    used: int
    full_until: float | None
    counted_since: float | None
    learnt_ago_seconds: float | None
    learnt_at: float | None
    raised_in_seconds: float | None
    raised_at: float | None
    reset_in_seconds: float
    reset_at: float


def limits(
    key: KeyId,
    *,
    model: OneModel = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget what was learnt, so that it is learnt anew.")
    ] = False,
    as_json: AsJson = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Show the limits of a key: what is configured, what is in force, and how that is known.

    A quota is configured as a number, which is a cap, to be learnt, or unlimited: null, or left out where the
    model has other limits. One of that kind has a line once a refusal has named it, and may be counted for a
    part of its minute or day only ("0 since 12:03:04"): more may be used.

    Keys of one project share them, so what is forgotten is forgotten for all of them. A limit that all
    models of the project share has a line of its own; with --model, it is not forgotten.
    """
    settings = load_settings(keys, store_needed=store is None)
    if forget:
        choose_shared_store(settings, store)

    async def ask() -> tuple[list[KeyStatus], list[KeyStatus]]:
        async with open_router(settings, store) as router:
            before = await router.keys.statuses_of(key, model)
            if not forget:
                return before, before
            await router.keys.forget_limits(key, model)
            return before, await router.keys.statuses_of(key, model)

    before, statuses = asyncio.run(ask())
    records = [*limit_records(statuses), *_project_records(statuses)]
    if as_json:
        print_json(records)
        return
    if forget:
        for line in _forgotten(key, [*limit_records(before), *([] if model else _project_records(before))]):
            say(printable(line))
        if any(row["cooldown_until"] for row in statuses):
            say(f"it is still cooling down: llm-router keys lift {printable(key)} ends that, too")
    show_table(_COLUMNS, [tuple(map(printable, _cells(record))) for record in records])
    unlimited = [row["model"] for row in statuses if not row["limits"]]
    if unlimited:
        say(printable(f"unlimited: {', '.join(unlimited)}"))


def limit_records(statuses: Iterable[KeyStatus]) -> list[LimitRecord]:
    """Return every quota in these statuses."""
    return [
        _record(status, metric, limit) for status in statuses for metric, limit in status["limits"].items()
    ]


def _project_records(statuses: Iterable[KeyStatus]) -> list[LimitRecord]:
    """Return every quota that all models of a project share, once for each project."""
    projects = {(status["provider"], status["project"]): status for status in statuses}
    return [
        _record(status, metric, limit) | {"model": EVERY_MODEL}
        for status in projects.values()
        for metric, limit in status["project_limits"].items()
    ]


def how_known(record: LimitRecord) -> str:
    """Say how a limit is known, since when, and whether more will be tried."""
    raised_in = record["raised_in_seconds"]
    return known_words(record["source"], record["limit"], record["learnt_ago_seconds"], raised_in)


def _forgotten(key: str, records: Iterable[LimitRecord]) -> list[str]:
    """Return what was learnt, in a line for each limit, or that there was nothing to forget."""
    learnt = (record for record in records if record["learnt_at"] is not None)
    lines = [
        f"forgotten: {_model(each)} {metric_words(each['metric'])} {_limit(each)}, {how_known(each)}"
        for each in learnt
    ]
    return lines or [f"nothing to forget: no limit of {key} that is in force was learnt"]


def _model(record: LimitRecord) -> str:
    return "all models" if record["model"] == EVERY_MODEL else record["model"]


def _limit(record: LimitRecord) -> str:
    return "unknown" if record["limit"] is None else f"{record['limit']:,}"


def _record(status: KeyStatus, metric: str, limit: LimitStatus) -> LimitRecord:
    return LimitRecord(
        key_id=status["key_id"],
        project=status["project"],
        model=status["model"],
        metric=metric,
        limit=limit["limit"],
        configured=limit["configured"],
        configured_as=limit["configured_as"],
        source=limit["source"],
        used=limit["used"],
        full_until=limit["full_until"],
        counted_since=limit["counted_since"],
        learnt_ago_seconds=_rounded(limit["learnt_ago"]),
        learnt_at=limit["learnt_at"],
        raised_in_seconds=_rounded(limit["raised_in"]),
        raised_at=limit["raised_at"],
        reset_in_seconds=round(limit["reset_in_seconds"], 3),
        reset_at=limit["reset_at"],
    )


def _cells(record: LimitRecord) -> tuple[str, ...]:
    now = record["reset_at"] - record["reset_in_seconds"]
    since = record["counted_since"]
    full = "" if record["full_until"] is None else " (full, says the provider)"
    return (
        _model(record),
        metric_words(record["metric"]),
        _limit(record),
        _configured(record),
        how_known(record),
        f"{record['used']:,}{'' if since is None else f' since {moment(since, now)}'}{full}",
        span(record["reset_in_seconds"]) if record["used"] or full else "",
    )


def _configured(record: LimitRecord) -> str:
    """Return the cap of a quota, or what else is configured; nothing can be for all models of a project."""
    if record["model"] == EVERY_MODEL:
        return ""
    return record["configured_as"] if record["configured"] is None else f"{record['configured']:,}"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)

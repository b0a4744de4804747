"""The statuses of all keys as lines of text: a table where it fits, a few lines a key elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from llm_router.cli.output import in_lines, printable, table_width
from llm_router.cli.words import failure_words, fraction, learnt_words, moment, state_of, today_words
from llm_router.domain.status import KeyStatus
from llm_router.domain.wording import span

__all__ = ["blocks", "days", "notes", "table", "wrapped"]

_METRICS = ("rpm", "tpm", "rpd", "tpd")
_FAILURES_SHOWN = 3
_LASTS = "–"


def table(statuses: Sequence[KeyStatus]) -> tuple[tuple[str, ...], list[tuple[str, ...]], int]:
    """Return the head and the rows of a table, and how many columns of a terminal it needs."""
    head = ("key", "model", "project", "workload", "priority", *_METRICS, "today", "day ends", "state")
    rows = [
        (
            printable(row["key_id"]),
            printable(row["model"]),
            printable(row["project"]),
            printable(row["workload"]),
            str(row["priority"]),
            *(fraction(row["limits"].get(metric)) for metric in _METRICS),
            today_words(row["today"]),
            _day_ends(row),
            state_of(row),
        )
        for row in statuses
    ]
    return head, rows, table_width(head, rows)


def blocks(statuses: Iterable[KeyStatus], width: int) -> Iterator[str]:
    """Yield a few lines for each deployment, none longer than ``width``."""
    for row in statuses:
        belongs = "" if row["project"] == row["key_id"] else f", project {row['project']}"
        used = [f"{metric} {fraction(limit)}" for metric, limit in row["limits"].items()]
        if row["today"] is not None and row["today"]["requests"]:
            used.append(f"today {today_words(row['today'])}")
        if (ends := _day_ends(row)) != _LASTS:
            used.append(f"day ends {ends}")
        terms = f"{row['workload']}, priority {row['priority']}{belongs}"
        yield from _join(f"{row['key_id']}  {row['model']}", state_of(row), width, "")
        yield from _join("  ".join(used), terms, width, "  ")


def days(statuses: Iterable[KeyStatus]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the head and the rows of a table of what each key did by day, the last day first."""
    head = ("day", "key", "model", "requests", "input tokens", "output tokens", "429s", "errors")
    rows = [
        (
            day["day"],
            printable(row["key_id"]),
            printable(row["model"]),
            *(str(day[field]) for field in ("requests", "input_tokens", "output_tokens")),
            *(str(day[field]) for field in ("rate_limited", "errors")),
        )
        for row in statuses
        for day in row["days"]
        if day["requests"]
    ]
    return head, sorted(rows, key=itemgetter(0), reverse=True)


def notes(statuses: Sequence[KeyStatus], now: float) -> Iterator[str]:
    """Yield what else there is to say: limits learnt, facts, and the last failures of each key.

    Args:
        statuses: The statuses.
        now: Seconds since the Unix epoch.
    """
    told: set[str] = set()
    for row in statuses:
        name = f"{row['key_id']} {row['model']}"
        lines = [
            f"{name}: {learnt_words(metric, limit, now)}"
            for metric, limit in row["limits"].items()
            if limit["learnt_at"] is not None
        ]
        lines += [
            f"project {row['project']}, all models: {learnt_words(metric, limit, now)}"
            for metric, limit in row["project_limits"].items()
            if limit["limit"] is not None
        ]
        lines += [f"{name}: {fact['words']}" for fact in row["facts"]]
        lines += [
            f"{row['key_id']} failed {failure_words(failure, now)}"
            for failure in row["failures"][:_FAILURES_SHOWN]
        ]
        for line in lines:
            if line not in told:  # the failures of a key, and what its models share, are in several rows
                told.add(line)
                yield printable(line)


def _day_ends(row: KeyStatus) -> str:
    """Return when the quota of a day is used up at the present pace, the first one of several."""
    ends = [
        (limit["used_up_at"], limit["used_up_in_seconds"] or 0.0)
        for limit in row["limits"].values()
        if limit["used_up_at"] is not None
    ]
    if not ends:
        return _LASTS
    at, seconds = min(ends)
    assert at is not None  # noqa: S101 - they were left out
    return "spent" if seconds <= 0.0 else f"{moment(at, at - seconds)} ({span(seconds)})"


def _join(first: str, second: str, width: int, indent: str) -> list[str]:
    """Return two texts in one line if they fit, else each in lines of its own."""
    line = f"{indent}{first}{'  ' if first else ''}{second}"
    if len(line) <= width:
        return [printable(line)]
    return [*wrapped(first, width, indent), *wrapped(second, width)]


def wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    """Return a text in lines of at most ``width`` characters (20 at least), the first one indented."""
    return in_lines(printable(text), width, indent, f"{indent}  ")

"""Statuses in words: numbers, times and what is the matter with a key, as people read them."""

from __future__ import annotations

from datetime import datetime

from llm_router.cli.output import printable, shortened
from llm_router.domain.status import (
    CacheSavings,
    DayTotals,
    FailureStatus,
    Health,
    KeyStatus,
    LimitStatus,
    LineStatus,
)
from llm_router.domain.wording import known_words, metric_words, span

__all__ = [
    "amount",
    "failure_words",
    "fraction",
    "health_words",
    "learnt_words",
    "line_words",
    "moment",
    "saved_words",
    "state_of",
    "today_words",
]

_HOUR, _DAY = 3600.0, 86_400.0
_ROUND = 10_000

_MARKS = {"stated": "!", "inferred": "~", "unknown": "?"}
"""The marks of limits that were learnt, or that nothing was refused at so far."""


def amount(number: float) -> str:
    """Return a number in at most six characters: ``9999``, ``250k``, ``1.5M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= max(size, _ROUND):
            scaled = f"{number / size:.1f}".removesuffix(".0")
            return f"{scaled}{unit}" if len(scaled) <= 4 else f"{number / size:.0f}{unit}"  # noqa: PLR2004
    return f"{number:.0f}"


def today_words(day: DayTotals | None) -> str:
    """Return how many requests a key sent on a day, and how many were refused or failed: ``312, 4x429``."""
    if day is None:
        return "–"
    words = amount(day["requests"])
    if day["rate_limited"]:
        words += f", {amount(day['rate_limited'])}x429"
    if day["errors"]:
        words += f", {amount(day['errors'])} failed"
    return words


def moment(at: float, now: float) -> str:
    """Return a time of day here, with its date unless it is less than a day away."""
    try:
        local = datetime.fromtimestamp(at).astimezone()
    except (OverflowError, ValueError, OSError):  # beyond what a calendar knows
        return "some day"
    if abs(at - now) < _HOUR:
        return f"{local:%H:%M:%S}"
    return f"{local:%H:%M}" if abs(at - now) < _DAY else f"{local:%Y-%m-%d %H:%M}"


def fraction(limit: LimitStatus | None) -> str:
    """Return what is used of a limit: ``3/15``; with ``!`` if stated, ``~`` inferred, ``?`` unknown.

    With ``≥`` it is counted in part: more may be used. Where the provider says that a day is spent, it is
    ``full/15!``, whatever is counted.
    """
    if limit is None:
        return "–"
    known = "" if limit["limit"] is None else amount(limit["limit"])
    used = amount(limit["used"]) if limit["counted_since"] is None else f"≥{amount(limit['used'])}"
    if limit["full_until"] is not None:
        used = "full"
    return f"{used}/{known}{_MARKS.get(limit['source'], '')}"


def state_of(row: KeyStatus, now: float | None = None) -> str:
    """Say in words whether a deployment can be used, and if not, why and until when.

    A long reason is shortened: it may be what a provider has written.

    Args:
        row: Its status.
        now: Seconds since the Unix epoch; by default when the status was made.
    """
    until = _until(row, now)
    reason = shortened(row["reason"] or "")
    match row["state"]:
        case "disabled":
            return reason
        case "quarantined" | "paced" as kind:
            return f"{kind}{until}: {reason}"
        case "cooling_down":
            return f"cooling down{until}: {reason}"
        case "spent":
            return f"spent{until or ' for good'}: {', '.join(row['spent'])}"
        case "unreachable":
            return f"provider cannot be reached; tried again{until}"
        case kind:
            return kind


def health_words(health: Health, now: float | None = None) -> str:
    """Say in words whether a send may succeed now, and if not, why; ``now`` as for :func:`state_of`."""
    match health["state"]:
        case "healthy":
            return "healthy"
        case "spent" | "paced" as kind:
            return f"{kind}{_until(health, now)}"
        case "store_lost":
            goes_on = ", this process goes on alone" if health["healthy"] else ""
            return f"not healthy: the store is lost{goes_on}"
        case _:
            return f"not healthy{_until(health, now)}"


def line_words(line: LineStatus) -> str:
    """Say how many requests wait in all processes, how urgently and for which tenants; "" if none does."""
    if not line["requests"]:
        return ""
    words = f"waiting {amount(line['requests'])}"
    parts = [f"{amount(line[kind])} {kind}" for kind in ("interactive", "batch") if line[kind]]
    parts += [f"{printable(tenant)} {amount(number)}" for tenant, number in line["tenants"].items()]
    return f"{words}: {', '.join(parts)}"


def saved_words(saved: CacheSavings | None) -> str:
    """Say what a cache has saved; "" if there is none."""
    if saved is None:
        return ""
    return f"the cache saved {amount(saved['requests'])} requests, {amount(saved['tokens'])} tokens"


def learnt_words(metric: str, limit: LimitStatus, now: float) -> str:
    """Say what was learnt of a limit, when, and from what."""
    raised_in = None if limit["raised_at"] is None else limit["raised_at"] - now
    known = known_words(limit["source"], limit["limit"], now - (limit["learnt_at"] or now), raised_in)
    metric = metric_words(metric)
    if limit["limit"] is None:
        return f"{metric} has {known}"
    words = f"{metric} {limit['limit']}"
    if limit["configured"] is not None:
        words += f" instead of {limit['configured']}"
    words += f", {known}"
    if limit["counted_since"] is not None:
        words += f"; counted since {moment(limit['counted_since'], now)} only"
    return words


def failure_words(failure: FailureStatus, now: float) -> str:
    """Say what failed, and when."""
    code = "" if failure["code"] is None else f"{failure['code']} "
    return f"{span(max(now - failure['at'], 0.0))} ago, {failure['model']}: {code}{failure['words']}"


def _until(row: KeyStatus | Health, now: float | None = None) -> str:
    """Return `` until 14:05 (12 min)``, or nothing if no time is known."""
    at, seconds = row["usable_at"], row["usable_in_seconds"]
    if at is None or seconds is None:
        return ""
    if now is not None:
        seconds = max(at - now, 0.0)
    return f" until {moment(at, at - seconds)} ({span(seconds)})"

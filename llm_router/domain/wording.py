"""Times, counts and foreign texts as people read them, wherever a person does: in errors, logs and tables."""

from __future__ import annotations

import re

__all__ = ["count", "known_words", "metric_words", "printable", "seconds_words", "shortened", "span"]

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0

_LONGEST_WORDS = 60
"""Characters of a text in a line or a cell that may be as long as a provider likes."""

_SOURCES = {
    "configured": "configured",
    "stated": "stated by the provider",
    "inferred": "inferred from refusals",
    "unknown": "not refused so far",
}

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def span(seconds: float) -> str:
    """Return a span of time: ``90 s``, ``5 min``, ``2.3 h``, ``3 d``."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:.0f} d"


def seconds_words(seconds: float) -> str:
    """Return a number of seconds, from two minutes on also as a span: ``36.4 s``, ``43210.3 s (12.0 h)``."""
    exact = f"{seconds:.1f} s"
    return exact if seconds < 2 * _MINUTE else f"{exact} ({span(seconds)})"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def metric_words(metric: str) -> str:
    """Return the name of a quota, and what is counted if it does not say so."""
    return "spending (requests in 10 min)" if metric == "spending" else metric


def known_words(
    source: str, limit: int | None, learnt_ago: float | None, raised_in: float | None = None
) -> str:
    """Say how a limit is known, and since when; and whether more is tried.

    Args:
        source: The value of a :class:`~llm_router.LimitSource`.
        limit: The limit; None while none is known.
        learnt_ago: Seconds since it was learnt, or counted; None if it was not.
        raised_in: Seconds until more is tried, 0 while ``limit`` is more than was learnt; None for never.
    """
    words = _SOURCES[source]
    if learnt_ago is None:
        return words
    since = f"{span(max(learnt_ago, 0.0))} ago"
    if limit is None:
        return f"no known limit; counted since a refusal {since}"
    if source == "unknown":
        words = f"{words}; grew {since}"
    elif raised_in is not None and raised_in <= 0.0:
        return f"a try: less was {words} {since}"
    else:
        words = f"{words} {since}"
    return f"{words}; more is tried in {span(raised_in)}" if raised_in else words


def printable(text: str) -> str:
    """Return ``text`` without control characters, so that an answer cannot control the terminal."""
    return _CONTROLS.sub("", text)


def shortened(text: str) -> str:
    """Return the beginning of a text that may be long, printable and in one line, for a cell of a table."""
    line = " ".join(printable(text).split())
    return line if len(line) <= _LONGEST_WORDS else f"{line[: _LONGEST_WORDS - 1].rstrip()}…"

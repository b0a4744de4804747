"""How much is sent at present, by two looks at what was counted."""

from __future__ import annotations

import attrs

from llm_router.cli.words import amount
from llm_router.engine.overview import Report

__all__ = ["Rates", "rates_between"]

_MINUTE = 60.0


@attrs.frozen
class Rates:
    """How much all processes sent in a minute, at present.

    Attributes:
        requests: Requests.
        tokens: Tokens, in and out.
        rate_limited: Requests that were refused for want of quota.
    """

    requests: float
    tokens: float
    rate_limited: float

    def in_words(self) -> str:
        """Return them as a line of text."""
        return (
            f"{amount(self.requests)} requests, {amount(self.tokens)} tokens, "
            f"{amount(self.rate_limited)} 429s a minute"
        )


def rates_between(before: Report, after: Report, seconds: float) -> Rates | None:
    """Return what was sent in a minute between two reports; None if it is not known, or a day ended."""
    if seconds <= 0 or before.keys == after.keys == []:
        return None
    counts: list[tuple[int, int, int]] = []
    days = set()
    for report in (before, after):
        todays = [row["today"] for row in report.keys if row["today"] is not None]
        days |= {today["day"] for today in todays}
        counts.append(
            (
                sum(today["requests"] for today in todays),
                sum(today["input_tokens"] + today["output_tokens"] for today in todays),
                sum(today["rate_limited"] for today in todays),
            )
        )
    if len(days) != 1:
        return None
    requests, tokens, refused = (
        max(now - then, 0) * _MINUTE / seconds for then, now in zip(*counts, strict=True)
    )
    return Rates(requests, tokens, refused)

"""How long a refusal asks to wait, as far as it can be meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.kinds import FailureKind
from llm_router.gemini_http.durations import read_delay

if TYPE_CHECKING:
    from llm_router.errors import QuotaViolation

__all__ = ["LONGEST_DAY", "LONGEST_MINUTE", "SHORTEST", "credible_delay", "header_delay"]

SHORTEST = 1.0
"""Seconds; a refusal that asks for less would be repeated at once by every caller."""

LONGEST_MINUTE = 15 * 60.0
"""Seconds that a quota per minute, a server or a path may ask for."""

LONGEST_DAY = 26 * 3600.0
"""Seconds that a quota per day may ask for: a day that has 25 hours, and one more."""


def header_delay(retry_after: str | None) -> float | None:
    """Read a Retry-After header in seconds; None for a date, which is useless without the server's clock."""
    return read_delay(f"{retry_after.strip()}s") if retry_after else None


def credible_delay(
    seconds: float | None, kind: FailureKind, violations: tuple[QuotaViolation, ...]
) -> float | None:
    """Return ``seconds``, at least SHORTEST and at most what the named quotas can need; None stays None."""
    if seconds is None:
        return None
    named = [violation.metric for violation in violations if violation.metric is not None]
    by_minute = all(not metric.is_daily for metric in named) if named else kind is not FailureKind.QUOTA
    return min(max(seconds, SHORTEST), LONGEST_MINUTE if by_minute else LONGEST_DAY)

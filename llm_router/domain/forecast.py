"""Forecast when a day's quota is used up: pure functions of what was counted, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

__all__ = ["LATELY", "SHORTEST", "Sample", "pace", "used_up_at"]

SHORTEST = 60.0
"""Seconds that something must have been watched for before its pace says more than the day so far."""

LATELY = 900.0
"""Seconds back to which what was seen says how fast quota is used at present."""


@attrs.frozen
class Sample:
    """What was counted at one time.

    Attributes:
        at: When, in seconds since the Unix epoch.
        used: Requests or tokens of the day.
    """

    at: float
    used: int


def pace(used: int, now: float, began: float, seen: Sequence[Sample] = ()) -> float:
    """Return how many requests or tokens are used per second at present.

    It is the mean since the oldest of the samples that are not too old, if that is a minute ago or longer;
    otherwise the mean of the day so far.

    Args:
        used: What is counted of the day.
        now: Seconds since the Unix epoch.
        began: When the day began, likewise.
        seen: What was counted earlier, oldest first; samples of another day are left out.
    """
    for sample in seen:
        if max(now - LATELY, began) <= sample.at <= now - SHORTEST and sample.used <= used:
            return (used - sample.used) / (now - sample.at)
    return used / max(now - began, SHORTEST)


def used_up_at(used: int, limit: int | None, per_second: float, now: float, resets_at: float) -> float | None:
    """Return when a day's quota is used up at this pace, in seconds since the Unix epoch.

    Returns:
        The time, ``now`` if it is used up; None if it comes back before, or has no limit.
    """
    if limit is None:
        return None
    if used >= limit:
        return now
    if not 0.0 < per_second < math.inf:
        return None
    at = now + (limit - used) / per_second
    return at if at < resets_at else None

"""Times as whole microseconds since the Unix epoch, and the midnights of a time zone."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

__all__ = ["NEVER", "day_of", "microseconds", "midnights", "next_midnight", "seconds"]

NEVER = 1 << 62
"""Later than every time, in microseconds."""


def microseconds(moment: float) -> int:
    """Convert seconds since the epoch to microseconds; infinity becomes :data:`NEVER`."""
    return round(moment * 1e6) if -math.inf < moment < math.inf else (NEVER if moment > 0 else -NEVER)


def seconds(moment: int) -> float:
    """Convert microseconds to seconds since the epoch; :data:`NEVER` becomes infinity."""
    return moment / 1e6 if moment < NEVER else math.inf


def midnights(now: int, timezone: str) -> tuple[int, int, int]:
    """Return the midnight before (or at) ``now`` in ``timezone``, the next one and the one after that.

    All in microseconds. A time zone skips or repeats an hour now and then, so days differ in length.

    Raises:
        ZoneInfoNotFoundError: There is no such time zone.
    """
    zone = ZoneInfo(timezone)
    today = datetime.fromtimestamp(now / 1e6, zone).date().toordinal()
    return _midnight(today, timezone), _midnight(today + 1, timezone), _midnight(today + 2, timezone)


def next_midnight(now: float, timezone: str) -> float:
    """Return the first midnight in ``timezone`` after ``now``; both in seconds since the epoch.

    Raises:
        ZoneInfoNotFoundError: There is no such time zone.
    """
    return seconds(midnights(microseconds(now), timezone)[1])


def day_of(now: float, timezone: str) -> str:
    """Return the date in ``timezone`` at ``now`` (seconds since the epoch), such as ``2026-11-26``.

    Raises:
        ZoneInfoNotFoundError: There is no such time zone.
    """
    return datetime.fromtimestamp(now, ZoneInfo(timezone)).date().isoformat()


@lru_cache(maxsize=64)
def _midnight(ordinal: int, timezone: str) -> int:
    # Local midnight by wall clock: a day has 23 or 25 hours when the clocks change.
    start = datetime.min.replace(tzinfo=ZoneInfo(timezone)) + timedelta(days=ordinal - 1)
    return microseconds(start.timestamp())

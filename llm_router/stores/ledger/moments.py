"""Moments as the ledgers have them: whole microseconds since the Unix epoch."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

__all__ = ["NEVER", "microseconds", "midnights", "seconds"]

NEVER = 1 << 62
"""Later than every moment, in microseconds."""


def microseconds(moment: float) -> int:
    """Convert seconds since the epoch (possibly infinite) to the microseconds of a ledger."""
    return round(moment * 1e6) if -math.inf < moment < math.inf else (NEVER if moment > 0 else -NEVER)


def seconds(moment: int) -> float:
    """Convert a ledger's microseconds to seconds since the epoch; :data:`NEVER` becomes infinity."""
    return moment / 1e6 if moment < NEVER else math.inf


def midnights(now: int, timezone: str) -> tuple[int, int, int]:
    """Return the midnight before (or at) ``now`` in ``timezone``, the next, and the one after that."""
    zone = ZoneInfo(timezone)
    today = datetime.fromtimestamp(now / 1e6, zone).date().toordinal()
    return _midnight(today, timezone), _midnight(today + 1, timezone), _midnight(today + 2, timezone)


@lru_cache(maxsize=64)
def _midnight(ordinal: int, timezone: str) -> int:
    # Local midnight by wall clock: a day has 23 or 25 hours when the clocks change.
    start = datetime.min.replace(tzinfo=ZoneInfo(timezone)) + timedelta(days=ordinal - 1)
    return microseconds(start.timestamp())

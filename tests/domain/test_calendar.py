"""Times in microseconds, and the midnights of a time zone."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from llm_router.domain.calendar import NEVER, microseconds, midnights, next_midnight, seconds

PACIFIC = "America/Los_Angeles"


def _utc(*moment: int) -> int:
    return microseconds(datetime(*moment, tzinfo=UTC).timestamp())


def test_seconds_and_microseconds_are_inverses():
    """Infinity included."""
    now = 1_800_041_000_250_000
    assert microseconds(seconds(now)) == now
    assert microseconds(math.inf) == NEVER
    assert seconds(NEVER) == math.inf
    assert microseconds(-math.inf) == -NEVER


def test_midnights_follow_the_wall_clock():
    """Days of 24, 23 and 25 hours, zones off the full hour, and a midnight that does not exist."""
    assert midnights(_utc(2027, 1, 15, 8), PACIFIC) == (
        _utc(2027, 1, 15, 8),
        _utc(2027, 1, 16, 8),
        _utc(2027, 1, 17, 8),
    )
    assert midnights(_utc(2027, 1, 15, 8) - 1, PACIFIC)[1] == _utc(2027, 1, 15, 8)
    assert midnights(_utc(2027, 3, 14, 20), PACIFIC)[:2] == (_utc(2027, 3, 14, 8), _utc(2027, 3, 15, 7))
    assert midnights(_utc(2027, 11, 7, 20), PACIFIC)[:2] == (_utc(2027, 11, 7, 7), _utc(2027, 11, 8, 8))
    assert midnights(_utc(2027, 5, 3, 12), "Asia/Kathmandu")[0] == _utc(2027, 5, 2, 18, 15)
    # In Santiago the clocks went from 24:00 on 2019-09-07 to 01:00 on the 8th.
    assert midnights(_utc(2019, 9, 8, 2), "America/Santiago")[1] == _utc(2019, 9, 8, 4)


@pytest.mark.parametrize("zone", [PACIFIC, "Asia/Kathmandu", "America/Santiago"])
def test_the_next_midnight_is_after_now(zone):
    """A microsecond before midnight it is that midnight, at midnight the following one."""
    now = _utc(2027, 3, 14, 20)
    first = next_midnight(seconds(now), zone)
    assert microseconds(first) == midnights(now, zone)[1]
    assert next_midnight(first - 1e-6, zone) == first
    assert next_midnight(first, zone) > first

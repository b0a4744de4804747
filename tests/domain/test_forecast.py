from __future__ import annotations

import math

import pytest

from llm_router.domain.forecast import LATELY, Sample, pace, used_up_at

DAWN, NOON, DUSK = 0.0, 43_200.0, 86_400.0


@pytest.mark.parametrize(
    ("used", "seen", "expected"),
    [
        (432, (), 0.01),
        (432, (Sample(NOON - 600, 372),), 0.1),
        (432, (Sample(NOON - LATELY - 1, 0), Sample(NOON - 600, 432)), 0.0),
        (432, (Sample(NOON - 59, 0),), 0.01),
        (0, (Sample(NOON - 600, 372),), 0.0),
        (432, (Sample(DAWN - 1, 0), Sample(NOON + 5, 0)), 0.01),
    ],
    ids=["the day so far", "lately", "too old", "too young", "another day", "another clock"],
)
def test_the_pace_is_what_was_seen_lately(used: int, seen: tuple[Sample, ...], expected: float) -> None:
    """A sample of a quarter of an hour to a minute ago says more than the mean of the day."""
    assert pace(used, NOON, DAWN, seen) == pytest.approx(expected)


def test_a_day_that_has_just_begun_has_no_infinite_pace() -> None:
    """At midnight itself, the pace is that of a minute."""
    assert pace(6, DAWN, DAWN) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("used", "limit", "per_second", "expected"),
    [
        (50, 100, 0.01, NOON + 5_000),
        (50, 100, 0.001, None),
        (50, 100, 0.0, None),
        (50, 100, math.nan, None),
        (100, 100, 0.0, NOON),
        (0, 0, 0.0, NOON),
        (50, None, 1.0, None),
    ],
)
def test_a_day_ends_when_the_rest_is_used(
    used: int, limit: int | None, per_second: float, expected: float | None
) -> None:
    """It is a time before midnight, now if nothing is left, or None if it lasts."""
    assert used_up_at(used, limit, per_second, NOON, DUSK) == expected

"""When a waiting line asks: at once when it is alone, in turn with others when it is not."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from llm_router.engine.backoff import LONGEST_SLEEP, SHORTEST_SLEEP
from llm_router.engine.turns import LONGEST_REST, PACE, SPREAD, Turns


def _waited(vain: int = 0, now: float = 100.0) -> tuple[Turns, float]:
    """Return the turns of a line that has waited, then asked so often in vain; and the time."""
    turns = Turns()
    now = turns.refused(now, now + 1.0, is_due=False)
    turns.granted(now, is_due=True)
    for number in range(vain + 1):
        turns.refused(now, now + 1.0, is_due=number > 0)
        now += 1.0
    return turns, now


def test_the_first_wait_ends_exactly_when_there_is_room() -> None:
    """A line that has not waited yet asks at the very time that the store named, and then at once."""
    turns = Turns()
    assert turns.refused(100.0, 160.3, is_due=False) == 160.3
    assert turns.next(160.3) <= 160.3


def test_a_grant_without_a_wait_is_followed_by_no_rest() -> None:
    """As long as there is room, the line is not slowed down."""
    turns = Turns()
    for _ in range(100):
        turns.granted(100.0, is_due=False)
        assert turns.next(100.0) <= 100.0


def test_later_waits_end_a_little_after_there_is_room() -> None:
    """A line that has waited asks within the spread, never before there is room."""
    turns, now = _waited()
    times = [turns.refused(now, now + 5.0, is_due=False) - (now + 5.0) for _ in range(200)]
    assert 0.0 <= min(times) < 0.1 * SPREAD
    assert 0.9 * SPREAD < max(times) <= SPREAD


def test_a_line_that_asked_in_vain_asks_earlier() -> None:
    """Each vain try halves the spread, so that the line that has waited longest usually comes first."""
    turns, now = _waited(vain=3)
    times = [turns.refused(now, now + 5.0, is_due=False) - (now + 5.0) for _ in range(200)]
    assert max(times) <= SPREAD / 8


def test_what_comes_back_at_once_is_taken_faster_and_faster() -> None:
    """A line alone takes hundreds of grants in less than a second, the first ones in small steps."""
    turns, now = _waited()
    times: list[float] = []
    start = now
    for _ in range(600):
        turns.granted(now, is_due=not times)
        now = max(now, turns.next(now))
        times.append(now)
    assert PACE / 2 <= times[0] - start <= 1.5 * PACE
    assert times[-1] - start < 1.0


def test_a_line_that_met_others_twice_rests_after_a_grant() -> None:
    """Vain tries before two grants in a row are followed by a rest, those before one by none."""
    turns, now = _waited(vain=4)
    turns.granted(now, is_due=True)
    assert turns.next(now) - now <= 1.5 * PACE
    for number in range(5):
        turns.refused(now, now + 1.0, is_due=number > 0)
        now += 1.0
    turns.granted(now, is_due=True)
    assert 1.0 < turns.next(now) - now <= 1.5 * LONGEST_REST


def test_slow_returns_are_no_reason_to_rest() -> None:
    """Where quota comes back every few seconds, every line may ask each time."""
    turns, now = Turns(), 100.0
    for _ in range(5):
        for number in range(5):
            turns.refused(now, now + 10.0, is_due=number > 0)
            now += 10.0
        turns.granted(now, is_due=True)
        assert turns.next(now) - now <= 1.5 * PACE


def test_a_rest_does_not_outlast_a_deadline() -> None:
    """A request that stops waiting soon asks before it does."""
    turns, now = _waited()
    turns.granted(now, is_due=True)
    assert turns.next(now, now + 0.001) <= now + SHORTEST_SLEEP
    turns, now = _waited(vain=1)
    assert turns.refused(now, now + 0.001, now + 0.03, is_due=True) <= now + 0.015


def test_after_a_while_the_others_are_forgotten() -> None:
    """A line that was empty for minutes waits exactly as long as it is told."""
    turns, now = _waited(vain=4)
    assert turns.refused(now + 300.0, now + 360.3, is_due=False) == now + 360.3


def test_a_clock_that_is_set_back_ends_the_rest() -> None:
    """No rest lasts longer than the longest one."""
    turns, now = _waited()
    turns.granted(now, is_due=True)
    assert turns.next(now - 3600.0) <= now - 3600.0


def test_a_store_that_says_now_and_refuses_is_asked_less_and_less() -> None:
    """Where clocks differ, or quota that should be back is not, the tries become fewer."""
    turns, now, tries = Turns(), 100.0, 0
    is_due = False
    while now < 110.0:
        now, tries, is_due = turns.refused(now, 100.0, is_due=is_due), tries + 1, True
    assert 10 <= tries <= 10 / (LONGEST_SLEEP / 2) + 10


@pytest.mark.slow
@pytest.mark.parametrize("lines", [2, 8])
@pytest.mark.parametrize("at_once", [1, 20])
def test_lines_that_compete_get_equal_shares(lines: int, at_once: int) -> None:
    """Whether quota comes back in ones or in twenties, each gets its share within 10 %, for few tries."""
    random.seed(1)
    gap = 0.1 * at_once
    turns, grants, tries = [Turns() for _ in range(lines)], [0] * lines, 0
    room, returns = 0, gap
    order = itertools.count()
    asking = [(0.0, next(order), number, False) for number in range(lines)]
    while sum(grants) < 1_100 * lines:
        now, _, number, is_due = heapq.heappop(asking)
        while returns <= now:
            room, returns = room + at_once, returns + gap
        tries += 1
        if room:
            room -= 1
            grants[number] += 1
            turns[number].granted(now, is_due=is_due)
            again, is_due = turns[number].next(now), False
        else:
            again, is_due = turns[number].refused(now, returns, is_due=is_due), True
        # A call takes a millisecond or two.
        heapq.heappush(asking, (max(now, again) + random.uniform(0.001, 0.002), next(order), number, is_due))
    mean = sum(grants) / lines
    assert 0.9 * mean <= min(grants) <= max(grants) <= 1.1 * mean
    assert tries <= 7 * sum(grants)

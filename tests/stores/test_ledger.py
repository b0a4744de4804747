"""The arithmetic of one quota, where the contract of a whole store would hide a mistake."""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_router.domain.calendar import NEVER, microseconds
from llm_router.domain.quota import Metric, Quota, Refill
from llm_router.stores.ledger import (
    MAX_ENTRIES,
    SLICES,
    DailyLedger,
    RollingLedger,
    SteadyLedger,
    make_ledger,
)

_NOW = 1_800_041_000_250_000
_SECOND = 1_000_000
_SPAN = 60_300_000
_QUOTAS = (
    Quota(Metric.RPM, 9),
    Quota(Metric.TPM, 50_000),
    Quota(Metric.RPM, 60, Refill.STEADY, burst=9),
    Quota(Metric.RPD, 9, Refill.DAILY),
)


def _utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return microseconds(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("quota", _QUOTAS, ids=str)
def test_each_refill_has_its_ledger(quota: Quota) -> None:
    """In an empty ledger nothing is taken, the limit fits, and there is nothing to reset."""
    ledger = make_ledger(quota)
    assert isinstance(
        ledger,
        {Refill.ROLLING: RollingLedger, Refill.STEADY: SteadyLedger, Refill.DAILY: DailyLedger}[quota.refill],
    )
    assert ledger.limit == quota.limit
    assert make_ledger(quota, 3).limit == 3
    assert ledger.used(_NOW) == 0
    assert ledger.resets_at(_NOW) == _NOW
    assert ledger.room_at(9, _NOW) == _NOW
    assert ledger.room_at(quota.limit + 1, _NOW) == NEVER


@pytest.mark.parametrize("quota", _QUOTAS, ids=str)
def test_a_loaded_ledger_continues_where_the_dumped_one_stopped(quota: Quota) -> None:
    """Its state survives JSON, and marks made before are valid in the ledger that loads it."""
    ledger = make_ledger(quota)
    first = ledger.take(5, _NOW)
    ledger.take(3, _NOW + _SECOND)
    loaded = make_ledger(quota)
    loaded.load(json.loads(json.dumps([*ledger.dump()])))
    for each in (ledger, loaded):
        each.correct(first, -4, _NOW + 2 * _SECOND)
    later = _NOW + 3 * _SECOND
    assert loaded.dump() == ledger.dump()
    assert loaded.used(later) == ledger.used(later)
    assert loaded.resets_at(later) == ledger.resets_at(later)
    assert loaded.room_at(9, later) == ledger.room_at(9, later)


@pytest.mark.parametrize("quota", _QUOTAS, ids=str)
def test_a_truncated_state_is_not_loaded(quota: Quota) -> None:
    """If a number is missing, no ledger has dumped it."""
    ledger = make_ledger(quota)
    ledger.take(5, _NOW)
    with pytest.raises(ValueError, match=r"unpack|three"):
        make_ledger(quota).load(ledger.dump()[:-1])


@pytest.mark.parametrize("nonsense", [math.nan, math.inf])
def test_a_rolling_state_with_a_value_that_is_not_finite_is_not_loaded(nonsense: float) -> None:
    """Wherever it is among the entries, it is noticed before anything is computed with it."""
    quota = Quota(Metric.RPM, 9)
    state = [_NOW, 5, _NOW, _NOW + 1, 3, _NOW + 1]
    for place in range(len(state)):
        with pytest.raises(ValueError, match="not entries"):
            make_ledger(quota).load([*state[:place], nonsense, *state[place + 1 :]])


@pytest.mark.parametrize("quota", _QUOTAS, ids=str)
def test_what_is_taken_never_falls_below_zero(quota: Quota) -> None:
    """Corrections that remove more than was taken leave zero, even if repeated or late."""
    ledger = make_ledger(quota)
    mark = ledger.take(4, _NOW)
    for later in (0, 1, _SPAN, 3 * 86_400 * _SECOND):
        ledger.correct(mark, -9, _NOW + later)
        assert ledger.used(_NOW + later) == 0
        assert ledger.room_at(9, _NOW + later) == _NOW + later


@pytest.mark.parametrize("quota", _QUOTAS, ids=str)
def test_taken_equals_used_right_after_a_taking(quota: Quota) -> None:
    """If the amount fits, now or later."""
    ledger = make_ledger(quota)
    for later in (0, 5, 70, 100_000):
        now = _NOW + later * _SECOND
        assert ledger.room_at(2, now) == now
        ledger.take(2, now)
        assert ledger.taken == ledger.used(now)


@pytest.mark.slow
@given(
    quota=st.sampled_from(_QUOTAS),
    steps=st.lists(st.tuples(st.integers(-2, 90), st.integers(0, 9), st.integers(-9, 2)), max_size=40),
)
def test_what_taken_leaves_of_the_capacity_fits(quota: Quota, steps: list[tuple[int, int, int]]) -> None:
    """``taken`` may be too high, so that less seems to fit, but never too low, even after corrections."""
    ledger, now = make_ledger(quota), _NOW
    for seconds_on, amount, change in steps:
        now += seconds_on * _SECOND
        seems_to_fit = ledger.taken + amount <= ledger.capacity
        fits = ledger.room_at(amount, now) == now
        assert fits or not seems_to_fit
        if fits:
            ledger.correct(ledger.take(amount, now), change, now)


def test_an_older_rolling_taking_is_corrected_where_it_was_made() -> None:
    """It changes without its neighbours; the next taking is added after the newest."""
    ledger = RollingLedger(Quota(Metric.TPM, 100), 100)
    marks = [ledger.take(10, _NOW + n) for n in range(3)]
    ledger.correct(marks[1], -4, _NOW + 5)
    ledger.correct(marks[2], 3, _NOW + 5)
    ledger.take(1, _NOW + 6)
    assert [*ledger.dump()[1::3]] == [10, 6, 13, 1]
    assert ledger.used(_NOW + _SPAN) == 20
    ledger.correct(marks[0], 9, _NOW + _SPAN)  # too late: it has come back
    assert ledger.used(_NOW + _SPAN + 1) == 14


def test_large_rolling_takings_merge_into_at_most_a_window_of_slices() -> None:
    """However many takings there are, the entries stay few, and no two of them overlap."""
    ledger = RollingLedger(Quota(Metric.RPM, 10**9), 10**9)
    for n in range(20_000):
        now = _NOW + n * 10_000
        ledger.room_at(1, now)
        ledger.take(1, now)
    entries = ledger.dump()
    assert len(entries) // 3 <= SLICES * 60.3 / 60 + 2
    moments = [
        moment for last, first in zip(entries[::3], entries[2::3], strict=True) for moment in (first, last)
    ]
    assert moments == sorted(moments)


def test_small_rolling_takings_never_merge() -> None:
    """Two takings a microsecond apart come back a microsecond apart."""
    ledger = RollingLedger(Quota(Metric.RPM, 2), 2)
    ledger.take(1, _NOW)
    ledger.take(1, _NOW + 1)
    assert ledger.room_at(1, _NOW + 2) == _NOW + _SPAN
    assert ledger.room_at(2, _NOW + 2) == _NOW + 1 + _SPAN


def test_entries_given_back_completely_are_swept_out() -> None:
    """Takings and releases within one window leave a bounded number of entries; other entries stay."""
    ledger = RollingLedger(Quota(Metric.RPM, 15), 15)
    kept = ledger.take(1, _NOW)
    for n in range(1, 3_000):
        mark = ledger.take(1, _NOW + n)
        ledger.correct(mark, -1, _NOW + n)
        assert len(ledger.dump()) // 3 <= MAX_ENTRIES + 1
    assert ledger.used(_NOW + 3_000) == 1
    ledger.correct(kept, -1, _NOW + 3_000)
    assert ledger.used(_NOW + 3_000) == 0


def test_a_taking_of_nothing_can_grow_after_its_entry_was_swept_out() -> None:
    """It counts from its own time, between those before and after it."""
    ledger = RollingLedger(Quota(Metric.TPM, 100), 100)
    ledger.take(10, _NOW)
    mark = ledger.take(0, _NOW + 5)
    ledger.take(20, _NOW + 9)
    ledger.correct(mark, 7, _NOW + 12)
    assert [*ledger.dump()] == [_NOW, 10, _NOW, _NOW + 5, 7, _NOW + 5, _NOW + 9, 20, _NOW + 9]
    ledger.correct(mark, -7, _NOW + 13)
    assert ledger.used(_NOW + 13) == 30


@pytest.mark.slow
def test_takings_of_nothing_that_grow_stay_bounded() -> None:
    """However many are settled upwards, in whatever order, and nothing of them comes back early."""
    for backwards in (False, True):
        ledger = RollingLedger(Quota(Metric.TPM, 100), 100)
        marks = [ledger.take(0, _NOW + n) for n in range(3_000)]
        for n, mark in enumerate(reversed(marks) if backwards else marks, 1):
            ledger.correct(mark, 1, _NOW + 3_000)
            assert ledger.used(_NOW + 3_000) == n
            assert len(ledger.dump()) // 3 <= MAX_ENTRIES + 1
        for later in (100, 1_500, 2_900):
            assert ledger.used(_NOW + later + _SPAN) >= 3_000 - later - 1
        assert ledger.used(_NOW + 3_000 + _SPAN) == 0


def test_a_rolling_clock_set_back_keeps_the_order_of_entries() -> None:
    """Time goes on from the latest known one, in which takings are corrected by their own marks."""
    ledger = RollingLedger(Quota(Metric.RPM, 9), 9)
    first = ledger.take(2, _NOW)
    second = ledger.take(3, _NOW - 30 * _SECOND)
    assert second == first
    ledger.correct(second, -3, _NOW - 29 * _SECOND)
    assert ledger.room_at(8, _NOW - 29 * _SECOND) == _NOW + _SPAN - 30 * _SECOND
    assert ledger.used(_NOW + 2 * _SECOND) == 2  # the clock was right before
    assert ledger.room_at(8, _NOW + 2 * _SECOND) == _NOW + _SPAN


def test_a_steady_clock_set_back_drains_nothing_twice() -> None:
    """The debt drains as time passes, from where it was."""
    ledger = SteadyLedger(Quota(Metric.RPM, 60, Refill.STEADY, burst=3), 60)
    ledger.take(3, _NOW)
    assert ledger.used(_NOW - 30 * _SECOND) == 3
    retry_at = ledger.room_at(1, _NOW - 30 * _SECOND)
    assert retry_at > _NOW - 29 * _SECOND
    assert ledger.room_at(1, retry_at - 1) == retry_at
    assert ledger.room_at(1, retry_at) == retry_at
    assert ledger.used(_NOW + 2 * _SECOND) == 2  # the clock was right before: two seconds have passed


@pytest.mark.parametrize("guard", [0.0, 0.3])
@pytest.mark.parametrize(("limit", "burst"), [(1, 1), (2, 1), (10, 10), (60, 3), (1_000, 1)])
def test_a_steady_bucket_has_room_when_it_says(limit: int, burst: int, guard: float) -> None:
    """Rounding neither refuses again what was promised, nor admits more than the limit in a window."""
    ledger = SteadyLedger(Quota(Metric.RPM, limit, Refill.STEADY, burst=burst, guard=guard), limit)
    now, taken = _NOW, []
    for _ in range(300):
        now = ledger.room_at(1, now)
        assert ledger.room_at(1, now) == now
        ledger.take(1, now)
        taken.append(now)
    # The millionth of a token that is allowed for rounding drains in less than 0.1 ms.
    window = 60 * _SECOND - (100 if guard == 0.0 else 0)
    assert all(sum(first <= moment < first + window for moment in taken) <= limit for first in taken)


def test_a_daily_clock_set_back_over_midnight_keeps_the_day() -> None:
    """What is taken then counts for the day that had begun."""
    midnight = _utc(2027, 5, 4, 7)
    ledger = DailyLedger(Quota(Metric.RPD, 5, Refill.DAILY), 5)
    ledger.take(2, midnight + 1)
    mark = ledger.take(2, midnight - 3_600 * _SECOND)
    assert ledger.used(midnight - 3_600 * _SECOND) == 4
    ledger.correct(mark, -2, midnight + 2)
    assert ledger.used(midnight + 2) == 2


def _most_in_a_window(taken: list[tuple[int, int]], window: int) -> int:
    return max(
        (sum(amount for moment, amount in taken if first <= moment < first + window) for first, _ in taken),
        default=0,
    )


_STEPS = st.lists(st.tuples(st.sampled_from([1, 5, 20, 31, 61]), st.integers(1, 5)), max_size=12)
_SHORT = st.lists(st.tuples(st.sampled_from([1, 5, 20]), st.integers(1, 5)), max_size=2)
_LIMITED = (
    Quota(Metric.RPM, 9),
    Quota(Metric.TPM, 900),
    Quota(Metric.RPM, 9, Refill.STEADY, burst=3),
    Quota(Metric.RPM, 60, Refill.STEADY, burst=9),
)


@pytest.mark.slow
@given(
    quota=st.sampled_from(_LIMITED),
    before=_STEPS,
    meanwhile=_SHORT,
    after=_STEPS,
    behind=st.sampled_from([3, 29, 70, 4_000, 90_000]),
)
def test_a_clock_that_is_set_back_and_corrected_never_admits_more(
    quota: Quota,
    before: list[tuple[int, int]],
    meanwhile: list[tuple[int, int]],
    after: list[tuple[int, int]],
    behind: int,
) -> None:
    """In no window of true time, wherever the clock was in the meantime."""
    ledger, now, taken = make_ledger(quota), _NOW, [(_NOW, 1)]
    ledger.take(1, _NOW)
    for steps, late in ((before, 0), (meanwhile, behind), (after, 0)):
        for seconds_on, part in steps:
            now += seconds_on * _SECOND
            amount, shown = max(1, part * quota.limit // 30), now - late * _SECOND
            if ledger.room_at(amount, shown) == shown:
                ledger.take(amount, shown)
                taken.append((now, amount))
    assert _most_in_a_window(taken, 60 * _SECOND) <= quota.limit


@pytest.mark.slow
@given(
    quota=st.sampled_from(_LIMITED),
    spells=st.lists(st.tuples(_STEPS, st.sampled_from([0, 3, 29, 70, 4_000, 90_000])), max_size=6),
    is_reloaded=st.booleans(),
)
def test_a_clock_that_was_ahead_and_is_set_back_never_admits_more(
    quota: Quota, spells: list[tuple[list[tuple[int, int]], int]], is_reloaded: bool
) -> None:
    """If it is only ever set back, no window of true time holds more than the limit, after restarts too."""
    ledger, now, back, taken = make_ledger(quota), _NOW, 0, []
    for steps, further in spells:
        back += further * _SECOND
        for seconds_on, part in steps:
            now += seconds_on * _SECOND
            amount, shown = max(1, part * quota.limit // 30), now - back
            if ledger.room_at(amount, shown) == shown:
                ledger.take(amount, shown)
                taken.append((now, amount))
        if is_reloaded:
            loaded = make_ledger(quota)
            loaded.load([*ledger.dump()])
            ledger = loaded
    assert _most_in_a_window(taken, 60 * _SECOND) <= quota.limit


@pytest.mark.slow
@given(
    quota=st.sampled_from(_LIMITED[:2]),
    spells=st.lists(
        st.tuples(_STEPS, st.sampled_from([-90_000, -70, -29, 0, 3, 29, 70, 4_000, 90_000])), max_size=6
    ),
    is_reloaded=st.booleans(),
)
def test_after_any_correction_full_use_comes_back_within_a_window(
    quota: Any, spells: list[tuple[list[tuple[int, int]], int]], is_reloaded: bool
) -> None:
    """Wherever the clock jumps and whatever was taken, everything is back a window later.

    If nothing is asked of the ledger for longer than the clock was ahead, it is a window after the next call.
    """
    ledger, now = make_ledger(quota), _NOW
    for steps, jump in spells:
        now += jump * _SECOND
        for seconds_on, part in steps:
            now += seconds_on * _SECOND
            amount = max(1, part * quota.limit // 30)
            assert ledger.resets_at(now) <= now + _SPAN
            if ledger.room_at(amount, now) == now:
                ledger.take(amount, now)
                assert ledger.used(now) <= quota.limit
        if is_reloaded:
            loaded = make_ledger(quota)
            loaded.load([*ledger.dump()])
            ledger = loaded
    for waited in range(0, _SPAN, _SECOND):
        assert ledger.room_at(quota.limit, now + waited) <= now + _SPAN
    assert ledger.room_at(quota.limit, now + _SPAN) == now + _SPAN


@pytest.mark.slow
@given(spells=st.lists(st.tuples(_STEPS, st.sampled_from([-90_000, -29, 3, 4_000, 90_000])), max_size=6))
def test_after_any_correction_a_steady_bucket_fills_at_its_rate(
    spells: list[tuple[list[tuple[int, int]], int]],
) -> None:
    """It is never longer empty than it takes to fill."""
    quota = _LIMITED[3]
    ledger, now = make_ledger(quota), _NOW
    for steps, jump in spells:
        now += jump * _SECOND
        for seconds_on, amount in steps:
            now += seconds_on * _SECOND
            assert ledger.resets_at(now) <= now + 9 * _SPAN / 52 + 1
            if ledger.room_at(amount, now) == now:
                ledger.take(amount, now)
    assert ledger.room_at(9, now) <= now + 9 * _SPAN / 52 + 1


def test_a_daily_clock_set_back_by_a_day_ends_its_count_with_that_day() -> None:
    """What was taken ahead counts once: until the midnight of the corrected clock."""
    midnight = _utc(2027, 5, 4, 7)
    ledger = DailyLedger(Quota(Metric.RPD, 5, Refill.DAILY), 5)
    ledger.take(5, midnight + 9 * 3_600 * _SECOND)
    assert ledger.room_at(1, midnight - 5 * 3_600 * _SECOND) == midnight
    assert ledger.moved
    assert ledger.used(midnight + 9 * 3_600 * _SECOND) == 0


@pytest.mark.slow
@given(
    quota=st.sampled_from((Quota(Metric.RPM, 240), Quota(Metric.TPM, 10_000))),
    charges=st.lists(st.tuples(st.integers(0, 70_000), st.integers(1, 9)), max_size=60),
    takes=st.lists(st.integers(1, 3_000), max_size=20),
)
def test_charges_come_back_in_their_own_time(
    quota: Quota, charges: list[tuple[int, int]], takes: list[int]
) -> None:
    """In whatever order they come, beside takings, and after corrections of these."""
    ledger, now, ages = RollingLedger(quota, quota.limit), _NOW, []
    for step in takes:
        now += step * 1_000
        ages.append((now, 5, ledger.take(7, now)))
    for age, amount in charges:
        ledger.charge(amount, now - age * 1_000, now)
    for _, _, mark in ages:
        ledger.correct(mark, -2, now)
    moments = [(at, amount) for at, amount, _ in ages]
    moments += [(now - age * 1_000, amount) for age, amount in charges]
    slack = 0 if quota.limit <= 240 else 250_000
    for later in range(0, 61_000, 500):
        then = now + later * 1_000
        least = sum(amount for at, amount in moments if at + _SPAN > then)
        most = sum(amount for at, amount in moments if at + _SPAN + slack > then)
        assert least <= ledger.used(then) <= most


@pytest.mark.slow
@pytest.mark.parametrize("limit", [240, 10**6])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_thousands_of_charges_stay_bounded(limit: int, is_shuffled: bool) -> None:
    """Also beyond the limit; nothing of them comes back early."""
    ledger = RollingLedger(Quota(Metric.TPM, limit), limit)
    ages = list(range(3_000, 0, -1))
    if is_shuffled:
        random.Random(5).shuffle(ages)
    for number, age in enumerate(ages, 1):
        ledger.charge(1, _NOW - age * 15_000, _NOW)
        assert ledger.used(_NOW) == number
        assert len(ledger.dump()) // 3 <= MAX_ENTRIES + 1
    for later in range(0, 61_000, 1_000):
        then = _NOW + later * 1_000
        assert ledger.used(then) >= sum(then < _NOW - age * 15_000 + _SPAN for age in ages)
    assert ledger.used(_NOW + _SPAN) == 0


def test_a_charge_of_what_is_over_counts_nothing() -> None:
    """In every kind of ledger: older than a window or a day, without an amount, or at no time at all."""
    for quota in _QUOTAS:
        ledger = make_ledger(quota)
        for amount, at in ((5, _NOW - 2 * 86_400 * _SECOND), (0, _NOW), (-3, _NOW), (5, -NEVER)):
            ledger.charge(amount, at, _NOW)
        assert ledger.used(_NOW) == 0
        ledger.charge(5, NEVER, _NOW)  # a clock that is ahead
        assert ledger.used(_NOW) == 5
        assert ledger.resets_at(_NOW) <= _NOW + 86_400 * _SECOND


def test_a_rolling_charge_while_the_clock_is_behind_comes_back_no_earlier() -> None:
    """It counts for a window by the clock of those who charge it."""
    ledger = RollingLedger(Quota(Metric.RPM, 9), 9)
    ledger.take(1, _NOW)
    behind = _NOW - 30 * _SECOND
    assert ledger.used(behind) == 1
    ledger.charge(2, behind - 10 * _SECOND, behind)
    assert ledger.used(behind + _SPAN - 10 * _SECOND - 1) == 3
    assert ledger.used(_NOW + _SPAN) == 0


def test_a_daily_charge_counts_on_the_days_on_which_it_may_have_arrived() -> None:
    """Of yesterday only what was taken within the guard before midnight; of today also for tomorrow."""
    midnight = _utc(2027, 5, 4, 7)
    ledger = DailyLedger(Quota(Metric.RPD, 9, Refill.DAILY), 9)
    ledger.charge(1, midnight - 300_001, midnight)
    assert ledger.used(midnight) == 0
    ledger.charge(1, midnight - 300_000, midnight)
    assert ledger.used(midnight) == 1
    end = midnight + 86_400 * _SECOND
    ledger.charge(2, end - 400_000, end - 1)
    ledger.charge(4, end - 100_000, end - 1)
    assert ledger.used(end - 1) == 7
    assert ledger.used(end) == 4
    ledger.charge(1, end - 5, end - 1)  # the clock was set back a little over midnight
    assert ledger.used(end - 1) == 5


@pytest.mark.slow
@example(steps=[(0, 1, 0, 0), (0, 1, 0, 0), (0, 1, 8, -1), (0, 0, 6, -1), (0, 0, 0, 0), (0, 0, 8, -1)])
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9_000), st.integers(0, 9), st.integers(0, 9), st.integers(-9, 2)),
        max_size=80,
    )
)
def test_a_steady_ledger_that_is_loaded_anew_gives_the_same_back(
    steps: list[tuple[int, int, int, int]],
) -> None:
    """Its holes are dumped as well."""
    quota = Quota(Metric.TPM, 60, Refill.STEADY, burst=9)
    ledgers, now, marks = [SteadyLedger(quota, 60), SteadyLedger(quota, 60)], _NOW, []
    for wait, amount, which, change in steps:
        now += wait * 1_000
        marks.append((amount, [ledger.take(amount, now) for ledger in ledgers]))
        taken, at = marks.pop(which % len(marks)) if which > 4 else (0, [])
        for ledger, mark in zip(ledgers, at, strict=False):
            ledger.correct(mark, max(change, -taken), now)
        loaded = SteadyLedger(quota, 60)
        loaded.load(json.loads(json.dumps(ledgers[1].dump())))
        ledgers[1] = loaded
        assert abs(ledgers[0].dump()[0] - ledgers[1].dump()[0]) < 1e-6


def test_a_steady_ledger_remembers_a_bounded_number_of_holes() -> None:
    """The lowest is forgotten, as if it had drained; then less is given back, and never more."""
    ledger = SteadyLedger(Quota(Metric.TPM, 6_000, Refill.STEADY, burst=6_000), 6_000)
    marks = [ledger.take(4, _NOW) for _ in range(1_000)]
    for number, mark in enumerate(marks, 1):
        ledger.correct(mark, -1, _NOW)
        assert ledger.used(_NOW) == 4_000 - number
        assert len(ledger.dump()) <= 3 + 2 * MAX_ENTRIES
    for mark in marks:
        ledger.correct(mark, -4, _NOW)
    assert 0 <= ledger.used(_NOW) <= 4 * (1_000 - MAX_ENTRIES)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0, 0, 100, 400, 1_500, 5_000]), st.integers(1, 9), st.integers(0, 3)),
        min_size=5,
        max_size=40,
    ),
    picks=st.randoms(use_true_random=False),
)
def test_a_steady_ledger_gives_back_what_has_not_drained_of_a_taking(
    steps: list[tuple[int, int, int]], picks: random.Random
) -> None:
    """As a queue of takings does that drains from its front, wherever holes lie when it drains past them."""
    ledger, now = SteadyLedger(Quota(Metric.TPM, 600, Refill.STEADY, burst=100), 600), _NOW
    rate = Fraction(501, _SPAN)
    queue: list[Fraction] = []
    open_: list[tuple[int, int, int]] = []  # the number, mark and amount of each taking
    for wait, amount, settles in steps:
        now += wait * 1_000
        drains = wait * 1_000 * rate
        for number, left in enumerate(queue):
            queue[number] = left - min(left, drains)
            drains -= min(left, drains)
        open_.append((len(queue), ledger.take(amount, now), amount))
        queue.append(Fraction(amount))
        for _ in range(min(settles, len(open_))):
            number, mark, taken = open_.pop(picks.randrange(len(open_)))
            unused = picks.randint(1, taken)
            ledger.correct(mark, -unused, now)
            queue[number] = max(Fraction(0), queue[number] - unused)
        assert abs(ledger.dump()[0] - sum(queue)) < 1e-4


def test_the_same_part_of_a_steady_taking_is_given_back_once() -> None:
    """However often and in whatever pieces it is asked for."""
    ledger = SteadyLedger(Quota(Metric.TPM, 600, Refill.STEADY, burst=100), 600)
    marks = [ledger.take(10, _NOW) for _ in range(3)]
    for change, left in ((-3, 27), (-5, 25), (-4, 25), (-10, 20), (-10, 20)):
        ledger.correct(marks[1], change, _NOW)
        assert ledger.used(_NOW) == left

"""The circuit breaker: when a provider counts as unreachable, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_router.engine.breaker import CircuitBreaker

NOW = 1_000.0


def _fail(breaker: CircuitBreaker, now: float, *key_ids: str) -> None:
    for key_id in key_ids:
        breaker.record_failure(key_id, now)


def test_three_failing_keys_open_it_for_a_second() -> None:
    """The breaker opens with the third failing key, not with the second."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b")
    assert breaker.open_until <= NOW
    _fail(breaker, NOW + 0.5, "c")
    assert breaker.open_until == NOW + 1.5


def test_fewer_than_three_keys_never_open_it() -> None:
    """Two keys never open the breaker, however often they fail."""
    breaker = CircuitBreaker()
    for number in range(200):
        _fail(breaker, NOW + number / 100, "a", "b")
    assert breaker.open_until <= NOW


@pytest.mark.parametrize(("third_after", "is_open"), [(9.9, True), (10.0, False)])
def test_failures_count_for_ten_seconds(third_after: float, *, is_open: bool) -> None:
    """A failure no longer counts once it is 10 s old."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b")
    _fail(breaker, NOW + third_after, "c")
    assert (breaker.open_until > NOW + third_after) is is_open


def test_the_latest_failure_of_a_key_counts() -> None:
    """A key that fails again counts from its latest failure."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a")
    _fail(breaker, NOW + 8.0, "a", "b")
    _fail(breaker, NOW + 16.0, "c")
    assert breaker.open_until == NOW + 17.0


def test_a_success_between_failures_keeps_it_closed() -> None:
    """A success discards the failures before it."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b")
    breaker.record_success()
    _fail(breaker, NOW + 1.0, "c", "d")
    assert breaker.open_until <= NOW + 1.0


def test_each_opening_lasts_twice_as_long_up_to_30_seconds() -> None:
    """Without a success the openings last 1, 2, 4, 8 and 16 s, then 30 s each."""
    breaker, now, times = CircuitBreaker(), NOW, []
    for _ in range(8):
        _fail(breaker, now, "a", "b", "c")
        times.append(breaker.open_until - now)
        now = breaker.open_until
    assert times == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_half_open_it_needs_three_new_failures() -> None:
    """The failures that opened the breaker do not count towards the next opening."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b", "c")
    _fail(breaker, NOW + 1.0, "d", "e")
    assert breaker.open_until == NOW + 1.0
    _fail(breaker, NOW + 1.0, "f")
    assert breaker.open_until == NOW + 3.0


def test_failures_while_it_is_open_do_not_prolong_it() -> None:
    """Requests that fail late, while the breaker is open, do not move the end of the opening."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b", "c")
    _fail(breaker, NOW + 0.9, "d", "e", "f", "g")
    assert breaker.open_until == NOW + 1.0


def test_a_success_closes_it_and_resets_the_doubling() -> None:
    """After a success the breaker is closed, and its next opening lasts one second."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b", "c")
    _fail(breaker, NOW + 1.0, "a", "b", "c")
    assert breaker.open_until == NOW + 3.0
    breaker.record_success()
    assert breaker.open_until <= NOW + 1.0
    _fail(breaker, NOW + 1.5, "a", "b", "c")
    assert breaker.open_until == NOW + 2.5


def test_it_is_clear_until_something_fails_and_after_a_success() -> None:
    """The breaker is clear at first and after a success, but not after a failure."""
    breaker = CircuitBreaker()
    is_clear = [breaker.is_clear]
    _fail(breaker, NOW, "a")
    is_clear.append(breaker.is_clear)
    breaker.record_success()
    is_clear.append(breaker.is_clear)
    assert is_clear == [True, False, True]


def test_a_clock_that_jumps_ahead_ends_the_opening() -> None:
    """A jump of the clock ends the opening and outdates the failures before it."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b", "c")
    _fail(breaker, NOW + 0.5, "d", "e")
    later = NOW + 8 * 3600.0
    assert breaker.open_until < later
    _fail(breaker, later, "f", "g")
    assert breaker.open_until < later
    _fail(breaker, later, "h")
    assert breaker.open_until == later + 2.0


def test_a_clock_that_is_set_back_does_not_open_it_early() -> None:
    """With failures in the future the breaker still needs a third key, and opens from the present time."""
    breaker = CircuitBreaker()
    _fail(breaker, NOW, "a", "b")
    _fail(breaker, NOW - 500.0, "a", "b")
    assert breaker.open_until <= NOW - 500.0
    _fail(breaker, NOW - 499.0, "c")
    assert breaker.open_until == NOW - 498.0


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 20.0), st.sampled_from(["success", "a", "b", "c", "d", "e"])), max_size=60
    )
)
def test_it_opens_only_for_three_keys_and_for_at_most_30_seconds(
    events: list[tuple[float, str]],
) -> None:
    """In any sequence of events, only three keys within 10 s open the breaker, for 1 to 30 s."""
    breaker, now = CircuitBreaker(), NOW
    failed: list[tuple[float, str]] = []
    for pause, event in events:
        now += pause
        before = breaker.open_until
        if event == "success":
            breaker.record_success()
            failed.clear()
            assert breaker.open_until <= now
            continue
        breaker.record_failure(event, now)
        failed.append((now, event))
        if breaker.open_until != before:
            assert before <= now
            assert now + 1.0 <= breaker.open_until <= now + 30.0
            assert len({key for at, key in failed if at > now - 10.0}) >= 3


def test_one_model_that_is_forbidden_to_all_keys_is_not_the_providers_fault() -> None:
    """Unless a second model, or a key as such, is forbidden as well."""
    breaker = CircuitBreaker()
    for number in range(5):
        assert not breaker.record_forbidden(f"k{number}", f"p{number}", NOW, "no", "retired")
    assert breaker.open_until <= NOW
    assert breaker.record_forbidden("k1", "p1", NOW, "no", "other")
    assert breaker.open_until == NOW + 1.0
    breaker.record_success()
    for number in range(2):
        assert not breaker.record_forbidden(f"k{number}", f"p{number}", NOW, "no", "retired")
    assert breaker.record_forbidden("k2", "p2", NOW, "no")


def test_after_ten_minutes_each_key_is_what_it_is_called() -> None:
    """Several wrong keys are no outage; a success between them puts that off."""
    breaker = CircuitBreaker()

    def told(now: float) -> list[bool]:
        return [breaker.record_forbidden(f"k{n}", f"p{n}", now, "not valid") for n in range(3)]

    assert told(NOW) == [False, False, True]
    assert breaker.reason == "the provider refuses several keys alike: not valid"
    assert told(NOW + 590.0)[-1]
    assert not any(told(NOW + 610.0))
    breaker.record_success()
    assert told(NOW + 620.0) == [False, False, True]
    assert told(NOW - 5_000.0)[-1]  # the clock was set back

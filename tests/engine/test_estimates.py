"""The correction of token estimates, learnt from what a provider counted."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_router.domain.quota import MAX_LIMIT
from llm_router.domain.response import Usage
from llm_router.engine.attempt import is_plain
from llm_router.engine.estimates import OTHER, TEXT, TokenCorrection, kind_of, understood
from llm_router.providers.base import Reply

TOKENS = st.integers(1, 10**12)


def _after(*counts: tuple[int, int]) -> float:
    correction = TokenCorrection()
    for estimate, counted in counts:
        correction.learn(estimate, counted)
    return correction.factor


def test_contents_are_text_or_have_something_else_among_them() -> None:
    """Estimates of both kinds are corrected apart."""
    image = {"inline_data": {"mime_type": "image/png", "data": b""}}
    texts: tuple[object, ...] = (
        "text",
        "",
        [],
        {},
        ["one", "two"],
        {"text": "one"},
        {"parts": [{"text": "one", "thoughtSignature": "c2ln"}], "role": None},
        [{"type": "text", "text": "one"}],
        types.Content(role="user", parts=[types.Part(text="one")]),
        types.Part.from_text(text="one"),
        [{"role": "user", "parts": [{"text": "one"}]}, {"role": "model", "parts": ["two"]}],
    )
    others: tuple[object, ...] = (
        ["one", object()],
        [{"role": "user", "parts": [{"text": "what is this?"}, image]}],
        image,
        {"parts": [{"functionResponse": {}}]},
        types.Content(parts=[types.Part.from_bytes(data=b"", mime_type="image/png")]),
        types.Part.from_function_call(name="f", args={}),
        [[[[[["deep"]]]]]],
        None,
    )
    assert {kind_of(each) for each in texts} == {TEXT}
    assert {kind_of(each) for each in others} == {OTHER}


def test_an_exact_estimate_is_not_corrected() -> None:
    """The factor is 1 at first and stays 1 if the counts match the estimates."""
    assert TokenCorrection().factor == 1.0
    assert _after((70, 70), (1, 1)) == 1.0


def test_it_rises_fast_and_falls_slowly() -> None:
    """One count moves the factor by some of the error upwards, by a thirtieth of that downwards."""
    assert _after((100, 300)) == pytest.approx(1.3)
    assert _after((100, 50)) == pytest.approx(0.9975)


def test_it_converges_to_the_counts() -> None:
    """The factor reaches a higher ratio within a few tens of counts, a lower one within a thousand."""
    assert _after(*[(100, 250)] * 30) == pytest.approx(2.5, rel=0.01)
    assert _after(*[(100, 50)] * 100) > 0.8
    assert _after(*[(100, 50)] * 1000) == pytest.approx(0.5, rel=0.01)


def test_where_counts_spread_it_rests_where_few_are_higher() -> None:
    """Of requests of 0.8 to 2.4 times their estimate about one of ten has more than is reserved."""
    correction, chance = TokenCorrection(), random.Random(1)
    above = 0
    for number in range(3_000):
        counted = round(10_000 * chance.uniform(0.8, 2.4))
        above += number >= 1_000 and counted > 10_000 * correction.factor
        correction.learn(10_000, counted)
    assert 0.05 < above / 2_000 < 0.2


def test_an_outlier_fades_slowly() -> None:
    """After one high count it takes hundreds of exact ones to return to 1."""
    assert _after((100, 300), *[(100, 100)] * 100) > 1.1
    assert _after((100, 300), *[(100, 100)] * 800) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("counted", [0, -1])
def test_a_missing_count_is_ignored(counted: int) -> None:
    """A count of 0 or less leaves the factor as it is."""
    assert _after((100, 300), (100, counted)) == _after((100, 300))


@pytest.mark.parametrize(("counted", "bound"), [(10**18, 4.0), (1, 0.25)])
def test_extreme_counts_stay_within_the_bounds(counted: int, bound: float) -> None:
    """The factor stops at 4 and at 0.25 however far the counts are off."""
    assert _after(*[(10**6, counted)] * 2000) == pytest.approx(bound)


def test_its_repr_shows_the_factor() -> None:
    """The repr of a correction shows its factor."""
    assert repr(TokenCorrection()) == "TokenCorrection(factor=1)"


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=50))
def test_each_count_moves_it_towards_the_ratio(counts: list[tuple[int, int]]) -> None:
    """The factor stays within its bounds and moves towards the counted ratio without passing it."""
    correction = TokenCorrection()
    for estimate, counted in counts:
        before, ratio = correction.factor, counted / estimate
        correction.learn(estimate, counted)
        after = correction.factor
        assert 0.25 <= after <= 4.0
        low, high = sorted((before, min(max(ratio, 0.25), 4.0)))
        assert low - 1e-9 <= after <= high + 1e-9
        if abs(ratio - before) > 1e-6 and 0.25 < before < 4.0:
            assert after != before


@settings(deadline=None)
@given(st.floats(0.3, 3.9))
def test_it_rises_thirty_times_as_fast_as_it_falls(start: float) -> None:
    """From any factor, an error of the same size moves it up thirty times as far as down."""
    error = 0.04
    up, down = TokenCorrection(), TokenCorrection()
    up.factor = down.factor = start
    up.learn(10**6, round((start + error) * 10**6))
    down.learn(10**6, round((start - error) * 10**6))
    assert up.factor - start == pytest.approx(30 * (start - down.factor), rel=1e-2)


def test_a_reply_that_is_plain_at_a_glance_is_so_when_looked_at() -> None:
    """Whatever the three counts are: those of a plain reply stay, and each that makes no sense becomes 0."""
    sound = {0: 0, 7: 7, 2**30: 2**30, MAX_LIMIT: MAX_LIMIT, 3.0: 3}
    strange: list[Any] = [-1, MAX_LIMIT + 1, True, 0.5, math.nan, math.inf, "3", None]
    for counts in itertools.product([*sound, *strange], repeat=3):
        reply = Reply("", Usage(*counts))
        expected = [sound.get(count, 0) if type(count) in {int, float} else 0 for count in counts]
        usage = understood(reply).usage
        assert usage is not None
        assert [usage.input_tokens, usage.output_tokens, usage.thinking_tokens] == expected
        assert not is_plain(reply) or all(type(count) is int and 0 <= count <= MAX_LIMIT for count in counts)
    assert is_plain(Reply("", Usage(7, 0, 2**30 - 1)))
    assert is_plain(Reply(""))
    nothing: list[Any] = [None, "text", Reply(None), Reply("", usage=(7, 7, 7))]  # type: ignore[arg-type]
    assert not any(map(is_plain, nothing))

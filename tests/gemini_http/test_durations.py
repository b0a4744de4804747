from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_router.gemini_http.durations import (
    ENDLESS,
    read_delay,
    read_duration,
    read_retry_sentence,
    retry_sentence,
    write_duration,
    write_retry_after,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (-1.0, "0s"), (36.4, "36.4s"), (60.0, "60s"), (1e-7, "0s")]
)
def test_durations_are_written_to_the_microsecond(seconds: float, text: str) -> None:
    """A duration has no trailing zeros and is never below zero."""
    assert write_duration(seconds) == text


@given(st.floats(0, 1e8))
def test_what_is_written_is_read(seconds: float) -> None:
    """A written duration reads as the same number, alone and in the sentence of a message."""
    assert read_duration(write_duration(seconds)) == pytest.approx(seconds, abs=1e-6)
    assert read_retry_sentence(f"Exceeded.\n{retry_sentence(seconds)}") == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("message", ["", "Please retry later.", "Please retry in a minute."])
def test_a_message_may_not_say_when(message: str) -> None:
    """A sentence without a duration is None."""
    assert read_retry_sentence(message) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("36.4s", 36.4),
        ("0s", 0.0),
        ("-1s", 0.0),
        ("-0.5s", 0.0),
        ("-inf", 0.0),
        ("inf", ENDLESS),
        ("Infinitys", ENDLESS),
        ("99999999999s", ENDLESS),
        ("9" * 1000 + ".5s", ENDLESS),
        ("nan", None),
        ("1e9s", None),
        ("", None),
        ("s", None),
        (36, None),
        (float("inf"), None),
        (None, None),
        ([], None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_delay_may_be_nonsense(value: Any, seconds: float | None) -> None:
    """A delay below zero is none, one that cannot be meant has a finite value, and no other is guessed."""
    assert read_delay(value) == seconds


def test_a_sentence_may_ask_for_too_long() -> None:
    """The sentence of a message has the same bounds."""
    assert read_retry_sentence("Please retry in 99999999999s.") == ENDLESS


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "1"), (1.0, "1"), (36.4, "37"), (float("inf"), "1000000000")]
)
def test_the_header_has_whole_seconds(seconds: float, text: str) -> None:
    """Retry-After never asks for less than the delay, and never for no delay."""
    assert write_retry_after(seconds) == text

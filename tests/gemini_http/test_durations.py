from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_router.gemini_http.durations import (
    read_duration,
    read_retry_sentence,
    retry_sentence,
    write_duration,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (-1.0, "0s"), (36.4, "36.4s"), (60.0, "60s"), (1e-7, "0s")]
)
def test_durations_are_written_to_the_microsecond(seconds, text):
    """A duration has no trailing zeros and is never below zero."""
    assert write_duration(seconds) == text


@given(st.floats(0, 1e8))
def test_what_is_written_is_read(seconds):
    """A written duration reads as the same number, alone and in the sentence of a message."""
    assert read_duration(write_duration(seconds)) == pytest.approx(seconds, abs=1e-6)
    assert read_retry_sentence(f"Exceeded.\n{retry_sentence(seconds)}") == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("message", ["", "Please retry later.", "Please retry in a minute."])
def test_a_message_may_not_say_when(message):
    """A sentence without a duration is None."""
    assert read_retry_sentence(message) is None

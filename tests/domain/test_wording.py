"""Times and foreign texts as people read them."""

from __future__ import annotations

from llm_router.domain.wording import known_words, seconds_words, shortened, span


def test_spans_are_short() -> None:
    """Seconds below two minutes, then minutes, hours from one on, and days from two on."""
    assert [span(seconds) for seconds in (0.4, 119, 150, 7_200, 200_000)] == [
        "0 s",
        "119 s",
        "2 min",
        "2.0 h",
        "2 d",
    ]


def test_many_seconds_are_a_span_as_well() -> None:
    """Below two minutes seconds say enough; from then on they are also said as a person would."""
    assert [seconds_words(seconds) for seconds in (0.04, 119.9, 120.0, 43_210.3)] == [
        "0.0 s",
        "119.9 s",
        "120.0 s (2 min)",
        "43210.3 s (12.0 h)",
    ]


def test_foreign_texts_are_one_short_line() -> None:
    """Neither control characters nor lines of a provider's text reach a line of ours."""
    assert shortened("a\n b\x1b[31m") == "a b[31m"
    assert shortened("x" * 100) == f"{'x' * 59}…"


def test_a_limit_that_is_being_tried_is_not_called_learnt() -> None:
    """What the provider has stated is less than what is in force while more is tried."""
    words = [known_words("stated", 6, 120.0, seconds) for seconds in (None, 90.0, 0.0, -5.0)]
    assert words == [
        "stated by the provider 2 min ago",
        "stated by the provider 2 min ago; more is tried in 90 s",
        *["a try: less was stated by the provider 2 min ago"] * 2,
    ]
    assert known_words("unknown", 6, 120.0, 0.0) == "not refused so far; grew 2 min ago"

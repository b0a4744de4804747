"""The token estimate of texts."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_router.domain import tokens
from llm_router.domain.tokens import estimate_tokens

PROSE = "The quick brown fox jumps over the lazy dog, and then it sleeps under the old oak tree. "
_random = random.Random(7)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (PROSE * 20, 4.5, 6.5),
        ("1234567890" * 50, 0.9, 1.1),
        (base64.b64encode(_random.randbytes(900)).decode(), 0.9, 1.8),
        (_random.randbytes(900).hex(), 0.9, 1.6),
        ("今天天气很好我们去公园散步吧" * 20, 1.0, 1.6),
        ("Сегодня хорошая погода, пойдём гулять в парк. " * 20, 2.0, 3.5),
        ("def add(first, second):\n    return first + second\n" * 20, 2.5, 4.5),
        ("😀🎉" * 50, 0.5, 1.0),
        ("acgt" * 200, 1.5, 2.5),
    ],
    ids=["prose", "digits", "base64", "hex", "chinese", "russian", "python", "emoji", "genes"],
)
def test_characters_per_token(text: str, least: float, most: float) -> None:
    """Each kind of text has about its known number of characters per token."""
    assert least <= len(text) / estimate_tokens(text) <= most


@given(st.text(alphabet=st.characters()))
def test_bounds(text: str) -> None:
    """An estimate is at least 1 and at most the bytes of the text, lone surrogates included."""
    assert 1 <= estimate_tokens(text) <= max(1, len(text.encode("utf-8", "surrogatepass")))


@pytest.mark.slow
@given(st.text(), st.text())
def test_joined_texts_count_about_as_much(first: str, second: str) -> None:
    """Two texts have about as many tokens together as apart."""
    apart = estimate_tokens(first) + estimate_tokens(second)
    assert estimate_tokens(first + second) <= 2 * apart + 2


@pytest.mark.parametrize("text", ["", "a", " ", "\n", "\ud800"])
def test_least(text: str) -> None:
    """The smallest estimate is 1."""
    assert estimate_tokens(text) == 1


def test_long_text_is_sampled_evenly() -> None:
    """A text of two different halves is estimated like its halves, within 5 %."""
    prose, digits = PROSE * 6000, "1234567890" * 50_000
    apart = estimate_tokens(prose) + estimate_tokens(digits)
    assert estimate_tokens(prose + digits) == pytest.approx(apart, rel=0.05)


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 64 Ki characters are looked at, however long the text."""
    looked_at: list[int] = []
    weigh = tokens._weigh

    def note(text: str) -> float:
        looked_at.append(len(text))
        return weigh(text)

    monkeypatch.setattr(tokens, "_weigh", note)
    for size in (65_536, 65_537, 1_000_000, 10_000_001):
        looked_at.clear()
        estimate_tokens("a" * size)
        assert sum(looked_at) == 65_536

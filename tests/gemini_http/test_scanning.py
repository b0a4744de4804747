"""What is read of an answer on its way, in whatever pieces it comes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_router import Usage
from llm_router.gemini_http.framing import array_item, sse_event
from llm_router.gemini_http.scanning import AnswerScanner
from llm_router.gemini_http.targets import Protocol

QUOTING = (
    'he said "usageMetadata": {"promptTokenCount": 999} and "finishReason": "SAFETY", {"error": {"code": 1}}'
)


def _event(text: str, tokens: int, finish: str | None = None) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 7, "candidatesTokenCount": tokens, "totalTokenCount": 7 + tokens}
    return json.dumps({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "flash-7"}).encode()


EVENTS = [_event(QUOTING, 1), _event("two\n{", 5), _event("three", 9, "STOP")]
SSE = b"".join(map(sse_event, EVENTS))
ARRAY = b"".join(array_item(event, index, 2) for index, event in enumerate(EVENTS))
CHAT = (
    b"".join(
        b"data: " + json.dumps(each).encode() + b"\n\n"
        for each in (
            {
                "choices": [{"delta": {"content": QUOTING}}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 1},
            },
            {
                "choices": [{"delta": {}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 9},
            },
        )
    )
    + b"data: [DONE]\n\n"
)


def _scan(protocol: Protocol, answer: bytes, cuts: list[int]) -> AnswerScanner:
    scanner = AnswerScanner(protocol)
    marks = [0, *sorted(cut % (len(answer) + 1) for cut in cuts), len(answer)]
    for start, end in itertools.pairwise(marks):
        scanner.feed(answer[start:end])
    return scanner


@pytest.mark.slow
@given(st.lists(st.integers(0, 10**6), max_size=40))
@pytest.mark.parametrize("answer", [SSE, ARRAY], ids=["events", "array"])
def test_pieces_may_be_cut_anywhere(answer: bytes, cuts: list[int]) -> None:
    """The last usage, the reason and the model are read; what the answer's text quotes is not."""
    scanner = _scan(Protocol.GEMINI, answer, cuts)
    assert scanner.usage == Usage(input_tokens=7, output_tokens=9, total_tokens=16)
    assert (scanner.finish_reason, scanner.is_complete, scanner.model) == ("STOP", True, "flash-7")
    assert scanner.error is None


@pytest.mark.slow
@given(st.lists(st.integers(0, 10**6), max_size=40))
def test_the_other_protocol_is_read_alike(cuts: list[int]) -> None:
    """Every chunk has running totals, of which the last counts."""
    scanner = _scan(Protocol.OPENAI, CHAT, cuts)
    assert scanner.usage == Usage(input_tokens=7, output_tokens=9)
    assert (scanner.finish_reason, scanner.is_complete, scanner.error) == ("stop", True, None)


@pytest.mark.slow
@given(st.lists(st.integers(0, 10**6), max_size=40))
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("form", ["events", "array"])
def test_an_error_in_place_of_a_piece_is_noticed(form: str, place: int, cuts: list[int]) -> None:
    """Its bytes are kept from the brace on, to be read like those of a refusal."""
    error = json.dumps({"error": {"code": 503, "message": "no", "status": "UNAVAILABLE"}}).encode()
    pieces = [*EVENTS[:place], error]
    if form == "events":
        answer = b"".join(map(sse_event, pieces))
    else:
        answer = b"".join(array_item(piece, index, place) for index, piece in enumerate(pieces))
    scanner = _scan(Protocol.GEMINI, answer, cuts)
    assert scanner.error is not None
    assert scanner.error.startswith(error)


def test_an_answer_that_breaks_off_is_not_complete() -> None:
    """Without a reason why it ended, it has not."""
    scanner = _scan(Protocol.GEMINI, sse_event(EVENTS[0]), [])
    assert not scanner.is_complete
    assert scanner.finish_reason is None


def test_a_blocked_prompt_is_a_complete_answer() -> None:
    """There is no candidate, and so no finish reason."""
    scanner = _scan(Protocol.GEMINI, sse_event(b'{"promptFeedback": {"blockReason": "SAFETY"}}'), [])
    assert (scanner.finish_reason, scanner.is_complete) == ("SAFETY", True)


def test_what_is_kept_does_not_grow() -> None:
    """A long answer is not collected."""
    scanner = AnswerScanner(Protocol.GEMINI)
    for _ in range(100):
        scanner.feed(b"x" * 10_000)
    assert len(scanner._tail) <= 16_384


def test_a_usage_nested_beyond_measure_counts_as_none() -> None:
    """It is passed on like any other answer."""
    deep = b'{"candidates":[],"usageMetadata":' + b'{"a":' * 1500 + b"7" + b"}" * 1501
    scanner = AnswerScanner(Protocol.GEMINI)
    scanner.feed(deep)
    assert scanner.usage in {None, Usage()}

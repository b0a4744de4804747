"""What is read of an answer on its way, in whatever pieces it comes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_router import Usage
from llm_router.gemini_http.framing import array_item, sse_event
from llm_router.gemini_http.scanning import AnswerScanner
from llm_router.gemini_http.targets import Protocol

QUOTING = (
    'he said "usageMetadata": {"promptTokenCount": 999} and "finishReason": "SAFETY", {"error": {"code": 1}}'
)

COUNTS = {
    Protocol.GEMINI: {
        "promptTokenCount": "input_tokens",
        "toolUsePromptTokenCount": "input_tokens",
        "candidatesTokenCount": "output_tokens",
        "thoughtsTokenCount": "thinking_tokens",
        "cachedContentTokenCount": "cached_tokens",
        "totalTokenCount": "total_tokens",
    },
    Protocol.OPENAI: {
        "prompt_tokens": "input_tokens",
        "completion_tokens": "output_tokens",
        "reasoning_tokens": "thinking_tokens",
        "cached_tokens": "cached_tokens",
        "total_tokens": "total_tokens",
    },
}


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
    assert not scanner.may_end
    assert scanner.finish_reason is None


CONTENT = {"content": {"parts": [{"text": QUOTING}], "role": "model"}}
USAGE = {"promptTokenCount": 3}


@pytest.mark.parametrize(
    ("answers", "may_end"),
    [
        ([{"usageMetadata": USAGE}], True),
        ([{"candidates": [], "usageMetadata": USAGE, "modelVersion": "m"}], True),
        ([{"candidates": [{"index": 0}], "usageMetadata": USAGE}], True),
        ([{"promptFeedback": {"safetyRatings": []}}], True),
        ([{"candidates": [CONTENT], "usageMetadata": USAGE}], False),
        ([{"candidates": [CONTENT]}, {"usageMetadata": USAGE}], False),
        ([{"usageMetadata": USAGE}, {"candidates": [CONTENT]}], False),
        ([{"candidates": []}], False),
        ([{"candidates": [{"index": 0}]}], False),
    ],
)
def test_an_answer_without_content_need_not_say_why_it_ended(
    answers: list[dict[str, Any]], may_end: bool
) -> None:
    """If it states its usage or judges the prompt; one that has begun its content has to."""
    answer = b"".join(sse_event(json.dumps(each).encode()) for each in answers)
    for cuts in ([], [40], list(range(len(answer)))):
        scanner = _scan(Protocol.GEMINI, answer, cuts)
        assert (scanner.may_end, scanner.is_complete) == (may_end, False)


@pytest.mark.parametrize("protocol", list(Protocol))
def test_an_error_after_the_reason_why_it_ended(protocol: Protocol) -> None:
    """It comes too late to be in place of a piece; a mark of the end alone gives no reason."""
    candidates, finish = NAMES[protocol][1:3]
    last = sse_event(json.dumps({candidates: [{finish: "STOP"}]}).encode())
    error = sse_event(b'{"error": {"code": 503, "message": "no"}}')
    for answer, is_error in ((last + error, False), (error + b"data: [DONE]\n\n", True)):
        for cuts in ([], [len(last)], list(range(len(answer)))):
            assert (_scan(protocol, answer, cuts).error is not None) == is_error


def test_a_blocked_prompt_is_a_complete_answer() -> None:
    """There is no candidate, and so no finish reason."""
    scanner = _scan(Protocol.GEMINI, sse_event(b'{"promptFeedback": {"blockReason": "SAFETY"}}'), [])
    assert (scanner.finish_reason, scanner.is_complete) == ("SAFETY", True)


@pytest.mark.parametrize("piece", [b"x", b"1, ", b'"' + b"x" * 7, b"\\", b'"usage', b'{"usage": {', b"{ "])
def test_what_is_kept_does_not_grow(piece: bytes) -> None:
    """A long answer is not collected, whatever it consists of."""
    for protocol in Protocol:
        scanner = AnswerScanner(protocol)
        for _ in range(200):
            scanner.feed(piece * 1000)
        assert len(scanner._kept) <= 1024
        assert len(scanner._tail) <= 32


def test_an_error_without_end() -> None:
    """As much of it is kept as an error can be."""
    scanner = AnswerScanner(Protocol.GEMINI)
    scanner.feed(b'{"error": {"message": "')
    for _ in range(100):
        scanner.feed(b"x" * 10_000)
    assert scanner.error is not None
    assert len(scanner.error) == 65_536


def test_a_usage_nested_beyond_measure_counts_as_none() -> None:
    """It is passed on like any other answer."""
    deep = b'{"candidates":[],"usageMetadata":' + b'{"a":' * 1500 + b"7" + b"}" * 1501
    scanner = AnswerScanner(Protocol.GEMINI)
    scanner.feed(deep)
    assert scanner.usage in {None, Usage()}


NAMES = {
    Protocol.GEMINI: ("usageMetadata", "candidates", "finishReason", COUNTS[Protocol.GEMINI]),
    Protocol.OPENAI: ("usage", "choices", "finish_reason", COUNTS[Protocol.OPENAI]),
}
WORDS = st.sampled_from(
    ["usageMetadata", "usage", "finishReason", "finish_reason", "error", "promptTokenCount", "prompt_tokens"]
)
TEXTS = st.one_of(
    WORDS, st.just(QUOTING), st.text(alphabet='\\"{}[]:,n1é', max_size=12), st.just("x" * 40_000)
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(0.5), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
BIG = st.sampled_from([None, ["x" * 30_000], {"a": ["{" * 30_000] * 2}, [0.25] * 10_000])
"""What no API says today, and may say tomorrow: fields that are larger than all that is kept."""


@st.composite
def answers(draw: st.DrawFn, protocol: Protocol) -> dict[str, Any]:
    """Make an answer of the API, its fields in any order, with fields that nobody knows."""
    usage, candidates, finish, counts = NAMES[protocol]
    stated = st.dictionaries(
        st.sampled_from(sorted(counts)), st.integers(-1, 10**17) | st.just(0.5) | st.none()
    )
    used: Any = draw(st.none() | st.just("none") | stated)
    if isinstance(used, dict) and draw(st.booleans()):
        used = {"details": draw(BIG), **used, "more": {"unknown": draw(TEXTS)}}
    candidate = {"content": {"parts": draw(ANYTHING)}, "index": 0}
    if draw(st.booleans()):
        candidate[finish] = draw(st.sampled_from(["STOP", "stop", "MAX_TOKENS", None]))
    answer = {usage: used, candidates: [candidate], "unknown": draw(BIG)}
    return {name: answer[name] for name in draw(st.permutations(sorted(answer)))}


def _expected(protocol: Protocol, answers: list[dict[str, Any]]) -> tuple[Usage | None, str | None]:
    """Return what a reader says that has parsed them all."""
    usage, candidates, finish, counts = NAMES[protocol]
    last: Usage | None = None
    reason = None
    for answer in answers:
        fields: dict[str, int] = {}
        used = answer[usage]
        for name, value in used.items() if isinstance(used, dict) else ():
            if name in counts and isinstance(value, int) and 0 <= value < 10**15:
                fields[counts[name]] = fields.get(counts[name], 0) + value
        last = Usage(**fields) if fields else last
        reason = answer[candidates][0].get(finish) or reason
    return last, reason


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow], deadline=None)
@given(st.data())
@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("form", ["whole", "events", "array"])
def test_it_reads_what_a_parser_reads(protocol: Protocol, form: str, data: st.DataObject) -> None:
    """Whatever an answer looks like and wherever it is cut, the counts are exact."""
    found = data.draw(st.lists(answers(protocol), min_size=1, max_size=1 if form == "whole" else 3))
    indent = data.draw(st.sampled_from([None, 2]))
    texts = [
        json.dumps(each, indent=indent, ensure_ascii=data.draw(st.booleans())).encode() for each in found
    ]
    if form == "events":
        answer = b"".join(map(sse_event, texts))
    elif form == "array":
        answer = b"".join(array_item(each, index, len(texts) - 1) for index, each in enumerate(texts))
    else:
        (answer,) = texts
    expected = _expected(protocol, [json.loads(each) for each in texts])
    cuts = data.draw(st.lists(st.integers(0, 10**6), max_size=40))
    for marks in (cuts, []):
        scanner = _scan(protocol, answer, marks)
        assert (scanner.usage, scanner.finish_reason) == expected
        assert scanner.is_complete == (expected[1] is not None)
        assert (scanner.error, scanner.model) == (None, None)


def test_the_usage_of_an_interaction_and_of_embeddings() -> None:
    """An interaction states it under names of its own, and as a part of the event of its completion."""
    stated = {
        "total_input_tokens": 70,
        "total_tool_use_tokens": 5,
        "total_output_tokens": 3,
        "total_tokens": 78,
    }
    interaction = {"id": "i-1", "steps": [{"content": [{"text": QUOTING}]}], "usage": stated}
    event = {"event_type": "interaction.completed", "interaction": interaction}
    for answer in (json.dumps(interaction).encode(), sse_event(json.dumps(event).encode())):
        for cuts in ([], [40], list(range(len(answer)))):
            usage = _scan(Protocol.GEMINI, answer, cuts).usage
            assert usage == Usage(input_tokens=75, output_tokens=3, total_tokens=78)
    embedded = {"embedding": {"values": [0.25] * 9_000}, "usageMetadata": {"promptTokenCount": 12}}
    assert _scan(Protocol.GEMINI, json.dumps(embedded).encode(), []).usage == Usage(input_tokens=12)


@pytest.mark.slow
def test_an_answer_byte_by_byte() -> None:
    """Names and numbers may be cut anywhere, also after a long text."""
    long = _event("x" * 20_000 + QUOTING, 3, "STOP")
    for protocol, answer, tokens in ((Protocol.GEMINI, sse_event(long), 3), (Protocol.OPENAI, CHAT, 9)):
        scanner = _scan(protocol, answer, list(range(len(answer))))
        assert scanner.usage is not None
        assert (scanner.usage.output_tokens, scanner.is_complete) == (tokens, True)


def test_a_stream_that_says_only_that_it_is_done() -> None:
    """A blocked prompt of the other protocol has no choice with a reason; a text may say so, too."""
    for text, is_complete in ((b"data: [DONE]\n\n", True), (b'data: {"a": "\\ndata: [DONE]"}\n\n', False)):
        for cuts in ([], list(range(len(text)))):
            assert _scan(Protocol.OPENAI, text, cuts).is_complete == is_complete

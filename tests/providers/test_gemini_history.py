"""What is kept of an answer to be sent back, and what each model is sent of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.genai import types

from llm_router.domain.request import Origin, Request
from llm_router.providers._gemini_history import AnswerParts, contents_for

CALL = types.FunctionCall(name="f", args={"a": 1})
CALLED = {"function_call": {"name": "f", "args": {"a": 1}}}


def read(*parts: types.Part, joins_text: bool = True) -> list[dict[str, Any]]:
    """Read the parts as one candidate each, as a stream brings them."""
    answer = AnswerParts(joins_text=joins_text)
    content = None
    for part in parts:
        content = answer.read(types.Candidate(content=types.Content(role="model", parts=[part])))
    return [] if content is None else content["parts"]


@pytest.mark.parametrize("candidate", [None, types.Candidate(), types.Candidate(content=types.Content())])
def test_a_candidate_without_parts_adds_nothing(candidate: types.Candidate | None) -> None:
    """The content stays what it was."""
    answer = AnswerParts()
    assert answer.read(candidate) is None
    text = types.Candidate(content=types.Content(parts=[types.Part(text="a")]))
    content = answer.read(text)
    assert content == {"role": "model", "parts": [{"text": "a"}]}
    assert answer.read(candidate) == content


def test_what_has_no_data_is_left_out() -> None:
    """Thoughts, empty texts, calls without a name, blobs without data, and parts of other kinds."""
    assert (
        read(
            types.Part(text="hm", thought=True),
            types.Part(text=""),
            types.Part(),
            types.Part(function_call=types.FunctionCall()),
            types.Part(inline_data=types.Blob(mime_type="image/png", data=b"")),
            types.Part(executable_code=types.ExecutableCode(code="1")),
        )
        == []
    )


def test_texts_are_joined_in_a_stream_only_without_a_signature() -> None:
    """A signature is for its own part."""
    parts = [
        types.Part(text="a"),
        types.Part(text="b"),
        types.Part(text="c", thought_signature=b"s"),
        types.Part(text="d"),
    ]
    assert read(*parts) == [{"text": "ab"}, {"text": "c", "thought_signature": b"s"}, {"text": "d"}]
    assert [part["text"] for part in read(*parts, joins_text=False)] == ["a", "b", "c", "d"]


def test_a_signature_by_itself_goes_to_its_part() -> None:
    """To the part before it, or to the first call if there are calls, unless that is signed."""
    alone = types.Part(text="", thought_signature=b"s")
    text, call = types.Part(text="a"), types.Part(function_call=CALL)
    assert read(alone, text) == [{"text": "a"}]
    assert read(text, alone) == [{"text": "a", "thought_signature": b"s"}]
    assert read(text, call, call, alone) == [{"text": "a"}, {**CALLED, "thought_signature": b"s"}, CALLED]
    signed = types.Part(text="a", thought_signature=b"own")
    assert read(signed, alone) == [{"text": "a", "thought_signature": b"own"}]


def test_a_signature_on_a_thought_goes_to_the_call_after_it() -> None:
    """Unless that has its own; a text after a thought needs none."""
    thought = types.Part(text="", thought=True, thought_signature=b"s")
    call = types.Part(function_call=CALL)
    signed = types.Part(function_call=CALL, thought_signature=b"own")
    assert read(thought, call, call) == [{**CALLED, "thought_signature": b"s"}, CALLED]
    assert read(thought, types.Part(thought=True), call) == [{**CALLED, "thought_signature": b"s"}]
    assert read(thought, signed, call) == [{**CALLED, "thought_signature": b"own"}, CALLED]
    assert read(thought, types.Part(text="a")) == [{"text": "a"}]


def test_an_answer_that_was_read_does_not_change() -> None:
    """A content that was given out stays as it was when more comes."""
    answer = AnswerParts(joins_text=True)
    parts = [types.Part(text="a"), types.Part(text="b"), types.Part(text="", thought_signature=b"s")]
    contents = [answer.read(types.Candidate(content=types.Content(parts=[part]))) for part in parts]
    assert [content and content["parts"] for content in contents] == [
        [{"text": "a"}],
        [{"text": "ab"}],
        [{"text": "ab", "thought_signature": b"s"}],
    ]


def test_contents_without_origins_are_sent_as_they_are() -> None:
    """Whatever a caller passes, it is not even copied."""
    contents = ["a", {"role": "model", "parts": [{"text": "b", "thought_signature": b"s"}]}]
    assert contents_for(Request(contents=contents), "model-a") is contents
    assert contents_for(Request(contents="a"), "model-a") == "a"


@pytest.mark.parametrize(("model", "signature"), [("model-a", b"s"), ("model-b", None), ("models/a", None)])
def test_contents_of_a_request_are_not_changed(model: str, signature: bytes | None) -> None:
    """The same request may go to one model after the other."""
    parts: list[Any] = ["as it is", {"text": "b"}]
    contents = ["a", {"role": "model", "parts": parts}, types.UserContent("c")]
    request = Request(contents=contents, origins=(Origin(1, "model-a", (None, b"s")),))
    signed = {"text": "b"} if signature is None else {"text": "b", "thought_signature": signature}
    assert contents_for(request, model) == [
        "a",
        {"role": "model", "parts": ["as it is", signed]},
        types.UserContent("c"),
    ]
    assert request.contents == [
        "a",
        {"role": "model", "parts": ["as it is", {"text": "b"}]},
        types.UserContent("c"),
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"response_modalities": ["image"]},
        {"responseModalities": ["TEXT", "IMAGE"]},
        types.GenerateContentConfig(response_modalities=["IMAGE"]),
        {"response_modalities": [types.Modality.IMAGE]},
    ],
)
def test_images_may_be_asked_for_in_any_form(config: Any) -> None:
    """The placeholder is sent for what another model answered."""
    contents = [{"role": "model", "parts": [{"text": "a"}]}]
    origins = (Origin(0, "model-a", (None,)),)
    request = Request(contents=contents, config=config, origins=origins)
    assert contents_for(request, "model-b")[0]["parts"][0]["thought_signature"]
    assert contents_for(request, "model-a") == contents
    unknown = Request(contents=contents, config=config, origins=(Origin(0, None, (None,)),))
    assert contents_for(unknown, "model-b") == contents
    texts = [{"role": "model", "parts": ["a"]}]
    assert contents_for(Request(contents=texts, config=config, origins=origins), "model-b") == texts


@pytest.mark.parametrize(
    "last",
    [
        "go on",
        {"role": "user", "parts": [{"functionResponse": {"name": "f"}}, {"text": "and"}]},
        types.UserContent("go on"),
    ],
)
def test_a_call_of_a_turn_that_is_over_needs_no_signature(last: Any) -> None:
    """Since then the user has said more than answers to calls."""
    contents = [{"role": "model", "parts": [CALLED]}, last]
    request = Request(contents=contents, origins=(Origin(0, "model-a", (b"s",)),))
    assert contents_for(request, "model-b") == contents

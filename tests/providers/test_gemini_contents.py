"""Estimating the input tokens of requests in every form."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llm_router.domain.request import Request
from llm_router.domain.tokens import estimate_tokens
from llm_router.providers.gemini import GeminiProvider

TEXT = "Which of the two answers is the better one, and why?"
WORDS = estimate_tokens(TEXT)


def estimate(contents: Any = "", **fields: Any) -> int:
    return GeminiProvider().estimate_tokens(Request(contents=contents, **fields))


@pytest.mark.parametrize(
    "contents",
    [
        TEXT,
        [TEXT],
        {"text": TEXT},
        {"role": "user", "parts": [{"text": TEXT}]},
        {"parts": [{"codeExecutionResult": {"output": TEXT}}]},
        types.Part(text=TEXT),
        types.Content(role="user", parts=[types.Part(text=TEXT)]),
        [types.Content(parts=[types.Part(text=TEXT)])],
        (TEXT,),
    ],
    ids=str,
)
def test_text_in_every_form(contents: Any) -> None:
    """Text counts the same in every form."""
    assert estimate(contents) == WORDS


def test_nothing_is_one_token() -> None:
    """An estimate is never below 1."""
    assert estimate("") == estimate([]) == estimate(None) == estimate(object()) == 1


def test_system_instruction_counts_once() -> None:
    """The named system instruction replaces the config's, as in the request."""
    assert estimate(TEXT, system_instruction=TEXT) == 2 * WORDS
    assert estimate(TEXT, config={"systemInstruction": TEXT}) == 2 * WORDS
    assert estimate(TEXT, config=types.GenerateContentConfig(system_instruction=TEXT)) == 2 * WORDS
    assert estimate(TEXT, system_instruction=TEXT, config={"system_instruction": "x" * 500}) == 2 * WORDS


@pytest.mark.parametrize("size", [1, 10_000_000])
def test_images_are_flat(size: int) -> None:
    """An image counts as 258 tokens, whatever its size, in bytes, as base64 and in an SDK object."""
    data = b"x" * size
    assert estimate({"inline_data": {"mime_type": "image/png", "data": data}}) == 258
    assert estimate({"inlineData": {"mimeType": "image/png", "data": base64.b64encode(data).decode()}}) == 258
    assert estimate(types.Part.from_bytes(data=data, mime_type="image/jpeg")) == 258


def test_image_of_pillow() -> None:
    """An image object is recognised by its attributes, without Pillow."""

    class Image:
        size, mode = (640, 480), "RGB"

        def getpixel(self, xy: Any) -> None: ...

    assert estimate([TEXT, Image()]) == WORDS + 258


@pytest.mark.parametrize(
    ("mime", "size", "tokens"),
    [
        ("audio/wav", 640_000, 321),
        ("audio/mpeg", 120_000, 321),
        ("audio/L16;rate=16000", 320_000, 321),
        ("video/mp4", 2_000_000, 2631),
        ("application/pdf", 500_000, 11 * 258),
        ("text/plain", 300, 101),
        ("", 5, 258),
    ],
)
def test_media_by_size(mime: str, size: int, tokens: int) -> None:
    """Sound and film are estimated by a usual bit rate, documents by page, text by its bytes."""
    assert estimate({"inline_data": {"mime_type": mime, "data": bytes(size)}}) == tokens


def test_files_count_flat() -> None:
    """A file that the provider already has counts as one image: its length is unknown here."""
    assert estimate(types.Part.from_uri(file_uri="https://x/files/1", mime_type="video/mp4")) == 258
    assert estimate(types.File(name="files/1", uri="https://x/files/1")) == 258


def test_function_calls_and_results_count() -> None:
    """Function calls and their results count as JSON."""
    part = types.Part.from_function_response(name="weather", response={"forecast": TEXT})
    assert estimate(part) > WORDS
    assert estimate({"function_call": {"name": "weather", "args": {"city": TEXT}}}) > WORDS


def weather(city: str) -> str:
    """Return the weather of a city: which of the two forecasts is the better one, and why."""
    return city


class Answer(BaseModel):
    which_of_the_two: str


@pytest.mark.parametrize(
    "config",
    [
        {"tools": [{"function_declarations": [{"name": "f", "description": TEXT}]}]},
        {"tools": [weather]},
        types.GenerateContentConfig(tools=[weather]),
        types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())]),
        {"response_schema": Answer},
        {"response_schema": {"type": "OBJECT", "description": TEXT}},
    ],
    ids=["declaration", "function", "config of a function", "search", "type as schema", "schema"],
)
def test_tools_and_schemas_count(config: Any) -> None:
    """Tools and schemas count as input."""
    assert estimate(TEXT, config=config) > WORDS


def test_endless_contents_end() -> None:
    """A structure that contains itself is cut off."""
    loop: list[Any] = [TEXT]
    loop.append(loop)
    call: dict[str, Any] = {}
    call["function_call"] = {"args": call}
    assert estimate(loop) >= WORDS
    assert estimate(call) >= 1


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.text() | st.binary() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["text", "parts", "inline_data", "data", "function_call"]), inner
            )
        ),
    )
)
def test_never_fails(contents: Any) -> None:
    """Any contents have an estimate."""
    assert estimate(contents, config=contents) >= 1

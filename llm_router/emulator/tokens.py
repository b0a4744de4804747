"""Counting the tokens of a request, and finding its prompt.

The rule is simple, so that a test can predict the number: a quarter of the UTF-8 bytes of all texts in
``contents`` and ``systemInstruction`` together, rounded down, and at least 1. A part without text, such as an
image or a function call, adds :data:`OTHER_PART_TOKENS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "BYTES_PER_TOKEN",
    "OTHER_PART_TOKENS",
    "count_input_tokens",
    "count_text_tokens",
    "last_prompt",
    "parts_of",
    "turns",
    "utf8",
]

BYTES_PER_TOKEN = 4
"""UTF-8 bytes that make one token."""

OTHER_PART_TOKENS = 258
"""Tokens of a part without text."""


def count_text_tokens(text: str) -> int:
    """Return the tokens of ``text``: a quarter of its UTF-8 bytes, at least 1."""
    return max(1, len(utf8(text)) // BYTES_PER_TOKEN)


def utf8(text: str) -> bytes:
    """Return the UTF-8 bytes of ``text``, which has lone surrogates if a client cut it amid a character."""
    return text.encode("utf-8", "surrogatepass")


def count_input_tokens(body: Mapping[str, Any]) -> int:
    """Return the input tokens of a generateContent request, given its JSON body."""
    size = tokens = 0
    for part in _parts(body):
        text = part.get("text")
        if isinstance(text, str):
            size += len(utf8(text))
        else:
            tokens += OTHER_PART_TOKENS
    return max(1, tokens + size // BYTES_PER_TOKEN)


def last_prompt(body: Mapping[str, Any]) -> str:
    """Return the text of the last turn of ``contents``."""
    contents = turns(body)
    if not contents:
        return ""
    texts = (part.get("text") for part in parts_of(contents[-1]))
    return "".join(text for text in texts if isinstance(text, str))


def _parts(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for content in turns(body):
        yield from parts_of(content)
    yield from parts_of(body.get("systemInstruction", body.get("system_instruction")))


def turns(body: Mapping[str, Any]) -> list[Any]:
    """Return the turns in ``contents``."""
    contents = body.get("contents")
    if isinstance(contents, dict):
        return [contents]
    return contents if isinstance(contents, list) else []


def parts_of(content: object) -> list[dict[str, Any]]:
    """Return the parts of a turn that are objects."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if isinstance(parts, dict):
        return [parts]
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []

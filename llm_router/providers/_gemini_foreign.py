"""Contents in the form of another API, which the SDK would refuse with a list of all that they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["remedy_for"]

_DEEPEST = 4


def remedy_for(contents: Any) -> str | None:
    """Return what to write in place of messages as OpenAI has them, if any; it does not quote them."""
    message = _message_in(contents, _DEEPEST)
    if message is None:
        return None
    words = (
        "a message of OpenAI's API (role and content) is not one of Gemini's: "
        "write {'role': 'user', 'parts': [{'text': …}]}"
    )
    match message.get("role"):
        case "system" | "developer":
            return f"{words}, or what the system says as system_instruction="
        case "assistant":
            return f"{words}, with the role 'model' for what a model said"
        case _:
            return words


def _message_in(value: Any, depth: int) -> Mapping[str, Any] | None:
    """Return the first message among contents, a part of which it may have become in a conversation."""
    if isinstance(value, list | tuple) and depth:
        return next((found for each in value if (found := _message_in(each, depth - 1)) is not None), None)
    if not isinstance(value, Mapping):
        return None
    if "content" in value and "parts" not in value:
        return value
    return _message_in(value.get("parts"), depth)

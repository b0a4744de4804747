"""What an answer consists of besides its text: parts, function calls, and the steps on the way to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["FunctionCall", "Step", "calls_in", "parts_of"]


@attrs.frozen
class FunctionCall:
    """A function that the model wants to have called.

    Attributes:
        name: Its name.
        args: Its arguments by name.
        id: What the provider calls this call, to be repeated with its result; None if it does not say.
    """

    name: str
    args: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    id: str | None = None


@attrs.frozen
class Step:
    """An answer that called functions, and what they returned: one step on the way to the last answer.

    Attributes:
        model: The model that called them, by the name of its deployment.
        content: Its answer, in the form of :attr:`Response.content`.
        results: What the functions returned, as contents.
    """

    model: str | None
    content: Any = attrs.field(repr=False, hash=False)
    results: Any = attrs.field(repr=False, hash=False)


def parts_of(content: Any) -> tuple[Any, ...]:
    """Return the parts of a content; none of what has another form."""
    parts = content.get("parts") if isinstance(content, Mapping) else None
    return tuple(parts) if isinstance(parts, list | tuple) else ()


def calls_in(content: Any) -> tuple[FunctionCall, ...]:
    """Return the function calls in a content, in order."""
    calls = (part.get("function_call") for part in parts_of(content) if isinstance(part, Mapping))
    return tuple(
        FunctionCall(str(call["name"]), call.get("args") or {}, call.get("id"))
        for call in calls
        if isinstance(call, Mapping) and call.get("name")
    )

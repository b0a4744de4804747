"""What a caller asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

__all__ = ["Fallback", "Origin", "Request", "Urgency"]

Fallback = Literal["any", "model", "none"]
"""How far a send may fall back: to any deployment, only to the preferred model on any workload (without a
preferred model, only to the requested workload), or not at all."""

Urgency = Literal["interactive", "batch"]
"""Whether someone waits for the answer, or it may come whenever there is room."""


@attrs.frozen
class Origin:
    """Which model an earlier answer among the contents of a request came from.

    Attributes:
        content: The answer's index in the contents, in which it has a role and parts.
        model: The model that gave it, by the name of the deployment; None if it is not known.
        signatures: For each of its parts what only that model understands of it, or None.
    """

    content: int
    model: str | None
    signatures: tuple[bytes | None, ...] = attrs.field(repr=False)


@attrs.frozen(kw_only=True, slots=False)  # as with a response: one is made in every send
class Request:
    """One request, independent of the key and the model that will serve it.

    Attributes:
        contents: A string, or contents as google-genai takes them.
        system_instruction: The system instruction, as google-genai takes it.
        max_output_tokens: Upper bound of the answer, in tokens.
        temperature: Sampling temperature.
        config: A ``GenerateContentConfig`` or its dict; the fields above override it.
        safety_settings: Category → threshold, or None for the router's own.
        origins: Where the earlier answers among the contents came from, if a conversation sends them; None
            otherwise. The contents themselves are for any model: only a provider that sends a model its own
            signatures back needs to look here, when it knows the deployment.
    """

    contents: Any
    system_instruction: Any = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    config: Any = None
    safety_settings: Mapping[str, str] | None = None
    origins: tuple[Origin, ...] | None = None

"""What a caller asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

__all__ = ["Fallback", "Request"]

Fallback = Literal["any", "model", "none"]
"""How far a send may fall back: to any deployment, only to the preferred model on any workload (without a
preferred model, only to the requested workload), or not at all."""


@attrs.frozen(kw_only=True)
class Request:
    """One request, independent of the key and the model that will serve it.

    Attributes:
        contents: A string, or contents as google-genai takes them.
        system_instruction: The system instruction, as google-genai takes it.
        max_output_tokens: Upper bound of the answer, in tokens.
        temperature: Sampling temperature.
        config: A ``GenerateContentConfig`` or its dict; the fields above override it.
        safety_settings: Category → threshold, or None for the router's own.
    """

    contents: Any
    system_instruction: Any = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    config: Any = None
    safety_settings: Mapping[str, str] | None = None

"""What a model answers, before it takes the form of a protocol."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import attrs

from llm_router.emulator.tokens import utf8

__all__ = ["Answer", "FunctionCall"]

_MARK = b"emulated:"
_DIGEST = 15


@attrs.frozen
class FunctionCall:
    """A call of a function that the request declares.

    Attributes:
        name: The name of the function.
        args: Its arguments, as a JSON object.
    """

    name: str
    args: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def call_id(self) -> str:
        """The id of the call, which depends only on name and arguments."""
        return f"call-{self._digest().hex()}"

    @property
    def signature(self) -> str:
        """The thought signature of the call in base64, which depends only on name and arguments."""
        return base64.b64encode(_MARK + self._digest()).decode()

    def is_signed_by(self, signature: str) -> bool:
        """Return whether ``signature`` is this call's, or one that the emulator did not make."""
        mark = base64.b64encode(_MARK).decode()
        return signature == self.signature or not signature.startswith(mark)

    def _digest(self) -> bytes:
        text = f"{self.name} {json.dumps(self.args, sort_keys=True)}"
        return hashlib.sha256(utf8(text)).digest()[:_DIGEST]


@attrs.frozen
class Answer:
    """An answer of a model, with its usage.

    Attributes:
        model: The name of the model.
        response_id: The id of the answer.
        text: The whole text; empty if the answer consists of calls.
        finish_reason: Why the text ends.
        prompt_tokens: Tokens of the prompt, with those of cached content.
        output_tokens: Tokens of ``text``, or of the calls.
        thought_tokens: Tokens of the thoughts before it.
        cached_tokens: Tokens of cached content, which ``prompt_tokens`` includes.
        calls: The calls of functions that the model asks for.
    """

    model: str
    response_id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    thought_tokens: int = 0
    cached_tokens: int = 0
    calls: tuple[FunctionCall, ...] = ()

    @property
    def total_tokens(self) -> int:
        """All tokens of the exchange."""
        return self.prompt_tokens + self.output_tokens + self.thought_tokens

    def pieces(self, count: int) -> list[tuple[str, int]]:
        """Return the text in at most ``count`` pieces, each with the output tokens up to its end."""
        size = max(1, -(-len(self.text) // count))
        texts = [self.text[start : start + size] for start in range(0, len(self.text), size)] or [""]
        return [(text, self.output_tokens * (index + 1) // len(texts)) for index, text in enumerate(texts)]

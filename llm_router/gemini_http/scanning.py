"""Reading on the way what an answer says of itself: its usage, why it ended, an error in place of a piece.

The bytes are searched, and only the usage in them is decoded: they are passed on as they came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llm_router.domain.quota import MAX_LIMIT
from llm_router.domain.response import Usage
from llm_router.gemini_http.targets import Protocol

__all__ = ["AnswerScanner"]

_KEPT = 16_384
"""Bytes of the answer that are looked at again with the next piece, since what is read may be cut in two."""

_USAGE = {Protocol.GEMINI: b'"usageMetadata"', Protocol.OPENAI: b'"usage"'}
_FINISH = {Protocol.GEMINI: b'"finishReason"', Protocol.OPENAI: b'"finish_reason"'}
_COUNTED = {
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
_decode = json.JSONDecoder().raw_decode
_OBJECT = re.compile(rb"\s*:\s*\{")
_WORD = re.compile(rb'\s*:\s*"([A-Za-z_]{1,64})"')
_BLOCKED = re.compile(rb'"blockReason"\s*:\s*"([A-Z_]{1,64})"')
_ERROR = re.compile(rb'^[\s\x00]*(?:data:)?\s*\[?\s*\{\s*"error"\s*:\s*\{')
_LATER_ERROR = re.compile(rb'(?:^|\n)(?:data:[ \t]*)?\[?\{\s*"error"\s*:\s*\{')
"""An event, or an item of an array that begins a line: inside an answer a line never begins so."""
_DONE = re.compile(rb"(?:^|\n)data:\s*\[DONE\]")
_MODEL = re.compile(rb'"modelVersion"\s*:\s*"([^"\\]{1,128})"')


class AnswerScanner:
    """Reads one answer while it passes.

    Args:
        protocol: The protocol of the answer.

    Attributes:
        usage: The last usage that it stated, or None.
        finish_reason: Why it ended, as far as it has said; None until then.
        model: The model that ran, if it said so.
        error: The bytes from where an error object begins that came in place of a piece; None if none came.
        is_complete: Whether it has said that it is complete.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._tail = b""
        self._is_first = True
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.error: bytes | None = None
        self.is_complete = False

    def feed(self, piece: bytes) -> None:
        """Read the next piece."""
        window = self._tail + piece
        self._read_error(window, piece)
        self._read_usage(window)
        self._read_end(window)
        self._tail = window[-_KEPT:]

    def _read_error(self, window: bytes, piece: bytes) -> None:
        if self.error is not None:
            self.error += piece
            return
        found = _ERROR.match(window) if self._is_first else None
        if found is None and b'"error"' in window:
            found = _LATER_ERROR.search(window)
        self._is_first = self._is_first and len(window) < _KEPT
        if found is not None:
            self.error = window[window.index(b"{", found.start()) :]

    def _read_usage(self, window: bytes) -> None:
        name = _USAGE[self._protocol]
        at = window.rfind(name)
        begin = _OBJECT.match(window, at + len(name)) if at >= 0 and window[at - 1 : at] != b"\\" else None
        if begin is None:
            return
        try:
            stated, _ = _decode(window[begin.end() - 1 : at + _KEPT].decode("utf-8", "replace"))
            counts = _counts(stated, _COUNTED[self._protocol])
        except (ValueError, RecursionError):
            return  # cut in two: the rest comes with the next piece
        if counts:
            self.usage = Usage(**counts)

    def _read_end(self, window: bytes) -> None:
        name = _FINISH[self._protocol]
        at = window.rfind(name)
        found = _WORD.match(window, at + len(name)) if at >= 0 and window[at - 1 : at] != b"\\" else None
        if found is None and self.finish_reason is None and b'"blockReason"' in window:
            found = _BLOCKED.search(window)
        if found is not None:
            self.finish_reason, self.is_complete = found[1].decode(), True
        if self._protocol is Protocol.OPENAI:
            self.is_complete = self.is_complete or _DONE.search(window) is not None
        elif self.model is None and (model := _MODEL.search(window)):
            self.model = model[1].decode("utf-8", "replace")


def _counts(stated: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    """Return the counts of tokens in a usage, and in what is inside it, by the fields of :class:`Usage`."""
    found: dict[str, int] = {}
    for name, value in stated.items():
        if value.__class__ is dict:
            found |= _counts(value, names)
        elif name in names and value.__class__ is int and 0 <= value < MAX_LIMIT:
            field = names[name]
            found[field] = value + (found.get(field, 0) if field == "input_tokens" else 0)
    return found

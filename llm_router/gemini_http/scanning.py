"""Reading on the way what an answer says of itself: its usage, why it ended, an error in place of a piece.

The bytes are searched, not decoded: they are passed on as they came.
"""

from __future__ import annotations

import re

from llm_router.domain.response import Usage
from llm_router.gemini_http.targets import Protocol

__all__ = ["AnswerScanner"]

_KEPT = 16_384
"""Bytes of the answer that are looked at again with the next piece, since what is read may be cut in two."""

_USAGE = {Protocol.GEMINI: b'"usageMetadata"', Protocol.OPENAI: b'"usage"'}
_FINISH = {Protocol.GEMINI: b'"finishReason"', Protocol.OPENAI: b'"finish_reason"'}
_COUNT = re.compile(rb'"([A-Za-z_]{5,30})"\s*:\s*(\d{1,15})')
_COUNTED = {
    Protocol.GEMINI: {
        b"promptTokenCount": "input_tokens",
        b"toolUsePromptTokenCount": "input_tokens",
        b"candidatesTokenCount": "output_tokens",
        b"thoughtsTokenCount": "thinking_tokens",
        b"cachedContentTokenCount": "cached_tokens",
        b"totalTokenCount": "total_tokens",
    },
    Protocol.OPENAI: {
        b"prompt_tokens": "input_tokens",
        b"completion_tokens": "output_tokens",
        b"reasoning_tokens": "thinking_tokens",
        b"cached_tokens": "cached_tokens",
        b"total_tokens": "total_tokens",
    },
}
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
        if at < 0 or window[at - 1 : at] == b"\\":
            return
        names = _COUNTED[self._protocol]
        counts: dict[str, int] = {}
        for name, digits in _COUNT.findall(window, at, at + _KEPT):
            if (field := names.get(name)) is not None:
                before = counts.get(field, 0) if field == "input_tokens" else 0
                counts[field] = before + int(digits)
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

"""Reading on the way what an answer says of itself: its usage, why it ended, an error in place of a piece.

The bytes are searched, and passed on as they came. What is found counts only where it stands: a name inside a
text, or among the arguments of a function, is the model's and says nothing of the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from llm_router.domain.quota import MAX_LIMIT
from llm_router.domain.response import Usage
from llm_router.gemini_http.targets import Protocol

__all__ = ["AnswerScanner"]

_KEPT = 1024
"""Most bytes of a name and its value that are kept for the next piece, if they are cut in two."""

_SMALL = 16_384
"""Most bytes of a piece that is parsed if it is whole, since that takes less time than searching it."""

_ERROR_KEPT = 65_536
"""Most bytes of an error that are kept."""

_COUNTED = {
    Protocol.GEMINI: {
        "promptTokenCount": "input_tokens",
        "toolUsePromptTokenCount": "input_tokens",
        "candidatesTokenCount": "output_tokens",
        "thoughtsTokenCount": "thinking_tokens",
        "cachedContentTokenCount": "cached_tokens",
        "totalTokenCount": "total_tokens",
        # of an interaction
        "total_input_tokens": "input_tokens",
        "total_tool_use_tokens": "input_tokens",
        "total_output_tokens": "output_tokens",
        "total_thought_tokens": "thinking_tokens",
        "total_cached_tokens": "cached_tokens",
        "total_tokens": "total_tokens",
    },
    Protocol.OPENAI: {
        "prompt_tokens": "input_tokens",
        "completion_tokens": "output_tokens",
        "reasoning_tokens": "thinking_tokens",
        "cached_tokens": "cached_tokens",
        "total_tokens": "total_tokens",
    },
}

_ROOT, _CHILD = 1, 2
"""Braces around what an answer says of itself, and around what it says of a candidate, a choice, or the
interaction that an event is about."""

_PLACES: Mapping[Protocol, Mapping[str, tuple[int, ...]]] = {
    Protocol.GEMINI: {
        "usageMetadata": (_ROOT,),
        "usage": (_ROOT, _CHILD),
        "modelVersion": (_ROOT,),
        "finishReason": (_CHILD,),
        "blockReason": (_CHILD,),
        "promptFeedback": (_ROOT,),
        "content": (_CHILD,),
    },
    Protocol.OPENAI: {"usage": (_ROOT,), "finish_reason": (_CHILD,)},
}

_USAGES = frozenset({"usageMetadata", "usage"})

_ESCAPES = rb'(?:\\.[^"\\]*+)*'


def _token(names: Iterable[str]) -> re.Pattern[bytes]:
    """Return what skips all that is of no interest, and matches a brace (1) or one of some names (2).

    With the name, its value is matched if it is a string (3) or a number (4). No group is matched at the end,
    at a string that may be cut in two, and at a long one, which is left to what is faster.
    """
    name = "|".join(names).encode()
    string = rb'[^"\\]{0,%d}+%b' % (_KEPT, _ESCAPES)
    return re.compile(
        rb'(?:[^"{}]++|"(?!(?:' + name + rb')")' + string + rb'")*'
        rb'(?:([{}])|"(' + name + rb')"\s*+(?:(?=[,}\]])|:\s*+(?:(?=[\[{tfn])'
        rb'|"(' + string + rb')"|([-\d][^\s,}\]]*+)(?=\s*+[,}\]])))|)',
        re.DOTALL,
    )


_TOKENS = {each: _token([*_PLACES[each], *_COUNTED[each]]) for each in Protocol}
_BRACE, _NAME, _STRING, _NUMBER = 1, 2, 3, 4
_STRING_END = re.compile(rb'[^"\\]*+' + _ESCAPES, re.DOTALL)
_ERROR = re.compile(rb'\{\s*+"error"\s*+:\s*+\{')
_MAYBE_ERROR = re.compile(rb'\{\s{0,64}+(?:"[eor]{0,5}"?\s{0,64}+:?\s{0,64}+)?\Z')
_REASON = re.compile(r"[A-Za-z_]{1,64}")
_MODEL = re.compile(r"[^\\]{1,128}")
_DONE = re.compile(rb"\ndata:\s*+\[DONE\]")
_DONE_KEPT = 32
_DIGITS = 16
"""Digits of a number that are read: with so many it is larger than any count."""


class AnswerScanner:
    """Reads one answer while it passes: an object, or many, as events or as the items of an array.

    Args:
        protocol: The protocol of the answer.

    Attributes:
        usage: The last usage that it stated, or None.
        finish_reason: Why it ended, as far as it has said; None until then.
        model: The model that ran, if it said so.
        error: The bytes from where an error object begins that came in place of a piece, before the answer
            said why it ended; None if none came.
        is_complete: Whether it has said that it is complete.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._places = _PLACES[protocol]
        self._counted = _COUNTED[protocol]
        self._match_token: Callable[[bytes, int], Any] = _TOKENS[protocol].match  # matches always
        self._may_say_done = protocol is Protocol.OPENAI
        self._kept = b""
        self._tail = b"\n"
        self._depth = 0
        self._is_in_string = False
        self._counts: dict[str, int] | None = None  # those of the usage that is being read
        self._counts_depth = _ROOT  # where it stands
        self._begun: set[str] = set()  # objects other than usage that it has had
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.error: bytes | None = None
        self.is_complete = False

    @property
    def may_end(self) -> bool:
        """Whether an answer that ends here is whole.

        One without content need not say why it ended: its usage, or feedback on the prompt, is all of it.
        """
        is_stated = self.usage is not None or "promptFeedback" in self._begun
        return self.is_complete or (is_stated and "content" not in self._begun)

    def feed(self, piece: bytes) -> None:
        """Read the next piece."""
        if self.error is not None:
            self.error = (self.error + piece)[:_ERROR_KEPT]
            return
        if self._may_say_done and not self.is_complete:
            self._read_done(piece)
        if self._kept or self._depth or self._is_in_string or not self._read_whole(piece):
            window = self._kept + piece
            self._kept = window[self._read(window) :]

    def _read_whole(self, piece: bytes) -> bool:
        """Read a piece if it is an object, or an event with one; return whether it is."""
        if len(piece) > _SMALL:
            return False
        try:
            answer = json.loads(piece.removeprefix(b"data:"))
        except (ValueError, RecursionError):
            return False
        if answer.__class__ is not dict:
            return False
        is_error = answer.get("error").__class__ is dict and next(iter(answer)) == "error"
        if is_error and self.finish_reason is None:
            self.error = piece[piece.index(b"{") :]
        else:
            self._read_answer(answer)
        return True

    def _read_answer(self, answer: Mapping[str, Any]) -> None:
        for name, value in answer.items():
            if name not in _USAGES:
                for child in value if value.__class__ is list else (value,):
                    if child.__class__ is dict:
                        self._read_fields(_CHILD, child)
        self._read_fields(_ROOT, answer)

    def _read_fields(self, depth: int, fields: Mapping[str, Any]) -> None:
        for name in self._places.keys() & fields.keys():
            value = fields[name]
            if value.__class__ is str:
                self._take_word(depth, name, value)
            elif value.__class__ is dict and depth in self._places[name]:
                if name in _USAGES:
                    self._take_usage(dict(_numbers(value)))
                else:
                    self._begun.add(name)

    def _read(self, window: bytes) -> int:
        """Read what there is; return from where on it must be read again with the next piece."""
        at = self._leave_string(window, 0) if self._is_in_string else 0
        while not self._is_in_string:
            found = self._match_token(window, at)
            at, kind = int(found.end()), found.lastindex
            if kind == _BRACE:
                if not self._read_brace(window, at - 1):
                    return at - 1
            elif kind is not None:
                self._read_name(found, is_object=window.startswith(b"{", at))
            elif len(window) - at <= _KEPT:
                return at
            else:
                at = self._leave_string(window, at + 1)
        return at

    def _leave_string(self, window: bytes, at: int) -> int:
        """Return where the string ends that one is in; it may do so in a later piece."""
        end = window.find(b'"', at)
        end = len(window) if end < 0 else end
        if window.find(b"\\", at, end) >= 0 and (found := _STRING_END.match(window, at)):
            end = found.end()
        self._is_in_string = not window.startswith(b'"', end)
        return end if self._is_in_string else end + 1

    def _read_brace(self, window: bytes, at: int) -> bool:
        """Return whether there is more to be read behind it now."""
        if window[at] == ord("}"):
            self._depth = max(0, self._depth - 1)
            if self._depth == self._counts_depth and self._counts is not None:
                self._take_usage(self._counts)
                self._counts = None
            return True
        if not self._depth and self.finish_reason is None:
            if _ERROR.match(window, at):
                self.error = window[at:][:_ERROR_KEPT]
            if self.error is not None or _MAYBE_ERROR.match(window, at):
                return False
        self._depth += 1
        return True

    def _read_name(self, found: re.Match[bytes], *, is_object: bool) -> None:
        name, number = found[_NAME].decode(), found[_NUMBER]
        if self._counts is not None:
            if number is not None and number.isdigit():
                self._counts[name] = int(number[:_DIGITS])
        elif found[_STRING] is not None:
            self._take_word(self._depth, name, found[_STRING].decode("utf-8", "replace"))
        elif is_object and self._depth in self._places.get(name, ()):
            if name in _USAGES:
                self._counts, self._counts_depth = {}, self._depth
            else:
                self._begun.add(name)

    def _take_word(self, depth: int, name: str, word: str) -> None:
        if depth not in self._places.get(name, ()):
            return
        if depth == _ROOT:
            if name == "modelVersion" and self.model is None and _MODEL.fullmatch(word):
                self.model = word
        elif _REASON.fullmatch(word):
            if name != "blockReason" or self.finish_reason is None:
                self.finish_reason = word
            self.is_complete = True

    def _take_usage(self, counts: Mapping[str, int]) -> None:
        fields: dict[str, int] = {}
        for name, count in counts.items():
            field = self._counted.get(name)
            if field is not None and 0 <= count < MAX_LIMIT:
                fields[field] = fields.get(field, 0) + count
        if fields:
            self.usage = Usage(**fields)

    def _read_done(self, piece: bytes) -> None:
        self._tail += piece
        self.is_complete = _DONE.search(self._tail) is not None
        self._tail = self._tail[-_DONE_KEPT:]


def _numbers(stated: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in an object, and in those inside it, however deep they are."""
    open_objects = [iter(stated.items())]
    while open_objects:
        for name, value in open_objects[-1]:
            if value.__class__ is int:
                yield name, value
            elif value.__class__ is dict:
                open_objects.append(iter(value.items()))
                break
        else:
            open_objects.pop()

"""Answers read from their JSON: text, its end and its usage, without the SDK's models.

What is more than that, such as a function call or an image, is read by the SDK. So is every answer whose
``raw`` is asked for.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
from collections.abc import Container
from typing import Any

from llm_router.domain.response import Deferred

__all__ = ["can_read", "read_answer"]

_PART = frozenset({"text", "thought", "thoughtSignature"})
_STANDARD = str.maketrans("-_", "+/")
_WORD, _COUNT = (str, type(None)), (int, type(None))
_COUNTS = {
    "cached_content_token_count": "cachedContentTokenCount",
    "candidates_token_count": "candidatesTokenCount",
    "prompt_token_count": "promptTokenCount",
    "thoughts_token_count": "thoughtsTokenCount",
    "tool_use_prompt_token_count": "toolUsePromptTokenCount",
    "total_token_count": "totalTokenCount",
}


class _NotTextError(Exception):
    """An answer has something that only the SDK reads."""


class _Name:
    """A member of an enum of the SDK."""

    def __init__(self, name: str) -> None:
        self.name = name


_ENDS = {None: None, "STOP": _Name("STOP"), "MAX_TOKENS": _Name("MAX_TOKENS")}


class _Part:
    """A part that is text."""

    __slots__ = ("text", "thought", "thought_signature")

    function_call = inline_data = None

    def __init__(self, value: Any) -> None:
        value = _object(value)
        self.text, self.thought = value.get("text"), value.get("thought")
        if type(self.text) is not str or self.thought not in (None, True, False) or not value.keys() <= _PART:
            raise _NotTextError
        self.thought_signature = _signature(value.get("thoughtSignature"))

    def model_dump(self, *, exclude_none: bool, exclude: Container[str] = ()) -> dict[str, Any]:
        """Return the fields that are set, in the order of the SDK; only ``exclude_none`` is supported."""
        assert exclude_none  # noqa: S101
        fields = {"text": self.text, "thought": self.thought, "thought_signature": self.thought_signature}
        return {name: value for name, value in fields.items() if value is not None and name not in exclude}


class _Content:
    __slots__ = ("parts",)

    def __init__(self, value: Any) -> None:
        parts = _object(value).get("parts")
        self.parts = None if parts is None else [_Part(each) for each in _list(parts)]


class _Candidate:
    __slots__ = ("content", "finish_reason")

    def __init__(self, value: Any) -> None:
        end, content = _object(value).get("finishReason"), value.get("content")
        if type(end) not in _WORD or end not in _ENDS:
            raise _NotTextError
        self.finish_reason = _ENDS[end]
        self.content = None if content is None else _Content(content)


class _Usage:
    """Counts of tokens, of which each may be missing."""

    __slots__ = tuple(_COUNTS)

    def __init__(self, value: Any) -> None:
        get = _object(value).get
        for name, sent in _COUNTS.items():
            count = get(sent)
            if type(count) not in _COUNT:
                raise _NotTextError
            setattr(self, name, count)


class _Answer(Deferred):
    """An answer that is text, with the attributes of the SDK's response that are read of it."""

    __slots__ = ("_headers", "_made", "_value", "candidates", "model_version", "usage_metadata")

    prompt_feedback = None

    def __init__(self, value: Any, headers: dict[str, str]) -> None:
        get = _object(value).get
        counts, candidates, self.model_version = get("usageMetadata"), get("candidates"), get("modelVersion")
        if "promptFeedback" in value or candidates == [] or type(self.model_version) not in _WORD:
            raise _NotTextError
        self.usage_metadata = None if counts is None else _Usage(counts)
        self.candidates = None if candidates is None else [_Candidate(_list(candidates)[0])]
        self._value, self._headers = value, headers
        self._made: Any = None

    def get(self) -> Any:
        """Return the SDK's response; None if the SDK cannot read something that was not read here."""
        if self._made is None:
            with contextlib.suppress(Exception):
                self._made = _by_sdk(self._value, self._headers)
        return self._made


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _NotTextError
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise _NotTextError
    return value


def _signature(value: Any) -> bytes | None:
    if value is None:
        return None
    try:
        return base64.b64decode(value.translate(_STANDARD), validate=True)
    except (AttributeError, TypeError, binascii.Error):
        raise _NotTextError from None


@functools.cache
def can_read() -> bool:
    """Return whether the installed SDK can make its response from JSON; the first call imports it.

    It has no public way to do that.
    """
    from google.genai import models, types  # noqa: PLC0415 - heavy

    return hasattr(models, "_GenerateContentResponse_from_mldev") and hasattr(
        types.GenerateContentResponse, "_from_response"
    )


def read_answer(value: Any, headers: dict[str, str]) -> Any:
    """Return an answer, or a piece of one, with the attributes of the SDK's response that are read here.

    Args:
        value: Its JSON, read.
        headers: Those of the HTTP answer.

    Raises:
        Exception: The SDK cannot read it.
    """
    try:
        return _Answer(value, headers)
    except _NotTextError:
        return _by_sdk(value, headers)


def _by_sdk(value: Any, headers: dict[str, str]) -> Any:
    from google.genai import models, types  # noqa: PLC0415 - heavy, and already imported

    fields = models._GenerateContentResponse_from_mldev(value, {}, {})  # noqa: SLF001 - see can_read()
    response = types.GenerateContentResponse._from_response(response=fields, kwargs={})  # noqa: SLF001
    response.sdk_http_response = types.HttpResponse(headers=headers)
    return response

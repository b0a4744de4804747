"""Estimating the input tokens of a request: contents, media, system instruction and tools.

It is duck-typed, so that it needs no SDK: it reads strings, dicts (in snake_case or camelCase), objects with
such attributes, and lists of these.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llm_router.domain.fields import field
from llm_router.domain.tokens import estimate_tokens

if TYPE_CHECKING:
    from llm_router.domain.request import Request

__all__ = ["IMAGE_TOKENS", "estimate_request"]

IMAGE_TOKENS = 258
"""Tokens of an image, and of a page of a document (ai.google.dev, "Understand and count tokens").

A larger image is cut into tiles of this size each, but their number is unknown without decoding it.
"""

_AUDIO_TOKENS_PER_SECOND = 32
_VIDEO_TOKENS_PER_SECOND = 263
_BYTES_PER_SECOND = {"audio/wav": 64_000, "audio/x-wav": 64_000, "audio/l16": 32_000, "audio/pcm": 48_000}
_AUDIO_BYTES_PER_SECOND = 12_000
_VIDEO_BYTES_PER_SECOND = 200_000
_PAGE_BYTES = 50_000
_DEEPEST = 16
"""Levels of nesting that are followed; what the API accepts is never deeper, except in JSON."""

_TEXT_FIELDS = ("text", "code", "output")
_PLAIN_FIELDS = {"role", "parts", "text"}
"""All that most contents and parts have."""

_NESTED_FIELDS = ("parts", "executable_code", "code_execution_result")
_JSON_FIELDS = ("function_call", "function_response")
_CONFIG_FIELDS = ("tools", "response_schema", "response_json_schema")


def estimate_request(request: Request) -> int:
    """Estimate the input tokens of ``request``, at least 1. It never fails, and does no I/O.

    Data that the provider already has (a cache, a file given by its name) is unknown here and counts as one
    image at most.
    """
    instruction = request.system_instruction
    if instruction is None:
        instruction = field(request.config, "system_instruction")
    tokens = _estimate(request.contents) + _estimate(instruction)
    if request.config is not None:
        tokens += sum(_estimate_json(field(request.config, name)) for name in _CONFIG_FIELDS)
    return max(1, tokens)


def _estimate(value: Any, depth: int = 0) -> int:
    if isinstance(value, str):
        return estimate_tokens(value) if value else 0
    if value is None or depth > _DEEPEST:
        return 0
    if isinstance(value, list | tuple):
        return sum([_estimate(item, depth + 1) for item in value])
    return _estimate_part(value, depth)


def _estimate_part(value: Any, depth: int) -> int:
    """Estimate a content, a part, a file, or a Pillow image."""
    if value.__class__ is dict and value.keys() <= _PLAIN_FIELDS:
        text = value.get("text")
        return (estimate_tokens(text) if text and isinstance(text, str) else 0) + _estimate(
            value.get("parts"), depth + 1
        )
    texts = (field(value, name) for name in _TEXT_FIELDS)
    tokens = sum(estimate_tokens(text) for text in texts if isinstance(text, str) and text)
    tokens += sum(_estimate(field(value, name), depth + 1) for name in _NESTED_FIELDS)
    tokens += sum(_estimate_json(field(value, name)) for name in _JSON_FIELDS)
    blob = field(value, "inline_data")
    if blob is not None:
        tokens += _estimate_blob(blob)
    if _is_reference(value) or _is_image(value):
        tokens += IMAGE_TOKENS
    return tokens


def _is_reference(value: Any) -> bool:
    return any(field(value, name) is not None for name in ("file_data", "file_uri", "uri"))


def _is_image(value: Any) -> bool:
    """Return whether ``value`` is a Pillow image, without importing Pillow."""
    return all(hasattr(value, name) for name in ("size", "mode", "getpixel"))


def _estimate_blob(blob: Any) -> int:
    """Estimate media by type and size: a flat rate per image, a usual bit rate for sound and film."""
    mime = str(field(blob, "mime_type") or "").partition(";")[0].strip().lower()
    data = field(blob, "data") or b""
    size = len(data) if isinstance(data, bytes | bytearray | memoryview | str) else 0
    if isinstance(data, str):  # base64: three bytes in four characters
        size = size * 3 // 4
    match mime.partition("/")[0]:
        case "audio":
            rate = _BYTES_PER_SECOND.get(mime, _AUDIO_BYTES_PER_SECOND)
            return 1 + size * _AUDIO_TOKENS_PER_SECOND // rate
        case "video":
            return 1 + size * _VIDEO_TOKENS_PER_SECOND // _VIDEO_BYTES_PER_SECOND
        case "text":
            return 1 + size // 3
    pages = size // _PAGE_BYTES if mime == "application/pdf" else 0
    return (1 + pages) * IMAGE_TOKENS


def _estimate_json(value: Any) -> int:
    """Estimate what is sent as JSON: tools, schemas, function calls and their results."""
    if value is None:
        return 0
    if isinstance(value, list | tuple):
        return sum(_estimate_json(item) for item in value)
    return estimate_tokens(_as_json(value))


def _as_json(value: Any) -> str:
    dump = getattr(value, "model_dump_json", None)
    try:
        if dump is not None and not isinstance(value, type):
            return str(dump(exclude_none=True, by_alias=True))
        return json.dumps(value, ensure_ascii=False, default=_describe)
    except (TypeError, ValueError, RecursionError):
        return _describe(value)


def _describe(value: Any) -> str:
    """Return what the SDK would declare: a function's name and docstring, a model's schema."""
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return json.dumps(value.model_json_schema())
    return f"{getattr(value, '__name__', type(value).__name__)} {getattr(value, '__doc__', None) or ''}"

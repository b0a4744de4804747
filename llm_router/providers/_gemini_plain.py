"""Plain requests as JSON: the bytes that the SDK would send, without the time that its models take.

What is plain is text and numbers; all else goes through the SDK.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llm_router.providers._gemini_config import merged_safety

if TYPE_CHECKING:
    from llm_router.domain.request import Request

__all__ = ["is_plain", "plain_body"]

_MODEL = re.compile(r"[A-Za-z0-9._-]+")


class _NotPlainError(Exception):
    """A request has something that only the SDK can send."""


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise _NotPlainError
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _NotPlainError
    return float(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _NotPlainError
    return value


def _texts(value: Any) -> list[str]:
    if type(value) is not list or not value:
        raise _NotPlainError
    return [_text(each) for each in value]


_Reader = Callable[[Any], Any]

_INSTRUCTION = "system_instruction"

_SETTINGS: Mapping[str, tuple[str, _Reader]] = {
    _INSTRUCTION: ("systemInstruction", _text),
    "temperature": ("temperature", _real),
    "top_p": ("topP", _real),
    "top_k": ("topK", _real),
    "candidate_count": ("candidateCount", _whole),
    "max_output_tokens": ("maxOutputTokens", _whole),
    "stop_sequences": ("stopSequences", _texts),
    "presence_penalty": ("presencePenalty", _real),
    "frequency_penalty": ("frequencyPenalty", _real),
    "seed": ("seed", _whole),
    "response_mime_type": ("responseMimeType", _text),
}
"""The fields of a config that are sent as they are, in the order in which the SDK sends them."""

_PART = frozenset({"text", "thought_signature"})
_TURN = frozenset({"role", "parts"})
_ROLES = ("user", "model")


def is_plain(request: Request) -> bool:
    """Return whether a request is text and numbers alone, and has nothing that the SDK would refuse."""
    try:
        _contents(request.contents)
        _settings(request)
    except _NotPlainError:
        return False
    return True


def plain_body(request: Request, contents: Any, model: str, safety: Mapping[str, str]) -> bytes | None:
    """Return the body of a plain request, or None if the SDK has to make it.

    Args:
        request: The request, which has been validated.
        contents: Its contents, as ``model`` is to be sent them.
        model: The model.
        safety: The provider's own thresholds.

    Raises:
        InvalidRequestError: A threshold is unknown.
    """
    if not _MODEL.fullmatch(model):
        return None
    try:
        begun: dict[str, Any] = {"contents": _contents(contents)}
        settings = _settings(request)
    except _NotPlainError:
        return None
    instruction = settings.pop(_INSTRUCTION, None)
    if instruction is not None:
        begun["systemInstruction"] = {"parts": [{"text": instruction}], "role": "user"}
    if request.safety_settings is None:
        thresholds = _own_safety(tuple(safety.items()))
    else:
        thresholds = _safety(merged_safety(request, safety))
    generation = {sent: settings[name] for name, (sent, _) in _SETTINGS.items() if name in settings}
    return f'{json.dumps(begun)[:-1]}{thresholds}, "generationConfig": {json.dumps(generation)}}}'.encode()


@functools.lru_cache(maxsize=64)
def _own_safety(thresholds: tuple[tuple[str, str], ...]) -> str:
    return _safety([{"category": name, "threshold": level} for name, level in thresholds])


def _safety(settings: list[dict[str, Any]]) -> str:
    return f', "safetySettings": {json.dumps(settings)}' if settings else ""


def _settings(request: Request) -> dict[str, Any]:
    """Return the fields of a config, and what the request has in their place."""
    config, settings = request.config, dict[str, Any]()
    if config is not None:
        if type(config) is not dict or not config.keys() <= _SETTINGS.keys():
            raise _NotPlainError
        settings = {name: _SETTINGS[name][1](value) for name, value in config.items()}
    if request.system_instruction is not None:
        settings[_INSTRUCTION] = _text(request.system_instruction)
    if request.max_output_tokens is not None:
        settings["max_output_tokens"] = _whole(request.max_output_tokens)
    if request.temperature is not None:
        settings["temperature"] = _real(request.temperature)
    return settings


def _contents(contents: Any) -> list[dict[str, Any]]:
    """Return contents as they are sent."""
    if type(contents) is str:
        return [{"parts": [{"text": contents}], "role": "user"}]
    if type(contents) is not list or not contents:
        raise _NotPlainError
    if type(contents[0]) is str:
        return [{"parts": [{"text": _text(each)} for each in contents], "role": "user"}]
    return [_turn(each) for each in contents]


def _turn(content: Any) -> dict[str, Any]:
    if type(content) is not dict or content.keys() != _TURN or content["role"] not in _ROLES:
        raise _NotPlainError
    parts = content["parts"]
    if type(parts) is not list or not parts:
        raise _NotPlainError
    return {"parts": [_part(each) for each in parts], "role": content["role"]}


def _part(part: Any) -> dict[str, str]:
    if type(part) is not dict or not part.keys() <= _PART:
        raise _NotPlainError
    sent, signature = {"text": _text(part.get("text"))}, part.get("thought_signature")
    if signature is not None:
        if type(signature) is not bytes:
            raise _NotPlainError
        sent["thoughtSignature"] = base64.urlsafe_b64encode(signature).decode()
    return sent

"""What the body of a request says that a router must know: its model, its size, what one project owns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import attrs

from llm_router.domain.deployment import plain_model
from llm_router.gemini_http.targets import Operation, Protocol, Target

__all__ = ["WORKLOAD_PREFIX", "Asked", "MalformedBodyError", "Reading", "read_asked"]

WORKLOAD_PREFIX = "workload:"
"""What stands before a workload where a model's name stands: whatever serves that workload."""

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode
_FILE_NAME = re.compile(
    r"(?:\A\s*+|//generativelanguage\.googleapis\.com(?::\d+)?/(?:.*?/)?|/v\d\w*/)(files/[A-Za-z0-9_-]+)"
)
"""The name of a file, alone or in the URI that the API gave it: other addresses may have such a path, too."""

_SIGNATURE = re.compile(rb'"thought_?[sS]ignature"\s*:\s*"')
_STREAMING = frozenset({Operation.STREAM})
_STREAMED_BY_BODY = frozenset({Operation.CHAT, Operation.CREATE_INTERACTION})
_DEEPEST = 24


class MalformedBodyError(ValueError):
    """The body is not a JSON object, or names no model where it must."""


@attrs.frozen
class Asked:
    """What one request asks for.

    Attributes:
        model: The model's name without ``models/``; empty if there is none.
        streams: Whether the answer comes in pieces.
        resources: Names of what belongs to one project: files, cached contents, interactions.
        is_portable: Whether another model could answer: nothing in it is for one model only.
        contents: The prompt as decoded JSON, for an estimate of its tokens.
        instruction: The system instruction, likewise.
        config: What else counts as input, such as tools, by the names of the Gemini API.
        model_span: Where in the body the JSON string of the model's name begins and ends; None if it is not
            in the body.
    """

    model: str = ""
    streams: bool = False
    resources: tuple[str, ...] = ()
    is_portable: bool = True
    contents: Any = attrs.field(default=None, repr=False)
    instruction: Any = attrs.field(default=None, repr=False)
    config: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    model_span: tuple[int, int] | None = None

    def renamed(self, body: bytes, model: str) -> bytes:
        """Return ``body`` with another model's name in place of its own; all else is as it was."""
        if self.model_span is None:
            return body
        start, end = self.model_span
        return body[:start] + json.dumps(model).encode() + body[end:]


@attrs.frozen
class Reading:
    """What an exchange is for, and what its body says.

    Attributes:
        target: What it is for.
        asked: What its body says.
    """

    target: Target
    asked: Asked


def read_asked(target: Target, body: bytes) -> Asked:
    """Read the body of a request.

    Raises:
        MalformedBodyError: It is not a JSON object, or names no model where it must.
    """
    operation = target.operation
    if operation.method is None and not operation.creates:
        return Asked(target.model, resources=_named(target))
    if operation is Operation.UPLOAD:
        return Asked(is_portable=False)
    fields, span = _members(body, with_span=operation.names_model_in_body)
    model = target.model
    if operation.names_model_in_body:
        named = fields.get("model")
        if isinstance(named, str) and named:
            model = plain_model(named)
        elif operation is not Operation.CREATE_INTERACTION:
            raise MalformedBodyError("the body names no model")
    streams = operation in _STREAMING or (operation in _STREAMED_BY_BODY and fields.get("stream") is True)
    if target.protocol is Protocol.OPENAI:
        contents, instruction, config = _openai_input(fields)
    else:
        contents, instruction, config = _gemini_input(fields)
    resources = (*_named(target), *_stored(fields, body))
    signed = _SIGNATURE.search(body) is not None
    return Asked(
        model=model,
        streams=streams,
        resources=resources,
        is_portable=not signed and not resources,
        contents=contents,
        instruction=instruction,
        config=config,
        model_span=span,
    )


def _named(target: Target) -> tuple[str, ...]:
    return (target.resource,) if target.resource else ()


def _members(body: bytes, *, with_span: bool) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Return the members of a JSON object, and if wanted where in the body the value of ``model`` stands.

    Decoding member by member says where each value is; decoding the whole is faster where there are few.
    """
    members: Any = None
    span: tuple[int, int] | None = None
    try:
        text = body.decode()
        if with_span:
            members = {}
            for name, start, end, value in _scan(text):
                members[name] = value
                if name == "model":
                    before = len(text[:start].encode())
                    span = before, before + len(text[start:end].encode())
        else:
            members = json.loads(text)
    except (ValueError, StopIteration, IndexError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise MalformedBodyError("the body is not a JSON object")
    return members, span


def _scan(text: str) -> Iterator[tuple[str, int, int, Any]]:
    """Yield name, start, end and value of each member of the JSON object that ``text`` is."""
    at = _after_space(text, 0)
    if text[at] != "{":
        raise ValueError("not an object")
    at = _after_space(text, at + 1)
    if text[at] == "}":
        _require_end(text, at + 1)
        return
    while True:
        name, at = _decode(text, at)
        at = _after_space(text, at)
        if text[at] != ":" or not isinstance(name, str):
            raise ValueError("not a member")
        start = _after_space(text, at + 1)
        value, end = _decode(text, start)
        yield name, start, end, value
        at = _after_space(text, end)
        if text[at] == "}":
            break
        if text[at] != ",":
            raise ValueError("no comma")
        at = _after_space(text, at + 1)
    _require_end(text, at + 1)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # noqa: S101 - it matches nothing, too
    return found.end()


def _require_end(text: str, at: int) -> None:
    if _after_space(text, at) != len(text):
        raise ValueError("more than one object")


def _get(fields: Mapping[str, Any], camel: str, snake: str) -> Any:
    return fields[camel] if camel in fields else fields.get(snake)


def _gemini_input(fields: dict[str, Any]) -> tuple[Any, Any, Mapping[str, Any]]:
    """Return contents, system instruction and the rest of a body of the Gemini API."""
    inner = _get(fields, "generateContentRequest", "generate_content_request")
    if isinstance(inner, dict):
        fields = inner
    contents = next((fields[name] for name in ("contents", "content", "input") if name in fields), None)
    requests = fields.get("requests")
    if contents is None and isinstance(requests, list):
        contents = [each.get("content") for each in requests if isinstance(each, dict)]
    return contents, _get(fields, "systemInstruction", "system_instruction"), fields


def _openai_input(fields: dict[str, Any]) -> tuple[Any, Any, Mapping[str, Any]]:
    """Return the same of a body of the OpenAI API, in the form of the Gemini API."""
    if "messages" not in fields:
        return fields.get("input"), None, {}
    messages = fields["messages"] if isinstance(fields["messages"], list) else []
    contents = [part for message in messages if isinstance(message, dict) for part in _message(message)]
    return contents, None, {"tools": fields.get("tools"), "response_schema": fields.get("response_format")}


def _message(message: dict[str, Any]) -> Iterator[Any]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict):
                yield from _message_part(part)
    if message.get("tool_calls"):
        yield json.dumps(message["tool_calls"])


def _message_part(part: dict[str, Any]) -> Iterator[Any]:
    if isinstance(part.get("text"), str):
        yield part["text"]
    image = part.get("image_url")
    if image is not None:
        url = image.get("url") if isinstance(image, dict) else image
        yield _blob(url) if isinstance(url, str) and url.startswith("data:") else {"file_uri": url}
    sound = part.get("input_audio")
    if isinstance(sound, dict):
        blob = {"mime_type": f"audio/{sound.get('format')}", "data": sound.get("data")}
        yield {"inline_data": blob}


def _blob(url: str) -> dict[str, Any]:
    kind, _, data = url.removeprefix("data:").partition(",")
    return {"inline_data": {"mime_type": kind.partition(";")[0], "data": data}}


def _stored(fields: Mapping[str, Any], body: bytes) -> tuple[str, ...]:
    """Return the names of stored things that a body refers to, in whichever spelling of their fields."""
    found: dict[str, None] = {}
    for field, kind in _CONTINUED.items():
        name = fields.get(field)
        if isinstance(name, str):
            found[f"{kind}/{name.removeprefix(f'{kind}/')}" if kind else name] = None
    if any(hint in body for hint in _HINTS):  # a quick look spares most bodies the slow one
        for field, value in _references(fields, 0):
            if field not in _CONTINUED:
                found |= dict.fromkeys(_FILE_NAME.findall(unquote(value)))
            elif value.startswith("cachedContents/"):
                found[value] = None
    return tuple(found)


_CONTINUED = {
    "cachedContent": "",
    "cached_content": "",
    "previousInteractionId": "interactions",
    "previous_interaction_id": "interactions",
}
"""Fields that name what a request continues, and what begins the name if the field may leave that out."""

_FIELDS = frozenset({"fileUri", "file_uri", "fileName", "file_name", "file_id", "uri", *_CONTINUED})
_HINTS = (b"files", b"cachedContents", b"\\u00")
"""What a body has that names a file, or a cache inside another request; JSON may escape any character."""


def _references(value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """Yield each field that may name something stored, and its value."""
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in _FIELDS and isinstance(inner, str):
                yield name, inner
            elif isinstance(inner, dict | list):
                yield from _references(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner, depth + 1)

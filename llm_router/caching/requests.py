"""Which requests a cache answers, and what makes two of them the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from llm_router.domain.deployment import plain_model
from llm_router.domain.fields import field
from llm_router.domain.options import SendOptions
from llm_router.domain.request import Request
from llm_router.engine.requests import merge_requests
from llm_router.records.values import to_json

__all__ = ["canonical", "is_lasting", "request_of"]

_FIELDS = ("system_instruction", "max_output_tokens", "temperature", "config", "safety_settings")
_SCHEMA = "response_schema"
_MEDIA = frozenset({"inline_data", "inlineData", "file_data", "fileData", "$bytes"})
_CALLS = frozenset({"function_call", "functionCall", "function_response", "functionResponse"})


def request_of(prompt: Any, options: SendOptions) -> Request:
    """Return the request that a send makes of its arguments, unchecked."""
    given = {name: options.get(name) for name in _FIELDS}
    outer = Request(contents=prompt, **given)  # type: ignore[arg-type] # whatever they are
    return merge_requests(prompt, outer) if isinstance(prompt, Request) else outer


def is_lasting(request: Request, written: Any) -> bool:
    """Return whether the answer to a request may be given again without being asked for.

    It may not where a temperature above 0 is stated, where tools may act, or where there is more than text.

    Args:
        request: The request.
        written: Its contents, system instruction and config, as JSON has them.
    """
    temperature = request.temperature
    if temperature is None:
        temperature = field(request.config, "temperature")
    return not temperature and not field(request.config, "tools") and not _has(written, _MEDIA | _CALLS)


def canonical(request: Request, options: SendOptions, place: Any) -> tuple[bytes, bool]:
    """Return what is the same for equal requests, and whether an answer is lasting.

    Args:
        request: The request.
        options: The options of its send.
        place: What the router does to all its requests.

    Raises:
        TypeError: Something in the request has no form to compare.
    """
    contents = request.contents
    if isinstance(contents, str):
        contents = [{"role": "user", "parts": [{"text": contents}]}]
    said = to_json([contents, request.system_instruction])
    model = options.get("model_preference")
    config = _config(request.config)
    whole = [
        said,
        config,
        to_json([request.max_output_tokens, request.temperature, request.safety_settings]),
        to_json([attrs.astuple(origin) for origin in request.origins or ()]),
        options.get("workload"),
        plain_model(model) if isinstance(model, str) else model,
        options.get("fallback", "any"),
        place,
    ]
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return text.encode(), is_lasting(request, [said, config])


def _config(config: Any) -> Any:
    """Return a config as JSON has it; a type that answers are to have as its schema.

    Raises:
        TypeError: Something in it has no form to compare.
    """
    if config is None:
        return None
    fields = dict(config) if isinstance(config, Mapping) else _given(config)
    kinds = {}
    for name in (_SCHEMA, "responseSchema"):
        schema = fields.get(name)
        if schema is not None and not isinstance(schema, Mapping) and not hasattr(schema, "any_of"):
            kinds[name] = _described(fields.pop(name))
    if (field(config, "candidate_count") or 1) > 1:
        raise TypeError("of several candidates only the first would be kept")
    return [to_json(fields), kinds]


def _given(config: Any) -> dict[str, Any]:
    names = getattr(config, "model_fields_set", None)
    if names is None:
        raise TypeError("this config cannot be read")
    return {name: getattr(config, name) for name in names}


def _described(kind: Any) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415 - heavy

    try:
        return [repr(kind), TypeAdapter(kind).json_schema()]
    except Exception as error:
        raise TypeError("a type without a schema") from error


def _has(value: Any, names: frozenset[str]) -> bool:
    """Return whether an object somewhere in a value of JSON has one of these keys."""
    if value.__class__ is dict:
        return not names.isdisjoint(value) or any(_has(each, names) for each in value.values())
    return value.__class__ is list and any(_has(each, names) for each in value)

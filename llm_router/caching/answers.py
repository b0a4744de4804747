"""Answers as bytes, and back."""

from __future__ import annotations

import json
from typing import Any

import attrs

from llm_router.domain.request import Request
from llm_router.domain.response import Response, Usage
from llm_router.providers.base import Reply
from llm_router.records.values import from_json, to_json

__all__ = ["read_answer", "shared", "write_answer"]

_FORMAT = 1
_FIELDS = ("answer", "finish_reason", "model", "workload")


def write_answer(response: Response, request: Request) -> bytes | None:
    """Return a response as bytes; None for one that is not to be given again, or would not be the same.

    Raises:
        TypeError: Something in it cannot be written.
    """
    if not response.success or response.steps or not (response.answer or response.content):
        return None
    if response.parsed is not None and _parsed(request, response) != response.parsed:
        return None
    fields = {name: getattr(response, name) for name in _FIELDS}
    return json.dumps(
        {
            "format": _FORMAT,
            **fields,
            "content": to_json(response.content),
            "parsed": response.parsed is not None,
            "tokens": response.usage.total_tokens,
        },
        separators=(",", ":"),
    ).encode()


def read_answer(data: bytes, request: Request) -> tuple[Response, int] | None:
    """Return an answer as a response of its own, and its tokens; None if it is none of this version."""
    try:
        found = json.loads(data)
        if found["format"] != _FORMAT:
            return None
        response = Response(
            success=True,
            content=from_json(found["content"]),
            cached=True,
            **{name: found[name] for name in _FIELDS},
        )
        if found["parsed"]:
            response = attrs.evolve(response, parsed=_parsed(request, response))
        return response, int(found["tokens"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def shared(response: Response, latency: float) -> Response:
    """Return the response to a send that was answered by the call of another one."""
    return attrs.evolve(
        response,
        key_id=None,
        usage=Usage(),
        attempts=0,
        attempt_log=(),
        latency=latency,
        waited=0.0,
        cached=response.success,
    )


def _parsed(request: Request, response: Response) -> Any:
    """Return what an answer says in the form that its request asks for.

    Raises:
        ValueError: It has not that form.
    """
    from llm_router.providers._gemini_schema import AnswerForm  # noqa: PLC0415 - few requests ask for one

    form = AnswerForm.of(request)
    reply = Reply(response.answer, content=response.content)
    fit = reply if form is None else form.fit(reply)
    if fit.failed is not None:
        raise ValueError(fit.failed)
    return fit.parsed

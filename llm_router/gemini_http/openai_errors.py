"""Errors in OpenAI's protocol: as Google sends them, and as OpenAI does. None contains a key."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llm_router.gemini_http.framing import Body

if TYPE_CHECKING:
    from llm_router.gemini_http.api_errors import ApiError

__all__ = ["google_list", "openai_error", "openai_form"]

_CODES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.NOT_FOUND: "model_not_found",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}


def google_list(error: ApiError) -> list[Body]:
    """Return the body with which Google answers under ``/openai/``: a list with one error of its own."""
    return [error.body]


def openai_error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Body:
    """Return the error object that OpenAI itself sends with the HTTP status ``status``.

    Args:
        status: The HTTP status; it decides the ``type``.
        message: What went wrong, in a sentence.
        code: A word for a program to read; None is the usual one for 401, 404 and 429, and none for others.
        param: The field of the request that is at fault.
    """
    fields = {"message": message, "type": _type(status), "param": param, "code": code or _CODES.get(status)}
    return {"error": fields}


def openai_form(status: int, body: bytes, otherwise: str) -> Body:
    """Return OpenAI's error object for an error body as Google sends it, which OpenAI's SDKs cannot read.

    Args:
        status: The HTTP status that the body came with.
        body: The body: a list with one error of Google's, or that error; OpenAI's own is left as it is.
        otherwise: The message if the body has none.
    """
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and found:
        found = found[0]
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return openai_error(status, otherwise)
    if "type" in error:
        return {"error": error}
    message = error.get("message")
    return openai_error(status, message if isinstance(message, str) and message else otherwise)


def _type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"

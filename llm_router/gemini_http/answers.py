"""The answer to a client whose exchange got none from the provider: in its protocol, with a true delay."""

from __future__ import annotations

from http import HTTPStatus

from llm_router.domain.exchange import Exchange, Head
from llm_router.domain.kinds import FailureKind
from llm_router.errors import (
    BlockedError,
    DeadlineExceededError,
    InvalidRequestError,
    LLMRouterError,
    ProviderError,
    QuotaExhaustedError,
    SendError,
    UnknownModelError,
    UnknownPathError,
)
from llm_router.gemini_http.api_errors import ApiError, exhausted
from llm_router.gemini_http.durations import write_retry_after
from llm_router.gemini_http.framing import JSON_TYPE, dump
from llm_router.gemini_http.openai_errors import openai_error, openai_form
from llm_router.gemini_http.targets import Protocol, parse_target

__all__ = ["answer_for", "protocol_of", "write_answer"]

_PASSED_ON = frozenset({FailureKind.REQUEST, FailureKind.MODEL, FailureKind.SERVER})
"""Failures of which the client gets the provider's own words."""

_UNKNOWN_URL = "unknown_url"
"""OpenAI's code for a path that there is not; that of any other 404 says that the model is unknown."""

_MOST_WAITED = 60.0
"""Most seconds for which all versions of OpenAI's SDKs wait when they are told to. For longer, some would
sleep for hours, and others ask again at once."""

_NO_QUOTA = frozenset({FailureKind.QUOTA, FailureKind.KEY})


def protocol_of(exchange: Exchange) -> Protocol:
    """Return the protocol that a client speaks, also where its path is none of the API."""
    target = parse_target(exchange.verb, exchange.path, openai=exchange.openai)
    if target is not None:
        return target.protocol
    is_openai = exchange.openai or "/openai/" in exchange.path or exchange.path.startswith("/v1/chat/")
    return Protocol.OPENAI if is_openai else Protocol.GEMINI


def answer_for(exchange: Exchange, error: LLMRouterError) -> tuple[Head, bytes]:
    """Return the answer that says why there is none, so that a client's SDK raises its usual error."""
    protocol = protocol_of(exchange)
    if isinstance(error, ProviderError) and error.body and error.kind in _PASSED_ON and error.code:
        body = error.body
        if protocol is Protocol.OPENAI:
            body = dump(openai_form(error.code, body, str(error)))
        return Head(error.code, (("content-type", JSON_TYPE),)), body
    code = _UNKNOWN_URL if isinstance(error, UnknownPathError) else None
    return write_answer(protocol, _api_error(error), _retry_after(error), code=code)


def write_answer(
    protocol: Protocol, error: ApiError, retry_after: float | None = None, *, code: str | None = None
) -> tuple[Head, bytes]:
    """Return an error of the API in a protocol, and in headers whether and when to try again.

    Args:
        protocol: That of the client.
        error: What went wrong.
        retry_after: Seconds after which to try again; None if waiting does not help.
        code: OpenAI's word for it; None is the usual one.
    """
    headers = [("content-type", JSON_TYPE)]
    if retry_after is not None:
        headers.append(("retry-after", write_retry_after(retry_after)))
    body = error.body
    if protocol is Protocol.OPENAI:
        body = openai_error(error.code, error.message, code=code)
        if error.code == HTTPStatus.TOO_MANY_REQUESTS and (retry_after is None or retry_after > _MOST_WAITED):
            headers.append(("x-should-retry", "false"))
    return Head(error.code, tuple(headers)), dump(body)


def _retry_after(error: LLMRouterError) -> float | None:
    return error.retry_after if isinstance(error, SendError) else None


def _api_error(error: LLMRouterError) -> ApiError:
    message = str(error)
    if isinstance(error, QuotaExhaustedError) or (
        isinstance(error, ProviderError) and error.kind in _NO_QUOTA
    ):
        return exhausted(message, error.retry_after)
    code, status = next((found for kinds, found in _STATUSES if isinstance(error, kinds)), _UNAVAILABLE)
    return ApiError(code, status, message)


_UNAVAILABLE = int(HTTPStatus.SERVICE_UNAVAILABLE), "UNAVAILABLE"
_STATUSES: tuple[tuple[tuple[type[LLMRouterError], ...], tuple[int, str]], ...] = (
    ((UnknownModelError, UnknownPathError), (int(HTTPStatus.NOT_FOUND), "NOT_FOUND")),
    ((InvalidRequestError, BlockedError), (int(HTTPStatus.BAD_REQUEST), "INVALID_ARGUMENT")),
    ((DeadlineExceededError,), (int(HTTPStatus.GATEWAY_TIMEOUT), "DEADLINE_EXCEEDED")),
)

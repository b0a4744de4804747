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
from llm_router.gemini_http.openai_errors import openai_error
from llm_router.gemini_http.targets import Protocol, parse_target

__all__ = ["answer_for", "protocol_of", "write_answer"]

_PASSED_ON = frozenset({FailureKind.REQUEST, FailureKind.MODEL, FailureKind.SERVER})
"""Failures of which the client gets the provider's own words."""

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
    if isinstance(error, ProviderError) and error.body and error.kind in _PASSED_ON and error.code:
        return Head(error.code, (("content-type", JSON_TYPE),)), error.body
    return write_answer(protocol_of(exchange), _api_error(error), _retry_after(error))


def write_answer(protocol: Protocol, error: ApiError, retry_after: float | None = None) -> tuple[Head, bytes]:
    """Return an error of the API in a protocol, with a Retry-After header if it says when to retry."""
    headers = [("content-type", JSON_TYPE)]
    if retry_after is not None:
        headers.append(("retry-after", write_retry_after(retry_after)))
    body = error.body
    if protocol is Protocol.OPENAI:
        body = openai_error(error.code, error.message)
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

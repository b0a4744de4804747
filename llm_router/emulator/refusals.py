"""Refused requests: the errors of exceeded quotas and of faults."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_router.domain.quota import MINUTE, Metric
from llm_router.gemini_http.api_errors import ApiError, quota_exceeded, usual_error
from llm_router.gemini_http.framing import dump
from llm_router.gemini_http.openai_errors import google_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_router.emulator.bucket import Violation
    from llm_router.emulator.exchange import Headers

__all__ = ["BARE_429", "RefusalError", "error_data", "error_for", "over_quota"]

BARE_429 = usual_error(HTTPStatus.TOO_MANY_REQUESTS)
"""A refusal that does not say which quota was exceeded."""

_RETRY_IN = 36.4
"""Seconds after which the 429 of a fault says to retry."""


class RefusalError(Exception):
    """The request is to be answered with an error.

    Attributes:
        code: The HTTP status.
        body: The body; None if it is made of ``error``.
        headers: The headers, names in lower case; without a content type the body is JSON.
        error: The error of the API.
    """

    def __init__(
        self, code: int, body: bytes | None, headers: Headers = (), error: ApiError | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.body = body
        self.headers = headers
        self.error = error

    @classmethod
    def of(cls, error: ApiError, headers: Headers = ()) -> RefusalError:
        """Return the refusal that answers with ``error``, in the protocol of the request."""
        return cls(error.code, None, headers, error)

    @classmethod
    def invalid(cls, message: str) -> RefusalError:
        """Return the refusal of a request that is wrong in the way that ``message`` says."""
        return cls.of(ApiError(400, "INVALID_ARGUMENT", message))

    def data(self, *, openai: bool) -> bytes:
        """Return the body, in the form of OpenAI's paths or of Gemini's."""
        if self.error is None:
            return self.body or b""
        return error_data(self.error, openai=openai)


def error_data(error: ApiError, *, openai: bool) -> bytes:
    """Return the body of ``error``, in the form of OpenAI's paths or of Gemini's."""
    return dump(google_list(error) if openai else error.body)


def error_for(code: int, model: str) -> ApiError:
    """Return the error that a fault of the HTTP status ``code`` shows on a request to ``model``."""
    if code == HTTPStatus.TOO_MANY_REQUESTS:
        return quota_exceeded(model, {Metric.RPM: None}, _RETRY_IN)
    return usual_error(code)


def over_quota(model: str, violations: Sequence[Violation], now: float) -> ApiError:
    """Return the 429 for a request that exceeded ``violations`` at ``now``.

    The delay is exact if a quota per minute is exceeded. For a quota per day, or a limit of 0, it is short
    nevertheless, like that of the real API: it lasts to the end of the minute.
    """
    waits = [violation.retry_in for violation in violations if violation.retry_in is not None]
    delay = max(waits) if waits else MINUTE - now % MINUTE
    return quota_exceeded(model, {violation.metric: violation.limit for violation in violations}, delay)

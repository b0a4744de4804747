"""The JSON bodies of the emulator's errors, worded like those of the real API. None of them holds a key."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_router.domain.quota import MINUTE, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_router.emulator.bucket import Violation
    from llm_router.emulator.replies import Body

__all__ = [
    "BARE_429",
    "error_for",
    "invalid_key",
    "missing_key",
    "model_not_found",
    "no_contents",
    "not_found",
    "not_json",
    "quota_exceeded",
    "too_many_tokens",
]

_SERVICE = "generativelanguage.googleapis.com"
_RATE_LIMITS = "https://ai.google.dev/gemini-api/docs/rate-limits"
_QUOTA_MESSAGE = (
    "You exceeded your current quota, please check your plan and billing details. "
    f"For more information on this error, head to: {_RATE_LIMITS}."
)
_METRICS = {
    Metric.RPM: ("generate_content_free_tier_requests", "GenerateRequestsPerMinutePerProjectPerModel"),
    Metric.TPM: (
        "generate_content_free_tier_input_token_count",
        "GenerateContentInputTokensPerModelPerMinute",
    ),
    Metric.RPD: ("generate_content_free_tier_requests", "GenerateRequestsPerDayPerProjectPerModel"),
    Metric.TPD: ("generate_content_free_tier_input_token_count", "GenerateContentInputTokensPerModelPerDay"),
}
_STATUSES = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: (
        "UNAUTHENTICATED",
        "Request had invalid authentication credentials. Expected a valid authentication credential.",
    ),
    403: ("PERMISSION_DENIED", "Permission denied: Consumer has been suspended."),
    404: ("NOT_FOUND", "This model is no longer available to new users. Please update to a newer model."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    499: ("CANCELLED", "The operation was cancelled."),
    500: ("INTERNAL", "An internal error has occurred. Please retry or report the problem."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The request timed out. Please try again."),
}

BARE_429: Body = {"error": {"code": 429, "message": _STATUSES[429][1], "status": _STATUSES[429][0]}}
"""A refusal that does not say which quota was exceeded."""


def error(code: int, message: str, status: str, details: Sequence[Body] = ()) -> Body:
    """Return the body of an error."""
    fields: Body = {"code": code, "message": message, "status": status}
    if details:
        fields["details"] = list(details)
    return {"error": fields}


def error_for(code: int, model: str) -> Body:
    """Return the error that the provider usually sends with an HTTP status."""
    if code == HTTPStatus.TOO_MANY_REQUESTS:
        return _exhausted(model, [(Metric.RPM, None)], 36.4)
    status, message = _STATUSES.get(code, ("UNKNOWN", "Unknown error."))
    details = {401: [_info("ACCESS_TOKEN_TYPE_UNSUPPORTED")], 403: [_info("CONSUMER_SUSPENDED")]}
    return error(code, message, status, details.get(code, []))


def invalid_key() -> Body:
    """Return the error for a key that nobody knows."""
    message = "API key not valid. Please pass a valid API key."
    details = [
        _info("API_KEY_INVALID"),
        {"@type": _type("LocalizedMessage"), "locale": "en-US", "message": message},
    ]
    return error(400, message, "INVALID_ARGUMENT", details)


def missing_key() -> Body:
    """Return the error for a request without a key."""
    message = (
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API identity to call this API."
    )
    return error(403, message, "PERMISSION_DENIED")


def model_not_found(model: str, version: str, method: str) -> Body:
    """Return the error for a model that does not exist."""
    message = (
        f"models/{model} is not found for API version {version}, or is not supported for {method}. "
        "Call ListModels to see the list of available models and their supported methods."
    )
    return error(404, message, "NOT_FOUND")


def too_many_tokens(tokens: int, limit: int) -> Body:
    """Return the error for a prompt that the model cannot hold."""
    message = f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({limit})."
    return error(400, message, "INVALID_ARGUMENT")


def no_contents() -> Body:
    """Return the error for a request that asks nothing."""
    message = "* GenerateContentRequest.contents: contents is not specified\n"
    return error(400, message, "INVALID_ARGUMENT")


def not_json() -> Body:
    """Return the error for a request whose body is no JSON, or of another shape than it should be."""
    message = "Invalid JSON payload received. Expected an object."
    return error(400, message, "INVALID_ARGUMENT")


def not_found() -> Body:
    """Return the error for a path that leads nowhere."""
    return error(404, "Requested entity was not found.", "NOT_FOUND")


def quota_exceeded(model: str, violations: Sequence[Violation], now: float) -> Body:
    """Return the 429 for a request that exceeded ``violations`` at ``now``.

    The delay is exact where a quota per minute is the obstacle. Where a quota per day is, or where there is
    no quota at all, it is short nevertheless, as that of the real API is: to the end of the minute.
    """
    waits = [violation.retry_in for violation in violations if violation.retry_in is not None]
    delay = max(waits) if waits else MINUTE - now % MINUTE
    return _exhausted(model, [(violation.metric, violation.limit) for violation in violations], delay)


def _exhausted(model: str, violations: Iterable[tuple[Metric, int | None]], delay: float) -> Body:
    lines, described = [_QUOTA_MESSAGE], []
    for metric, limit in violations:
        exceeded = f"{_SERVICE}/{_METRICS[metric][0]}, limit: {limit or 0}, model: {model}"
        lines.append(f"* Quota exceeded for metric: {exceeded}")
        described.append(_violation(metric, limit, model))
    wait = _seconds(delay)
    lines.append(f"Please retry in {wait}.")
    link = {"description": "Learn more about Gemini API quotas", "url": _RATE_LIMITS}
    details: list[Body] = [
        {"@type": _type("Help"), "links": [link]},
        {"@type": _type("QuotaFailure"), "violations": described},
        {"@type": _type("RetryInfo"), "retryDelay": wait},
    ]
    return error(429, "\n".join(lines), "RESOURCE_EXHAUSTED", details)


def _violation(metric: Metric, limit: int | None, model: str) -> Body:
    name, quota_id = _METRICS[metric]
    violation: Body = {
        "quotaMetric": f"{_SERVICE}/{name}",
        "quotaId": f"{quota_id}-FreeTier",
        "quotaDimensions": {"location": "global", "model": model},
    }
    if limit is not None:
        violation["quotaValue"] = str(limit)
    return violation


def _seconds(delay: float) -> str:
    micros = round(max(delay, 0.0) * 1e6)
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}".rstrip("0").rstrip(".") + "s"


def _info(reason: str) -> Body:
    return {
        "@type": _type("ErrorInfo"),
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": _SERVICE},
    }


def _type(name: str) -> str:
    return f"type.googleapis.com/google.rpc.{name}"

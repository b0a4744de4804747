"""The API's errors: ``google.rpc.Status`` as JSON, worded as the API words them. None contains a key."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from llm_router.domain.kinds import Metric
from llm_router.gemini_http.durations import retry_sentence, write_duration
from llm_router.gemini_http.framing import Body
from llm_router.gemini_http.quota_names import SERVICE, exceeded_line, quota_id, quota_metric

__all__ = [
    "API_KEY_INVALID",
    "ApiError",
    "cache_denied",
    "exhausted",
    "file_denied",
    "invalid_authorization",
    "invalid_key",
    "missing_authorization",
    "missing_key",
    "model_not_found",
    "multiple_credentials",
    "no_contents",
    "not_found",
    "not_json",
    "quota_exceeded",
    "too_many_tokens",
    "usual_error",
]

API_KEY_INVALID = "API_KEY_INVALID"
"""The reason of an ``ErrorInfo``: the key does not exist."""

_RATE_LIMITS = "https://ai.google.dev/gemini-api/docs/rate-limits"
_QUOTA_MESSAGE = (
    "You exceeded your current quota, please check your plan and billing details. "
    f"For more information on this error, head to: {_RATE_LIMITS}."
)


@attrs.frozen
class ApiError:
    """One error of the API.

    Attributes:
        code: The HTTP status.
        status: The API's word for it, such as ``RESOURCE_EXHAUSTED``.
        message: What went wrong, in a sentence.
        details: JSON objects with a ``@type``, such as ``QuotaFailure``.
    """

    code: int
    status: str
    message: str
    details: tuple[Body, ...] = ()

    @property
    def body(self) -> Body:
        """The JSON body of the answer."""
        fields: Body = {"code": self.code, "message": self.message, "status": self.status}
        if self.details:
            fields["details"] = list(self.details)
        return {"error": fields}


def usual_error(code: int) -> ApiError:
    """Return the error that usually comes with the HTTP status ``code``.

    401 and 403 give a reason; the 429 has no details, so it does not say which quota was exceeded.
    """
    return _USUAL.get(code) or ApiError(code, "UNKNOWN", "Unknown error.")


def invalid_key() -> ApiError:
    """Return the error for a key that does not exist."""
    message = "API key not valid. Please pass a valid API key."
    localized = {"@type": _type("LocalizedMessage"), "locale": "en-US", "message": message}
    return ApiError(400, "INVALID_ARGUMENT", message, (_info(API_KEY_INVALID), localized))


def missing_key() -> ApiError:
    """Return the error for a request without a key."""
    message = (
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API identity to call this API."
    )
    return ApiError(403, "PERMISSION_DENIED", message)


def multiple_credentials() -> ApiError:
    """Return the error for a request with more than one credential."""
    message = "Multiple authentication credentials received. Please pass only one."
    return ApiError(400, "INVALID_ARGUMENT", message)


def missing_authorization() -> ApiError:
    """Return the error of the OpenAI paths for a request without the header Authorization."""
    return ApiError(400, "INVALID_ARGUMENT", "Missing Authorization header.")


def invalid_authorization() -> ApiError:
    """Return the error of the OpenAI paths for a header Authorization without a bearer token."""
    return ApiError(400, "INVALID_ARGUMENT", "Invalid Authorization header.")


def file_denied(name: str) -> ApiError:
    """Return the error for the file ``files/abc`` that does not exist, or belongs to another project."""
    file_id = name.removeprefix("files/")
    message = f"You do not have permission to access the File {file_id} or it may not exist."
    return ApiError(403, "PERMISSION_DENIED", message)


def cache_denied() -> ApiError:
    """Return the error for cached content that does not exist, or belongs to another project."""
    return ApiError(403, "PERMISSION_DENIED", "CachedContent not found (or permission denied)")


def model_not_found(model: str, version: str, method: str) -> ApiError:
    """Return the error for a model that does not exist."""
    message = (
        f"models/{model} is not found for API version {version}, or is not supported for {method}. "
        "Call ListModels to see the list of available models and their supported methods."
    )
    return ApiError(404, "NOT_FOUND", message)


def not_found() -> ApiError:
    """Return the error for a path that does not exist."""
    return ApiError(404, "NOT_FOUND", "Requested entity was not found.")


def not_json() -> ApiError:
    """Return the error for a body that is not JSON, or not of the expected shape."""
    return ApiError(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Expected an object.")


def no_contents() -> ApiError:
    """Return the error for a request without ``contents``."""
    message = "* GenerateContentRequest.contents: contents is not specified\n"
    return ApiError(400, "INVALID_ARGUMENT", message)


def too_many_tokens(tokens: int, limit: int) -> ApiError:
    """Return the error for a prompt of ``tokens`` to a model that takes at most ``limit``."""
    message = f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({limit})."
    return ApiError(400, "INVALID_ARGUMENT", message)


def quota_exceeded(model: str, limits: Mapping[Metric, int | None], retry_in: float) -> ApiError:
    """Return the 429 for a request that exceeded quotas of ``model``.

    Args:
        model: The name of the model.
        limits: The exceeded quotas, each with its limit, or None for a refusal that does not state it.
        retry_in: Seconds after which to retry.
    """
    lines = [exceeded_line(metric, limit, model) for metric, limit in limits.items()]
    message = "\n".join([_QUOTA_MESSAGE, *lines, retry_sentence(retry_in)])
    link = {"description": "Learn more about Gemini API quotas", "url": _RATE_LIMITS}
    violations = [_violation(metric, limit, model) for metric, limit in limits.items()]
    details: tuple[Body, ...] = (
        {"@type": _type("Help"), "links": [link]},
        {"@type": _type("QuotaFailure"), "violations": violations},
        {"@type": _type("RetryInfo"), "retryDelay": write_duration(retry_in)},
    )
    return ApiError(429, "RESOURCE_EXHAUSTED", message, details)


def exhausted(message: str, retry_in: float | None = None) -> ApiError:
    """Return a 429 that names no quota, with a ``RetryInfo`` unless ``retry_in`` (seconds) is None."""
    if retry_in is None:
        return ApiError(429, "RESOURCE_EXHAUSTED", message)
    info: Body = {"@type": _type("RetryInfo"), "retryDelay": write_duration(retry_in)}
    sentence = message if message.endswith((".", "!", "?")) else f"{message}."
    return ApiError(429, "RESOURCE_EXHAUSTED", f"{sentence} {retry_sentence(retry_in)}", (info,))


def _violation(metric: Metric, limit: int | None, model: str) -> Body:
    violation: Body = {
        "quotaMetric": quota_metric(metric),
        "quotaId": quota_id(metric),
        "quotaDimensions": {"location": "global", "model": model},
    }
    if limit is not None:
        violation["quotaValue"] = str(limit)
    return violation


def _info(reason: str) -> Body:
    return {
        "@type": _type("ErrorInfo"),
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": SERVICE},
    }


def _type(name: str) -> str:
    return f"type.googleapis.com/google.rpc.{name}"


_USUAL = {
    error.code: error
    for error in (
        ApiError(400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
        ApiError(
            401,
            "UNAUTHENTICATED",
            "Request had invalid authentication credentials. Expected a valid authentication credential.",
            (_info("ACCESS_TOKEN_TYPE_UNSUPPORTED"),),
        ),
        ApiError(
            403,
            "PERMISSION_DENIED",
            "Permission denied: Consumer has been suspended.",
            (_info("CONSUMER_SUSPENDED"),),
        ),
        ApiError(
            404,
            "NOT_FOUND",
            "This model is no longer available to new users. Please update to a newer model.",
        ),
        ApiError(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
        ApiError(499, "CANCELLED", "The operation was cancelled."),
        ApiError(500, "INTERNAL", "An internal error has occurred. Please retry or report the problem."),
        ApiError(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        ApiError(504, "DEADLINE_EXCEEDED", "The request timed out. Please try again."),
    )
}

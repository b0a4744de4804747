"""Reading the body of a refusal: ``google.rpc.Status`` as JSON, in a list, cut short, or something else."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs

from llm_router.errors import QuotaViolation
from llm_router.gemini_http.durations import read_duration, read_retry_sentence
from llm_router.gemini_http.quota_names import metric_of, stated_limits

__all__ = ["ErrorBody", "read_error_body"]

_CUT_FIELD = r'"%s"\s*:\s*"((?:[^"\\]|\\.)*)'


@attrs.frozen
class ErrorBody:
    """The contents of a refusal.

    Attributes:
        message: The provider's message, or the whole text if there is none in it.
        status: Its status word, such as ``RESOURCE_EXHAUSTED``.
        reasons: The reasons of its ``ErrorInfo`` details, such as ``API_KEY_INVALID``.
        violations: The quotas that it names.
        retry_delay: Seconds that it asks to wait, or None.
        is_page: Whether it is HTML, which comes from a proxy or a front end, never from the API itself.
    """

    message: str = ""
    status: str | None = None
    reasons: frozenset[str] = frozenset()
    violations: tuple[QuotaViolation, ...] = ()
    retry_delay: float | None = None
    is_page: bool = False


def read_error_body(text: str) -> ErrorBody:
    """Read ``text``, whatever it is. It never fails."""
    error = _error_object(text)
    if error is None:
        return _from_fragment(text)
    details = [detail for detail in _list(error.get("details")) if isinstance(detail, dict)]
    message = _string(error.get("message")) or ""
    return ErrorBody(
        message=message,
        status=_string(error.get("status")),
        reasons=frozenset(filter(None, (_string(detail.get("reason")) for detail in details))),
        violations=_violations(details, message),
        retry_delay=_first_delay(details, message),
    )


def _error_object(text: str) -> dict[str, Any] | None:
    """Return the object under ``error``, or None if the text does not have that form."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else None


def _from_fragment(text: str) -> ErrorBody:
    """Read as much as possible of JSON that was cut short, or of plain text."""
    if text.lstrip()[:1] == "<":
        return ErrorBody(message="a web page instead of an answer of the API", is_page=True)
    ids = [QuotaViolation(metric_of(quota_id), None) for quota_id in _cut(text, "quotaId")]
    delays = [read_duration(delay) for delay in _cut(text, "retryDelay")]
    return ErrorBody(
        message=next(iter(_cut(text, "message")), text),
        status=next(iter(_cut(text, "status")), None),
        reasons=frozenset(_cut(text, "reason")),
        violations=tuple(ids) or _stated_in(text),
        retry_delay=next((delay for delay in delays if delay is not None), read_retry_sentence(text)),
    )


def _cut(text: str, field: str) -> list[str]:
    return re.findall(_CUT_FIELD % field, text)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _violations(details: list[dict[str, Any]], message: str) -> tuple[QuotaViolation, ...]:
    """Return the quotas that the details name, with the limits that the details or the message state."""
    stated: dict[str, list[int]] = {}
    for metric, limit in stated_limits(message):
        stated.setdefault(metric, []).append(limit)
    named = [
        violation
        for detail in details
        for violation in _list(detail.get("violations"))
        if isinstance(violation, dict)
    ]
    return tuple(_violation(violation, stated) for violation in named) or _stated_in(message)


def _violation(violation: dict[str, Any], stated: dict[str, list[int]]) -> QuotaViolation:
    metric_name = _string(violation.get("quotaMetric")) or ""
    # The message lists its limits in the order of the violations.
    in_words = stated[metric_name].pop(0) if stated.get(metric_name) else None
    limit = _whole(violation.get("quotaValue"))
    metric = metric_of(_string(violation.get("quotaId")) or metric_name)
    return QuotaViolation(metric, in_words if limit is None else limit)


def _stated_in(message: str) -> tuple[QuotaViolation, ...]:
    """Return the limits in a message without details; it does not say whether per minute or per day."""
    return tuple(QuotaViolation(None, limit) for _, limit in stated_limits(message))


def _whole(value: Any) -> int | None:
    """Read a protobuf int64, which is a string in JSON."""
    return int(value) if re.fullmatch(r"\d{1,18}", str(value)) else None


def _first_delay(details: list[dict[str, Any]], message: str) -> float | None:
    for detail in details:
        delay = read_duration(detail.get("retryDelay"))
        if delay is not None:
            return delay
    return read_retry_sentence(message)

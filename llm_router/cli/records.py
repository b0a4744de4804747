"""Responses and errors in the form of JSON that commands print and batches write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import attrs

from llm_router.cli.output import printable
from llm_router.domain.response import Attempt, Response

__all__ = [
    "AttemptRecord",
    "ErrorRecord",
    "ResponseRecord",
    "attempt_lines",
    "describe",
    "error_record",
    "record",
]


_WORTH_SAYING = 0.5
"""Seconds of waiting below which nothing is said of it."""


class ErrorRecord(TypedDict):
    """An error, which took the place of an answer."""

    type: str
    """The name of the error's class."""
    message: str


class AttemptRecord(TypedDict):
    """One request that went to the provider."""

    key_id: str
    model: str
    latency_s: float
    error: ErrorRecord | None


class ResponseRecord(TypedDict):
    """A response; times in seconds."""

    success: bool
    text: str | None
    model: str | None
    key_id: str | None
    workload: str | None
    usage: dict[str, int]
    finish_reason: str | None
    attempts: int
    attempt_log: list[AttemptRecord]
    latency: float
    waited: float
    error: ErrorRecord | None
    retry_after: float | None


def error_record(error: Exception) -> ErrorRecord:
    """Return the record of an error."""
    return ErrorRecord(type=type(error).__name__, message=str(error))


def record(response: Response) -> ResponseRecord:
    """Return the record of a response."""
    return ResponseRecord(
        success=response.success,
        text=response.answer if response.success else None,
        model=response.model,
        key_id=response.key_id,
        workload=response.workload,
        usage=attrs.asdict(response.usage),
        finish_reason=response.finish_reason,
        attempts=response.attempts,
        attempt_log=[_attempt(each) for each in response.attempt_log],
        latency=round(response.latency, 3),
        waited=round(response.waited, 3),
        error=None if response.error is None else error_record(response.error),
        retry_after=None if response.retry_after is None else round(response.retry_after, 3),
    )


def _attempt(attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        key_id=attempt.key_id,
        model=attempt.model,
        latency_s=round(attempt.latency, 3),
        error=None if attempt.error is None else error_record(attempt.error),
    )


def attempt_lines(response: Response) -> Iterator[str]:
    """Yield one line for each request that went to the provider, and one if the call waited for quota."""
    if response.waited >= _WORTH_SAYING:
        yield f"waited {response.waited:.1f} s for quota"
    for number, attempt in enumerate(response.attempt_log, 1):
        outcome = "answered" if attempt.error is None else str(attempt.error)
        yield printable(f"{number}. {attempt.model} · {attempt.key_id} · {attempt.latency:.2f} s · {outcome}")


def describe(response: Response) -> str:
    """Return one line with the model, the key, the time and the tokens of a response."""
    usage = response.usage
    return printable(
        f"{response.model} · {response.key_id} · {response.latency:.2f} s · "
        f"{usage.input_tokens} → {usage.output_tokens} tokens"
    )

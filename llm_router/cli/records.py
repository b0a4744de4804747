"""Responses and errors in the form of JSON that commands print and batches write."""

from __future__ import annotations

import math
import time
from typing import TypedDict

import attrs

from llm_router.cli.output import printable
from llm_router.domain.response import Attempt, Response

__all__ = [
    "AttemptRecord",
    "ErrorRecord",
    "ResponseRecord",
    "describe",
    "error_record",
    "record",
]


class ErrorRecord(TypedDict):
    """An error, which took the place of an answer."""

    type: str
    """The name of the error's class."""
    message: str


class PassedOverRecord(TypedDict):
    """A deployment that was asked before in vain."""

    key_id: str
    model: str
    reason: str
    retry_at: float | None
    """When it would have had room, in seconds since the Unix epoch; None for never."""


class AttemptRecord(TypedDict):
    """One request that went to the provider."""

    key_id: str
    model: str
    latency_seconds: float
    error: ErrorRecord | None
    priority: int
    tokens: int
    """Input tokens that were reserved."""
    headroom: float
    """Share of the tightest quota per minute that remained, and per day."""
    daily_headroom: float
    passed_over: list[PassedOverRecord]


class ResponseRecord(TypedDict):
    """A response."""

    success: bool
    text: str | None
    model: str | None
    key_id: str | None
    workload: str | None
    usage: dict[str, int]
    finish_reason: str | None
    attempts: int
    attempt_log: list[AttemptRecord]
    latency_seconds: float
    waited_seconds: float
    error: ErrorRecord | None
    retry_after_seconds: float | None
    """Seconds after which another try may succeed; None if waiting does not help."""
    retry_at: float | None
    """The same, in seconds since the Unix epoch."""


def error_record(error: Exception) -> ErrorRecord:
    """Return the record of an error."""
    return ErrorRecord(type=type(error).__name__, message=str(error))


def record(response: Response) -> ResponseRecord:
    """Return the record of a response, which has just come."""
    after = response.retry_after
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
        latency_seconds=round(response.latency, 3),
        waited_seconds=round(response.waited, 3),
        error=None if response.error is None else error_record(response.error),
        retry_after_seconds=None if after is None else round(after, 3),
        retry_at=None if after is None else round(time.time() + after, 3),
    )


def _attempt(attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        key_id=attempt.key_id,
        model=attempt.model,
        latency_seconds=round(attempt.latency, 3),
        error=None if attempt.error is None else error_record(attempt.error),
        priority=attempt.priority,
        tokens=attempt.tokens,
        headroom=round(attempt.headroom, 4),
        daily_headroom=round(attempt.daily_headroom, 4),
        passed_over=[
            PassedOverRecord(
                key_id=each.key_id,
                model=each.model,
                reason=each.reason,
                retry_at=round(each.retry_at, 3) if each.retry_at < math.inf else None,
            )
            for each in attempt.passed_over
        ],
    )


def describe(response: Response) -> str:
    """Return one line with the model, the key, the time and the tokens of a response."""
    usage = response.usage
    return printable(
        f"{response.model} · {response.key_id} · {response.latency:.2f} s · "
        f"{usage.input_tokens} → {usage.output_tokens} tokens"
    )

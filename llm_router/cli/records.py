"""Responses and errors in the form of JSON that commands print and batches write."""

from __future__ import annotations

from typing import TypedDict

import attrs

from llm_router.cli.output import printable
from llm_router.domain.response import Response

__all__ = ["ErrorRecord", "ResponseRecord", "describe", "error_record", "record"]


class ErrorRecord(TypedDict):
    """An error, which took the place of an answer."""

    type: str
    """The name of the error's class."""
    message: str


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
        latency=round(response.latency, 3),
        waited=round(response.waited, 3),
        error=None if response.error is None else error_record(response.error),
        retry_after=None if response.retry_after is None else round(response.retry_after, 3),
    )


def describe(response: Response) -> str:
    """Return one line with the model, the key, the time and the tokens of a response."""
    usage = response.usage
    return printable(
        f"{response.model} · {response.key_id} · {response.latency:.2f} s · "
        f"{usage.input_tokens} → {usage.output_tokens} tokens"
    )

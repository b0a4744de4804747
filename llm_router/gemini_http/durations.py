"""Durations as the API states them, in ``RetryInfo`` and in the sentence of a message: written and read."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = [
    "ENDLESS",
    "read_delay",
    "read_duration",
    "read_retry_sentence",
    "retry_sentence",
    "write_duration",
    "write_retry_after",
]

ENDLESS = 1e9
"""Seconds as which a delay counts that is infinite or has too many digits to be meant."""

_DURATION = re.compile(
    r"(?:(?P<d>\d{1,4})d)?(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m(?!s))?"
    r"(?:(?P<s>\d{1,9}(?:\.\d{1,12})?)s)?(?:(?P<ms>\d{1,9}(?:\.\d{1,12})?)ms)?"
)
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NEGATIVE = re.compile(r"-(?:[\d.]+|inf(?:inity)?)(?:d|h|m|s|ms)?", re.IGNORECASE)
_ENDLESS = re.compile(r"\+?(?:\d{10,}(?:\.\d*)?|inf(?:inity)?)(?:d|h|m|s)?", re.IGNORECASE)
_RETRY_IN = re.compile(r"retry in ([0-9dhms.]*[dhms])", re.IGNORECASE)


def write_duration(seconds: float) -> str:
    """Return ``seconds`` to the microsecond, such as ``"36.4s"``; less than 0 is ``"0s"``."""
    micros = round(max(seconds, 0.0) * 1e6)
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}".rstrip("0").rstrip(".") + "s"


def write_retry_after(seconds: float) -> str:
    """Return ``seconds`` as the value of a Retry-After header: whole seconds, rounded up, at least 1."""
    return str(max(1, math.ceil(min(seconds, ENDLESS))))


def read_duration(value: Any) -> float | None:
    """Read ``"36s"``, ``"45.837906927s"`` or ``"8h57m44.18s"`` as seconds; return None for anything else."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if found is None:
        return None
    parts = found.groupdict(default="0")
    return math.fsum(_SECONDS[unit] * float(number) for unit, number in parts.items())


def read_delay(value: Any) -> float | None:
    """Read a duration to wait; less than 0 is 0, and one without end or with too many digits is ENDLESS."""
    seconds = read_duration(value)
    if seconds is not None or not isinstance(value, str):
        return seconds
    if _NEGATIVE.fullmatch(value):
        return 0.0
    return ENDLESS if _ENDLESS.fullmatch(value) else None


def retry_sentence(seconds: float) -> str:
    """Return the sentence of a message that says when to retry."""
    return f"Please retry in {write_duration(seconds)}."


def read_retry_sentence(message: str) -> float | None:
    """Return the seconds after which ``message`` says to retry, or None if it does not say."""
    found = _RETRY_IN.search(message)
    return read_delay(found[1]) if found else None

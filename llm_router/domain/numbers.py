"""Read arguments that must be numbers, and show those that are not."""

from __future__ import annotations

import math
import numbers

__all__ = ["MAX_LIMIT", "real", "shown", "whole"]

MAX_LIMIT = 10**15
"""The largest limit: every store counts exactly up to it."""

_LONGEST_SHOWN = 60


def real(value: object) -> float:
    """Return ``value`` as a float, or NaN, which is in no range, if it is not a number; a bool is not.

    A number too large for a float becomes infinity.
    """
    if type(value) is float:  # nearly always, and in every send
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int or a fraction of hundreds of digits
        return -math.inf if value < 0 else math.inf


def whole(value: object) -> int | None:
    """Return ``value`` as an int, or None if it is not a whole number; ``15.0`` is one, a bool is not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    number = real(value)
    return int(number) if number.is_integer() else None


def shown(value: object) -> str:
    """Return a value for a message: its repr, or its type if that is long or cannot be made."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an int of thousands of digits, or an odd class
        text = ""
    return text if 0 < len(text) <= _LONGEST_SHOWN else f"a value of type {type(value).__name__}"

"""Values of contents as JSON has them, and back: bytes are written as text, models of pydantic as objects."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

__all__ = ["from_json", "to_json"]

_BYTES = "$bytes"
"""The only key of an object that stands for bytes; a key that begins with ``$`` itself gets another one."""


def to_json(value: Any) -> Any:
    """Return a value as what JSON has.

    Objects of the SDK, and of pydantic, become dictionaries that mean the same.

    Raises:
        TypeError: Something in it cannot be written.
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, str | int | float):
        return value
    # By its class first: to ask an abstract one takes ten times as long.
    if value.__class__ is dict or isinstance(value, Mapping):
        return {_key(name): to_json(each) for name, each in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return {_BYTES: base64.b64encode(value).decode()}
    if value.__class__ is list or isinstance(value, Sequence):
        return [to_json(each) for each in value]
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return to_json(value.model_dump(exclude_none=True))
    raise TypeError(f"a {type(value).__name__} in contents cannot be kept: pass parts or dictionaries")


def from_json(value: Any) -> Any:
    """Return the value that :func:`to_json` has written.

    Raises:
        ValueError: It was not written so.
    """
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_BYTES}:
        return base64.b64decode(value[_BYTES], validate=True)
    return {name.removeprefix("$"): from_json(each) for name, each in value.items()}


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a {type(name).__name__} cannot be a key in contents that are kept")
    return f"${name}" if name.startswith("$") else name

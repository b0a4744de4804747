"""Turns as bytes, and back: JSON, in which bytes are written as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from llm_router.conversations.base import Turn
from llm_router.errors import StoreCorruptError

__all__ = ["read_turns", "write_turn", "write_turns"]

_FORMAT = 1

_BYTES = "$bytes"
"""The only key of an object that stands for bytes; a key that begins with ``$`` itself gets another one."""


def write_turn(turn: Turn) -> bytes:
    """Return a turn as bytes.

    Objects of the SDK, and of pydantic, become dictionaries that mean the same.

    Raises:
        TypeError: Something in it cannot be written.
    """
    fields = {"contents": _written(turn.contents), "tokens": turn.tokens, "model": turn.model}
    if turn.answers_call:
        fields["answers_call"] = True
    return json.dumps(fields, separators=(",", ":")).encode()


def write_turns(turns: Iterable[bytes]) -> bytes:
    """Return a history of turns that are bytes already."""
    return b'{"format":%d,"turns":[%b]}' % (_FORMAT, b",".join(turns))


def read_turns(data: bytes) -> tuple[Turn, ...]:
    """Return the turns of a history.

    Raises:
        StoreCorruptError: It is none, or one of a later version of this library.
    """
    try:
        found = json.loads(data)
        if found["format"] == _FORMAT:
            return tuple(_turn(each) for each in found["turns"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    raise StoreCorruptError(
        "a history cannot be read: a later version of llm_router may have written it; it was left as it is"
    )


def _turn(fields: Mapping[str, Any]) -> Turn:
    contents = tuple(_read(each) for each in fields["contents"])
    return Turn(contents, fields["tokens"], bool(fields.get("answers_call")), fields["model"])


def _written(value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {_key(name): _written(each) for name, each in value.items()}
    if isinstance(value, Sequence):
        return [_written(each) for each in value]
    if hasattr(value, "model_dump"):
        return _written(value.model_dump(exclude_none=True))
    raise TypeError(f"a {type(value).__name__} in a conversation cannot be kept: pass parts or dictionaries")


def _key(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a {type(name).__name__} cannot be a key of what a conversation keeps")
    return f"${name}" if name.startswith("$") else name


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_BYTES}:
        return base64.b64decode(value[_BYTES], validate=True)
    return {name.removeprefix("$"): _read(each) for name, each in value.items()}

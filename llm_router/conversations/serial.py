"""Turns as bytes, and back: JSON, in which bytes are written as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from llm_router.conversations.base import Turn
from llm_router.errors import StoreCorruptError
from llm_router.records.values import from_json, to_json

__all__ = ["read_turns", "write_turn", "write_turns"]

_FORMAT = 1


def write_turn(turn: Turn) -> bytes:
    """Return a turn as bytes.

    Objects of the SDK, and of pydantic, become dictionaries that mean the same.

    Raises:
        TypeError: Something in it cannot be written.
    """
    fields = {"contents": to_json(turn.contents), "tokens": turn.tokens, "model": turn.model}
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
    contents = tuple(from_json(each) for each in fields["contents"])
    return Turn(contents, fields["tokens"], bool(fields.get("answers_call")), fields["model"])

"""Reading an answer that is to have a form: JSON, or what meets the schema of its request."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from llm_router.domain.answers import calls_in
from llm_router.domain.fields import field

if TYPE_CHECKING:
    from llm_router.domain.request import Request
    from llm_router.providers.base import Reply

__all__ = ["NOT_JSON", "SCHEMA_MISMATCH", "AnswerForm"]

NOT_JSON = "NOT_JSON"
"""Our own word for an answer that is not JSON although the request asks for it."""

SCHEMA_MISMATCH = "SCHEMA_MISMATCH"
"""Our own word for an answer that does not meet the schema of the request."""

_JSON, _ENUM = "application/json", "text/x.enum"

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


class _UnfitError(Exception):
    """The answer does not have the form; the only argument is the word for it."""


@attrs.frozen
class AnswerForm:
    """The form that a request wants its answer to have.

    Attributes:
        schema: A type (a pydantic model, an enum, ``list[…]`` or the like), a schema of the API or of JSON
            Schema as a dictionary, or None for any JSON.
        mime_type: The type of text that is asked for.
    """

    schema: Any
    mime_type: str

    @classmethod
    def of(cls, request: Request) -> AnswerForm | None:
        """Return the form that a request asks for, or None if a text is enough."""
        config = request.config
        if config is None:
            return None
        schema = field(config, "response_schema")
        if schema is None:
            schema = field(config, "response_json_schema")
        mime_type = field(config, "response_mime_type")
        if schema is None and mime_type != _JSON:
            return None
        return cls(schema, mime_type if isinstance(mime_type, str) else _JSON)

    def fit(self, reply: Reply, text: str | None = None) -> Reply:
        """Return a whole answer with what was parsed from it, or with why that is impossible.

        An answer that was blocked, has failed otherwise or calls functions is returned as it is.

        Args:
            reply: The answer.
            text: Its whole text, if the reply is the last of several pieces.
        """
        if reply.blocked is not None or reply.failed is not None or calls_in(reply.content):
            return reply
        try:
            return attrs.evolve(reply, parsed=self._parsed(reply.text if text is None else text))
        except _UnfitError as unfit:
            word: str = unfit.args[0]
        return attrs.evolve(reply, failed=word)

    def _parsed(self, text: str) -> Any:
        if _is_enum(self.schema):
            return _member(self.schema, text)
        if self.mime_type == _ENUM:
            word = text.strip()
            if word not in (field(self.schema, "enum") or ()):
                raise _UnfitError(SCHEMA_MISMATCH)
            return word
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise _UnfitError(NOT_JSON) from None
        if self.schema is None:
            return value
        if isinstance(self.schema, Mapping) or hasattr(self.schema, "any_of"):
            if not _meets(value, self.schema):
                raise _UnfitError(SCHEMA_MISMATCH)
            return value
        return _validated(self.schema, text)


def _is_enum(schema: Any) -> bool:
    return isinstance(schema, type) and issubclass(schema, enum.Enum)


def _member(schema: Any, text: str) -> Any:
    """Return the member with a value, which the API gives bare or as a JSON string."""
    for value in (text, text.strip().strip('"')):
        for member in schema:
            if str(member.value) == value:
                return member
    raise _UnfitError(SCHEMA_MISMATCH)


def _validated(schema: Any, text: str) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415 - heavy

    try:
        return TypeAdapter(schema).validate_json(text)
    except Exception:  # noqa: BLE001 - a validator is the user's code; an error of pydantic quotes the answer
        raise _UnfitError(SCHEMA_MISMATCH) from None


def _meets(value: Any, schema: Any) -> bool:
    """Return whether a value has the types, the keys and the members of enums that a schema says.

    Ranges, lengths and patterns are left to the provider, which generates by the schema.
    """
    if value is None and field(schema, "nullable"):
        return True
    options = field(schema, "any_of")
    if options:
        return any(_meets(value, option) for option in options)
    members = field(schema, "enum")
    if members and value not in members:
        return False
    if not _has_type(value, field(schema, "type")):
        return False
    if isinstance(value, dict):
        return _has_properties(value, schema)
    items = field(schema, "items")
    return not isinstance(value, list) or items is None or all(_meets(item, items) for item in value)


def _has_type(value: Any, kind: Any) -> bool:
    """Return whether a value has a type of a schema, which names one in either case, or several."""
    if isinstance(kind, list | tuple):
        return any(_has_type(value, each) for each in kind)
    expected = _TYPES.get(str(getattr(kind, "value", kind)).lower())
    if expected is None:
        return True
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, expected) or (
        expected is int and isinstance(value, float) and value.is_integer()
    )


def _has_properties(value: dict[str, Any], schema: Any) -> bool:
    if not set(field(schema, "required") or ()) <= value.keys():
        return False
    properties = field(schema, "properties") or {}
    return all(_meets(value[name], each) for name, each in properties.items() if name in value)

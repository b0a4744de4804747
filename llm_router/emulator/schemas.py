"""A value that fits a JSON schema, in JSON Schema's words or in those of the API's own subset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["example"]

_DEEPEST = 6
_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "llama@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """Return a value that fits a simple ``schema``: types, enum, const, bounds, anyOf, allOf, references.

    Patterns are not looked at. An object has all its properties; below a few levels, only those required.
    """
    root = schema if root is None else root
    schema = _resolved(schema, root)
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if schema.get("enum"):
        return schema["enum"][0]
    for options in (schema.get(word) for word in ("anyOf", "any_of", "oneOf")):
        if options:
            return example(_first_not_null(options), root, depth)
    return _of_type(_type_of(schema), schema, root, depth)


def _of_type(kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    match kind:
        case "object":
            return _object(schema, root, depth)
        case "array":
            return _array(schema, root, depth)
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case "null":
            return None
    return _string(schema)


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``schema`` with its reference followed and the parts of its ``allOf`` merged."""
    for _ in range(_DEEPEST):
        if "$ref" not in schema:
            break
        found: Any = root
        for word in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
            found = found.get(word, {}) if word else found
        schema = found
    for part in schema.get("allOf", ()):
        schema = {
            **_resolved(part, root),
            **{word: value for word, value in schema.items() if word != "allOf"},
        }
    return schema


def _first_not_null(options: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((option for option in options if _type_of(option) != "null"), options[0])


def _type_of(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((word for word in kind if word != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kind).lower()


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    required = schema.get("required") or ()
    return {
        name: example(inner, root, depth + 1)
        for name, inner in properties.items()
        if depth < _DEEPEST and (depth < _DEEPEST // 2 or name in required)
    }


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> list[Any]:
    items = schema.get("items")
    least = int(schema.get("minItems", schema.get("min_items", 1)))
    if depth >= _DEEPEST or not isinstance(items, Mapping):
        return []
    return [example(items, root, depth + 1) for _ in range(max(least, 1))]


def _number(schema: Mapping[str, Any]) -> int | float:
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    if least is None:
        most = schema.get("maximum")
        return 1 if most is None or most >= 1 else int(most) - 1
    return int(least) + 1 if "exclusiveMinimum" in schema or least != int(least) else int(least)


def _string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), "text")
    least = int(schema.get("minLength", 0))
    most = int(schema.get("maxLength", max(least, len(text))))
    return text.ljust(least, "x")[:most]

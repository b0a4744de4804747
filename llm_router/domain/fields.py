"""Fields of what follows the Gemini API: objects, or dictionaries in snake_case or camelCase."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["camel_case", "field"]


def field(value: Any, name: str) -> Any:
    """Return the field with a snake_case name, from a dict (in camelCase, too) or an object; None if none."""
    if value.__class__ is not dict and not isinstance(value, Mapping):
        return getattr(value, name, None)
    found = value.get(name)
    return value.get(camel_case(name)) if found is None and "_" in name else found


@cache
def camel_case(name: str) -> str:
    """Return a snake_case name in camelCase."""
    head, *tail = name.split("_")
    return head + "".join(word.title() for word in tail)

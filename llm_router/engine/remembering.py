"""What is remembered of the last few (project, model) and the like: nothing here may grow without end."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["remember"]

_Name = TypeVar("_Name", bound=str)
_Value = TypeVar("_Value")

_REMEMBERED = 256


def remember(values: dict[_Name, _Value], name: _Name, value: _Value) -> None:
    """Note the latest value of a name; of more than 256 names, the one noted the longest ago is forgotten."""
    values.pop(name, None)
    values[name] = value
    if len(values) > _REMEMBERED:
        del values[next(iter(values))]

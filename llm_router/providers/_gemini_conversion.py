"""Trying beforehand what the SDK makes of schemas and tools: it says only while it sends that it cannot."""

from __future__ import annotations

import copy
import json
import re
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from llm_router.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_schemas_and_tools", "first_problem"]

_DEVELOPER_API: Any = SimpleNamespace(vertexai=False)
"""All that the conversions ask of the SDK's client."""

_schemas: WeakSet[type] = WeakSet()
_functions: WeakSet[FunctionType] = WeakSet()
"""The classes and functions that were converted before, so that they can be: it takes the SDK a while."""

_UNSUPPORTED = re.compile(r"(\w+)(?: parameter)? is (?:only|not) supported in ")
_PARAMETER = re.compile(r"Failed to parse the parameter (\w+)")


class _UnfitError(Exception):
    """A value is of a kind that it may not be."""


def check_schemas_and_tools(config: Any) -> None:
    """Refuse a schema that the Gemini API has no words for, and a tool that cannot be declared to it.

    Args:
        config: A valid ``GenerateContentConfig``.

    Raises:
        InvalidRequestError: There is one; the message says where.
    """
    if config.response_schema is not None:
        _try(_convert_schema, config.response_schema, "config.response_schema")
    if config.response_json_schema is not None:
        _try(_dump, config.response_json_schema, "config.response_json_schema")
    for place, tool in enumerate(config.tools or ()):
        if not hasattr(tool, "list_tools"):  # a session of MCP is asked for its tools when it is time
            _try(_convert_tool, tool, f"config.tools[{place}]")


def first_problem(error: Any) -> str:
    """Describe the first problem of pydantic's by its place and kind, without the value."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(str(part) for part in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {problems[0]['msg']}{more}" if place else f"{problems[0]['msg']}{more}"


def _convert_schema(schema: Any) -> None:
    if isinstance(schema, type) and schema in _schemas:
        return
    from google.genai import _transformers  # noqa: PLC0415 - heavy; and there is no public way

    # A dictionary is changed by the conversion.
    _transformers.t_schema(_DEVELOPER_API, copy.deepcopy(schema) if isinstance(schema, dict) else schema)
    if isinstance(schema, type):
        _schemas.add(schema)


def _dump(schema: Any) -> None:
    if isinstance(schema, type) or not hasattr(schema, "model_dump"):
        try:
            json.dumps(schema)
        except TypeError:
            raise _UnfitError("it must be JSON; a type goes into response_schema") from None


def _convert_tool(tool: Any) -> None:
    if isinstance(tool, FunctionType) and tool in _functions:
        return
    from google.genai import _transformers, types  # noqa: PLC0415 - as above

    if not isinstance(_transformers.t_tool(_DEVELOPER_API, tool), types.Tool):
        raise _UnfitError("it must be a function of Python or a Tool")
    if isinstance(tool, FunctionType):
        _functions.add(tool)


def _try(convert: Callable[[Any], None], value: Any, place: str) -> None:
    try:
        convert(value)
    except Exception as error:  # noqa: BLE001 - a model's own code, or whatever the SDK stumbles over
        problem = _problem(error)
    else:
        return
    # Raised outside the handler, because the error may contain the whole value.
    raise InvalidRequestError(f"{place} cannot be sent: {problem}")


def _problem(error: Exception) -> str:
    from pydantic import ValidationError  # noqa: PLC0415 - heavy

    words = str(error) if isinstance(error, ValueError) else ""
    if isinstance(error, ValidationError):
        return first_problem(error)
    if (found := _UNSUPPORTED.match(words)) is not None:
        hint = ", as a dictionary with any keys needs" if found[1] == "additionalProperties" else ""
        return f"the Gemini API does not take {found[1]}{hint}"
    if (found := _PARAMETER.match(words)) is not None:
        return f"the parameter {found[1]!r} has no type that it can be told: annotate it with a simpler one"
    if isinstance(error, _UnfitError):
        return str(error)
    return f"the SDK cannot read it ({type(error).__name__})"

"""Building the SDK's ``GenerateContentConfig`` from a request, and validating a request."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llm_router.errors import InvalidRequestError, LLMRouterError
from llm_router.gemini_http.routes import KEY_HEADER
from llm_router.providers._gemini_conversion import check_schemas_and_tools, first_problem
from llm_router.providers._gemini_foreign import remedy_for

if TYPE_CHECKING:
    from llm_router.domain.request import Request

__all__ = ["DEFAULT_SAFETY", "build_config", "merged_safety", "safety_thresholds", "validate_request"]

DEFAULT_SAFETY: Mapping[str, str] = {
    "HARM_CATEGORY_HARASSMENT": "BLOCK_NONE",
    "HARM_CATEGORY_HATE_SPEECH": "BLOCK_NONE",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT": "BLOCK_NONE",
    "HARM_CATEGORY_DANGEROUS_CONTENT": "BLOCK_NONE",
}

_CATEGORIES = frozenset({*DEFAULT_SAFETY, "HARM_CATEGORY_CIVIC_INTEGRITY"})
_THRESHOLDS = frozenset(
    {"BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF"}
)
_ROUTER_FIELDS = frozenset(
    {"automatic_continuation", "automatic_function_calling", "should_return_http_response"}
)
_ENTERPRISE_FIELDS = (
    "audio_timestamp",
    "generation_output_config",
    "model_armor_config",
    "model_selection_config",
    "routing_config",
)
"""Fields that the SDK refuses to send to the Gemini API."""

_SCHEMAS = ("response_schema", "response_json_schema")
_CALLER_HTTP_OPTIONS = frozenset({"headers", "timeout", "extra_body"})
_KEY_HEADERS = frozenset({KEY_HEADER, "authorization"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")


def safety_thresholds(settings: Mapping[str, str], *, error: type[LLMRouterError]) -> dict[str, str]:
    """Return ``settings`` with the full names of categories and thresholds.

    Args:
        settings: Category (with or without ``HARM_CATEGORY_``) → threshold, in any case.
        error: The error to raise for a name that the Gemini API does not know.
    """
    if not isinstance(settings, Mapping):
        raise error(f"safety_settings must map category to threshold, not be a {type(settings).__name__}")
    return dict(_safety_item(category, threshold, error) for category, threshold in settings.items())


def _safety_item(category: object, threshold: object, error: type[LLMRouterError]) -> tuple[str, str]:
    # A name may be a member of an SDK enum: a str, but with its own str().
    name = category.upper() if isinstance(category, str) else ""
    name = name if name.startswith("HARM_CATEGORY_") else f"HARM_CATEGORY_{name}"
    if name not in _CATEGORIES:
        raise error(f"unknown safety category {category!r}: use one of {', '.join(sorted(_CATEGORIES))}")
    level = threshold.upper() if isinstance(threshold, str) else ""
    if level not in _THRESHOLDS:
        raise error(f"unknown safety threshold {threshold!r}: use one of {', '.join(sorted(_THRESHOLDS))}")
    return name, level


def build_config(request: Request, safety: Mapping[str, str]) -> Any:
    """Build the config of one call: ``request.config``, overridden by the request's own arguments.

    A call sends one request to the provider: automatic function calling and automatic continuation, which
    send more, are always off.

    Args:
        request: The request.
        safety: The provider's own thresholds; those of the config and of the request override them, and
            empty ones of the request switch them off.

    Raises:
        InvalidRequestError: The request is wrong.
    """
    _check_numbers(request)
    update = _configured(request.config)
    configured = update.pop("safety_settings", None)
    if configured or request.safety_settings is not None:
        update["safety_settings"] = merged_safety(request, safety, configured or ()) or None
    update |= _named(request)
    return _common_config(tuple(safety.items())).model_copy(update=update)


@functools.lru_cache(maxsize=64)
def _common_config(safety: tuple[tuple[str, str], ...]) -> Any:
    """Return the config that all requests of a provider share; most have nothing else.

    Its safety settings are dictionaries, not models: the SDK accepts both and converts them in every call,
    dictionaries much faster.
    """
    from google.genai import types  # noqa: PLC0415 - heavy

    return _config_model().model_construct(
        automatic_continuation=False,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        safety_settings=[_setting(name, level) for name, level in safety] or None,
    )


@functools.cache
def _config_model() -> Any:
    """Return the SDK's config class with an ``in`` that costs nothing.

    The SDK asks about eighty times per call whether the name of a field is ``in`` the config before it reads
    the attribute. In pydantic that searches pairs of name and value: it takes a fifth of the whole call, and
    never finds anything.
    """
    from google.genai import types  # noqa: PLC0415 - heavy

    class Config(types.GenerateContentConfig):
        def __contains__(self, _name: object) -> bool:
            return False

    return Config


def _configured(config: Any) -> dict[str, Any]:
    """Return the validated fields of a request's config, without those that the router sets."""
    from google.genai import types  # noqa: PLC0415 - heavy

    model = types.GenerateContentConfig
    if config is None:
        return {}
    if not isinstance(config, model | Mapping):
        raise InvalidRequestError(
            f"config must be a GenerateContentConfig or its dict, not a {type(config).__name__}"
        )
    # Of a model, only the fields that are set, validated again: they may have been set after it was made.
    given = dict(config) if isinstance(config, Mapping) else _fields(config, config.model_fields_set)
    valid = _validated(model, given, "config")
    for name in _ENTERPRISE_FIELDS:
        if getattr(valid, name, None) is not None:
            raise InvalidRequestError(
                f"config.{name} is not for the Gemini API, only for Vertex: leave it out"
            )
    _check_http_options(valid.http_options)
    _check_tools(valid.tools)
    _check_instruction(valid.system_instruction)
    fields = _fields(valid, valid.model_fields_set - _ROUTER_FIELDS)
    if not fields.get("response_mime_type") and any(fields.get(name) is not None for name in _SCHEMAS):
        fields["response_mime_type"] = "application/json"  # else the API takes the schema for a hint
    return fields


def _fields(model: Any, names: Iterable[str]) -> dict[str, Any]:
    # Not model_dump(): validated values need not be taken apart and put together again.
    return {name: getattr(model, name) for name in names}


def _named(request: Request) -> dict[str, Any]:
    """Return the request's named arguments that are given; the numbers have been checked."""
    instruction = request.system_instruction
    if not isinstance(instruction, str | None):
        instruction = _configured({"system_instruction": instruction})["system_instruction"]
    named = {
        "system_instruction": instruction,
        "max_output_tokens": request.max_output_tokens,
        "temperature": None if request.temperature is None else float(request.temperature),
    }
    return {name: value for name, value in named.items() if value is not None}


def merged_safety(
    request: Request, safety: Mapping[str, str], configured: Iterable[Any] = ()
) -> list[dict[str, Any]]:
    """Return the safety settings of a request as they are sent; its own empty ones switch the provider's off.

    Args:
        request: The request, whose own thresholds win.
        safety: The provider's thresholds.
        configured: The validated settings of the request's config, which win over the provider's.

    Raises:
        InvalidRequestError: The request names one that the Gemini API does not know.
    """
    if request.safety_settings == {}:
        safety = {}
    merged: dict[Any, Any] = {name: _setting(name, level) for name, level in safety.items()}
    for setting in configured:
        merged[getattr(setting.category, "value", None)] = setting.model_dump(mode="json", exclude_none=True)
    own = safety_thresholds(request.safety_settings or {}, error=InvalidRequestError)
    merged |= {name: _setting(name, level) for name, level in own.items()}
    return list(merged.values())


def _setting(category: str, threshold: str) -> dict[str, str]:
    return {"category": category, "threshold": threshold}


def _check_tools(tools: Iterable[object] | None) -> None:
    """Refuse what the SDK lets pass as a tool, and then fails on with an error that names nothing."""
    from pydantic import BaseModel  # noqa: PLC0415 - heavy

    for place, tool in enumerate(tools or ()):
        # The last is a session of MCP, which need not be installed.
        if not (callable(tool) or isinstance(tool, BaseModel) or hasattr(tool, "list_tools")):
            raise InvalidRequestError(
                f"config.tools[{place}] must be a function or a Tool, not a {type(tool).__name__}"
            )


def _check_instruction(instruction: Any) -> None:
    """Refuse what the SDK lets pass as a system instruction, and then fails on; as for tools."""
    if isinstance(instruction, str | None):
        return
    if isinstance(instruction, list) and not instruction:
        raise InvalidRequestError("system_instruction is empty: pass a string or parts, or leave it out")
    from google.genai import _transformers  # noqa: PLC0415 - heavy; and there is no public way

    try:
        _transformers.t_content(instruction)
    except ValueError:  # its message may quote the data
        is_wrong = True
    else:
        is_wrong = False
    if is_wrong:
        raise InvalidRequestError("system_instruction must be a string, a content, a part or a list of parts")


def _check_items(contents: Any) -> None:
    """Refuse what the SDK lets pass as contents, and then fails on; as for tools."""
    if not isinstance(contents, list | tuple):
        _check_file(contents, "contents")
        return
    for place, item in enumerate(contents):
        if isinstance(item, list | tuple | Mapping) and not item:
            raise InvalidRequestError(f"contents[{place}] is empty: leave it out")
        _check_file(item, f"contents[{place}]")
        for number, part in enumerate(item if isinstance(item, list | tuple) else ()):
            _check_file(part, f"contents[{place}][{number}]")
            if hasattr(part, "parts"):
                raise InvalidRequestError(
                    f"contents[{place}][{number}] must be a part, not a {type(part).__name__}"
                )


def _check_file(part: Any, place: str) -> None:
    from google.genai import types  # noqa: PLC0415 - heavy

    if isinstance(part, types.File) and not (part.uri and part.mime_type):
        raise InvalidRequestError(f"{place} is a File without uri or mime_type: pass one that was uploaded")


def _check_http_options(options: Any) -> None:
    """Refuse options that would make the SDK retry, send the key elsewhere, or fail to become HTTP."""
    if options is None:
        return
    for name in sorted(options.model_fields_set - _CALLER_HTTP_OPTIONS):
        if getattr(options, name) is not None:
            raise InvalidRequestError(f"config.http_options.{name} is the router's business: leave it out")
    for header, value in (options.headers or {}).items():
        if header.lower() in _KEY_HEADERS:
            raise InvalidRequestError(f"config.http_options.headers: leave {header!r} to the router")
        if not _HEADER_NAME.fullmatch(header):
            raise InvalidRequestError(f"config.http_options.headers: {header!r} is not the name of a header")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequestError(
                f"config.http_options.headers: the value of {header!r} has a character that a header cannot "
                "have, such as a newline"
            )


def validate_request(request: Request, safety: Mapping[str, str], *, plain: bool = False) -> None:
    """Check ``request`` as far as possible without sending it.

    The SDK is imported only for a request with more than text and numbers.

    Args:
        request: The request.
        safety: The provider's own thresholds.
        plain: Whether it is known that the contents and the config have nothing that the SDK would refuse.

    Raises:
        InvalidRequestError: The request is wrong; the message says where.
    """
    _check_numbers(request)
    if request.contents is None or (
        isinstance(request.contents, str | list | tuple) and not request.contents
    ):
        raise InvalidRequestError("contents are empty: give a prompt")
    if plain:
        merged_safety(request, safety)
        return
    if not isinstance(request.contents, str):
        _validated_contents(request.contents)
        _check_items(request.contents)
    is_bare = request.config is None and request.safety_settings is None
    if not is_bare or not isinstance(request.system_instruction, str | None):
        check_schemas_and_tools(build_config(request, safety))


def _check_numbers(request: Request) -> None:
    limit, temperature = request.max_output_tokens, request.temperature
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InvalidRequestError(f"max_output_tokens must be a whole number of 1 or more, not {limit!r}")
    if temperature is not None and not _is_temperature(temperature):
        raise InvalidRequestError(f"temperature must be a number of 0 or more, not {temperature!r}")


def _is_temperature(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@functools.cache
def _contents_adapter() -> Any:
    from google.genai import types  # noqa: PLC0415 - heavy
    from pydantic import ConfigDict, TypeAdapter  # noqa: PLC0415 - heavy

    # If Pillow is installed, the SDK's contents include its images, a type that pydantic does not know.
    return TypeAdapter(types.ContentListUnion, config=ConfigDict(arbitrary_types_allowed=True))


def _validated_contents(contents: Any) -> None:
    _run(
        lambda: _contents_adapter().validate_python(contents), "contents", remedy=lambda: remedy_for(contents)
    )


def _validated(model: Any, data: dict[str, Any], what: str) -> Any:
    return _run(lambda: model.model_validate(data), what)


def _run(validation: Any, what: str, remedy: Callable[[], str | None] = lambda: None) -> Any:
    from pydantic import ValidationError  # noqa: PLC0415 - heavy

    try:
        return validation()
    except ValidationError as error:
        problem = first_problem(error)
    except Exception as error:  # noqa: BLE001 - the SDK stumbles over some values that it says it takes
        problem = f"the SDK cannot read it ({type(error).__name__})"
    # Raised outside the handler, because pydantic's error contains the whole input.
    raise InvalidRequestError(f"{what} is wrong: {remedy() or problem}")

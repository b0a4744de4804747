"""Check the arguments of a send before any quota is taken."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, cast, get_args

import attrs

from llm_router.domain.numbers import real, shown, whole
from llm_router.domain.options import QueryOptions, SendOptions
from llm_router.domain.request import Request, Urgency
from llm_router.errors import InvalidRequestError

__all__ = [
    "MAX_SECONDS",
    "check_metadata",
    "check_query",
    "check_request",
    "check_tenant",
    "check_timeout",
    "check_urgency",
    "check_wait",
    "has_alias",
    "merge_requests",
    "reject_wish",
    "unalias",
    "unknown_option",
]

MAX_SECONDS = 366 * 86_400.0
"""A year. A longer timeout counts as no bound. A longer wait is cut to a year: no wait is endless, so a send
for which nothing will ever have room is answered at once."""

_MAX_OUTPUT_TOKENS = 2**31 - 1
_METADATA_ENTRIES = 16
_METADATA_LENGTH = 256
_METADATA_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ALIASES = {"contents": "prompt", "model": "model_preference"}
_NOT_CONFIGS = (str, bytes, int, float, list, tuple, set)


def merge_requests(inner: Request, outer: Request) -> Request:
    """Return the request that was passed as a prompt; arguments given beside it win over its own."""
    given = {
        field.name: value
        for field in attrs.fields(Request)
        if field.name != "contents" and (value := getattr(outer, field.name)) is not None
    }
    return attrs.evolve(inner, **given) if given else inner


def check_request(request: Request) -> None:
    """Check what no provider needs to be asked about.

    Raises:
        InvalidRequestError: The prompt is empty, or another field cannot be right; the message names it.
    """
    if not request.contents:
        raise InvalidRequestError("the prompt is empty: pass a string or contents")
    limit, temperature = request.max_output_tokens, request.temperature
    # An int, and not a float that is whole: the SDK passes on what it gets.
    if limit is not None and not (isinstance(limit, int) and 0 < (whole(limit) or 0) <= _MAX_OUTPUT_TOKENS):
        raise InvalidRequestError(
            f"max_output_tokens must be a whole number above 0 (at most {_MAX_OUTPUT_TOKENS}), "
            f"not {shown(limit)}"
        )
    if temperature is not None and not 0 <= real(temperature) < math.inf:
        raise InvalidRequestError(f"temperature must be a number of 0 or more, not {shown(temperature)}")
    if isinstance(request.config, _NOT_CONFIGS):
        name = type(request.config).__name__
        raise InvalidRequestError(f"config must be a GenerateContentConfig or its dict, not a {name}")
    settings: object = request.safety_settings
    if settings is not None and not isinstance(settings, Mapping):
        name = type(settings).__name__
        raise InvalidRequestError(f"safety_settings must map category to threshold, not be a {name}")


def check_timeout(timeout: object) -> float:
    """Return a timeout in seconds; one of more than a year becomes infinity, which means no bound.

    Raises:
        InvalidRequestError: It is not a number above 0.
    """
    seconds = real(timeout)
    if not seconds > 0:  # so that NaN is refused, too
        raise InvalidRequestError(f"timeout must be above 0 s, or None for no bound, not {shown(timeout)}")
    return seconds if seconds <= MAX_SECONDS else math.inf


def check_wait(max_wait: object) -> float:
    """Return how long a send may wait for capacity, in seconds: at most a year, also if asked for infinity.

    Raises:
        InvalidRequestError: It is not a number of 0 or more.
    """
    seconds = real(max_wait)
    if not seconds >= 0:
        raise InvalidRequestError(f"max_wait must be 0 s or more, not {shown(max_wait)}")
    return min(seconds, MAX_SECONDS)


def check_metadata(metadata: object) -> Mapping[str, str]:
    """Return a copy of the metadata of a send.

    Raises:
        InvalidRequestError: They do not map a few names to short strings.
    """
    if not isinstance(metadata, Mapping):
        name = type(metadata).__name__
        raise InvalidRequestError(f"metadata must map names to strings, not be a {name}")
    for name, value in metadata.items():
        if not isinstance(name, str) or not _METADATA_NAME.fullmatch(name):
            raise InvalidRequestError(
                f"metadata: a name must have 1 to 64 of the characters A-Z a-z 0-9 _ . -, unlike {name!r}"
            )
        if not isinstance(value, str) or len(value) > _METADATA_LENGTH:
            what = f"{len(value)} characters" if isinstance(value, str) else f"a {type(value).__name__}"
            raise InvalidRequestError(
                f"metadata: {name!r} must be a string of at most {_METADATA_LENGTH} characters, not {what}"
            )
    if len(metadata) > _METADATA_ENTRIES:
        raise InvalidRequestError(
            f"metadata may have {_METADATA_ENTRIES} entries at most, not {len(metadata)}"
        )
    return dict(metadata)


def check_urgency(urgency: object) -> Urgency:
    """Return how urgent a send is.

    Raises:
        InvalidRequestError: It is none of the words.
    """
    for known in get_args(Urgency):
        if urgency == known:
            return cast("Urgency", known)
    words = " or ".join(map(repr, get_args(Urgency)))
    raise InvalidRequestError(f"urgency must be {words}, not {shown(urgency)}")


def check_tenant(tenant: object) -> str | None:
    """Return the tenant that a send is made for.

    Raises:
        InvalidRequestError: It is not a short string, or None.
    """
    if tenant is None or (isinstance(tenant, str) and len(tenant) <= _METADATA_LENGTH):
        return tenant
    what = f"{len(tenant)} characters" if isinstance(tenant, str) else f"a {type(tenant).__name__}"
    raise InvalidRequestError(
        f"tenant must be a string of at most {_METADATA_LENGTH} characters, or None, not {what}"
    )


def reject_wish(workload: object, model_preference: object, fallback: object) -> NoReturn:
    """Raise an error that names the argument that is not a string, and so cannot be looked up.

    Raises:
        InvalidRequestError: Always.
    """
    wish = {"workload": workload, "model_preference": model_preference, "fallback": fallback}
    for name, value in wish.items():
        if value is not None and not isinstance(value, str):
            raise InvalidRequestError(f"{name} must be a string, not a {type(value).__name__}") from None
    raise InvalidRequestError("workload, model_preference and fallback must be hashable") from None


def has_alias(options: SendOptions) -> bool:
    """Return whether something is given by its other name."""
    return not _ALIASES.keys().isdisjoint(options)


def unalias(prompt: object, options: SendOptions) -> tuple[Any, SendOptions]:
    """Return a prompt and options, all by the names that the engine knows.

    Raises:
        InvalidRequestError: Something is given by both of its names.
    """
    if not has_alias(options):
        return prompt, options
    named: dict[str, Any] = {"prompt": prompt, **options}
    for alias, name in _ALIASES.items():
        if alias in named:
            value = named.pop(alias)
            if named.get(name) is not None:
                raise InvalidRequestError(f"{alias} is another name of {name}: give one of them") from None
            named[name] = value
    return named.pop("prompt"), cast("SendOptions", named)


def check_query(method: str, options: QueryOptions, named: Iterable[str] = ()) -> None:
    """Check the options of a query, of which each of its requests is given the same.

    Args:
        method: What was called, such as ``embed``.
        options: Its options.
        named: What it takes besides :class:`QueryOptions`.

    Raises:
        InvalidRequestError: A value cannot be meant; the message names it.
        TypeError: There is no such option.
    """
    known = (*named, *QueryOptions.__annotations__)
    if not options.keys() <= set(known):
        raise unknown_option(method, options, known)
    if options.get("timeout") is not None:
        check_timeout(options["timeout"])
    if options.get("max_wait") is not None:
        check_wait(options["max_wait"])
    if options.get("metadata") is not None:
        check_metadata(options["metadata"])
    check_urgency(options.get("urgency", "interactive"))
    check_tenant(options.get("tenant"))


def unknown_option(
    method: str, options: Mapping[str, object], known: Iterable[str] = SendOptions.__annotations__
) -> TypeError:
    """Return the error for an option that is none of the ``known`` ones, such as a misspelt one."""
    known = tuple(known)
    name = next((name for name in options if name not in known), "")
    close = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"
    return TypeError(f"{method}() has no option {name!r}: {remedy}")

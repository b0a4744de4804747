"""What a client may say to the router in headers of its own: where its call may go, and how long it waits."""

from __future__ import annotations

from urllib.parse import quote

from llm_router.domain.exchange import Headers
from llm_router.domain.options import RelayOptions
from llm_router.domain.request import Fallback, Urgency
from llm_router.errors import InvalidRequestError

__all__ = ["WISH_PREFIX", "read_wishes", "trace_headers"]

WISH_PREFIX = "x-llm-router-"
"""What the names of such headers begin with."""

_FALLBACKS: dict[str, Fallback] = {"any": "any", "model": "model", "none": "none"}
_URGENCIES: dict[str, Urgency] = {"interactive": "interactive", "batch": "batch"}
_NAMES = ("workload", "fallback", "max-wait", "urgency", "tenant")


def read_wishes(headers: Headers) -> RelayOptions:
    """Return the options that headers ask for.

    ``x-llm-router-workload``, ``-fallback`` (``any``, ``model`` or ``none``), ``-max-wait`` (seconds) and
    ``-urgency`` (``interactive`` or ``batch``) are options of a send; ``-tenant`` becomes its metadata, by
    which it waits, too.

    Args:
        headers: The headers of a request, with names in lower case.

    Raises:
        InvalidRequestError: A header has such a name, but is unknown, or its value is wrong.
    """
    wishes = RelayOptions()
    for name, value in headers:
        if not name.startswith(WISH_PREFIX):
            continue
        match name.removeprefix(WISH_PREFIX):
            case "workload":
                wishes["workload"] = value.strip() or None
            case "fallback":
                wishes["fallback"] = _fallback(name, value)
            case "max-wait":
                wishes["max_wait"] = _seconds(name, value)
            case "urgency":
                wishes["urgency"] = _urgency(name, value)
            case "tenant":
                wishes["metadata"] = {"tenant": value.strip()}
            case _:
                known = ", ".join(f"{WISH_PREFIX}{each}" for each in _NAMES)
                raise InvalidRequestError(f"there is no header {name[:100]!r}: use {known}")
    return wishes


def trace_headers(key_id: str | None, model: str | None, attempts: int, waited: float) -> Headers:
    """Return the headers that tell a client which key and model answered, and after what."""
    named = (("key-id", key_id), ("model", model))
    told = [(f"{WISH_PREFIX}{name}", _printable(value)) for name, value in named if value is not None]
    told.append((f"{WISH_PREFIX}attempts", str(attempts)))
    told.append((f"{WISH_PREFIX}waited", f"{waited:.3f}"))
    return tuple(told)


def _fallback(name: str, value: str) -> Fallback:
    found = _FALLBACKS.get(value.strip())
    if found is None:
        raise InvalidRequestError(f"{name} must be any, model or none, not {value[:100]!r}")
    return found


def _urgency(name: str, value: str) -> Urgency:
    found = _URGENCIES.get(value.strip())
    if found is None:
        raise InvalidRequestError(f"{name} must be interactive or batch, not {value[:100]!r}")
    return found


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)  # what it may be, the router checks
    except ValueError:
        pass
    raise InvalidRequestError(f"{name} must be a number of seconds, not {value[:100]!r}")


def _printable(value: str) -> str:
    return value if value.isascii() and value.isprintable() else quote(value)

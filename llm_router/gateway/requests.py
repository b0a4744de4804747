"""A request of a client: its body within bounds, its exchange without credentials, whether it may come in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llm_router.domain.exchange import Exchange
from llm_router.gateway.answers import RefusedError
from llm_router.gemini_http.api_errors import ApiError
from llm_router.gemini_http.credentials import AUTHORIZATION
from llm_router.gemini_http.routes import KEY_HEADER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_router.domain.exchange import Headers

__all__ = ["MAX_BODY", "GoneError", "check_local", "client_address", "origin", "read_body", "read_exchange"]

MAX_BODY = 64 * 1024 * 1024
"""Bytes of the largest body."""

_IDLE = 30.0
"""Seconds that a client may take for the next piece of its body."""

_TOO_LARGE = ApiError(
    413, "INVALID_ARGUMENT", f"The body is larger than {MAX_BODY >> 20} MiB: upload it as a file instead."
)
_TOO_SLOW = ApiError(408, "DEADLINE_EXCEEDED", f"Nothing of the body came for {_IDLE:g} s.")
_NOT_LOCAL = ApiError(
    403,
    "PERMISSION_DENIED",
    "Without tokens this gateway answers to programs of this machine only, and to no web page: call it as "
    "localhost, or add a token with `llm-router tokens add` and start it with --token-file.",
)
_CREDENTIALS = frozenset({KEY_HEADER, AUTHORIZATION, "proxy-authorization", "cookie"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class GoneError(Exception):
    """The client is gone."""


async def read_body(headers: Headers, receive: Callable[[], Awaitable[Any]]) -> bytes:
    """Return the body of a request.

    Raises:
        RefusedError: It is too large, or comes too slowly.
        GoneError: The client went away.
    """
    stated = next((value for name, value in headers if name == "content-length"), "0")
    if not stated.isdecimal() or len(stated) > len(str(MAX_BODY)) or int(stated) > MAX_BODY:
        raise RefusedError(_TOO_LARGE)
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(_IDLE):
                message = await receive()
        except TimeoutError:
            raise RefusedError(_TOO_SLOW) from None
        if message["type"] == "http.disconnect":
            raise GoneError
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BODY:
            raise RefusedError(_TOO_LARGE)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_exchange(scope: Mapping[str, Any], headers: Headers) -> Exchange:
    """Return the exchange that a request asks for, without its body and its credentials."""
    path = scope["raw_path"].decode("latin-1")
    names = {name for name, _ in headers}
    # Gemini's API has a v1 as well, but its clients send their key in a header of its own.
    openai = path.startswith("/v1/") and AUTHORIZATION in names and KEY_HEADER not in names
    kept = tuple(pair for pair in headers if pair[0] not in _CREDENTIALS)
    query = scope["query_string"].decode("latin-1")
    return Exchange(verb=scope["method"], path=path, query=query, headers=kept, openai=openai)


def origin(scope: Mapping[str, Any], headers: Headers, *, trusts_proxy: bool = False) -> str:
    """Return scheme and host of the gateway as the client sees them."""
    found = dict(headers)
    scheme, host = scope["scheme"], found.get("host", "")
    if trusts_proxy:
        scheme = found.get("x-forwarded-proto", scheme).partition(",")[0].strip()
        host = found.get("x-forwarded-host", host).partition(",")[0].strip()
    return f"{scheme}://{host}"


def client_address(scope: Mapping[str, Any], headers: Headers, *, trusts_proxy: bool = False) -> str:
    """Return the address of the client; behind a proxy that is trusted, the one that the proxy saw."""
    if trusts_proxy:
        seen = dict(headers).get("x-forwarded-for", "").rpartition(",")[2].strip()
        if seen:
            return seen
    client = scope.get("client")
    return client[0] if client else ""


def check_local(headers: Headers) -> None:
    """Refuse what a web page may have sent: a host or an origin that is not this machine's own.

    Raises:
        RefusedError: It may.
    """
    found = dict(headers)
    host = found.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    page = found.get("origin")
    if name not in _LOOPBACK or (page is not None and page != f"http://{host}"):
        raise RefusedError(_NOT_LOCAL)

"""A request of a client: its body within bounds, its exchange without credentials, whether it may come in."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import attrs

from llm_router.domain.exchange import Exchange
from llm_router.gateway.answers import RefusedError
from llm_router.gemini_http.api_errors import ApiError
from llm_router.gemini_http.credentials import AUTHORIZATION, read_credentials
from llm_router.gemini_http.routes import KEY_HEADER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from llm_router.domain.exchange import Headers
    from llm_router.engine.timing import Deadlines
    from llm_router.gemini_http.asking import Reading

__all__ = ["MAX_BODY", "GoneError", "Incoming", "check_local"]

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
_LOCAL_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
_OTHER_SITES = frozenset({"cross-site", "same-site"})


class GoneError(Exception):
    """The client is gone."""


@attrs.frozen(kw_only=True, eq=False)
class Incoming:
    """A request of a client, whose body was not read yet.

    Attributes:
        scope: The request as ASGI has it.
        headers: Its headers, with those that have credentials.
        exchange: What it asks for, without its body and its credentials.
        deadlines: Bounds how long the client may take.
        trusts_proxy: Whether the headers ``X-Forwarded-For``, ``-Host`` and ``-Proto`` are true.
    """

    scope: Mapping[str, Any] = attrs.field(repr=False)
    headers: Headers = attrs.field(repr=False)
    exchange: Exchange
    receive: Callable[[], Awaitable[Any]] = attrs.field(repr=False)
    deadlines: Deadlines = attrs.field(repr=False)
    trusts_proxy: bool = False

    @classmethod
    def of(
        cls,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        deadlines: Deadlines,
        *,
        trusts_proxy: bool = False,
    ) -> Self:
        """Return the request of a scope."""
        headers = tuple(
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        )
        return cls(
            scope=scope,
            headers=headers,
            exchange=_read_exchange(scope, headers),
            receive=receive,
            deadlines=deadlines,
            trusts_proxy=trusts_proxy,
        )

    def header(self, name: str) -> str:
        """Return the value of a header, or nothing if it is missing or comes twice."""
        found = [value for each, value in self.headers if each == name]
        return found[0] if len(found) == 1 else ""

    @property
    def credentials(self) -> list[str]:
        """The tokens that it has, wherever SDKs send their key."""
        found = read_credentials(self.scope["headers"], self.exchange.query)
        return [each.value for each in found if each.value]

    @property
    def origin(self) -> str:
        """Scheme and host of the gateway as the client sees them."""
        found = dict(self.headers)
        scheme, host = self.scope["scheme"], found.get("host", "")
        if self.trusts_proxy:
            scheme = found.get("x-forwarded-proto", scheme).partition(",")[0].strip()
            host = found.get("x-forwarded-host", host).partition(",")[0].strip()
        return f"{scheme}://{host}"

    @property
    def address(self) -> str:
        """The address of the client; behind a proxy that is trusted, the one that the proxy saw."""
        if self.trusts_proxy:
            seen = dict(self.headers).get("x-forwarded-for", "").rpartition(",")[2].strip()
            if seen:
                return seen
        client = self.scope.get("client")
        return client[0] if client else ""

    async def body(self, most: int = MAX_BODY) -> bytes:
        """Return the body, of at most so many bytes.

        Raises:
            RefusedError: It is too large, or comes too slowly.
            GoneError: The client went away.
        """
        stated = next((value for name, value in self.headers if name == "content-length"), "0")
        if not stated.isdecimal() or len(stated) > len(str(MAX_BODY)) or int(stated) > most:
            raise RefusedError(_TOO_LARGE)
        pieces: list[bytes] = []
        size = 0
        while True:
            with self.deadlines.limit(_IDLE) as limit:
                message = await self.receive()
            if limit.expired:
                raise RefusedError(_TOO_SLOW)
            if message["type"] == "http.disconnect":
                raise GoneError
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > most:
                raise RefusedError(_TOO_LARGE)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def whole_exchange(self, body: bytes, reading: Reading | None) -> Exchange:
        """Return the exchange with its body, and with what was read of it."""
        begun = self.exchange
        return Exchange(  # which evolve would make in three times the time
            verb=begun.verb,
            path=begun.path,
            query=begun.query,
            headers=begun.headers,
            body=body,
            openai=begun.openai,
            reading=reading,
        )

    def at_exit(self, call: Callable[[], object]) -> None:
        """Have a call made when the server is told to stop, if it says so."""
        at_exit = self.scope.get("state", {}).get("at_exit")
        if at_exit is not None:
            at_exit(call)

    async def while_there(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of a request, unless its client goes away meanwhile.

        Raises:
            GoneError: It did.
        """
        here = asyncio.current_task()
        assert here is not None  # noqa: S101 - a coroutine runs in one
        is_gone = False

        def leave() -> None:
            nonlocal is_gone
            is_gone = True
            here.cancel()

        forget = self._at_loss(leave)
        if forget is None:
            work.close()
            raise GoneError
        try:
            await work
        except asyncio.CancelledError:
            if is_gone:
                raise GoneError from None
            raise
        finally:
            forget()
            if is_gone:
                here.uncancel()

    def _at_loss(self, call: Callable[[], None]) -> Callable[[], object] | None:
        """Have a call made when the client goes away; return what revokes it, or None if it is gone."""
        at_loss = self.scope.get("state", {}).get("at_loss")
        if at_loss is not None:  # that of our own protocols, which takes no task
            return None if at_loss(call) else partial(at_loss, None)

        async def watch() -> None:
            while (await self.receive())["type"] != "http.disconnect":
                pass
            call()

        return asyncio.create_task(watch()).cancel


def _read_exchange(scope: Mapping[str, Any], headers: Headers) -> Exchange:
    path = scope["raw_path"].decode("latin-1")
    openai = False
    if path.startswith("/v1/"):
        # Gemini's API has a v1 as well, but its clients send their key in a header of its own.
        names = dict(headers)
        openai = AUTHORIZATION in names and KEY_HEADER not in names
    kept = tuple([pair for pair in headers if pair[0] not in _CREDENTIALS])
    query = scope["query_string"].decode("latin-1")
    return Exchange(verb=scope["method"], path=path, query=query, headers=kept, openai=openai)


def check_local(headers: Headers) -> None:
    """Refuse what a web page may have sent: a host or an origin that is not this machine's own.

    Raises:
        RefusedError: It may.
    """
    hosts = [value for name, value in headers if name == "host"]
    found = _LOCAL_HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    pages = [value for name, value in headers if name == "origin"]
    if found is None or any(page != f"http://{hosts[0]}" for page in pages) or _is_of_other_page(headers):
        raise RefusedError(_NOT_LOCAL)


def _is_of_other_page(headers: Headers) -> bool:
    """Return whether a browser fetches this for the page of another site: an image comes without origin.

    A link to the gateway's own page may be anywhere.
    """
    found = dict(headers)
    is_link = found.get("sec-fetch-mode") == "navigate" and found.get("sec-fetch-dest") == "document"
    return found.get("sec-fetch-site") in _OTHER_SITES and not is_link

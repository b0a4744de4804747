"""HTTP clients of httpx or httpx2 whose requests a router answers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from http.client import responses
from typing import Any, Self

from google import genai

from llm_router.bridge import Bridge
from llm_router.domain.exchange import Exchange
from llm_router.domain.options import RelayOptions
from llm_router.errors import DeadlineExceededError, InvalidRequestError, LLMRouterError, SendError
from llm_router.gemini_http.answers import answer_for
from llm_router.gemini_http.resources import with_origin
from llm_router.gemini_http.wishes import read_wishes
from llm_router.genai.passage import AsyncPassage, Begun, BlockingPassage, Call

__all__ = ["http_clients", "http_library"]

MAX_WAIT = 60.0
"""Most seconds to wait for quota, for clients that do not say."""

DEFAULT_TIMEOUT = 600.0
"""Seconds for an answer to begin, and then for each piece of it, for calls that do not say."""


_PLAIN = frozenset({"content", "headers"})
"""What the SDK says of a request, beside its URL and its timeout."""

_AS_IT_IS = "llm_router.as_it_is"
"""The extension that marks a request of which no more was said."""

_KNOWS_HTTPX2 = 3
"""The first major version of the SDK all of whose calls can go through httpx2."""


def http_clients(bridge: Bridge, max_wait: float | None) -> dict[str, Any]:
    """Return the fields of the SDK's ``HttpOptions`` that make a client go through a bridge."""
    library = http_library()
    make, make_async = _types(library)
    return {"httpx_client": make(bridge, max_wait), "httpx_async_client": make_async(bridge, max_wait)}


def http_library() -> Any:
    """Import the library that the SDK would take: httpx2 from its version 3 on, where it is installed."""
    wished = os.environ.get("GOOGLE_GENAI_HTTP_CLIENT", "").lower().strip()
    names = ("httpx2", "httpx") if int(genai.__version__.partition(".")[0]) >= _KNOWS_HTTPX2 else ("httpx",)
    if wished in names:
        names = (wished,)
    return importlib.import_module(next(name for name in names if importlib.util.find_spec(name)))


class _Pieces:
    """The body of an answer that comes in pieces; it settles the call when it is closed or collected."""

    def __init__(self, lib: Any, passage: Any, bridge: Bridge, request: Any) -> None:
        self._lib = lib
        self._passage = passage
        self._bridge = bridge  # so that it outlives the answer
        self._request = request
        self._when_closed: Callable[[], None] | None = None
        weakref.finalize(self, passage.abandon).atexit = False

    def note_time(self, response: Any, began: float) -> None:
        """Have the response, which these are the body of, tell how long it took when it is closed."""
        known = weakref.ref(response)  # no cycle, so that what is left is collected at once

        def note() -> None:
            if (response := known()) is not None:
                response.elapsed = _since(began)

        self._when_closed = note

    def _close(self) -> None:
        if self._when_closed is not None:
            self._when_closed()
        self._passage.abandon()


class _BlockingPieces(_Pieces):
    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = self._passage.take()
        except LLMRouterError as error:
            failure = _translated(self._lib, error, self._request)
        else:
            if piece:
                return piece
            raise StopIteration
        raise failure

    def close(self) -> None:
        self._close()


class _AsyncPieces(_Pieces):
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece: bytes = await self._passage.take()
        except LLMRouterError as error:
            failure = _translated(self._lib, error, self._request)
        else:
            if piece:
                return piece
            raise StopAsyncIteration
        raise failure

    async def aclose(self) -> None:
        self._close()


class _Transport:
    """Makes calls of requests, and responses of the answers.

    Args:
        lib: The library.
        pieces: Its type of a body that comes in pieces.
        bridge: The way to the router.
        max_wait: Most seconds to wait for quota; None for the call's own timeout, at most :data:`MAX_WAIT`.
    """

    def __init__(self, lib: Any, pieces: type[_Pieces], bridge: Bridge, max_wait: float | None) -> None:
        self._lib = lib
        self._pieces = pieces
        self._bridge = bridge
        self._max_wait = max_wait

    def _call(self, request: Any, exchange: Exchange) -> Call:
        """Return the call that a request stands for.

        Raises:
            InvalidRequestError: The headers ask for what there is not.
        """
        seconds = (request.extensions.get("timeout") or {}).get("read")
        wishes = read_wishes(exchange.headers)
        wait = wishes.get("max_wait")
        if wait is None:
            wait = MAX_WAIT if self._max_wait is None else self._max_wait
        if seconds is not None:
            wait = min(wait, seconds)
        options = RelayOptions(timeout=DEFAULT_TIMEOUT if seconds is None else seconds)
        options.update(wishes)
        options["max_wait"] = wait
        return Call(exchange=exchange, options=options, seconds=seconds)

    def _failed(self, request: Any, exchange: Exchange, error: LLMRouterError) -> Any:
        """Return the response that tells of an error.

        Raises:
            Exception: None can.
        """
        if isinstance(error, InvalidRequestError):
            return self._response(request, Begun(*answer_for(exchange, error)), None)
        raise _translated(self._lib, error, request)

    def _response(self, request: Any, begun: Begun, passage: Any) -> Any:
        origin = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
        headers = with_origin(begun.head.headers, origin)
        status = begun.head.status
        if begun.body is None:
            pieces = self._pieces(self._lib, passage, self._bridge, request)
            return self._lib.Response(status, headers=headers, stream=pieces, extensions=_extensions(status))
        headers = (*headers, ("content-length", str(len(begun.body))))
        body = self._lib.ByteStream(begun.body)
        response = self._lib.Response(status, headers=headers, stream=body, extensions=_extensions(status))
        response.encoding = "utf-8"  # JSON's: looking for it in the headers takes longer than decoding
        return response


class _BlockingTransport(_Transport):
    def handle_request(self, request: Any) -> Any:
        exchange = _exchange(request, request.read())
        passage = None
        try:
            call = self._call(request, exchange)
            passage = BlockingPassage(self._bridge.home_of_blocking_call(), call)
            begun = passage.begin()
        except LLMRouterError as error:
            failure = error.with_traceback(None)
        else:
            return self._response(request, begun, passage)
        return self._failed(request, exchange, failure)


class _AsyncTransport(_Transport):
    async def handle_async_request(self, request: Any) -> Any:
        exchange = _exchange(request, await request.aread())
        passage = None
        try:
            call = self._call(request, exchange)
            passage = AsyncPassage(self._bridge.home(), call)
            begun = await passage.begin()
        except LLMRouterError as error:
            failure = error.with_traceback(None)
        else:
            return self._response(request, begun, passage)
        return self._failed(request, exchange, failure)


class _Client:
    """A client whose requests go to its transport as they are.

    There are no redirects, cookies, proxies or base URLs here, and looking for them takes a while. Requests
    of which more is said than by the SDK are left to the library.
    """

    _lib: Any
    _router_transport: Any
    event_hooks: Any  # the library's

    def __init__(self, transport: Any) -> None:
        # The SDK's own clients have no timeout either, unless a request has one.
        super().__init__(transport=transport, timeout=None, trust_env=False)  # type: ignore[call-arg]  # below
        self._router_transport = transport

    def _takes(self, request: Any) -> bool:
        """Return whether a request needs nothing of the library."""
        return _AS_IT_IS in request.extensions and not any(self.event_hooks.values())

    def build_request(self, method: str, url: Any, *, timeout: Any = None, **given: Any) -> Any:
        named = {name: value for name, value in given.items() if value is not None}
        if not named.keys() <= _PLAIN or not (timeout is None or isinstance(timeout, int | float)):
            return super().build_request(method, url, timeout=timeout, **given)  # type: ignore[misc]
        extensions = {"timeout": {"read": timeout}, _AS_IT_IS: True}
        return self._lib.Request(method, url, extensions=extensions, **named)


class _BlockingClient(_Client):
    def send(self, request: Any, *, stream: bool = False, **given: Any) -> Any:
        if not self._takes(request):
            return super().send(request, stream=stream, **given)  # type: ignore[misc]
        began = time.perf_counter()
        response = self._router_transport.handle_request(request)
        response.request = request
        if stream and isinstance(response.stream, _Pieces):
            response.stream.note_time(response, began)
        else:
            response.read()
            response.elapsed = _since(began)
        return response


class _AsyncClient(_Client):
    async def send(self, request: Any, *, stream: bool = False, **given: Any) -> Any:
        if not self._takes(request):
            return await super().send(request, stream=stream, **given)  # type: ignore[misc]
        began = time.perf_counter()
        response = await self._router_transport.handle_async_request(request)
        response.request = request
        if stream and isinstance(response.stream, _Pieces):
            response.stream.note_time(response, began)
        else:
            await response.aread()
            response.elapsed = _since(began)
        return response


@cache
def _types(lib: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what makes a client of the library for blocking calls, and one for asynchronous ones."""
    pieces = type("Pieces", (_BlockingPieces, lib.SyncByteStream), {})
    async_pieces = type("AsyncPieces", (_AsyncPieces, lib.AsyncByteStream), {})
    transport = type("RouterTransport", (_BlockingTransport, lib.BaseTransport), {})
    async_transport = type("AsyncRouterTransport", (_AsyncTransport, lib.AsyncBaseTransport), {})
    client = type("RouterClient", (_BlockingClient, lib.Client), {"_lib": lib})
    async_client = type("AsyncRouterClient", (_AsyncClient, lib.AsyncClient), {"_lib": lib})
    return (
        lambda *options: client(transport(lib, pieces, *options)),
        lambda *options: async_client(async_transport(lib, async_pieces, *options)),
    )


@cache
def _extensions(status: int) -> dict[str, Any]:
    """Return what a transport says of an answer beside its status."""
    return {"http_version": b"HTTP/1.1", "reason_phrase": responses.get(status, "").encode()}


def _since(began: float) -> timedelta:
    return timedelta(seconds=time.perf_counter() - began)


def _exchange(request: Any, body: bytes) -> Exchange:
    path, _, query = request.url.raw_path.decode("ascii").partition("?")
    headers = tuple(
        (name.decode("ascii").lower(), value.decode("latin-1")) for name, value in request.headers.raw
    )
    return Exchange(verb=request.method, path=path, query=query, headers=headers, body=body)


def _translated(lib: Any, error: LLMRouterError, request: Any) -> Exception:
    """Return what the library raises for an answer that broke off, or did not come in time."""
    if isinstance(error, DeadlineExceededError):
        return lib.ReadTimeout(str(error), request=request)  # type: ignore[no-any-return]
    if isinstance(error, SendError):
        return lib.RemoteProtocolError(str(error), request=request)  # type: ignore[no-any-return]
    return error

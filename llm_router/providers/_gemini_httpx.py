"""The httpx backend of the Gemini adapter: httpx2 if the SDK knows it and it is installed, else httpx."""

from __future__ import annotations

import functools
import http.cookiejar
import importlib
import importlib.util
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from google.genai import errors as sdk_errors

from llm_router.providers._gemini_sse import event_bytes
from llm_router.providers._gemini_transport import (
    CONNECT_TIMEOUT,
    KEEPALIVE,
    ON_DISPATCH,
    OPEN_STREAM,
    REQUEST_BEGUN,
    HttpFailure,
    PathFailure,
)

__all__ = ["HttpxTransport"]

_OK = 200


def _library() -> Any:
    """Import httpx2 if the SDK knows it and it is installed, else httpx."""
    usable = getattr(sdk_errors, "httpx2", None) is not None and importlib.util.find_spec("httpx2")
    return importlib.import_module("httpx2" if usable else "httpx")


_lib = _library()
_NEVER_SENT = (
    _lib.ConnectError,
    _lib.ConnectTimeout,
    _lib.InvalidURL,
    _lib.PoolTimeout,
    _lib.ProxyError,
    _lib.UnsupportedProtocol,
)
_PATH_ERRORS = (_lib.HTTPError, _lib.InvalidURL, _lib.StreamError, OSError)


class _Client(_lib.AsyncClient):  # type: ignore[misc, name-defined]
    """A client that sends once, follows no redirect, and raises our own failures."""

    async def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        REQUEST_BEGUN.set(True)
        # The SDK passes an explicit None for every timeout.
        timeout = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {**timeout, "connect": CONNECT_TIMEOUT}
        request.stream = _Body(request.stream)
        try:
            # Always streamed, so that the status is known even if the body breaks off.
            response = await super().send(request, stream=True, **kwargs)
            if response.status_code == _OK:
                if not stream:
                    return await _read(response)
                OPEN_STREAM.set(response.aclose)
                # aiter_lines() reads it as well.
                response.aiter_bytes = functools.partial(_event_bytes, response.aiter_bytes)
                return response
            failure: Exception = await _http_failure(response)
        except _PATH_ERRORS as error:
            failure = _path_failure(error)
        raise failure

    async def exchange(self, verb: str, url: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        """Send a request as it is; a failed one raises a PathFailure."""
        REQUEST_BEGUN.set(True)
        try:
            where = _lib.URL(url)
            request = _lib.Request(verb, where, headers={"host": where.netloc, **headers}, content=body)
            request.extensions = {"timeout": {"connect": CONNECT_TIMEOUT}}
            request.stream = _Body(request.stream)
            return _Answer(await super().send(request, stream=True))
        except _PATH_ERRORS as error:
            failure = _path_failure(error)
        raise failure


class _Body(_lib.AsyncByteStream):  # type: ignore[misc, name-defined]
    """The body of a request, which tells when it is about to be written: its head was just before.

    Tracing would tell so as well, but it is asked at the begin and the end of each step of a request.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        ON_DISPATCH.get()()
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Answer:
    """An answer as :class:`RawAnswer` describes it."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        try:
            return bytes((await _read(self._response)).content)
        except _PATH_ERRORS as error:
            failure = _path_failure(error)
        raise failure

    async def pieces(self) -> AsyncGenerator[bytes]:
        failure: PathFailure | None = None
        chunks = self._response.aiter_bytes()
        while failure is None:
            try:
                piece = await anext(chunks, b"")
            except _PATH_ERRORS as error:
                failure = _path_failure(error)
                break
            if not piece:
                return
            yield piece
        raise failure

    async def aclose(self) -> None:
        await self._response.aclose()


def _event_bytes(aiter_bytes: Callable[..., AsyncIterator[bytes]], *args: Any) -> AsyncIterator[bytes]:
    return event_bytes(aiter_bytes(*args))


def _path_failure(error: BaseException) -> PathFailure:
    return PathFailure(
        error,
        timeout=isinstance(error, _lib.TimeoutException),
        charged=not isinstance(error, _NEVER_SENT),
    )


async def _read(response: Any) -> Any:
    """Read the body; close the connection if that fails."""
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise
    return response


async def _http_failure(response: Any) -> HttpFailure:
    """Read the rest of a failed response; a body that breaks off does not hide the status."""
    try:
        body = (await _read(response)).content
    except (_lib.HTTPError, _lib.StreamError, OSError):
        body = b""
    return HttpFailure(response.status_code, body, response.headers.get("Retry-After"))


@functools.cache
def _ssl_context(cafile: str | None, capath: str | None) -> Any:
    """Return the context that the SDK would make, made once: the library's own, unless another is named."""
    if cafile or capath:
        return ssl.create_default_context(cafile=cafile, capath=capath)
    return _lib.create_ssl_context()


def _ssl_context_of_environment() -> Any:
    return _ssl_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


class HttpxTransport:
    """One httpx client without a connection limit."""

    def __init__(self) -> None:
        self._ssl = _ssl_context_of_environment()
        # Cookies set for one key must not be sent with another.
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._client = _Client(
            verify=self._ssl,
            cookies=no_cookies,
            limits=_lib.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE
            ),
        )

    @staticmethod
    def prepare() -> None:
        """Read the certificates."""
        _ssl_context_of_environment()

    def http_options(self) -> dict[str, Any]:
        """Return the options that make an SDK client use this session and build no SSL context."""
        return {
            "httpx_async_client": self._client,
            "client_args": {"verify": self._ssl},
            "async_client_args": {"verify": self._ssl, "ssl": self._ssl},
        }

    async def exchange(self, verb: str, url: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        """Send a request as it is; see :meth:`Transport.exchange`."""
        answer: _Answer = await self._client.exchange(verb, url, headers, body)
        return answer

    def path_failure(self, error: Exception) -> PathFailure | None:
        """Return the failure that ``error`` stands for, or None if it is not one of the library."""
        return _path_failure(error) if isinstance(error, _PATH_ERRORS) else None

    async def aclose(self) -> None:
        """Close the client and its connections."""
        await self._client.aclose()

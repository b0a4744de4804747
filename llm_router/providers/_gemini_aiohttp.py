"""The aiohttp backend of the Gemini adapter. Import it lazily: it imports aiohttp."""

from __future__ import annotations

import functools
import io
import os
import ssl
import urllib.request
import warnings
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from weakref import WeakSet

import aiohttp
import certifi
from yarl import URL

from llm_router.providers._gemini_sse import EventContent
from llm_router.providers._gemini_transport import (
    CONNECT_TIMEOUT,
    KEEPALIVE,
    ON_DISPATCH,
    OPEN_STREAM,
    REQUEST_BEGUN,
    HttpFailure,
    PathFailure,
)

__all__ = ["AiohttpTransport"]

_OK = 200
_READ_BUFFER = 2**22
"""Bytes; as in the SDK's own sessions, for answers with inline images."""

_READ_AHEAD = 2**17
"""Bytes of a relayed answer, twice which are read at most before its reader takes them, who may be slow."""

_LARGE = 2**20
_OWN_HEADERS = ("user-agent", "accept", "accept-encoding", "content-type")
"""Headers that aiohttp would add; each that is named costs a tenth of what it does for a request."""

_PROXIED = frozenset({"http", "https", "ws", "wss"})

_NEVER_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)

_PATH_ERRORS = (aiohttp.ClientError, OSError)

_UNBOUNDED = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)

with warnings.catch_warnings():
    # aiohttp discourages inheritance, but the SDK accepts only an instance of its class, and the older
    # versions of aiohttp that we support have no middlewares.
    warnings.simplefilter("ignore", DeprecationWarning)

    class _Session(aiohttp.ClientSession):
        """A session that sends once, follows no redirect, and raises our own failures.

        Attributes:
            answers: The responses whose bodies may be being read.
        """

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.answers = WeakSet[aiohttp.ClientResponse]()

        async def close(self) -> None:
            """Close the connections; whoever reads a body is told so, which aiohttp does not do."""
            for response in list(self.answers):
                if not response.closed and not response.content.at_eof():
                    response.content.set_exception(aiohttp.ClientConnectionError("the session was closed"))
            await super().close()

        async def _request(self, *args: Any, **kwargs: Any) -> aiohttp.ClientResponse:
            REQUEST_BEGUN.set(True)
            kwargs["timeout"] = _timeout(kwargs.get("timeout"))
            # A redirect would carry the key, which is in a header, to another host.
            kwargs["allow_redirects"] = False
            try:
                response = await super()._request(*args, **kwargs)
                self.answers.add(response)
                if response.status == _OK:
                    if _is_stream(response):
                        OPEN_STREAM.set(functools.partial(_close, response))
                        response.content = EventContent(response.content)  # type: ignore[assignment]  # duck
                    else:
                        await response.read()
                    return response
                failure: Exception = await _http_failure(response)
            except _PATH_ERRORS as error:
                failure = _path_failure(error)
            raise failure

        def __del__(self, _warnings: Any = None, /) -> None:
            """Do not warn: a session closes with its loop, unless the loop was closed by hand."""

        async def exchange(self, verb: str, url: str, headers: Mapping[str, str], body: bytes) -> _Answer:
            """Send a request as it is; a failed one raises a PathFailure."""
            REQUEST_BEGUN.set(True)
            # Beyond a megabyte aiohttp sends bytes in one go, with a warning, but a file piece by piece.
            data = io.BytesIO(body) if len(body) > _LARGE else body or None
            try:
                response = await super()._request(
                    verb,
                    URL(url, encoded=True),
                    data=data,
                    headers=headers,
                    skip_auto_headers=[name for name in _OWN_HEADERS if name not in headers] or None,
                    allow_redirects=False,
                    timeout=_UNBOUNDED,
                    read_bufsize=_READ_AHEAD,
                )
            except _PATH_ERRORS as error:
                failure = _path_failure(error)
            else:
                self.answers.add(response)
                return _Answer(response)
            raise failure


class _Answer:
    """An answer as :class:`RawAnswer` describes it."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except _PATH_ERRORS as error:
            failure = _path_failure(error)
        raise failure

    async def pieces(self) -> AsyncGenerator[bytes]:
        content = self._response.content
        failure: PathFailure | None = None
        while True:
            try:
                piece = await content.readany()
            except _PATH_ERRORS as error:
                failure = _path_failure(error)
                break
            if not piece:
                return
            yield piece
        raise failure

    async def aclose(self) -> None:
        self._response.close()


class _Request(aiohttp.ClientRequest):
    """A request that tells when it is about to be written to its connection.

    Tracing would tell so as well, but a session with it makes objects for each step of a request.
    """

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        ON_DISPATCH.get()()
        return await super().send(conn)


class _Connector(aiohttp.TCPConnector):
    def __del__(self, _warnings: Any = None, /) -> None:
        """Do not warn, as above: the garbage collector closes the sockets."""


def _timeout(given: Any) -> aiohttp.ClientTimeout:
    """Return a timeout that bounds the connecting, and the whole request if the SDK's caller wants it."""
    if not isinstance(given, aiohttp.ClientTimeout) or given.total is None:
        return _UNBOUNDED
    return aiohttp.ClientTimeout(total=given.total, sock_connect=CONNECT_TIMEOUT)


def _has_proxy() -> bool:
    """Return whether the environment names a proxy.

    Only then may aiohttp use the environment: it reads it (and ``~/.netrc``) again for each request, in two
    trips to a thread, which cost as much as everything else that aiohttp does. A login in ``~/.netrc`` is of
    no use here, since the key has a header of its own.
    """
    return not _PROXIED.isdisjoint(urllib.request.getproxies())


def _is_stream(response: aiohttp.ClientResponse) -> bool:
    return "alt=sse" in response.url.query_string


async def _close(response: aiohttp.ClientResponse) -> None:
    """Close the connection of a stream; one read to its end has already been released."""
    response.close()


def _path_failure(error: BaseException) -> PathFailure:
    return PathFailure(
        error, timeout=isinstance(error, TimeoutError), charged=not isinstance(error, _NEVER_SENT)
    )


async def _http_failure(response: aiohttp.ClientResponse) -> HttpFailure:
    """Read the rest of a failed response; a body that breaks off does not hide the status."""
    try:
        body = await response.read()
    except (aiohttp.ClientError, OSError):
        body = b""
    finally:
        response.release()
    return HttpFailure(response.status, body, response.headers.get("Retry-After"))


@functools.cache
def _ssl_context(cafile: str, capath: str | None) -> ssl.SSLContext:
    """Return the context that the SDK would make, made once: it takes 40 ms, and serves every event loop."""
    return ssl.create_default_context(cafile=cafile, capath=capath)


def _ssl_context_of_environment() -> ssl.SSLContext:
    return _ssl_context(os.environ.get("SSL_CERT_FILE", certifi.where()), os.environ.get("SSL_CERT_DIR"))


class AiohttpTransport:
    """One aiohttp session without a connection limit. Construct it inside the running loop."""

    def __init__(self) -> None:
        self._ssl = _ssl_context_of_environment()
        self._session = _Session(
            connector=_Connector(limit=0, keepalive_timeout=KEEPALIVE),
            # Cookies set for one key must not be sent with another.
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BUFFER,
            request_class=_Request,
            trust_env=_has_proxy(),
        )

    @staticmethod
    def prepare() -> None:
        """Read the certificates."""
        _ssl_context_of_environment()

    def http_options(self) -> dict[str, Any]:
        """Return the options that make an SDK client use this session and build no SSL context."""
        return {
            "aiohttp_client": self._session,
            "client_args": {"verify": self._ssl},
            "async_client_args": {"verify": self._ssl, "ssl": self._ssl},
        }

    async def exchange(self, verb: str, url: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        """Send a request as it is; see :meth:`Transport.exchange`."""
        return await self._session.exchange(verb, url, headers, body)

    def path_failure(self, error: Exception) -> PathFailure | None:
        """Return the failure that ``error`` stands for, or None if it is not one of aiohttp."""
        return _path_failure(error) if isinstance(error, _PATH_ERRORS) else None

    async def aclose(self) -> None:
        """Close the session and its connections."""
        await self._session.close()

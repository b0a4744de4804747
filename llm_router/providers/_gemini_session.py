"""The Gemini adapter's state for one event loop: an HTTP session, and one SDK client per key on it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import re
import threading
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import attrs

from llm_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping

    from llm_router.domain.deployment import Key
    from llm_router.domain.secret import Secret
    from llm_router.providers._gemini_transport import PathFailure, RawAnswer, Transport

__all__ = [
    "HttpBackend",
    "LoopSession",
    "check_backend",
    "check_base_url",
    "prepare",
    "server_url",
    "without_warnings_of_unused_keys",
]

_BASE_URL = "GOOGLE_GEMINI_BASE_URL"
_DEFAULT_URL = "https://generativelanguage.googleapis.com"
_URL_CHARACTERS = re.compile(r"[!-~]+")

HttpBackend = Literal["aiohttp", "httpx", "auto"]
"""The HTTP library to use; ``auto`` is aiohttp if it is installed, as in the SDK, else httpx."""


def check_backend(backend: str) -> None:
    """Check that ``backend`` is known and installed, without importing it.

    Raises:
        ConfigError: It is unknown, or not installed.
    """
    if backend not in ("aiohttp", "httpx", "auto"):
        raise ConfigError(f"http_backend must be 'aiohttp', 'httpx' or 'auto', not {backend!r}")
    if backend == "aiohttp" and not _has_aiohttp():
        raise ConfigError("http_backend='aiohttp' needs aiohttp: install llm-quota-router[aiohttp]")


def check_base_url(url: str | None) -> None:
    """Check that a server can be asked at ``url``, or at what the environment names if it is None.

    Raises:
        ConfigError: It is not the URL of a web server. It is not shown, since it may contain a password.
    """
    name, value = "base_url", url
    if value is None:
        name, value = _BASE_URL, os.environ.get(_BASE_URL) or None
    if value is not None and not _is_web_url(value):
        raise ConfigError(
            f"{name} must be a URL with http:// or https:// and a host, such as https://proxy.example:8443"
        )


def server_url(url: str | None) -> str:
    """Return the server of an adapter that was given a URL, or None for what the environment names."""
    return url or os.environ.get(_BASE_URL) or _DEFAULT_URL


def _is_web_url(url: object) -> bool:
    if not isinstance(url, str) or not _URL_CHARACTERS.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def _has_aiohttp() -> bool:
    return importlib.util.find_spec("aiohttp") is not None


@functools.cache
def prepare(backend: HttpBackend) -> None:
    """Do the slow work that all sessions of ``backend`` share, once in a process.

    It imports the SDK and the HTTP library and reads the certificates, which takes more than half a second.
    Any thread may call it.
    """
    import google.genai  # noqa: F401, PLC0415 - heavy

    _transport_type(backend).prepare()


def _transport_type(backend: HttpBackend) -> type[Transport]:
    if backend == "aiohttp" or (backend == "auto" and _has_aiohttp()):
        from llm_router.providers._gemini_aiohttp import AiohttpTransport  # noqa: PLC0415 - heavy

        return AiohttpTransport
    from llm_router.providers._gemini_httpx import HttpxTransport  # noqa: PLC0415 - heavy

    return HttpxTransport


@attrs.frozen
class _KeyClient:
    """An SDK client, with the secret it was made with."""

    secret: Secret
    client: Any = attrs.field(repr=False)


class LoopSession:
    """The session of one event loop, and its clients.

    Construct it inside the running loop and call :meth:`attach`: it then closes with the loop, even without
    a call of :meth:`aclose`.
    """

    def __init__(self, *, base_url: str | None, api_version: str, backend: HttpBackend) -> None:
        self._base_url = base_url
        self._api_version = api_version
        self._transport: Transport = _transport_type(backend)()
        self._clients: dict[str, _KeyClient] = {}
        self._lifetime = _live(self._transport, self._clients)

    async def attach(self) -> None:
        """Tie the session to the running loop. It does not suspend."""
        await anext(self._lifetime)

    async def aclose(self) -> None:
        """Close the clients and every connection. May be called twice."""
        await self._lifetime.aclose()

    def path_failure(self, error: Exception) -> PathFailure | None:
        """Return the failure that ``error``, raised while reading a stream, stands for; None if none."""
        return self._transport.path_failure(error)

    async def exchange(self, verb: str, target: str, headers: Mapping[str, str], body: bytes) -> RawAnswer:
        """Send a request as it is to the server, where ``target`` is its path and query.

        Raises:
            PathFailure: No answer came.
        """
        base = self._base_url or os.environ.get(_BASE_URL) or _DEFAULT_URL
        return await self._transport.exchange(verb, base.rstrip("/") + target, headers, body)

    def client(self, key: Key) -> Any:
        """Return the SDK client of ``key``, made at the first call and again if its secret has changed."""
        kept = self._clients.get(key.key_id)
        if kept is None or kept.secret is not key.secret:
            kept = self._clients[key.key_id] = _KeyClient(key.secret, self._make(key.secret))
        return kept.client

    def _make(self, secret: Secret) -> Any:
        from google import genai  # noqa: PLC0415 - heavy
        from google.genai import types  # noqa: PLC0415 - heavy

        options = types.HttpOptions(
            base_url=self._base_url,
            api_version=self._api_version,
            retry_options=types.HttpRetryOptions(attempts=1),
            **self._transport.http_options(),
        )
        with without_warnings_of_unused_keys():
            return genai.Client(vertexai=False, api_key=secret.reveal(), http_options=options)


@contextlib.contextmanager
def without_warnings_of_unused_keys() -> Generator[None]:
    """Keep the SDK from warning, for each client, of keys in the environment that the client does not use.

    It does so if both of its own variables are set. Clients made by others meanwhile are not affected.
    """
    thread = threading.get_ident()

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or "GEMINI_API_KEY" not in str(record.msg)

    logger = logging.getLogger("google_genai._api_client")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


async def _live(transport: Transport, clients: dict[str, _KeyClient]) -> AsyncGenerator[None]:
    """Suspend at once; when closed, close ``clients`` and ``transport``.

    An event loop closes the asynchronous generators begun on it when it shuts down or when they are
    collected, so that neither a router used over two ``asyncio.run()`` calls nor one that is dropped leaves
    an open session behind. For the latter, the generator has no reference to its owner.
    """
    try:
        yield
    finally:
        for kept in clients.values():
            await _close(kept.client)
        clients.clear()
        await transport.aclose()


async def _close(client: Any) -> None:
    """Close an SDK client, for good.

    When an old SDK's client is collected, it is closed once more in a task of whatever loop runs then, which
    may end without running it. Without ``aclose`` there is no such task: the finalizer ignores the error.
    """
    await client.aio.aclose()
    client.close()
    for part in (client.aio, getattr(client, "_api_client", client.aio)):
        part.aclose = None

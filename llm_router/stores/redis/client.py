"""Makes redis-py clients from URLs, and guards every call of one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import attrs
import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from llm_router.errors import ConfigError
from llm_router.stores.redis.errors import client_errors, is_demoted
from llm_router.stores.redis.scripts import Client

__all__ = ["Address", "BorrowedClient", "SharedClient", "address_of", "connect", "read_url"]

_CLUSTERS = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_SCHEMES = ("redis", "rediss", "unix", *_CLUSTERS)


@attrs.frozen
class Address:
    """Where a server is, and how to connect to it.

    Attributes:
        name: Host, port and database (or the path of the socket), and nothing secret.
        url: The URL for redis-py.
        is_cluster: Whether it is a node of a cluster.
        shards: The option ``shards`` of the URL, unchecked; None if there is none.
    """

    name: str
    url: str = attrs.field(repr=False)
    is_cluster: bool = False
    shards: str | None = None


def read_url(url: str) -> Address:
    """Parse the URL of a Redis store.

    Raises:
        ConfigError: The URL cannot be used.
    """
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, keep_blank_values=True)
        name = _describe(parts, options) if parts.scheme in _SCHEMES else None
    except ValueError:
        name = None
    if name is None:
        # Show neither the URL nor the parser's message: either may hold a password.
        raise ConfigError(
            "the URL of the Redis store cannot be understood: it should look like "
            "redis://user:password@host:6379/0, with special characters of the password percent-encoded"
        )
    shards, *more = options.pop("shards", [None])
    if more:
        raise ConfigError(f"the URL of the Redis store at {name} says shards more than once: write it once")
    is_cluster = parts.scheme in _CLUSTERS
    address = Address(name, _without_shards(url), is_cluster, shards)
    if not _is_usable(address):
        hint = f": check its options ({', '.join(sorted(options))})" if options else ""
        raise ConfigError(f"redis-py cannot use the URL of the Redis store at {name}{hint}")
    return address


def _describe(parts: SplitResult, options: dict[str, list[str]]) -> str | None:
    """Return what to call the server, or None if the database is not a number."""
    host, port = parts.hostname or "localhost", parts.port or 6379
    database = options.get("db", [""])[0]
    if parts.scheme == "unix":
        return f"{unquote(parts.path)}?db={database or 0}"
    database = database or parts.path.strip("/") or "0"
    if not (database.isascii() and database.isdecimal()):  # redis-py would take it for 0
        return None
    return f"{host}:{port} (cluster)" if parts.scheme in _CLUSTERS else f"{host}:{port}/{database}"


def _without_shards(url: str) -> str:
    """Return ``url`` in the form that redis-py understands."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    kept = "&".join(option for option in query.split("&") if option.partition("=")[0] != "shards")
    return f"{_CLUSTERS.get(scheme.lower(), scheme)}://{rest}{'?' if kept else ''}{kept}"


def _is_usable(address: Address) -> bool:
    """Return whether redis-py accepts the URL with all its options, without connecting."""
    try:
        client: Any = connect(address)
        pool = getattr(client, "connection_pool", None)
        if pool is not None:
            pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, RedisError, RedisClusterException):
        return False
    return True


def address_of(client: Any) -> str:
    """Return what to call the server of a client that was made elsewhere."""
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return "a cluster"
    arguments = pool.connection_kwargs
    if arguments.get("path"):
        return f"{arguments['path']}?db={arguments.get('db') or 0}"
    return f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}/{arguments.get('db') or 0}"


def connect(address: Address) -> Client:
    """Make a client that retries nothing and has no timeout of its own.

    It does not connect before its first command. A connection that the server closed while it was idle is
    noticed and replaced before anything is sent on it (except on a cluster).
    """
    # redis-py's own default is ten retries of five seconds each. It has no timer here either: that would
    # blame the server for the time during which the event loop was blocked.
    settings: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
    }
    if address.is_cluster:
        return cast("Client", RedisCluster.from_url(address.url, **settings))
    return cast("Client", redis.asyncio.Redis.from_url(address.url, **settings))


class BorrowedClient:
    """A client that was made elsewhere: it is used as it is, and never closed.

    Args:
        client: The client.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def execute_command(self, *args: Any) -> Any:
        """Run one command."""
        with client_errors():
            return await self._client.execute_command(*args)

    async def aclose(self) -> None:
        """Leave the client open."""


class SharedClient:
    """A client that several lanes of one event loop share; the last lane to close its handle closes it.

    Args:
        client: The client.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.users = 0
        self._opening = asyncio.Lock()
        self._is_open = False

    def share(self) -> Client:
        """Return a handle for one lane; only closing every handle that was used closes the client."""
        return _Share(self)

    async def open(self) -> None:
        """Have a cluster client find its nodes, once, before the lanes use it.

        If that were left to their first commands, one lane would close a connection that another is using.
        """
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open and isinstance(self.client, RedisCluster):
                with client_errors():
                    await self.client.initialize()
                # The client closes nodes that it no longer needs in tasks of their own.
                await asyncio.sleep(0)
            self._is_open = True

    async def disconnect_idle(self) -> None:
        """Make the next commands connect again, to whatever the address leads to by then."""
        pool = getattr(self.client, "connection_pool", None)
        if pool is not None:  # a cluster itself reports which node has taken over
            with suppress(OSError, RedisError), client_errors():
                await pool.disconnect(inuse_connections=False)


@attrs.define(eq=False)
class _Share:
    _shared: SharedClient
    _is_used: bool = False

    async def execute_command(self, *args: Any) -> Any:
        """Run one command."""
        if not self._is_used:
            self._is_used = True
            self._shared.users += 1
        await self._shared.open()
        try:
            with client_errors():
                return await self._shared.client.execute_command(*args)
        except ResponseError as error:
            if is_demoted(error):
                await self._shared.disconnect_idle()
            raise

    async def aclose(self) -> None:
        """Close the client if this is the last handle in use."""
        if self._is_used:
            self._is_used = False
            self._shared.users -= 1
            if not self._shared.users:
                with client_errors():
                    await self._shared.client.aclose()

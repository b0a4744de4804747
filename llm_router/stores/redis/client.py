"""Making redis-py clients from URLs, with settings that never wait long."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from llm_router.errors import ConfigError
from llm_router.stores.redis.scripts import Client

__all__ = ["address_of", "connect", "describe_url"]

_CLUSTER = "redis+cluster://"
_SCHEMES = ("redis", "rediss", "unix", "redis+cluster")


def describe_url(url: str) -> str:
    """Return host, port and database (or the path of the socket) of ``url``, and nothing secret.

    Raises:
        ConfigError: The URL cannot be used.
    """
    try:
        parts = urlsplit(url)
        scheme, host, port, path = parts.scheme, parts.hostname, parts.port, parts.path
        db = parse_qs(parts.query).get("db", [""])[0]
    except ValueError:
        scheme = ""
    if scheme not in _SCHEMES:
        # Neither the URL nor what the parser says of it: either may hold a password.
        raise ConfigError(
            "the URL of the Redis store cannot be understood: it should look like "
            "redis://user:password@host:6379/0, with special characters of the password percent-encoded"
        )
    if scheme == "unix":
        return f"{path}?db={db or 0}"
    if scheme == "redis+cluster":
        return f"{host or 'localhost'}:{port or 6379} (cluster)"
    return f"{host or 'localhost'}:{port or 6379}/{db or path.strip('/') or 0}"


def address_of(client: Any) -> str:
    """Return how to name the server of a client that was made elsewhere."""
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return "a cluster"
    arguments = pool.connection_kwargs
    if arguments.get("path"):
        return f"{arguments['path']}?db={arguments.get('db') or 0}"
    return f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}/{arguments.get('db') or 0}"


def connect(url: str, timeout: float) -> Client:
    """Make a client that neither retries nor waits longer than ``timeout`` seconds for anything.

    It does not connect before its first command. A connection that the server closed while it was idle is
    noticed and replaced before anything is sent on it.
    """
    # redis-py's own default is ten retries of five seconds each.
    settings: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
    }
    if url.startswith(_CLUSTER):
        return cast("Client", RedisCluster.from_url("redis://" + url.removeprefix(_CLUSTER), **settings))
    return cast("Client", redis.asyncio.Redis.from_url(url, **settings))

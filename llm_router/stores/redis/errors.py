"""Translates what redis-py raises into this library's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions

from llm_router.errors import StoreCorruptError, StoreError, StoreTimeoutError, StoreUnavailableError

__all__ = ["client_errors", "explain", "is_demoted", "is_timeout"]

_CLIENT_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError)

_REMEDIES: tuple[tuple[str, tuple[type[Exception], ...], str], ...] = (
    (
        "NOAUTH|WRONGPASS",
        (exceptions.AuthenticationError,),
        "refused the login: check the user and password of its URL",
    ),
    (
        "NOPERM|ACL failure|can't run this command",  # of a script, by version
        (exceptions.NoPermissionError, exceptions.AuthorizationError),
        (
            "denies this user a command or key: allow it the keys of the namespace and the commands EVALSHA, "
            "EVAL, TIME, GET, MGET, SET, DEL, HSET, HGET, HMGET, HDEL, HINCRBY, HLEN, HSCAN, HSTRLEN, "
            "PEXPIRE, ZADD, ZCARD, ZRANGE, ZRANGEBYSCORE, ZREM, ZREMRANGEBYSCORE, ZREVRANGE and ZSCORE, and "
            "if possible INFO, on a cluster also CLUSTER SLOTS and COMMAND"
        ),
    ),
    ("READONLY", (exceptions.ReadOnlyError,), "is a read-only replica: point the URL at the primary"),
    (
        "OOM|command not allowed when used memory",  # redis-py removes the code
        (),
        "is out of memory and refuses to write: raise its maxmemory, or free some",
    ),
    ("LOADING", (exceptions.BusyLoadingError,), "is still loading its data: try again in a moment"),
    (
        "CLUSTERDOWN",
        (exceptions.ClusterDownError, exceptions.MasterDownError),
        "belongs to a cluster that is down: see CLUSTER INFO",
    ),
    ("MISCONF", (), "cannot save its data and refuses to write: see its log"),
    ("BUSY", (), "is busy running another script: see SCRIPT KILL"),
    (
        "MOVED|CROSSSLOT",
        (exceptions.MovedError, exceptions.ClusterCrossSlotError),
        "is a node of a cluster: use a redis+cluster:// URL",
    ),
    ("cluster support disabled", (), "is not a node of a cluster: use a redis:// URL"),
    (
        r"non local key|TRYAGAIN|ASK|TTL exhausted",
        (exceptions.TryAgainError, exceptions.AskError),
        "is moving the namespace to another node of its cluster: it answers again when that is done",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        (),
        (
            "does not prove its identity: its certificate is for another host, or from a CA that is not "
            "trusted here; name the file of its CA in the URL: ?ssl_ca_certs=/path/of/ca.pem"
        ),
    ),
    ("WRONG_VERSION_NUMBER|record layer failure", (), "does not speak TLS: use a redis:// URL"),
)


@contextmanager
def client_errors() -> Iterator[None]:
    """Make any error that the client library raises in this block one that :func:`explain` understands.

    A client may raise anything while its connection breaks: a bare TypeError, for example, if asyncio writes
    to a transport that has just been closed. Only calls of the client library belong in the block, so that an
    error in our own code stays as it is.

    Raises:
        RedisError, RedisClusterException, OSError: What the client raised, or a replacement for it.
    """
    try:
        yield
    except _CLIENT_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 - it may be anything
        raise exceptions.ConnectionError(f"the client raised {type(error).__name__}: {error}") from None


def is_timeout(error: BaseException) -> bool:
    """Return whether ``error`` says that no answer came in time."""
    return isinstance(error, (TimeoutError, exceptions.TimeoutError))


def is_demoted(error: BaseException) -> bool:
    """Return whether ``error`` says that the server is no longer the primary."""
    return isinstance(error, exceptions.ReadOnlyError) or "READONLY " in str(error)


def _cause(error: BaseException) -> BaseException:
    """Return the error that redis-py wraps in a RedisClusterException when it cannot reach a cluster."""
    while isinstance(error, exceptions.RedisClusterException):
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, _CLIENT_ERRORS):
            return error
        error = inner
    return error


def explain(error: BaseException, address: str, timeout: float) -> StoreError | None:
    """Return this library's error for ``error``, or None if neither the server nor the network caused it.

    Args:
        error: What redis-py or asyncio raised.
        address: What to call the server; without credentials.
        timeout: Seconds that an answer may take.
    """
    server = f"the Redis server at {address}"
    error = _cause(error)
    if is_timeout(error):
        return StoreTimeoutError(f"{server} did not answer within {timeout:g} s")
    if not isinstance(error, _CLIENT_ERRORS):
        return None
    # A server that does not know a command, such as AUTH, repeats its arguments.
    text = str(error).partition(", with args")[0].rstrip(".")
    # Redis 6.2 wraps the error of a command in a script in one of its own, so the text is searched as well.
    for codes, classes, remedy in _REMEDIES:
        if isinstance(error, classes) or re.search(rf"\b({codes})(?=[ \]]|$)", text):
            return StoreUnavailableError(f"{server} {remedy}")
    if "WRONGTYPE" in text or "user_script" in text:
        return StoreCorruptError(
            f"{server} holds something else under this namespace's keys ({text}): use another namespace, or "
            "delete those keys"
        )
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        return StoreUnavailableError(f"{server} cannot be reached: {text or type(error).__name__}")
    return StoreUnavailableError(f"{server} failed: {type(error).__name__}: {text}")

"""Adapters to other libraries, each used as its documentation recommends; imported only when measured.

None of them does the whole task: take the first of n keys with room in rpm, tpm and rpd, all or nothing, and
correct the tokens afterwards. Each is given the cheapest honest form of it that its API allows, and its
``lacks`` says what is left out. The comparison therefore favours the peers.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import attrs

__all__ = [
    "CONNECTIONS",
    "LIMITERS",
    "Limiter",
    "Limits",
    "NotInstalledError",
    "Peer",
    "check",
    "litellm_router",
    "opened",
    "require",
]

_MINUTE, _DAY = 60, 86_400

CONNECTIONS = 1_000
"""Connections that a Redis client may open; its default of 100 fails with 256 calls in flight."""


class NotInstalledError(Exception):
    """A peer is not installed and cannot be measured."""


@attrs.frozen
class Limits:
    """The limits of one key."""

    rpm: int
    tpm: int
    rpd: int


class Limiter(Protocol):
    """The limiters of n keys, built with one peer."""

    async def take(self, key: int, tokens: int) -> bool:
        """Take one request of ``tokens`` tokens from ``key`` if it has room."""
        ...

    async def aclose(self) -> None:
        """Close connections and files."""
        ...


Make = Callable[[Sequence[Limits], str | None, Path], Awaitable[Limiter]]


@attrs.frozen
class Peer:
    """A library to compare with.

    Attributes:
        name: Its name.
        module: The module to import.
        stores: How to make its limiters, by kind of store.
        lacks: The parts of the task that it does not do.
    """

    name: str
    module: str
    stores: dict[str, Make]
    lacks: str


def require(module: str) -> Any:
    """Import ``module``.

    Raises:
        NotInstalledError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"not installed ({error.name})") from error


@asynccontextmanager
async def opened(
    peer: Peer, store: str, limits: Sequence[Limits], redis_url: str | None, directory: Path
) -> AsyncIterator[Limiter]:
    """Make the limiters of a peer, and close them afterwards.

    Raises:
        NotInstalledError: The peer is not installed.
    """
    require(peer.module)
    limiter = await peer.stores[store](limits, redis_url, directory)
    try:
        yield limiter
    finally:
        await limiter.aclose()


# --- limits -------------------------------------------------------------------------------------------


class _Limits:
    """``limits``: a sliding-window counter per minute (its cheapest that slides), a fixed window per day."""

    def __init__(self, limits: Sequence[Limits], storage: Any) -> None:
        lib, strategies = require("limits"), require("limits.aio.strategies")
        self._storage = storage
        self._minute = strategies.SlidingWindowCounterRateLimiter(storage)
        self._day = strategies.FixedWindowRateLimiter(storage)
        self._items = [
            (
                lib.RateLimitItemPerMinute(each.rpm, namespace="rpm"),
                lib.RateLimitItemPerMinute(each.tpm, namespace="tpm"),
                lib.RateLimitItemPerDay(each.rpd, namespace="rpd"),
            )
            for each in limits
        ]
        self._names = [f"key-{n}" for n in range(len(limits))]

    async def take(self, key: int, tokens: int) -> bool:
        requests, per_minute, per_day = self._items[key]
        name = self._names[key]
        return (
            await self._minute.hit(requests, name)
            and await self._minute.hit(per_minute, name, cost=tokens)
            and await self._day.hit(per_day, name)
        )

    async def aclose(self) -> None:
        client = getattr(getattr(self._storage, "bridge", None), "storage", None)
        if client is not None:
            await client.aclose()


async def _limits_memory(limits: Sequence[Limits], _url: str | None, _directory: Path) -> Limiter:
    return _Limits(limits, require("limits.aio.storage").MemoryStorage())


async def _limits_redis(limits: Sequence[Limits], url: str | None, _directory: Path) -> Limiter:
    storage = require("limits.aio.storage").RedisStorage(
        f"async+{url}", implementation="redispy", max_connections=CONNECTIONS
    )
    return _Limits(limits, storage)


# --- throttled-py -------------------------------------------------------------------------------------


class _Throttled:
    """``throttled-py``: its default algorithm, the token bucket."""

    def __init__(self, limits: Sequence[Limits], store: Any) -> None:
        aio, rates = require("throttled.asyncio"), require("throttled.rate_limiter")
        minute, day = timedelta(seconds=_MINUTE), timedelta(seconds=_DAY)

        def throttle(period: timedelta, limit: int) -> Any:
            return aio.Throttled(quota=rates.per_duration(period, limit, burst=limit), store=store)

        # One object per distinct limit, as in its documentation; the key is passed with each call.
        kinds = {
            each: (throttle(minute, each.rpm), throttle(minute, each.tpm), throttle(day, each.rpd))
            for each in dict.fromkeys(limits)
        }
        self._throttles = [kinds[each] for each in limits]
        self._names = [(f"rpm-{n}", f"tpm-{n}", f"rpd-{n}") for n in range(len(limits))]
        self._store = store

    async def take(self, key: int, tokens: int) -> bool:
        requests, per_minute, per_day = self._throttles[key]
        rpm, tpm, rpd = self._names[key]
        return not (
            (await requests.limit(rpm)).limited
            or (await per_minute.limit(tpm, cost=tokens)).limited
            or (await per_day.limit(rpd)).limited
        )

    async def aclose(self) -> None:
        backend = getattr(self._store, "_backend", None)
        client = backend.get_client() if backend is not None else None
        if hasattr(client, "aclose"):
            await client.aclose()


async def _throttled_memory(limits: Sequence[Limits], _url: str | None, _directory: Path) -> Limiter:
    store = require("throttled.asyncio").store.MemoryStore(options={"MAX_SIZE": 3 * len(limits) + 1})
    return _Throttled(limits, store)


async def _throttled_redis(limits: Sequence[Limits], url: str | None, _directory: Path) -> Limiter:
    options = {"CONNECTION_POOL_KWARGS": {"max_connections": CONNECTIONS}}
    return _Throttled(limits, require("throttled.asyncio").store.RedisStore(server=url, options=options))


# --- pyrate-limiter -----------------------------------------------------------------------------------


class _Pyrate:
    """``pyrate-limiter``: constant-state buckets, one for both request rates and one for the tokens."""

    def __init__(self, requests: list[Any], tokens: list[Any], close: Callable[[], Awaitable[None]]) -> None:
        self._requests = requests
        self._tokens = tokens
        self._close = close

    async def take(self, key: int, tokens: int) -> bool:
        return await self._requests[key].try_acquire_async("r", blocking=False) and (
            not self._tokens or await self._tokens[key].try_acquire_async("t", tokens, blocking=False)
        )

    async def aclose(self) -> None:
        for limiter in (*self._requests, *self._tokens):
            limiter.close()
        await self._close()


def _pyrate_limiter(bucket: Any) -> Any:
    lib = require("pyrate_limiter")
    # Constant-state buckets have nothing to leak, so a leaking thread per key would be an unfair cost.
    return lib.Limiter(require("pyrate_limiter.limiter").SingleBucketFactory(bucket, schedule_leak=False))


def _pyrate_rates(limits: Limits) -> tuple[list[Any], list[Any]]:
    rate = require("pyrate_limiter").Rate
    minute, day = _MINUTE * 1_000, _DAY * 1_000
    # It rejects a longer rate that allows no more than the shorter one, or more than that can ever pass.
    per_day = min(max(limits.rpd, limits.rpm + 1), limits.rpm * _DAY // _MINUTE)
    return [rate(limits.rpm, minute), rate(per_day, day)], [rate(limits.tpm, minute)]


async def _nothing() -> None:
    pass


async def _pyrate_memory(limits: Sequence[Limits], _url: str | None, _directory: Path) -> Limiter:
    bucket = require("pyrate_limiter").StateBucket
    made = [[_pyrate_limiter(bucket(rates)) for rates in _pyrate_rates(each)] for each in limits]
    return _Pyrate([pair[0] for pair in made], [pair[1] for pair in made], _nothing)


async def _pyrate_redis(limits: Sequence[Limits], url: str | None, _directory: Path) -> Limiter:
    lib, redis = require("pyrate_limiter"), require("redis.asyncio")
    client = redis.Redis.from_url(url, max_connections=CONNECTIONS)

    def limiter(rates: list[Any], key: str) -> Any:
        return _pyrate_limiter(lib.StateBucket(rates, store=lib.RedisStateStore(client, key)))

    rates = [_pyrate_rates(each) for each in limits]
    requests = [limiter(pair[0], f"pyrate-r-{n}") for n, pair in enumerate(rates)]
    tokens = [limiter(pair[1], f"pyrate-t-{n}") for n, pair in enumerate(rates)]
    return _Pyrate(requests, tokens, client.aclose)


async def _pyrate_sqlite(limits: Sequence[Limits], _url: str | None, directory: Path) -> Limiter:
    bucket = require("pyrate_limiter").SQLiteBucket
    require("filelock")
    path = str(directory / "pyrate.sqlite3")
    # The file lock makes it safe for several processes; it also switches WAL on.
    made = [
        bucket.init_from_file(_pyrate_rates(each)[0], table=f"key_{n}", db_path=path, use_file_lock=True)
        for n, each in enumerate(limits)
    ]
    return _Pyrate([_pyrate_limiter(each) for each in made], [], _nothing)


# --- aiolimiter ---------------------------------------------------------------------------------------


class _Aiolimiter:
    """``aiolimiter``: three leaky buckets per key; ask all three, then take from all three."""

    def __init__(self, limits: Sequence[Limits]) -> None:
        make = require("aiolimiter").AsyncLimiter
        self._buckets = [
            (make(each.rpm, _MINUTE), make(each.tpm, _MINUTE), make(each.rpd, _DAY)) for each in limits
        ]

    async def take(self, key: int, tokens: int) -> bool:
        requests, per_minute, per_day = self._buckets[key]
        if not (requests.has_capacity() and per_minute.has_capacity(tokens) and per_day.has_capacity()):
            return False
        await requests.acquire()
        await per_minute.acquire(tokens)
        await per_day.acquire()
        return True

    async def aclose(self) -> None:
        """Do nothing: nothing is open."""


async def _aiolimiter_memory(limits: Sequence[Limits], _url: str | None, _directory: Path) -> Limiter:
    return _Aiolimiter(limits)


LIMITERS: tuple[Peer, ...] = (
    Peer(
        "limits",
        "limits",
        {"memory": _limits_memory, "redis": _limits_redis},
        "no settle; not atomic across the three; window estimated; UTC day",
    ),
    Peer(
        "throttled-py",
        "throttled",
        {"memory": _throttled_memory, "redis": _throttled_redis},
        "no settle; not atomic across the three; refills continuously: a window may hold 2 × the limit",
    ),
    Peer(
        "pyrate-limiter",
        "pyrate_limiter",
        {"memory": _pyrate_memory, "redis": _pyrate_redis, "sqlite": _pyrate_sqlite},
        "no settle; tokens separate; refills continuously; no tpm on SQLite (a row per token)",
    ),
    Peer(
        "aiolimiter",
        "aiolimiter",
        {"memory": _aiolimiter_memory},
        "no settle; refills continuously; this process only",
    ),
)


# --- LiteLLM ------------------------------------------------------------------------------------------


def litellm_router(
    count: int,
    *,
    strategy: str,
    rpm: int,
    tpm: int,
    redis_url: str | None = None,
    base_url: str | None = None,
    checks: Sequence[str] = (),
    model: str = "gemini-flash-latest",
) -> Any:
    """Make a LiteLLM Router over ``count`` keys, all in one model group named ``group``.

    Raises:
        NotInstalledError: LiteLLM is not installed.
    """
    litellm = _litellm()
    entry: dict[str, Any] = {"model": f"gemini/{model}", "rpm": rpm, "tpm": tpm}
    if base_url is not None:
        entry["api_base"] = f"{base_url}/v1beta"
    model_list = [
        {"model_name": "group", "litellm_params": {**entry, "api_key": f"emulated-secret-{n}"}}
        for n in range(count)
    ]
    options: dict[str, Any] = {}
    if redis_url is not None:
        host, _, port = redis_url.removeprefix("redis://").partition("/")[0].partition(":")
        options = {"redis_host": host, "redis_port": int(port)}
    if checks:
        options["optional_pre_call_checks"] = list(checks)
    return litellm.Router(
        model_list=model_list, routing_strategy=strategy, num_retries=0, disable_cooldowns=True, **options
    )


def check(module: str) -> None:
    """Check that ``module`` is installed, without importing it.

    Raises:
        NotInstalledError: It is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise NotInstalledError(f"not installed ({module})")


def _litellm() -> Any:
    # Use the price list in the package; otherwise it is fetched from the network on import.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_LOG", "CRITICAL")
    litellm = require("litellm")
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    return litellm

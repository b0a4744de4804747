"""A full Redis: what refusing costs the server, and how long refused clients keep others waiting."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from _harness import Measure, Row, Scale, Table
from _subjects import deployments, open_store

from llm_router import Demand, Deployment, RateLimitStore
from llm_router.stores.redis import RedisStore
from llm_router.testing import ManualClock

__all__ = ["full"]

_LIMITS = {"requests": {"rpm": 60, "tpm": 1_000_000}, "tokens": {"rpm": 1_000, "tpm": 200_000}}
"""What is spent in each case, and the limits."""

_CANDIDATES, _CROWD_CANDIDATES, _CLIENTS = 128, 64, 300
_TTL = 600.0


async def full(scale: Scale, url: str) -> Table:
    """Measure what refusing costs a Redis server."""
    table = Table.about(
        "a full Redis: what the server spends on refusing",
        f"a reserve refused by {_CANDIDATES} deployments that have used all their requests (60 a minute) or "
        "all their tokens (200 takings of 1,000), with a demand of another size each time",
        "nothing known: the first reserve after something has changed in every deployment; about three later "
        "ones cost as much",
        f"the crowd: {_CLIENTS} clients send such a reserve of {_CROWD_CANDIDATES} candidates at the same "
        "moment, while another one sends PING all the time",
        "the server's time is from INFO and SLOWLOG",
    )
    for spent in list(_LIMITS)[: 1 if scale.short else None]:
        table.add(*await _refusing(scale, url, spent))
    table.add(await _crowd(scale, url))
    return table


async def _spend(store: RateLimitStore, clock: ManualClock, pool: Sequence[Deployment], spent: str) -> None:
    """Take from every deployment until it has nothing left."""
    turns, step, tokens = (60, 0.5, 1_600) if spent == "requests" else (200, 0.26, 1_000)
    for turn in range(turns):
        demand = Demand(1, tokens)
        await asyncio.gather(
            *(store.reserve(f"spend-{turn}-{n}", [each], demand, _TTL) for n, each in enumerate(pool))
        )
        clock.shift(step)


def _demands(spent: str) -> Iterable[Demand]:
    sizes = random.Random(11)
    least = 1 if spent == "requests" else 500
    while True:
        yield Demand(1, sizes.randrange(least, 8_000))


async def _refusing(scale: Scale, url: str, spent: str) -> list[Row]:
    rounds, first, again = (3 if scale.short else 40), [], []
    clock = ManualClock()
    async with open_store("redis", redis_url=url, clock=clock) as store:
        pool = deployments(_CANDIDATES, **_LIMITS[spent])
        await _spend(store, clock, pool, spent)
        demands = iter(_demands(spent))
        for turn in range(scale.runs + 1):
            _call(url, "delete", *_call(url, "keys", "*:full:*"), "nothing")
            for samples, count in ((first, 1), ([], 20), (again, rounds)):
                _call(url, "config_resetstat")
                for n in range(count):
                    decision = await store.reserve(f"r{turn}-{n}", pool, next(demands), _TTL)
                    if decision.deployment is not None:
                        raise RuntimeError("a deployment that should be full was not")
                if turn > 0:
                    samples.append(_call(url, "info", "commandstats")["cmdstat_evalsha"]["usec"] / count)
    case = f"{spent} spent"
    baseline = (case, "llm_router, nothing known")
    return [
        Row(case, "llm_router, nothing known", {"reserve": Measure(tuple(first), "µs")}),
        Row(case, "llm_router", {"reserve": Measure(tuple(again), "µs")}, baseline),
    ]


# --- the crowd ----------------------------------------------------------------------------------------


async def _crowd(scale: Scale, url: str) -> Row:
    clients = 10 if scale.short else _CLIENTS
    waits, longest, total = [], [], []
    clock = ManualClock()
    async with open_store("redis", redis_url=url, clock=clock) as store:
        pool = deployments(_CANDIDATES, **_LIMITS["requests"])
        await _spend(store, clock, pool, "requests")
        messages = await _messages(clock, pool, clients)
        for turn in range(scale.runs + 1):
            _call(url, "config_set", "slowlog-log-slower-than", 0)
            _call(url, "config_set", "slowlog-max-len", 4 * clients)
            _call(url, "slowlog_reset")
            waited = await asyncio.to_thread(_send_at_once, url, messages)
            calls = [
                e["duration"] for e in _call(url, "slowlog_get", 4 * clients) if b"EVALSHA" in e["command"]
            ]
            if turn > 0:
                waits.append(1e3 * waited)
                longest.append(max(calls) / 1e3)
                total.append(sum(calls) / 1e3)
    measures = {
        "longest PING": Measure(tuple(waits), "ms"),
        "longest call": Measure(tuple(longest), "ms"),
        "all calls": Measure(tuple(total), "ms"),
    }
    return Row(f"crowd: {clients} clients × {_CROWD_CANDIDATES} candidates", "llm_router", measures)


class _Tape:
    """A client that only writes down what it would send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def execute_command(self, *arguments: Any) -> Any:
        parts = [each if isinstance(each, bytes) else str(each).encode() for each in arguments]
        self.sent.append(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
        raise OSError("nothing is sent")

    async def aclose(self) -> None:
        pass


async def _messages(clock: ManualClock, pool: Sequence[Deployment], clients: int) -> list[bytes]:
    """Return what each client sends, which differs in the candidates and in the demand."""
    demands, ring = iter(_demands("requests")), [*pool, *pool]
    messages = []
    for n in range(clients):
        tape = _Tape()
        store = RedisStore(tape, clock=clock)
        start = n % len(pool)
        candidates = ring[start : start + _CROWD_CANDIDATES]
        outcome = store.reserve(f"crowd-{n}", candidates, next(demands), _TTL)
        await asyncio.gather(outcome, return_exceptions=True)
        await store.aclose()
        messages += tape.sent
    return messages


def _send_at_once(url: str, messages: Sequence[bytes]) -> float:
    """Send each message on a connection of its own; return how long a PING took meanwhile, at most."""
    address = urlsplit(url)
    place = (address.hostname or "localhost", address.port or 6379)
    connections = [socket.create_connection(place) for _ in messages]
    waits, stop, begun = [], threading.Event(), threading.Event()

    def ping() -> None:
        with socket.create_connection(place) as connection:
            while not stop.is_set():
                began = time.perf_counter()
                connection.sendall(b"PING\r\n")
                connection.recv(64)
                waits.append(time.perf_counter() - began)
                begun.set()

    thread = threading.Thread(target=ping)
    thread.start()
    begun.wait(10.0)  # else all may be over before its first PING
    try:
        for connection, message in zip(connections, messages, strict=True):
            connection.sendall(message)
        for connection in connections:
            connection.recv(1)
    finally:
        stop.set()
        thread.join()
        for connection in connections:
            connection.close()
    return max(waits)


def _call(url: str, method: str, *arguments: Any) -> Any:
    import redis  # noqa: PLC0415 - only where it is measured

    with redis.Redis.from_url(url) as client:
        return getattr(client, method)(*arguments)

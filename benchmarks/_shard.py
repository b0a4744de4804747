"""One Redis shard: time per script call and operation, and bytes per key, as the server reports them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from _harness import Measure, Row, Scale, Table
from _subjects import PROMPT_TOKENS, deployments, open_store

from llm_router import Demand

__all__ = ["shard"]

_KEYS = 1_000
_RPM = 15
_DEMAND = Demand(1, PROMPT_TOKENS)


async def shard(scale: Scale, url: str) -> Table:
    """Measure the time that one Redis server spends on operations, and the memory it needs for keys."""
    table = Table.about(
        "one Redis shard: server time and memory",
        "from INFO: the time of EVALSHA alone, without the network; an operation is a reserve or a settle",
        f"bytes per key: {_KEYS:,} keys with rpm + tpm + rpd, whose rpm of {_RPM} is spent and settled",
    )
    for in_flight in (1, 16, 256)[: 1 if scale.short else None]:
        table.add(await _server_time(scale, url, in_flight))
    table.add(await _bytes(scale, url))
    return table


async def _server_time(scale: Scale, url: str, in_flight: int) -> Row:
    count = in_flight * (5 if scale.short else 200)
    calls, operations = [], []
    async with open_store("redis", redis_url=url) as store:
        pool = deployments(_KEYS)
        ring = pool + pool[:8]
        numbers = itertools.count()

        async def pairs() -> None:
            for _ in range(count // in_flight):
                number = next(numbers)
                start = number % _KEYS
                await store.reserve(f"s{number:x}", ring[start : start + 8], _DEMAND, 60.0)
                await store.settle(f"s{number:x}", _DEMAND)

        for turn in range(scale.runs + 1):
            await asyncio.to_thread(_client_call, url, "config_resetstat")
            await asyncio.gather(*(pairs() for _ in range(in_flight)))
            spent = await asyncio.to_thread(_script_time, url)
            if turn > 0:
                calls.append(spent["usec"] / spent["calls"])
                operations.append(spent["usec"] / (2 * count))
    measures = {"call": Measure(tuple(calls), "µs"), "operation": Measure(tuple(operations), "µs")}
    return Row(f"{_KEYS:,} keys, {in_flight} in flight", "llm_router", measures)


async def _bytes(scale: Scale, url: str) -> Row:
    keys = 50 if scale.short else _KEYS
    async with open_store("redis", redis_url=url) as store:
        before = (await asyncio.to_thread(_client_call, url, "info", "memory"))["used_memory"]
        for turn in range(_RPM):
            names = [(f"b{turn}-{n}", each) for n, each in enumerate(deployments(keys, rpm=_RPM))]
            await asyncio.gather(*(store.reserve(name, [each], _DEMAND, 60.0) for name, each in names))
            await asyncio.gather(*(store.settle(name, _DEMAND) for name, _ in names))
        after = (await asyncio.to_thread(_client_call, url, "info", "memory"))["used_memory"]
    return Row(f"{keys:,} keys, all spent", "llm_router", {"key": Measure(((after - before) / keys,), "B")})


def _script_time(url: str) -> dict[str, float]:
    statistics = _client_call(url, "info", "commandstats")
    return statistics["cmdstat_evalsha"]


def _client_call(url: str, method: str, *arguments: Any) -> Any:
    import redis  # noqa: PLC0415 - only where it is measured

    with redis.Redis.from_url(url) as client:
        return getattr(client, method)(*arguments)

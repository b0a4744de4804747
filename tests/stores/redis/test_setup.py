"""What a Redis store says about the setup of its server, and what it demands of its own arguments."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError, StoreError, StoreTimeoutError, StoreUnavailableError
from llm_router.stores.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from tests.stores.servers import RedisServer

ONE = Demand(1, 100)


def deployment(name: str = "a") -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=(Quota(Metric.RPM, 1000),))


async def test_a_server_that_says_nothing_is_not_warned_of() -> None:
    """It is not known to evict, and that is not an error."""
    async with fakeredis.FakeAsyncRedis() as client, aclosing(RedisStore(client)) as store:
        assert await store.advice() == []


async def test_advice_is_the_same_whatever_the_shards(servers: ModuleType, redis_binary: Path) -> None:
    """One sentence for one server."""
    with servers.running(redis_binary) as server, server.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        async with aclosing(RedisStore(server.url, shards=3)) as store:
            [advice] = await store.advice()
            assert "volatile-lru" in advice


@pytest.mark.slow
async def test_every_node_of_a_cluster_is_looked_at(servers: ModuleType, redis_binary: Path) -> None:
    """Any of them may evict what it holds; a cluster that is down says nothing, and is not an error."""
    with servers.running_cluster(redis_binary) as cluster:
        with cluster.nodes[2].client() as client:
            client.config_set("maxmemory-policy", "allkeys-lfu")
        async with aclosing(RedisStore(cluster.url, shards=3, timeout=10)) as store:
            [advice] = await store.advice()
            assert "allkeys-lfu" in advice
        for node in cluster.nodes:
            node.kill()
        async with aclosing(RedisStore(cluster.url, shards=3, timeout=0.5)) as store:
            assert await store.advice() == []


async def test_advice_leaves_no_connection(server: RedisServer) -> None:
    """Though nothing else was asked before the store is closed."""
    with server.client() as client:
        before = client.info("clients")["connected_clients"]
        async with aclosing(RedisStore(server.url)) as store:
            assert await store.advice() == []
        for _ in range(100):
            if client.info("clients")["connected_clients"] == before:
                break
            await asyncio.sleep(0.01)
        assert client.info("clients")["connected_clients"] == before


@pytest.mark.slow
async def test_a_frozen_server_delays_no_call_beyond_the_timeout(
    servers: ModuleType, redis_binary: Path
) -> None:
    """Each fails with its shard; advice is given up."""
    with servers.running(redis_binary) as server:
        async with aclosing(RedisStore(server.url, timeout=0.2, shards=2)) as store:
            await store.reserve("r", [deployment()], ONE, 60.0)
            server.freeze()
            assert await store.advice() == []
            calls: list[Callable[[], Any]] = [
                lambda: store.announce("process"),
                lambda: store.reserve("s", [deployment()], ONE, 60.0),
            ]
            for call in calls:
                with pytest.raises(StoreTimeoutError, match=r"did not answer within 0\.2 s") as caught:
                    await call()
                assert caught.value.shard in (0, 1)
            server.thaw()
            assert await store.announce("process") == 1


async def test_the_shard_that_failed_is_named(servers: ModuleType, redis_binary: Path) -> None:
    """Nothing is named if the store is not divided."""
    found: dict[int, StoreError] = {}
    with servers.running(redis_binary) as server:
        divided, whole = RedisStore(server.url, shards=4), RedisStore(server.url)
        server.kill()
        for name in map("key-{}".format, range(20)):
            with pytest.raises(StoreUnavailableError) as caught:
                await divided.reserve(name, [deployment(name)], ONE, 60.0)
            assert caught.value.shard == divided.shard_of(deployment(name))
            found[caught.value.shard] = caught.value
        assert len(found) == 4
        with pytest.raises(StoreUnavailableError) as caught:
            await whole.reserve("r", [deployment()], ONE, 60.0)
        assert caught.value.shard is None
        await divided.aclose()
        await whole.aclose()


@pytest.mark.parametrize("timeout", [0, -1.0, math.inf, math.nan, 1e13, 10**400, "2", None, True])
def test_a_timeout_that_makes_no_sense_is_refused(timeout: Any) -> None:
    """By name, before any call."""
    with pytest.raises(ConfigError, match="timeout must be a number of seconds above 0"):
        RedisStore("redis://localhost", timeout=timeout)


@pytest.mark.parametrize("query", ["shards=2&shards=3", "shards=2&db=1&shards=2", "shards=&shards=2"])
def test_a_number_of_shards_that_is_given_twice_is_refused(query: str) -> None:
    """Which one is meant cannot be known."""
    with pytest.raises(ConfigError, match="more than once"):
        RedisStore(f"redis://localhost?{query}")

"""The Redis store on a cluster of three nodes: where its keys are, and what happens when nodes change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.errors import StoreUnavailableError
from llm_router.stores import RateLimitStore
from llm_router.stores.redis import RedisStore
from llm_router.stores.redis.keys import key_names
from llm_router.testing.store_contract.decisions import DecisionContract
from llm_router.testing.store_contract.reservations import ReservationContract

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import ModuleType

    from llm_router.domain.clock import Clock
    from tests.stores.servers import Cluster, RedisServer

pytestmark = pytest.mark.slow

ONE = Demand(1, 0)
SHARDS = 3
TIMEOUT = 1.0


def deployment(name: str = "a", limit: int = 1000) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=(Quota(Metric.RPM, limit),))


def one_of_each(store: RedisStore, limit: int = 1000) -> list[Deployment]:
    """Return one deployment of each shard."""
    found = {store.shard_of(each): each for each in (deployment(f"key-{n}", limit) for n in range(100))}
    return [found[shard] for shard in range(SHARDS)]


@pytest.fixture
def cluster(servers: ModuleType) -> Cluster:
    """Provide the cluster that all tests share, empty; a test must leave its nodes as they were."""
    cluster: Cluster = servers.shared_cluster()
    cluster.flush()
    return cluster


@pytest.fixture
def binary(servers: ModuleType) -> Path:
    binary: Path = next(iter(servers.find_servers().values()))
    return binary


def opened(cluster: Cluster, **settings: Any) -> aclosing[RedisStore]:
    return aclosing(RedisStore(cluster.url, **({"timeout": TIMEOUT} | settings)))


async def granted(store: RedisStore, reservation_id: str, *candidates: Deployment) -> bool:
    return (await store.reserve(reservation_id, candidates, ONE, 60)).deployment is not None


async def used(store: RedisStore, *deployments: Deployment) -> list[int]:
    return [snapshot.quotas[0].used for snapshot in await store.snapshot(deployments)]


async def answers_again(store: RateLimitStore, seconds: float = 10.0) -> None:
    """Wait until the store answers."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            await store.snapshot([])
        except StoreUnavailableError:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)
        else:
            return


def tags_on(node: RedisServer) -> set[str]:
    with node.client() as client:
        return {key.decode().partition("}")[0] + "}" for key in client.scan_iter()}


# --- where keys are -----------------------------------------------------------------------------------------


class TestUndivided(DecisionContract, ReservationContract):
    """A store without shards fulfils these parts of the contract; ``test_contract.py`` uses shards."""

    @pytest.fixture(autouse=True)
    def _use(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def open_store(self, clock: Clock) -> AbstractAsyncContextManager[RateLimitStore]:
        self.cluster.flush()
        return opened(self.cluster, clock=clock, timeout=10)

    def second_store(
        self, store: RateLimitStore, clock: Clock
    ) -> AbstractAsyncContextManager[RateLimitStore]:
        return opened(self.cluster, clock=clock, timeout=10)


async def test_namespaces_lie_on_different_nodes(cluster: Cluster) -> None:
    """Each is on the node that has its slot, separate from the others."""
    a = deployment(limit=1)
    names = [cluster.namespace_on(node) for node in cluster.nodes]
    for name in names:
        async with opened(cluster, namespace=name) as store:
            assert await granted(store, "r", a)
            assert not await granted(store, "s", a)
            assert await used(store, a) == [1]
    assert [tags_on(node) for node in cluster.nodes] == [{f"{{{name}}}"} for name in names]


async def test_shards_lie_on_different_nodes(cluster: Cluster) -> None:
    """Three shards, three nodes: each node has one, with everything that its deployments need."""
    async with opened(cluster, shards=SHARDS) as store:
        deployments = one_of_each(store, limit=1)
        assert [await granted(store, f"r{n}", *deployments) for n in range(4)] == [True, True, True, False]
        await store.cool_down(Cooldown(deployments[0].key_scope, time.time() + 30, "rests"))
        assert await used(store, *deployments) == [1, 1, 1]
    tags = [names.sweep.partition(":sweep")[0] for names in key_names("llm_router", SHARDS)]
    assert [tags_on(node) for node in cluster.nodes] == [{tag} for tag in tags]


async def test_a_node_without_the_script_is_given_it(cluster: Cluster) -> None:
    """If one node forgets it while requests go to all of them, no caller notices."""
    async with opened(cluster, shards=SHARDS) as store:
        deployments = one_of_each(store, limit=400)
        for round_ in range(3):
            with cluster.nodes[round_].client() as client:
                client.script_flush()
            crowd = (granted(store, f"r{round_}-{n}", deployments[n % SHARDS]) for n in range(450))
            assert sum(await asyncio.gather(*crowd)) == (450 if round_ < 2 else 300)
        assert await used(store, *deployments) == [400] * SHARDS


async def test_a_plain_url_of_a_node_is_recognised(cluster: Cluster) -> None:
    """For a redis:// URL of a cluster node, the message names the right scheme."""
    name = cluster.namespace_on(cluster.nodes[1])
    plain = RedisStore(cluster.nodes[0].url, namespace=name)
    with pytest.raises(StoreUnavailableError, match=r"use a redis\+cluster:// URL"):
        await granted(plain, "r", deployment())
    await plain.aclose()


async def test_a_server_that_is_not_a_node_is_recognised(servers: ModuleType) -> None:
    """No error of redis-py itself leaves the store."""
    server = servers.shared_server(next(iter(servers.find_servers())))
    store = RedisStore(server.url.replace("redis://", "redis+cluster://"))
    with pytest.raises(StoreUnavailableError, match="is not a node of a cluster"):
        await granted(store, "r", deployment())
    await store.aclose()


async def test_a_cluster_that_is_not_there(
    servers: ModuleType, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """It is unavailable like any server, within the timeout."""
    store = RedisStore("redis+cluster://127.0.0.1:1", shards=SHARDS, timeout=TIMEOUT)
    with no_longer_than(3 * TIMEOUT), pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await granted(store, "r", deployment())
    with pytest.raises(StoreUnavailableError):
        await store.snapshot([])
    await store.aclose()


# --- nodes that change --------------------------------------------------------------------------------------


async def test_a_frozen_node_holds_up_its_own_shard_only(
    cluster: Cluster, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """Other shards still work while its callers wait; what concerns all of them fails in time."""
    async with opened(cluster, shards=SHARDS) as store:
        deployments = one_of_each(store)
        assert all([await granted(store, f"before {n}", each) for n, each in enumerate(deployments)])
        cluster.nodes[1].freeze()
        try:
            with no_longer_than(4 * TIMEOUT):
                waiting = asyncio.create_task(granted(store, "frozen", deployments[1]))
                for n in range(20):
                    assert await granted(store, f"r{n}", deployments[0], deployments[1])
                    assert await granted(store, f"s{n}", deployments[2])
                assert not waiting.done()
                with pytest.raises(StoreUnavailableError, match="did not answer within 1 s"):
                    await waiting
        finally:
            cluster.nodes[1].thaw()
        await answers_again(store)
        assert await used(store, *deployments) == [21, 1, 21]


async def test_a_slot_that_moves_is_followed(servers: ModuleType, binary: Path) -> None:
    """MOVED to a node that does not know the script: the counts have moved too, and the call is answered."""
    a = deployment(limit=5)
    with servers.running_cluster(binary) as cluster:
        old, new, _ = cluster.nodes
        name = cluster.namespace_on(old)
        async with opened(cluster, namespace=name) as store:
            assert await granted(store, "first", a)
            await _move(cluster, key_slot(f"{{{name}}}".encode()), old, new)
            assert not await granted(store, "quiet", a)  # it is another server, which may have lost something
            await _eventually(lambda: granted(store, "second", a))
            outcomes = await asyncio.gather(*(granted(store, f"r{n}", a) for n in range(5)))
            assert sum(outcomes) == 3
            await store.release("first")
            assert await used(store, a) == [4]
        assert tags_on(old) == set()
        assert tags_on(new) == {f"{{{name}}}"}


async def _move(cluster: Cluster, slot: int, old: RedisServer, new: RedisServer) -> None:
    with old.client() as source, new.client() as target:
        ids = [client.execute_command("CLUSTER MYID") for client in (source, target)]
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        keys = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        source.execute_command("MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])


async def test_a_slot_on_its_way_is_no_way_around_a_quota(cluster: Cluster) -> None:
    """While keys move, the store may be unavailable, but it grants nothing twice; afterwards it works."""
    a, b = deployment("a", limit=1), deployment("b", limit=1)
    old, new = cluster.nodes[:2]
    name = cluster.namespace_on(old)
    slot = key_slot(f"{{{name}}}".encode())
    async with opened(cluster, namespace=name) as store:
        assert await granted(store, "first", a)
        with old.client() as source, new.client() as target:
            ids = [client.execute_command("CLUSTER MYID") for client in (source, target)]
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            try:
                with pytest.raises(StoreUnavailableError, match="is moving the namespace"):
                    await granted(store, "r", b)  # whose key does not exist yet
            finally:
                for client in (source, target):
                    client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        assert not await granted(store, "s", a)
        assert await granted(store, "t", b)


async def test_a_killed_node_is_noticed_and_found_again(
    servers: ModuleType, binary: Path, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """Its own shard is unavailable, the others work; when it is started again, empty, it is used again."""
    with servers.running_cluster(binary) as cluster:
        async with opened(cluster, shards=SHARDS) as store:
            deployments = one_of_each(store)
            assert all([await granted(store, f"before {n}", each) for n, each in enumerate(deployments)])
            cluster.nodes[0].kill()
            with no_longer_than(4 * TIMEOUT):
                for n in range(2):
                    with pytest.raises(StoreUnavailableError):
                        await granted(store, f"r{n}", deployments[0])
                with pytest.raises(StoreUnavailableError):
                    await store.snapshot([])
            await _eventually(lambda: granted(store, "others", deployments[1]))
            with cluster.nodes[1].client() as client:
                client.script_flush()  # the source is sent to the node that needs it, not to all
            assert await granted(store, "more", deployments[1], deployments[0])
            cluster.nodes[0].start()
            await answers_again(store)
            assert await used(store, *deployments) == [0, 3, 1]
            await _eventually(lambda: granted(store, "after", deployments[0]))


async def _eventually(call: Callable[..., Any]) -> None:
    """Repeat a call until it succeeds: the client finds out which nodes there are, and a new one is quiet."""
    give_up = time.monotonic() + 10
    while True:
        try:
            if await call():
                return
        except StoreUnavailableError:
            pass
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


async def test_a_replica_takes_over(
    servers: ModuleType, binary: Path, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """The node that had the slots is killed: its replica has the counts, and is sent the script."""
    a = deployment(limit=5)
    with servers.running_cluster(binary, replicas=1) as cluster:
        primary, replica = cluster.nodes[0], cluster.nodes[3]
        async with opened(cluster, namespace=cluster.namespace_on(primary)) as store:
            assert all([await granted(store, f"r{n}", a) for n in range(3)])
            with primary.client() as client:
                assert client.wait(1, 5000) == 1
            primary.kill()
            with no_longer_than(2 * TIMEOUT), pytest.raises(StoreUnavailableError):
                await granted(store, "gone", a)
            with replica.client() as client:
                client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            await answers_again(store)
            assert await used(store, a) == [3]
            await store.release("r0")
            await _eventually(lambda: granted(store, "s", a))
            assert [await granted(store, f"s{n}", a) for n in range(3)] == [True, True, False]

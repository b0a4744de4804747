"""The Redis store on a cluster of three nodes: where its keys lie, and what happens when nodes change."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

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

    from llm_router.domain.clock import Clock

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
def cluster(servers):
    """Provide the cluster that all tests share, empty; it must be left as it was."""
    cluster = servers.shared_cluster()
    cluster.flush()
    return cluster


@pytest.fixture
def binary(servers):
    return next(iter(servers.find_servers().values()))


def opened(cluster, **settings) -> aclosing[RedisStore]:
    return aclosing(RedisStore(cluster.url, **({"timeout": TIMEOUT} | settings)))


async def granted(store, reservation_id: str, *candidates: Deployment) -> bool:
    return (await store.reserve(reservation_id, candidates, ONE, 60)).deployment is not None


async def used(store, *deployments: Deployment) -> list[int]:
    return [snapshot.quotas[0].used for snapshot in await store.snapshot(deployments)]


async def answers_again(store, seconds: float = 10.0) -> None:
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


def tags_on(node) -> set[str]:
    with node.client() as client:
        return {key.decode().partition("}")[0] + "}" for key in client.scan_iter()}


# --- where keys lie -----------------------------------------------------------------------------------------


class TestUndivided(DecisionContract, ReservationContract):
    """A store without shards keeps these parts of the contract; ``test_contract.py`` runs all on shards."""

    @pytest.fixture(autouse=True)
    def _use(self, cluster) -> None:
        self.cluster = cluster

    def open_store(self, clock: Clock) -> AbstractAsyncContextManager[RateLimitStore]:
        self.cluster.flush()
        return opened(self.cluster, clock=clock, timeout=10)

    def second_store(
        self, store: RateLimitStore, clock: Clock
    ) -> AbstractAsyncContextManager[RateLimitStore]:
        return opened(self.cluster, clock=clock, timeout=10)


async def test_namespaces_lie_on_different_nodes(cluster):
    """Each on the node that has its slot, and apart from the others."""
    a = deployment(limit=1)
    names = [cluster.namespace_on(node) for node in cluster.nodes]
    for name in names:
        async with opened(cluster, namespace=name) as store:
            assert await granted(store, "r", a)
            assert not await granted(store, "s", a)
            assert await used(store, a) == [1]
    assert [tags_on(node) for node in cluster.nodes] == [{f"{{{name}}}"} for name in names]


async def test_shards_lie_on_different_nodes(cluster):
    """Three shards, three nodes: each has one, with all that its deployments need."""
    async with opened(cluster, shards=SHARDS) as store:
        everyone = one_of_each(store, limit=1)
        assert [await granted(store, f"r{n}", *everyone) for n in range(4)] == [True, True, True, False]
        await store.cool_down(Cooldown(everyone[0].key_scope, time.time() + 30, "rests"))
        assert await used(store, *everyone) == [1, 1, 1]
    tags = [names.sweep.removesuffix(":sweep") for names in key_names("llm_router", SHARDS)]
    assert [tags_on(node) for node in cluster.nodes] == [{tag} for tag in tags]


async def test_a_node_without_the_script_is_given_it(cluster):
    """Forgotten by one node in the middle of a crowd over all of them: nobody hears of it."""
    async with opened(cluster, shards=SHARDS) as store:
        everyone = one_of_each(store, limit=400)
        for round_ in range(3):
            with cluster.nodes[round_].client() as client:
                client.script_flush()
            crowd = (granted(store, f"r{round_}-{n}", everyone[n % SHARDS]) for n in range(450))
            assert sum(await asyncio.gather(*crowd)) == (450 if round_ < 2 else 300)
        assert await used(store, *everyone) == [400] * SHARDS


async def test_a_plain_url_of_a_node_is_told_apart(cluster):
    """A redis:// URL that points at a node gets a message with the right scheme, and the reverse."""
    name = cluster.namespace_on(cluster.nodes[1])
    plain = RedisStore(cluster.nodes[0].url, namespace=name)
    with pytest.raises(StoreUnavailableError, match=r"use a redis\+cluster:// URL"):
        await granted(plain, "r", deployment())
    await plain.aclose()


async def test_a_server_that_is_no_node_is_told_apart(servers):
    """Nothing of redis-py's own errors gets past the store."""
    server = servers.shared_server(next(iter(servers.find_servers())))
    store = RedisStore(server.url.replace("redis://", "redis+cluster://"))
    with pytest.raises(StoreUnavailableError, match="is not a node of a cluster"):
        await granted(store, "r", deployment())
    await store.aclose()


async def test_a_cluster_that_is_not_there(servers, no_longer_than):
    """It is unavailable like any server, in time."""
    store = RedisStore("redis+cluster://127.0.0.1:1", shards=SHARDS, timeout=TIMEOUT)
    with no_longer_than(3 * TIMEOUT), pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await granted(store, "r", deployment())
    with pytest.raises(StoreUnavailableError):
        await store.snapshot([])
    await store.aclose()


# --- nodes that change --------------------------------------------------------------------------------------


async def test_a_frozen_node_holds_up_its_own_shard_only(cluster, no_longer_than):
    """Those on the others go on while its callers wait; what concerns all of them fails in time."""
    async with opened(cluster, shards=SHARDS) as store:
        everyone = one_of_each(store)
        assert all([await granted(store, f"before {n}", each) for n, each in enumerate(everyone)])
        cluster.nodes[1].freeze()
        try:
            with no_longer_than(4 * TIMEOUT):
                waiting = asyncio.create_task(granted(store, "frozen", everyone[1]))
                for n in range(20):
                    assert await granted(store, f"r{n}", everyone[0], everyone[1])
                    assert await granted(store, f"s{n}", everyone[2])
                assert not waiting.done()
                with pytest.raises(StoreUnavailableError, match="did not answer within 1 s"):
                    await waiting
        finally:
            cluster.nodes[1].thaw()
        await answers_again(store)
        assert await used(store, *everyone) == [21, 1, 21]


async def test_a_slot_that_moves_is_followed(servers, binary):
    """MOVED, on a node that does not know the script: the counts came along, the call is answered."""
    a = deployment(limit=5)
    with servers.running_cluster(binary) as cluster:
        old, new, _ = cluster.nodes
        name = cluster.namespace_on(old)
        async with opened(cluster, namespace=name) as store:
            assert await granted(store, "first", a)
            await _move(cluster, key_slot(f"{{{name}}}".encode()), old, new)
            outcomes = await asyncio.gather(*(granted(store, f"r{n}", a) for n in range(6)))
            assert sum(outcomes) == 4
            await store.release("first")
            assert await used(store, a) == [4]
        assert tags_on(old) == set()
        assert tags_on(new) == {f"{{{name}}}"}


async def _move(cluster, slot: int, old, new) -> None:
    with old.client() as source, new.client() as target:
        ids = [client.execute_command("CLUSTER MYID") for client in (source, target)]
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        keys = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        source.execute_command("MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])


async def test_a_slot_on_its_way_is_no_way_around_a_quota(cluster):
    """While keys move the store is unavailable at worst; it grants nothing twice and then goes on."""
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
                    await granted(store, "r", b)  # of whom nothing is there
            finally:
                for client in (source, target):
                    client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        assert not await granted(store, "s", a)
        assert await granted(store, "t", b)


async def test_a_killed_node_is_noticed_and_found_again(servers, binary, no_longer_than):
    """Its own shard is unavailable, the others go on; started again, and empty, it is used again."""
    with servers.running_cluster(binary) as cluster:
        async with opened(cluster, shards=SHARDS) as store:
            everyone = one_of_each(store)
            assert all([await granted(store, f"before {n}", each) for n, each in enumerate(everyone)])
            cluster.nodes[0].kill()
            with no_longer_than(4 * TIMEOUT):
                for n in range(2):
                    with pytest.raises(StoreUnavailableError):
                        await granted(store, f"r{n}", everyone[0])
                with pytest.raises(StoreUnavailableError):
                    await store.snapshot([])
            await _eventually(lambda: granted(store, "others", everyone[1]))
            with cluster.nodes[1].client() as client:
                client.script_flush()  # the source goes to the node that asks for it, not to all
            assert await granted(store, "more", everyone[1], everyone[0])
            cluster.nodes[0].start()
            await answers_again(store)
            assert await used(store, *everyone) == [0, 3, 1]
            assert await granted(store, "after", everyone[0])


async def _eventually(call) -> None:
    """Make a call that may fail while the client learns anew which nodes there are."""
    give_up = time.monotonic() + 10
    while True:
        try:
            assert await call()
        except StoreUnavailableError:
            assert time.monotonic() < give_up
        else:
            return


async def test_a_replica_takes_over(servers, binary, no_longer_than):
    """The node that had the slots is killed: its replica has the counts, and is given the script."""
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
            assert [await granted(store, f"s{n}", a) for n in range(4)] == [True, True, True, False]

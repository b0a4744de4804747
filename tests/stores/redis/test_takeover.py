"""A replica takes over from its primary, at the same address."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import RateLimitStore
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.errors import StoreUnavailableError
from llm_router.stores.redis import RedisStore
from llm_router.stores.redis.scripts import load_script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stores.servers import RedisServer, Relay

pytestmark = pytest.mark.slow

TIMEOUT = 0.5
QUOTAS = (Quota(Metric.RPM, 10), Quota(Metric.TPM, 1000))


def deployment(name: str) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=QUOTAS)


class Pair:
    """A primary and its replica, and an address that leads to one of them."""

    def __init__(self, servers: ModuleType, primary: RedisServer, replica: RedisServer, relay: Relay) -> None:
        self._servers = servers
        self.primary = primary
        self.replica = replica
        self.relay = relay
        self.url = f"redis://127.0.0.1:{relay.port}/0"

    def replicate(self) -> None:
        """Return when the replica has everything that the primary has."""
        with self.primary.client() as client:
            assert client.wait(1, 5000) == 1

    def promote(self) -> None:
        with self.replica.client() as client:
            assert client.script_exists(load_script().sha) == [False]
            client.execute_command("REPLICAOF", "NO", "ONE")

    def demote(self) -> None:
        """Swap the two, as in a planned failover."""
        self.promote()
        with self.primary.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", self.replica.port)
            self._servers.wait_for_replica(client)

    def lead_to_the_replica(self) -> None:
        """Redirect new connections, as a name server does; open ones stay where they are."""
        self.relay.target = self.replica.port


@pytest.fixture
async def pair(servers: ModuleType, redis_binary: Path) -> AsyncIterator[Pair]:
    with servers.running(redis_binary) as primary, servers.running(redis_binary) as replica:
        with replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            servers.wait_for_replica(client)
        async with servers.Relay(primary.port) as relay:
            yield Pair(servers, primary, replica, relay)


def opened(url: str, **settings: Any) -> aclosing[RedisStore]:
    return aclosing(RedisStore(url, timeout=TIMEOUT, **settings))


async def granted(store: RateLimitStore, reservation_id: str, a: Deployment) -> bool:
    return (await store.reserve(reservation_id, [a], Demand(1, 50), 60)).deployment is a


async def quiet_is_over(store: RateLimitStore, a: Deployment) -> None:
    """Wait until the server grants again: it is another one, so it is quiet for a second."""
    give_up = time.monotonic() + 10
    for number in itertools.count():
        if await granted(store, f"quiet {number}", a):
            await store.release(f"quiet {number}")
            assert number > 0
            return
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


async def used(store: RateLimitStore, a: Deployment) -> list[int]:
    [snapshot] = await store.snapshot([a])
    return [quota.used for quota in snapshot.quotas]


async def test_what_was_replicated_is_kept(
    pair: Pair, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """Counts, reservations and cooldowns are there, and the replica is sent the script that it lacks."""
    a, b = deployment("a"), deployment("b")
    async with opened(pair.url, shards=3) as store:
        assert all([await granted(store, f"r{n}", a) for n in range(6)])
        await store.cool_down(Cooldown(b.key_scope, time.time() + 50, "rests"))
        pair.replicate()
        pair.primary.kill()
        for n in range(2):
            with no_longer_than(4 * TIMEOUT), pytest.raises(StoreUnavailableError):
                await granted(store, f"gone {n}", a)
        pair.promote()
        pair.lead_to_the_replica()
        assert await used(store, a) == [6, 300]
        await store.release("r0")
        await store.settle("r1", Demand(1, 10))
        assert await used(store, a) == [5, 210]
        await quiet_is_over(store, a)
        assert not await granted(store, "cooled", b)
        assert [await granted(store, f"s{n}", a) for n in range(6)] == [True] * 5 + [False]
        for n in range(2, 6):
            await store.release(f"r{n}")
        for n in range(5):
            await store.release(f"s{n}")
        assert await used(store, a) == [1, 10]
    with pair.replica.client() as client:
        assert not list(client.scan_iter("*:reservations*"))  # all have been settled or released


async def test_a_demoted_primary_is_left(
    pair: Pair, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """It answers READONLY on open connections: they are dropped, and the next ones use the address again."""
    a = deployment("a")
    async with opened(pair.url, shards=3) as store:
        crowd = await asyncio.gather(*(granted(store, f"r{n}", a) for n in range(4)))
        assert all(crowd)
        pair.replicate()
        pair.demote()
        for n in range(2):  # the address still leads to the old primary
            with no_longer_than(4 * TIMEOUT), pytest.raises(StoreUnavailableError, match="read-only replica"):
                await granted(store, f"refused {n}", a)
        pair.lead_to_the_replica()
        assert await used(store, a) == [4, 200]
        await quiet_is_over(store, a)
        assert [await granted(store, f"s{n}", a) for n in range(7)] == [True] * 6 + [False]

"""Servers that lose what they were told: it is noticed, told again, and never counted twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.stores.base import QUIET, Decision, ExternalStore, RateLimitStore, Taking
from llm_router.stores.redis import RedisStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from types import ModuleType

    from llm_router.stores.failover import StoreFailurePolicy
    from tests.stores.fleet import Fleet
    from tests.stores.servers import RedisServer
else:
    from llm_router_tests_fleet import Fleet

START = 1_800_041_000.25
LIMIT = 30
ONE = Demand(1, 0)
KEY = "{llm_router}:scope:model:gemini:a:flash:3"


def deployment(key: str = "a") -> Deployment:
    quotas = Quota(Metric.RPM, LIMIT), Quota(Metric.RPD, 500, Refill.DAILY)
    return Deployment(Key(key, Secret("AIza-not-a-key")), "flash", quotas=quotas)


async def take(store: RateLimitStore, limited: Deployment, tag: str) -> Decision:
    return await store.reserve(tag, [limited], ONE, 600.0)


async def used(store: RateLimitStore, limited: Deployment) -> list[int]:
    [snapshot] = await store.snapshot([limited])
    return [quota.used for quota in snapshot.quotas]


@pytest.mark.parametrize("lose", [lambda client: client.flushall(), lambda client: client.flushdb()])
async def test_an_emptied_server_grants_nothing_before_it_was_told(
    server: RedisServer, lose: Callable[[Any], object]
) -> None:
    """It is quiet for a second for everybody; who knows a record is told that it was lost."""
    clock, a, b = ManualClock(START), deployment(), deployment("b")
    first, second = (RedisStore(server.url, clock=clock) for _ in range(2))
    async with aclosing(first), aclosing(second):
        assert isinstance(first, ExternalStore)
        decision = await take(first, a, "r1")
        assert (decision.since, decision.reset_at) == (START, 0.0)
        first.known[a.model_scope] = decision.since
        assert (await take(second, b, "r2")).deployment is b
        with server.client() as client:
            lose(client)
        clock.shift(5.0)
        decision = await take(first, a, "r3")
        assert (decision.deployment, decision.lost, decision.reset_at) == (None, (a,), START + 5.0)
        assert decision.refusals[0].retry_at == START + 5.0 + QUIET
        decision = await take(second, b, "r4")
        assert (decision.deployment, decision.lost, decision.reset_at) == (None, (), START + 5.0)
        clock.shift(QUIET)
        assert (await take(second, b, "r5")).deployment is b
        assert (await take(first, a, "r6")).lost == (a,)
        first.known[a.model_scope] = await first.charge("p", 1, a, [], [Taking(START, ONE)], START)
        assert await used(first, a) == [1, 1]
        # Its record was missing, so it is quiet for a second.
        assert (await take(first, a, "r7")).deployment is None
        clock.shift(QUIET)
        assert (await take(first, a, "r8")).deployment is a


async def test_a_record_that_was_evicted_is_missed(server: RedisServer) -> None:
    """Only that one: the others go on, and the shard has lost nothing."""
    clock, a, b = ManualClock(START), deployment(), deployment("b")
    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        for each in (a, b):
            store.known[each.model_scope] = (await take(store, each, f"r-{each.id}")).since
        with server.client() as client:
            assert client.delete(KEY) == 1
        clock.shift(1.0)
        decision = await store.reserve("r1", [a, b], ONE, 600.0)
        assert (decision.deployment, decision.lost, decision.reset_at) == (b, (a,), 0.0)
        async with aclosing(RedisStore(server.url, clock=clock)) as other:
            decision = await take(other, a, "r2")  # it took nothing, but must wait as well
            assert (decision.deployment, decision.lost) == (None, ())
        store.known[a.model_scope] = await store.charge("p", 1, a, [], [Taking(START, ONE)], START)
        clock.shift(QUIET)
        assert (await take(store, a, "r3")).deployment is a
        assert await used(store, a) == [2, 2]


async def test_what_a_restarted_server_still_has_is_not_counted_twice(
    servers: ModuleType, redis_binary: Any
) -> None:
    """Of what was counted only that is charged again which came after the last write that it kept."""
    a = deployment()
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with servers.running(redis_binary, *options) as server:
        clock = ManualClock(START)
        async with aclosing(RedisStore(server.url, clock=clock)) as store:
            since = (await take(store, a, "r1")).since
            store.known[a.model_scope] = since
            clock.shift(10.0)
            await take(store, a, "r2")
            server.kill()
            server.start()
            clock.shift(10.0)
            await _answers(store)
            clock.shift(QUIET)
            decision = await take(store, a, "r3")
            assert (decision.deployment, decision.lost) == (None, (a,))
            assert decision.reset_at == START + 20.0
            counted = [Taking(START, ONE), Taking(START + 10.0 - 0.1, ONE), Taking(START + 11.0, ONE)]
            store.known[a.model_scope] = await store.charge("p", 1, a, [], counted, since)
            assert await used(store, a) == [3, 3]
            assert (await take(store, a, "r4")).deployment is a


async def test_another_server_is_noticed_though_it_knows_the_script(
    servers: ModuleType, redis_binary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds: one message in five seconds compares the run ids."""
    a = deployment()
    with servers.running(redis_binary) as one, servers.running(redis_binary) as other:
        clock = ManualClock(START)
        async with aclosing(RedisStore(other.url, clock=clock)) as store:
            await take(store, deployment("b"), "r0")  # so that it has the script
        async with aclosing(RedisStore(one.url, clock=clock)) as store:
            await take(store, a, "r1")
        with one.client() as source, other.client() as target:
            for key in source.scan_iter():
                target.restore(key, 0, source.dump(key), replace=True)
        async with aclosing(RedisStore(other.url, clock=clock)) as store:
            decision = await take(store, a, "r2")
            assert (decision.deployment, decision.reset_at) == (None, START)
        async with aclosing(RedisStore(other.url, clock=clock)) as store:
            clock.shift(QUIET)
            decision = await take(store, a, "r3")
            assert (decision.deployment, decision.reset_at) == (a, START)
            assert await used(store, a) == [2, 2]


async def test_each_shard_has_lost_what_it_has_lost(server: RedisServer) -> None:
    """One whose keys are gone is quiet; the others go on."""
    clock = ManualClock(START)
    async with aclosing(RedisStore(server.url, clock=clock, shards=4)) as store:
        keys = [deployment(f"key-{n}") for n in range(16)]
        for each in keys:
            store.known[each.model_scope] = (await take(store, each, f"r-{each.id}")).since
        gone = store.shard_of(keys[0])
        with server.client() as client:
            tag = next(client.scan_iter("*key-0:*")).split(b"}")[0]
            client.delete(*client.scan_iter(tag.decode().replace("[", "\\[") + "}*"))
        clock.shift(1.0)
        for each in keys:
            decision = await take(store, each, f"s-{each.id}")
            is_gone = store.shard_of(each) == gone
            assert decision.deployment is (None if is_gone else each)
            assert decision.lost == ((each,) if is_gone else ())
            assert decision.reset_at == (START + 1.0 if is_gone else 0.0)


async def test_a_server_that_evicts_is_warned_of(servers: ModuleType, redis_binary: Any) -> None:
    """The advice names the policy, and how to change it."""
    with servers.running(redis_binary) as server, server.client() as client:
        async with aclosing(RedisStore(server.url)) as store:
            assert await store.advice() == []
            client.config_set("maxmemory-policy", "allkeys-lru")
            [advice] = await store.advice()
            assert "maxmemory-policy allkeys-lru" in advice
            assert "noeviction" in advice
            server.kill()
            assert await store.advice() == []


async def _answers(store: RateLimitStore) -> None:
    give_up = time.monotonic() + 5
    while True:
        try:
            await store.snapshot([])
        except Exception:  # noqa: BLE001 - it is starting
            assert time.monotonic() < give_up
        else:
            return


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("event", ["flushall", "restarted", "frozen", "killed connections", "evicted"])
async def test_no_window_sees_more_than_the_limit(
    servers: ModuleType, redis_binary: Any, processes: int, event: str
) -> None:
    """Whatever happens to the server; and what comes back is spent again within a minute."""
    limited, clock = deployment(), ManualClock(START)
    with servers.running(redis_binary) as server:
        open_store = partial(RedisStore, server.url, clock=clock, timeout=0.2)
        async with Fleet.opened(open_store, processes, clock, limited) as fleet:
            await fleet.run(70)
            assert fleet.most_in(60.0) == LIMIT
            with server.client() as client:
                if event == "flushall":
                    client.flushall()
                elif event == "evicted":
                    client.delete(KEY)
                elif event == "killed connections":
                    client.client_kill_filter(_type="normal", skipme=True)
            if event == "restarted":
                server.kill()
                await fleet.run(3)
                server.start()
            if event == "frozen":
                server.freeze()
                await fleet.run(43)
                server.thaw()
            await fleet.run(140)
            # Where none can reach the server each keeps to its share, whatever the others had taken before.
            shares = (processes - 1) * (LIMIT // processes) if event in ("restarted", "frozen") else 0
            assert LIMIT <= fleet.most_in(60.0) <= LIMIT + shares
            assert fleet.since(clock.time() - 61.0) == LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("event", ["flushall", "restarted"])
@pytest.mark.parametrize("policy", ["closed", "local"])
@pytest.mark.parametrize("gap", [1, 20])
async def test_what_is_lost_twice_within_a_window_is_charged_twice(
    servers: ModuleType, redis_binary: Any, event: str, policy: StoreFailurePolicy, gap: int
) -> None:
    """A process that has spent more than its share looks whether that is lost, though it may take no more."""
    limited, clock = deployment(), ManualClock(START)
    with servers.running(redis_binary) as server:
        open_store = partial(RedisStore, server.url, clock=clock, timeout=0.2)
        async with Fleet.opened(open_store, 3, clock, limited, policy) as fleet:
            await fleet.run(2)
            clock.shift(100.0)
            await fleet.run(12, idle=fleet.stores[1:])
            for _ in range(2):
                if event == "restarted":
                    server.kill()
                    server.start()
                else:
                    with server.client() as client:
                        client.flushall()
                await fleet.run(gap, idle=fleet.stores[1:])
            await fleet.run(100)
            assert fleet.most_in(60.0) == LIMIT
            assert fleet.since(clock.time() - 61.0) == LIMIT

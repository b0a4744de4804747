"""The Redis store on real servers: what the contract, which has no server, does not show."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.limits import LimitRecord, LimitSource
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError, StoreCorruptError, StoreTimeoutError, StoreUnavailableError
from llm_router.stores import Decision, RateLimitStore
from llm_router.stores.base import QUIET, RECOUNT, Taking
from llm_router.stores.redis import RedisStore
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.servers import RedisServer


QUOTAS = (Quota(Metric.RPM, 1000), Quota(Metric.TPM, 1_000_000), Quota(Metric.RPD, 100_000, Refill.DAILY))
ONE = Demand(1, 100)
TTL = 60.0


def deployment(name: str = "a", *quotas: Quota) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=quotas or QUOTAS)


def opened(url: str, **settings: Any) -> aclosing[RedisStore]:
    return aclosing(RedisStore(url, **settings))


# --- what is stored -----------------------------------------------------------------------------------------


async def test_every_key_expires(server: RedisServer) -> None:
    """Whatever was done, no key is kept for longer than it is needed."""
    async with opened(server.url) as store:
        a, b = deployment("a"), deployment("b", Quota(Metric.TPM, 5000, Refill.STEADY))
        for number in range(5):
            await store.reserve(f"r{number}", [a], ONE, TTL)
            await store.reserve(f"s{number}", [b], ONE, TTL)
        await store.settle("r0", Demand(1, 7))
        await store.release("s0")
        await store.cool_down(Cooldown(a.key_scope, time.time() + 30, "rests", (LearntLimit(Metric.RPM, 5),)))
        await store.cool_down(Cooldown(b.provider_scope, math.inf, "dead"))
    with server.client() as client:
        ends = {key: client.pttl(key) for key in client.scan_iter()}
    # Two models, a key, a provider, the end of their cooldowns, the reservations and their sweep, the epoch.
    assert len(ends) == 8
    assert all(0 < end <= 366 * 86_400_000 for end in ends.values())


async def test_all_keys_of_a_namespace_share_a_hash_tag(server: RedisServer) -> None:
    """A cluster keeps them on one node, and two namespaces are separate."""
    a = deployment("a", Quota(Metric.RPM, 1))
    async with opened(server.url, namespace="one {x} é") as one, opened(server.url, namespace="two") as two:
        assert (await one.reserve("r", [a], ONE, TTL)).deployment is a
        assert (await two.reserve("r", [a], ONE, TTL)).deployment is a
        assert (await two.reserve("s", [a], ONE, TTL)).deployment is None
    with server.client() as client:
        tags = {key.split(b":")[0] for key in client.scan_iter()}
    assert tags == {b"{one%20%7Bx%7D%20%C3%A9}", b"{two}"}


@pytest.mark.slow
async def test_ten_thousand_requests_leave_nothing_behind(server: RedisServer) -> None:
    """State does not grow with the number of requests served."""
    a = deployment("a", Quota(Metric.RPM, 20_000), Quota(Metric.TPM, 10**9))
    async with opened(server.url, timeout=20) as store:

        async def serve(number: int) -> None:
            await store.reserve(f"request {number}", [a], ONE, TTL)
            await store.settle(f"request {number}", Demand(1, 90))

        for start in range(0, 10_000, 1000):
            await asyncio.gather(*(serve(number) for number in range(start, start + 1000)))
        [snapshot] = await store.snapshot([a])
    assert [quota.used for quota in snapshot.quotas] == [10_000, 900_000]
    with server.client() as client:
        keys = list(client.scan_iter())
        assert len(keys) == 3  # the model, the state of sweeping, the epoch
        assert all(client.strlen(key) < 25_000 for key in keys)


async def test_expired_reservations_are_swept_out(server: RedisServer) -> None:
    """What is never settled is forgotten after it has expired, while others continue."""
    clock = ManualClock()
    a = deployment("a")
    async with opened(server.url, clock=clock) as store:
        await asyncio.gather(*(store.reserve(f"dead {number}", [a], ONE, 5.0) for number in range(100)))
        for number in range(20):
            clock.shift(1.0)
            await store.reserve(f"alive {number}", [a], ONE, TTL)
    with server.client() as client:
        assert client.hlen("{llm_router}:reservations:3") == 20


@pytest.mark.parametrize("odd", ["", "\0x", "a b\n", "é", "\ud800", '"\\', "{x}:*", "0" * 1000])
async def test_any_string_is_a_reservation_id(server: RedisServer, odd: str) -> None:
    """Ids with odd characters are not confused, and are found again."""
    a = deployment("a", Quota(Metric.RPM, 2))
    async with opened(server.url) as store:
        for reservation_id in (odd, odd + "'"):
            assert (await store.reserve(reservation_id, [a], ONE, TTL)).deployment is a
        await store.release(odd)
        assert (await store.reserve("other", [a], ONE, TTL)).deployment is a
        assert (await store.reserve("more", [a], ONE, TTL)).deployment is None


async def test_no_credential_reaches_the_server(server: RedisServer) -> None:
    """Neither the key nor a digest of it is stored."""
    async with opened(server.url) as store:
        await store.reserve("r", [deployment("a")], ONE, TTL)
    with server.client() as client:
        dumps = [key + client.dump(key) for key in client.scan_iter()]
    assert dumps
    assert not any(b"AIza" in dump for dump in dumps)


# --- time ---------------------------------------------------------------------------------------------------


async def test_the_servers_time_counts_without_a_clock(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is a day off computes the same as the others."""
    a = deployment("a", Quota(Metric.RPM, 1), Quota(Metric.RPD, 10, Refill.DAILY))
    true_time = time.time
    async with opened(server.url) as right, opened(server.url) as wrong:
        await right.reserve("r", [a], ONE, TTL)
        [expected] = await right.snapshot([a])
        monkeypatch.setattr("llm_router.stores.redis.batch.time.time", lambda: true_time() - 90_000)
        [seen] = await wrong.snapshot([a])
        [refusal] = (await wrong.reserve("s", [a], ONE, TTL)).refusals
    for quota, same in zip(seen.quotas, expected.quotas, strict=True):
        assert (quota.metric, quota.limit, quota.used) == (same.metric, same.limit, same.used)
        assert abs(quota.resets_at + 90_000 - same.resets_at) < 10  # on the clock of the caller
    assert abs(refusal.retry_at + 90_000 - true_time() - 60.3) < 10


async def test_the_time_at_which_a_limit_was_learnt_says_which_it_is_on_any_clock(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same for all callers, and after the clock of one was set."""
    a = deployment("a", Quota(Metric.RPM, 9))
    rises = LearntLimit(Metric.RPM, 5, LimitSource.INFERRED, raised=6, raise_after=500.0)
    true_time = time.time
    async with opened(server.url) as right, opened(server.url) as wrong:
        await right.cool_down(Cooldown.learn(a.model_scope, rises))
        [expected] = [quota.learnt for quota in (await right.snapshot([a]))[0].quotas]
        monkeypatch.setattr("llm_router.stores.redis.batch.time.time", lambda: true_time() - 90_000.123457)
        [seen] = [quota.learnt for quota in (await wrong.snapshot([a]))[0].quotas]
        assert expected is not None
        assert seen is not None
        assert seen.learnt_at == expected.learnt_at
        assert abs(seen.raise_at + 90_000.123457 - expected.raise_at) < 10
        monkeypatch.setattr("llm_router.stores.redis.batch.time.time", lambda: true_time() + 77.7)
        again = LearntLimit(Metric.RPM, 4, replaces=seen.learnt_at)
        await wrong.cool_down(Cooldown.learn(a.model_scope, again))
        assert [quota.limit for quota in (await right.snapshot([a]))[0].quotas] == [4]


async def test_a_limit_that_an_earlier_version_learnt_was_stated_a_day_before_its_end(
    server: RedisServer,
) -> None:
    """An earlier version finds the metric, the limit and the end first, and writes nothing else."""
    clock = ManualClock(1_800_041_000.25)
    a = deployment("a", Quota(Metric.RPM, 9))
    rises = LearntLimit(Metric.RPM, 5, LimitSource.INFERRED, raised=6, raise_after=500.0)
    async with opened(server.url, clock=clock) as store:
        await store.cool_down(Cooldown.learn(a.model_scope, rises))
        with server.client() as client:
            [key] = [key for key in client.scan_iter("*") if b"model:" in key]
            value = client.get(key)
            text = b"1 5 1801250600250000 :3,1800041000250000,6,1800041500250000;"
            assert text in value
            client.set(key, value.replace(text, b"1 3 1800127400250000 "))
        [quota] = (await store.snapshot([a]))[0].quotas
        assert (quota.limit, quota.learnt) == (
            3,
            LimitRecord(3, LimitSource.STATED, clock.time(), 3, math.inf),
        )


async def test_a_clock_that_is_set_while_running_is_noticed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the machine's clock jumps, the next call finds out the server's time again."""
    a = deployment("a")
    true_time = time.time
    async with opened(server.url) as store:
        await store.reserve("r", [a], ONE, TTL)
        monkeypatch.setattr("llm_router.stores.redis.batch.time.time", lambda: true_time() - 7 * 86_400)
        assert (await store.reserve("s", [a], ONE, TTL)).deployment is a


# --- batches ------------------------------------------------------------------------------------------------


async def test_concurrent_operations_share_a_call(server: RedisServer) -> None:
    """A hundred concurrent reserves take one call or two, not a hundred."""
    a = deployment("a")
    async with opened(server.url) as store:
        await store.reserve("first", [a], ONE, TTL)
        with server.client() as client:
            client.config_resetstat()
            decisions = await asyncio.gather(*(store.reserve(f"r{n}", [a], ONE, TTL) for n in range(100)))
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert all(decision.deployment is a for decision in decisions)
    assert calls <= 2


@pytest.mark.slow
async def test_a_script_that_was_flushed_is_loaded_again(server: RedisServer) -> None:
    """A server that forgot the script still answers, even under load."""
    a = deployment("a", Quota(Metric.RPM, 1500))
    granted = 0
    async with opened(server.url) as store:
        with server.client() as client:
            for round_ in range(3):
                client.script_flush()
                crowd = (store.reserve(f"r{round_}-{n}", [a], ONE, TTL) for n in range(600))
                granted += sum(decision.deployment is a for decision in await asyncio.gather(*crowd))
    assert granted == 1500


async def test_a_mistake_of_one_caller_does_not_affect_others(server: RedisServer) -> None:
    """A quota in a time zone that does not exist fails its caller, not those that share the call."""
    good = deployment("a")
    bad = deployment("b", Quota(Metric.RPD, 5, Refill.DAILY, timezone="Nowhere/Land"))
    async with opened(server.url) as store:
        outcomes = await asyncio.gather(
            store.reserve("r", [good], ONE, TTL),
            store.reserve("s", [bad], ONE, TTL),
            store.reserve("t", [good], ONE, TTL),
            return_exceptions=True,
        )
    assert isinstance(outcomes[0], Decision)
    assert outcomes[0].deployment is good
    assert isinstance(outcomes[1], KeyError)
    assert isinstance(outcomes[2], Decision)
    assert outcomes[2].deployment is good


async def test_a_time_zone_that_another_store_uses_is_requested(server: RedisServer) -> None:
    """A reservation in a time zone that this store has never used can be settled through it, days later."""
    clock = ManualClock()
    a = deployment("a", Quota(Metric.RPD, 5, Refill.DAILY, timezone="Asia/Tokyo"))
    async with opened(server.url, clock=clock) as one, opened(server.url, clock=clock) as two:
        for reservation_id in ("today", "yesterday"):
            await one.reserve(reservation_id, [a], ONE, 3 * 86_400.0)
        await two.release("today")
        assert [quota.used for quota in (await one.snapshot([a]))[0].quotas] == [1]
        clock.shift(86_400.0)
        assert (await one.reserve("tomorrow", [a], ONE, TTL)).deployment is a
        clock.shift(86_400.0)
        await two.settle(
            "yesterday", Demand(5, 0)
        )  # possible only if this store knows the midnights of Tokyo
        assert [quota.used for quota in (await one.snapshot([a]))[0].quotas] == [0]


# --- loops and processes ------------------------------------------------------------------------------------


def test_a_store_outlives_its_event_loop(server: RedisServer) -> None:
    """Two runs of asyncio share a store, even if it was not closed in between."""
    store = RedisStore(server.url)
    a = deployment("a", Quota(Metric.RPM, 2))

    async def reserve(reservation_id: str) -> Deployment | None:
        return (await store.reserve(reservation_id, [a], ONE, TTL)).deployment

    assert asyncio.run(reserve("r")) is a
    assert asyncio.run(reserve("s")) is a
    assert asyncio.run(reserve("t")) is None
    with server.client() as client:
        assert client.info("clients")["connected_clients"] == 1  # this one


@pytest.mark.slow
def test_a_loop_may_end_in_the_middle_of_a_call(
    servers: ModuleType, redis_binary: Path, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """A call without an answer delays neither the end of the loop nor the next loop."""
    a = deployment("a", Quota(Metric.RPM, 1))
    with servers.running(redis_binary) as server:
        store = RedisStore(server.url, timeout=0.5)

        async def give_up() -> None:
            await store.snapshot([a])
            server.freeze()
            waiting = [asyncio.create_task(store.reserve(f"r{n}", [a], ONE, TTL)) for n in range(600)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting)

        async def go_on() -> bool:
            granted = (await store.reserve("s", [a], ONE, TTL)).deployment is a
            await store.aclose()
            return granted

        with no_longer_than(5.0):
            asyncio.run(give_up())
            time.sleep(0.5)  # past the timeout: what was sent in vain no longer takes effect
            server.thaw()
            assert asyncio.run(go_on())


def _reserve_in_child(store: RateLimitStore, a: Deployment, pipe: Connection) -> None:
    async def reserve() -> bool:
        decision = await store.reserve(f"child {os.getpid()}", [a], ONE, TTL)
        await store.aclose()
        return decision.deployment is not None

    pipe.send(asyncio.run(reserve()))


def test_a_forked_process_has_its_own_connections(server: RedisServer) -> None:
    """A store that was used before a fork works in both processes."""
    store = RedisStore(server.url)
    a = deployment("a", Quota(Metric.RPM, 3))

    async def reserve() -> list[bool]:
        granted = [(await store.reserve("before", [a], ONE, TTL)).deployment is not None]
        context = get_context("fork")
        here, there = context.Pipe()
        child = context.Process(target=_fork_target, args=(store, a, there))
        child.start()
        granted.append(await asyncio.to_thread(here.recv))
        child.join()
        granted.append((await store.reserve("after", [a], ONE, TTL)).deployment is not None)
        granted.append((await store.reserve("too many", [a], ONE, TTL)).deployment is not None)
        await store.aclose()
        return granted

    assert asyncio.run(reserve()) == [True, True, True, False]


def _fork_target(store: RateLimitStore, a: Deployment, pipe: Connection) -> None:
    asyncio.events._set_running_loop(None)  # the fork has copied the parent's loop
    _reserve_in_child(store, a, pipe)


async def test_a_client_made_elsewhere_is_used_and_left_open(server: RedisServer) -> None:
    """The caller that made the client closes it."""
    async with Redis.from_url(server.url, decode_responses=True) as client:
        store = RedisStore(client)
        a = deployment("a", Quota(Metric.RPM, 1))
        assert isinstance(store, RateLimitStore)
        assert (await store.reserve("r", [a], ONE, TTL)).deployment is a
        await store.cool_down(Cooldown(a.key_scope, time.time() + 30, "rests ü"))
        [refusal] = (await store.reserve("s", [a], ONE, TTL)).refusals
        assert refusal.reason == "rpm"
        await store.aclose()
        await store.aclose()
        assert await client.ping()


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_frozen_server_delays_no_caller_beyond_the_timeout(
    servers: ModuleType, redis_binary: Path, no_longer_than: Callable[[float], AbstractContextManager[None]]
) -> None:
    """Every waiting caller gets an error in time; when the server runs again, nothing takes effect."""
    a = deployment("a")
    with servers.running(redis_binary) as server:
        async with opened(server.url, timeout=0.3) as store:
            await store.reserve("before", [a], ONE, TTL)
            server.freeze()
            with no_longer_than(2.0):
                outcomes = await asyncio.gather(
                    *(store.reserve(f"r{n}", [a], ONE, TTL) for n in range(700)),
                    store.settle("before", ONE),
                    return_exceptions=True,
                )
            server.thaw()
            [snapshot] = await store.snapshot([a])
            assert snapshot.quotas[0].used == 1
            assert (await store.reserve("after", [a], ONE, TTL)).deployment is a
    assert {type(outcome) for outcome in outcomes} == {StoreTimeoutError}
    assert "did not answer within 0.3 s" in str(outcomes[0])
    assert len({id(outcome) for outcome in outcomes}) == len(outcomes)


async def test_a_killed_server_is_noticed_and_found_again(servers: ModuleType, redis_binary: Path) -> None:
    """Unavailable while it is down; empty, and with the script loaded again, when it is back."""
    a = deployment("a", Quota(Metric.RPM, 1))
    with servers.running(redis_binary) as server:
        async with opened(server.url) as store:
            await store.reserve("r", [a], ONE, TTL)
            server.kill()
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match=r"cannot be reached: .*[^.]$"):
                    await store.reserve("s", [a], ONE, TTL)
            server.start()
            decision = await store.reserve("t", [a], ONE, TTL)
            assert decision.deployment is None
            [refusal] = decision.refusals
            assert refusal.reason == RECOUNT
            assert refusal.retry_at == decision.reset_at + QUIET


async def test_a_wrong_password_is_reported_but_not_shown(servers: ModuleType, redis_binary: Path) -> None:
    """The message names the remedy; neither it nor a repr shows the password."""
    with servers.running(redis_binary, "--requirepass", "another") as server:
        for credentials in (":pass%3Aw%40rd%2Fwith%25odd@", ""):
            url = server.url.replace("://", f"://{credentials}")
            async with opened(url) as store:
                with pytest.raises(StoreUnavailableError, match="refused the login") as caught:
                    await store.reserve("r", [deployment()], ONE, TTL)
            assert repr(store) == f"RedisStore('127.0.0.1:{server.port}/0', namespace='llm_router')"
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None
            assert not any(
                secret in str(caught.value) for secret in ("pass:w", "pass%3A", "another", "redis://")
            )


async def test_an_acl_user_needs_few_rights(servers: ModuleType, redis_binary: Path) -> None:
    """The rights that the message names are enough; if some are missing, that is reported."""
    with servers.running(redis_binary) as server, server.client() as client:
        rights = "+evalsha +eval +time +get +mget +set +del +hset +hmget +hdel +hscan +pexpire +zadd "
        rights += "+zremrangebyscore +zcard"
        client.execute_command(
            "ACL", "SETUSER", "router", "on", ">secret", "~{llm_router}:*", *rights.split()
        )
        async with opened(server.url.replace("://", "://router:secret@")) as store:
            assert (await store.reserve("r", [deployment()], ONE, TTL)).deployment is not None
            await store.release("r")
        async with opened(server.url.replace("://", "://router:secret@"), namespace="other") as store:
            with pytest.raises(StoreUnavailableError, match="denies this user"):
                await store.reserve("r", [deployment()], ONE, TTL)


async def test_a_full_server_changes_nothing(servers: ModuleType, redis_binary: Path) -> None:
    """A server out of memory refuses to write, which is reported; it works again when there is room."""
    a = deployment("a")
    with servers.running(redis_binary) as server, server.client() as client:
        async with opened(server.url) as store:
            await store.reserve("before", [a], ONE, TTL)
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailableError, match="out of memory"):
                await store.reserve("r", [a], ONE, TTL)
            client.config_set("maxmemory", 0)
            [snapshot] = await store.snapshot([a])
            assert snapshot.quotas[0].used == 1


async def test_a_replica_is_recognised(servers: ModuleType, redis_binary: Path) -> None:
    """For a URL that points at a replica, the message says so, until the replica is promoted."""
    with servers.running(redis_binary) as server, server.client() as client:
        async with opened(server.url) as store:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreUnavailableError, match="read-only replica"):
                await store.reserve("r", [deployment()], ONE, TTL)
            client.execute_command("REPLICAOF", "NO", "ONE")
            assert (await store.reserve("s", [deployment()], ONE, TTL)).deployment is not None


@pytest.mark.slow
async def test_a_cluster_keeps_a_namespace_on_one_node(servers: ModuleType, redis_binary: Path) -> None:
    """On a server in cluster mode the store works through a cluster URL."""
    a = deployment("a", Quota(Metric.RPM, 2))
    with servers.running(redis_binary, "--cluster-enabled", "yes") as server, server.client() as client:
        client.execute_command("CLUSTER ADDSLOTS", *range(16_384))
        deadline = time.monotonic() + 10
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        async with opened(server.url.replace("redis://", "redis+cluster://").removesuffix("/0")) as store:
            granted = await asyncio.gather(*(store.reserve(f"r{n}", [a], ONE, TTL) for n in range(3)))
            taken = [n for n, decision in enumerate(granted) if decision.deployment is a]
            assert len(taken) == 2
            await store.release(f"r{taken[0]}")
            client.script_flush()
            assert (await store.reserve("s", [a], ONE, TTL)).deployment is a


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client, key: client.set(key, "not ours"),
        lambda client, key: client.set(key, b"\x92\x09\x01"),  # a packed array of another version
        lambda client, key: client.set(key, b"\x95\x01\x01\x00\x90\x92\x01\x91\xa1X"),  # a ledger of no kind
        lambda client, key: client.rpush(key, "a list"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ":3"])
async def test_a_foreign_key_closes_one_deployment(
    server: RedisServer, caplog: pytest.LogCaptureFixture, spoil: Callable[..., Any], suffix: str
) -> None:
    """Something else under the key of a scope is left as it was; the rest of the batch is done."""
    a, b = deployment(f"foreign{time.perf_counter_ns()}"), deployment("b")
    with server.client() as client:
        name = "{llm_router}:scope:" + a.model_scope + suffix
        spoil(client, name)
        before = client.dump(name)
        async with opened(server.url) as store:

            async def fail_to_charge() -> None:
                with pytest.raises(StoreCorruptError, match="something else"):
                    await store.charge("me", 1, a, [Taking(time.time(), ONE)])

            ids = [id_ for id_ in map(str, range(100)) if hash(id_) % 2 == hash("r") % 2][:4]  # in one call
            first, second, third, *_ = await asyncio.gather(
                store.reserve(ids[0], [a, b], ONE, TTL),
                store.reserve(ids[1], [b], ONE, TTL),
                store.reserve(ids[2], [a], ONE, TTL),
                store.settle("r", Demand(1, 1)),
                fail_to_charge(),
            )
            assert [snapshot.quotas[0].used for snapshot in await store.snapshot([a, b])] == [0, 2]
        assert client.dump(name) == before
    assert (first.deployment, second.deployment, third.deployment) == (b, b, None)
    reasons = {refusal.reason for refusal in (*first.refusals, *third.refusals)}
    assert [reason.startswith(f"unreadable record of {a.model_scope!r}") for reason in reasons] == [True]
    assert len([record for record in caplog.records if "cannot be used" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client: client.set("{llm_router}:reservations:3", "a string"),
        lambda client: client.set("{llm_router}:epoch:3", "nonsense"),
    ],
)
async def test_foreign_state_is_reported_and_left_as_it_was(
    server: RedisServer, spoil: Callable[..., Any]
) -> None:
    """Something else under a key of the namespace is an error, not something to overwrite."""
    a = deployment("a")
    near = next(id_ for id_ in map(str, range(100)) if hash(id_) % 2 == hash("r") % 2)  # in the same call
    with server.client() as client:
        spoil(client)
        before = {key: client.dump(key) for key in client.scan_iter()}
        async with opened(server.url) as store:
            with pytest.raises(StoreCorruptError, match="something else"):
                await asyncio.gather(store.reserve(near, [a], ONE, TTL), store.settle("r", Demand(1, 1)))
        after = {key: client.dump(key) for key in client.scan_iter()}
        assert {key: after.get(key) for key in before} == before
        assert after.keys() - before.keys() <= {
            b"{llm_router}:epoch:3"
        }  # from when the server's time was asked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:s3cret@host/3", "host:6379/3"),
        ("rediss://:s3cret@host:7000", "host:7000/0"),
        ("unix://user:s3cret@/run/redis.sock?db=2", "/run/redis.sock?db=2"),
        ("redis+cluster://user:s3cret@host:7000", "host:7000 (cluster)"),
    ],
)
def test_the_repr_shows_the_address_and_nothing_secret(url: str, shown: str) -> None:
    """Host, port, database and namespace; no credentials."""
    assert repr(RedisStore(url, namespace="n")) == f"RedisStore({shown!r}, namespace='n')"


@pytest.mark.parametrize(
    "url", ["http://:s3cret@host", "redis://:s3cret/x@host:1", "s3cret", "redis://h:s3cret"]
)
def test_a_url_that_makes_no_sense_is_refused_without_showing_it(url: str) -> None:
    """A URL that cannot be parsed may hold a password anywhere."""
    with pytest.raises(ConfigError) as caught:
        RedisStore(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_empty_namespace_is_refused() -> None:
    """It would not make a hash tag."""
    with pytest.raises(ConfigError, match="namespace"):
        RedisStore("redis://localhost", namespace="")


@pytest.mark.parametrize("off", [-300.0, 300.0])
async def test_times_are_on_the_callers_clock(
    redis_server: RedisServer, pools: Pools, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """A machine whose clock is minutes off gets ``retry_at`` and sets cooldowns by its own clock."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + off)
    store, deployment = RedisStore(redis_server.url), pools.one(rpm=1)
    other = pools.one(rpm=1)
    await store.reserve("a", [deployment], Demand(1, 0), 60)
    refusal = (await store.reserve("b", [deployment], Demand(1, 0), 60)).refusals[0]
    assert 55 < refusal.retry_at - time.time() <= 60.5
    assert 55 < refusal.wake_at - time.time() <= 60.5
    await store.cool_down(Cooldown(other.model_scope, time.time() + 40, "rest"))
    snapshots = await store.snapshot([deployment, other])
    assert 55 < snapshots[0].quotas[0].resets_at - time.time() <= 60.5
    assert snapshots[1].cooldown is not None
    assert 35 < snapshots[1].cooldown.until - time.time() <= 40.5
    refusal = (await store.reserve("c", [other], Demand(1, 0), 60)).refusals[0]
    assert 35 < refusal.retry_at - time.time() <= 40.5
    await store.cool_down(Cooldown(other.key_scope, math.inf, "dead"))
    [snapshot] = await store.snapshot([other])
    assert snapshot.cooldown is not None
    assert snapshot.cooldown.until == math.inf
    await store.cool_down(Cooldown.lift(other.key_scope))
    [snapshot] = await store.snapshot([other])
    assert snapshot.cooldown is not None
    assert snapshot.cooldown.reason == "rest"
    await store.aclose()

"""Keys that hold something else, or another version's format: only the calls that need one fail."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.errors import StoreCorruptError, StoreUnavailableError
from llm_router.stores.base import Taking
from llm_router.stores.failover import FailoverStore
from llm_router.stores.redis import RedisStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from tests.stores.servers import RedisServer

ONE = Demand(1, 100)
TTL = 60.0
QUOTAS = (Quota(Metric.RPM, 1000), Quota(Metric.TPM, 1_000_000), Quota(Metric.RPD, 100_000, Refill.DAILY))
HASH = "{llm_router}:reservations:3"


def deployment(name: str = "a") -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=QUOTAS)


def opened(server: RedisServer, **settings: Any) -> aclosing[RedisStore]:
    return aclosing(RedisStore(server.url, **settings))


def unreadable(scope: str, lifted: str) -> str:
    return f"unreadable record of {scope!r} in the store; remove it with llm-router keys lift {lifted}"


SPOILT: list[Callable[[Any, str], Any]] = [
    lambda client, key: client.set(key, "not ours"),
    lambda client, key: client.set(key, b""),
    lambda client, key: client.set(key, b"\x03"),  # cut short
    lambda client, key: client.set(key, b"\x92\x09\x01"),  # a packed array of another version
    lambda client, key: client.set(key, b"\x03" + b"\0" * 300),  # more than there should be
    lambda client, key: client.set(key, b"\x13" + b"\0" * 70 + b"\x07" + b"\0" * 300),  # a ledger of no kind
    lambda client, key: client.rpush(key, "a list"),
]


@pytest.mark.parametrize("suffix", [":3", ""])
@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_record_that_cannot_be_read_refuses_one_candidate(
    server: RedisServer, spoil: Callable[[Any, str], Any], suffix: str
) -> None:
    """It is left as it was; what would change it fails, and all other operations of the call are done."""
    a, b, clock = deployment("a"), deployment("b"), ManualClock()
    key = f"{{llm_router}}:scope:{a.model_scope}{suffix}"
    with server.client() as client:
        spoil(client, key)
        before = client.dump(key)
        async with opened(server, clock=clock) as store:
            for number in range(2):
                names = [f"{number} {n}" for n in range(20)]
                decisions = await asyncio.gather(*(store.reserve(name, [a, b], ONE, TTL) for name in names))
                for decision in decisions:
                    assert decision.deployment is b
                    [refusal] = decision.refusals
                    assert refusal.reason == unreadable(a.model_scope, "a --model flash")
                    assert refusal.cooldown == Cooldown(a.model_scope, clock.time() + 60.0, refusal.reason)
                    assert refusal.retry_at == refusal.wake_at == clock.time() + 60.0
            charged, cooled, since, empty = await asyncio.gather(
                store.charge("process", 1, a, [Taking(clock.time(), ONE)]),
                store.cool_down(Cooldown(a.model_scope, clock.time() + 30, "rests")),
                store.charge("process", 1, b, [Taking(clock.time(), ONE)]),
                store.charge("probe", 1, a, []),
                return_exceptions=True,
            )
            for error in (charged, cooled):
                assert isinstance(error, StoreCorruptError)
                assert repr(key) in str(error)
            assert isinstance(since, float)
            assert isinstance(empty, float)
            [seen, other] = await store.snapshot([a, b])
            assert seen.cooldown is not None
            assert seen.cooldown == refusal.cooldown
            assert [quota.used for quota in other.quotas] == [41, 4100, 41]
        assert client.dump(key) == before
        client.delete(key)
        async with opened(server, clock=clock) as store:
            assert (await store.reserve("r", [a], ONE, TTL)).deployment is a


async def test_what_is_known_of_a_full_model_that_cannot_be_read_is_not_used(server: RedisServer) -> None:
    """The ledger decides, as it does where nothing is known."""
    full = [
        Deployment(Key(f"f{n}", Secret("AIza-x")), "flash", quotas=(Quota(Metric.RPM, 0),)) for n in (1, 2)
    ]
    with server.client() as client:
        for value in ("", "x", "y" * 500):
            for each in full:
                client.set("{llm_router}:full:3:" + each.model_scope, value)
            async with opened(server) as store:
                decision = await store.reserve("r", [*full, deployment()], ONE, TTL)
            assert [refusal.reason for refusal in decision.refusals] == ["rpm", "rpm"]
            assert decision.deployment is not None


async def test_a_cooldown_that_cannot_be_read_refuses_the_deployments_of_its_key(server: RedisServer) -> None:
    """It may have been a quarantine."""
    a, b = deployment("a"), deployment("b")
    async with opened(server) as store:
        await store.cool_down(Cooldown(a.key_scope, time.time() + 300, "rests"))
        with server.client() as client:
            client.set(f"{{llm_router}}:scope:{a.key_scope}:3", "not ours")
        decision = await store.reserve("r", [a, b], ONE, TTL)
        assert decision.deployment is b
        assert [refusal.reason for refusal in decision.refusals] == [unreadable(a.key_scope, "a")]
        with pytest.raises(StoreCorruptError, match="something else"):
            await store.cool_down(Cooldown(a.key_scope, time.time() + 400, "rests"))


async def test_a_reservation_that_cannot_be_read_fails_its_own_settlement(server: RedisServer) -> None:
    """It is left alone, and everything else in the call is done."""
    a = deployment("a")
    near = next(id_ for id_ in map(str, range(100)) if hash(id_) % 2 == hash("r") % 2)  # in the same call
    with server.client() as client:
        client.hset(HASH, "r", "nonsense")
        async with opened(server) as store:
            granted, failed = await asyncio.gather(
                store.reserve(near, [a], ONE, TTL), store.settle("r", Demand(1, 1)), return_exceptions=True
            )
            assert getattr(granted, "deployment", None) is a
            assert isinstance(failed, StoreCorruptError)
            assert "something else" in str(failed)
            assert HASH in str(failed)
        assert client.hget(HASH, "r") == b"nonsense"


@pytest.mark.parametrize(
    "spoil",
    [lambda client, key: client.rpush(key, "x"), lambda client, key: client.set(key, "x")],
)
async def test_a_sequence_that_cannot_be_read_fails_the_charge_alone(
    server: RedisServer, spoil: Callable[[Any, str], Any]
) -> None:
    """Whether the charge was counted is not known, so it is not; the key is left as it was."""
    a, clock = deployment(), ManualClock()
    key = "{llm_router}:charge:3:process:" + a.model_scope
    async with opened(server, clock=clock) as store:
        with server.client() as client:
            spoil(client, key)
            before = client.dump(key)
            failed, since = await asyncio.gather(
                store.charge("process", 1, a, [Taking(clock.time(), ONE)]),
                store.charge("another", 1, a, [Taking(clock.time(), ONE)]),
                return_exceptions=True,
            )
            assert isinstance(failed, StoreCorruptError)
            assert repr(key) in str(failed)
            assert since == clock.time()
            assert client.dump(key) == before
        assert [quota.used for quota in (await store.snapshot([a]))[0].quotas] == [1, 100, 1]


async def test_processes_that_cannot_be_counted_fail_the_announcement_alone(server: RedisServer) -> None:
    """Which travels with the operations of others."""
    a, key = deployment(), "{llm_router}:processes:3"
    with server.client() as client:
        client.set(key, "x")
        async with opened(server) as store:
            near = next(id_ for id_ in map(str, range(100)) if hash(id_) % 2 == 0)  # in the same call
            granted, failed = await asyncio.gather(
                store.reserve(near, [a], ONE, TTL), store.announce("process"), return_exceptions=True
            )
            assert getattr(granted, "deployment", None) is a
            assert isinstance(failed, StoreCorruptError)
            assert repr(key) in str(failed)
        assert client.get(key) == b"x"


async def test_a_right_that_only_announcements_need_fails_them_alone(
    servers: ModuleType, redis_binary: Path
) -> None:
    """A user who has the rights that an earlier release needed may reserve as before."""
    with servers.running(redis_binary) as server, server.client() as client:
        rights = "+evalsha +eval +time +get +mget +set +del +hset +hmget +hdel +hscan +pexpire"
        client.execute_command("ACL", "SETUSER", "old", "on", ">secret", "~{llm_router}:*", *rights.split())
        a = deployment()
        async with aclosing(RedisStore(server.url.replace("://", "://old:secret@"))) as store:
            near = next(id_ for id_ in map(str, range(100)) if hash(id_) % 2 == 0)  # in the same call
            granted, failed = await asyncio.gather(
                store.reserve(near, [a], ONE, TTL),
                store.announce("process"),
                return_exceptions=True,
            )
            assert getattr(granted, "deployment", None) is a
            assert isinstance(failed, StoreUnavailableError)
            assert "denies this user" in str(failed)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client: client.set(HASH, "a string"),
        lambda client: client.set("{llm_router}:others:3", "nonsense"),
        lambda client: client.rpush("{llm_router}:others:3", "a list"),
        lambda client: client.set("{llm_router}:epoch:3", "nonsense"),
        lambda client: client.rpush("{llm_router}:epoch:3", "a list"),
        lambda client: client.rpush("{llm_router}:sweep:3", "a list"),
    ],
)
async def test_a_key_that_everything_needs_fails_what_would_change_it(
    server: RedisServer, spoil: Callable[[Any], Any]
) -> None:
    """As a whole: nothing is written of a call that fails."""
    a = deployment("a")
    with server.client() as client:
        spoil(client)
        before = {key: client.dump(key) for key in client.scan_iter()}
        async with opened(server, clock=ManualClock()) as store:
            near = next(id_ for id_ in map(str, range(100)) if hash(id_) % 2 == 0)  # in the same call
            outcomes = await asyncio.gather(
                store.reserve(near, [a], ONE, TTL),
                store.cool_down(Cooldown(a.key_scope, 2e9, "rests")),
                return_exceptions=True,
            )
        assert {type(outcome) for outcome in outcomes} == {StoreCorruptError}
        assert {key: client.dump(key) for key in client.scan_iter()} == before


async def test_a_failover_goes_on_although_a_cooldown_cannot_be_shared(server: RedisServer) -> None:
    """One that began while the store did not answer is not told for ever, and holds up no other."""
    a, b, clock = deployment("a"), deployment("b"), ManualClock()
    with server.client() as client:
        client.set(f"{{llm_router}}:scope:{a.model_scope}:3", "not ours")
    async with aclosing(FailoverStore(RedisStore(server.url, clock=clock), clock=clock)) as front:
        await front.reserve("r", [b], ONE, TTL)
        front._backlog.cooldowns.add(Cooldown(a.model_scope, clock.time() + 300.0, "rests"))
        front._backlog.cooldowns.add(Cooldown(b.model_scope, clock.time() + 300.0, "rests"))
        await front._announce()
        [snapshot] = await front.behind.snapshot([b])
        assert snapshot.cooldown is not None
        assert not front._backlog.cooldowns

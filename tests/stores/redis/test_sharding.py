"""Shards: where projects are, how a reserve goes through them, and what must reach all of them."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from llm_router import RateLimitStore
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key, model_scope
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError, StoreUnavailableError
from llm_router.stores import Decision, MemoryStore, Sharded
from llm_router.stores.failover import FailoverStore
from llm_router.stores.redis import RedisStore, sharding
from llm_router.stores.redis.keys import key_names
from llm_router.stores.redis.sharding import Sharding, shard_of
from llm_router.stores.urls import open_store
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend
    from tests.stores.servers import RedisServer


SHARDS = 4
ONE = Demand(1, 0)


def deployment(name: str, limit: int = 1, model: str = "flash") -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), model, quotas=(Quota(Metric.RPM, limit),))


def in_shard(shard: int, nth: int = 0, **settings: Any) -> Deployment:
    """Make the nth deployment of a shard."""
    names = (
        f"key-{n}" for n in range(1000) if shard_of(model_scope("gemini", f"key-{n}", ""), SHARDS) == shard
    )
    return deployment([next(names) for _ in range(nth + 1)][-1], **settings)


def opened(server: RedisServer, **settings: Any) -> aclosing[RedisStore]:
    return aclosing(RedisStore(server.url, **{"shards": SHARDS, "clock": ManualClock(), **settings}))


async def reserve(store: RateLimitStore, reservation_id: str, *candidates: Deployment) -> Decision:
    return await store.reserve(reservation_id, candidates, ONE, 60)


async def used(store: RateLimitStore, *deployments: Deployment) -> list[int]:
    return [snapshot.quotas[0].used for snapshot in await store.snapshot(deployments)]


# --- where things are ---------------------------------------------------------------------------------------


def test_one_shard_has_the_same_names_as_ever() -> None:
    """Without shards the hash tag is as it was before there were any; each name has the format's version."""
    [names] = key_names("llm_router", 1)
    assert names.scopes == "{llm_router}:scope:"
    assert names.version == ":3"
    assert names.full == "{llm_router}:full:3:"
    assert names.reservations == "{llm_router}:reservations:3"
    assert names.sweep == "{llm_router}:sweep:3"
    assert names.others == "{llm_router}:others:3"
    assert names.epoch == "{llm_router}:epoch:3"
    assert names.charges == "{llm_router}:charge:3:"
    assert names.processes == "{llm_router}:processes:3"
    assert names.reservations_before == "{llm_router}:reservations"
    assert names.others_before == "{llm_router}:others"


@pytest.mark.parametrize("shards", [2, 3, 4, 7, 16, 100])
@pytest.mark.parametrize("namespace", ["llm_router", "other {x}"])
def test_shards_are_evenly_distributed_over_the_slots(shards: int, namespace: str) -> None:
    """Each is in its own part, so that n nodes with equal parts have one each."""
    slots = [key_slot(names.sweep.encode()) for names in key_names(namespace, shards)]
    assert [slot * shards // 16_384 for slot in slots] == list(range(shards))


def test_the_shard_of_a_project_never_changes() -> None:
    """Another version, process or machine must look in the same place: these values are permanent."""
    assert [names.sweep for names in key_names("llm_router", 3)] == [
        "{llm_router:0.2}:sweep:3",
        "{llm_router:1.12}:sweep:3",
        "{llm_router:2.3}:sweep:3",
    ]
    scopes = [model_scope("gemini", f"key-{n}", "flash") for n in range(10)]
    assert [shard_of(scope, 4) for scope in scopes] == [0, 1, 3, 1, 3, 1, 1, 1, 2, 2]


def test_projects_are_spread_evenly() -> None:
    """No shard has many more than its share."""
    placed = [shard_of(model_scope("gemini", f"key-{n}", "flash"), SHARDS) for n in range(1000)]
    assert all(200 < placed.count(shard) < 300 for shard in range(SHARDS))


def test_the_models_of_a_project_share_a_shard() -> None:
    """The provider and the project decide; odd characters in them do no harm."""
    for name in ("p", "p:q", "p%3Aq", "é"):
        assert len({shard_of(model_scope("gemini", name, model), 64) for model in ("a", "b:c", "ü")}) == 1
    assert len({shard_of(model_scope(provider, "p", "m"), 64) for provider in "abcdefgh"}) > 1


@pytest.mark.slow
async def test_the_contract_is_tested_across_shards(all_backends: list[Backend]) -> None:
    """The projects of the random play are in several shards of the sharded backends."""
    divided = 0
    for backend in all_backends:
        async with backend.open(ManualClock()) as store:
            if isinstance(store, Sharded) and store.shards > 1:
                divided += 1
                assert len({store.shard_of(deployment(f"project-{n}")) for n in range(3)}) == 3
    assert divided == 2


# --- how many there are -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "rediss+cluster", "unix"])
def test_the_url_says_how_many(scheme: str) -> None:
    """As an option among others, which is not passed to redis-py."""
    store = open_store(f"{scheme}://:s3cret@/tmp/x?shards=8&client_name=me" if scheme == "unix" else
                       f"{scheme}://:s3cret@host?client_name=me&shards=8")  # fmt: skip
    assert isinstance(store, Sharded)
    assert store.shards == 8
    assert repr(store).endswith("namespace='llm_router', shards=8)")


@pytest.mark.parametrize("shards", ["0", "-1", "257", "three", "", "1.5", "٣"])
def test_a_number_of_shards_that_makes_no_sense_is_refused(shards: str) -> None:
    """In the URL and as an argument."""
    with pytest.raises(ConfigError, match="shards must be a whole number from 1 to 256"):
        RedisStore(f"redis://host?shards={shards}&client_name=x")
    if shards.lstrip("-").isascii() and shards.lstrip("-").isdigit():
        with pytest.raises(ConfigError, match="shards must be a whole number from 1 to 256"):
            RedisStore("redis://host", shards=int(shards))


def test_two_numbers_must_agree() -> None:
    """Neither the argument nor the URL takes precedence."""
    assert RedisStore("redis://host?shards=3", shards=3).shards == 3
    with pytest.raises(ConfigError, match="the URL says shards=3"):
        RedisStore("redis://host?shards=3", shards=4)


def test_every_redis_store_and_a_failover_in_front_of_it_is_sharded() -> None:
    """An undivided store has one shard; the failover passes on what the store says."""
    a = in_shard(2)
    divided, whole = RedisStore("redis://host", shards=SHARDS), RedisStore("redis://host")
    assert (divided.shard_of(a), whole.shard_of(a), whole.shards) == (2, 0, 1)
    in_front = [FailoverStore(store) for store in (divided, whole, MemoryStore())]
    assert all(isinstance(store, Sharded) for store in in_front)
    assert [(store.shards, store.shard_of(a)) for store in in_front] == [(SHARDS, 2), (1, 0), (1, 0)]


# --- reserves -----------------------------------------------------------------------------------------------


async def test_runs_are_asked_in_order(server: RedisServer) -> None:
    """The first candidate with room is taken, whatever its shard; the refusals are in order."""
    shortlist = [in_shard(1), in_shard(1, 1), in_shard(0), in_shard(1, 2), in_shard(3)]
    async with opened(server) as store:
        for number, expected in enumerate(shortlist):
            decision = await reserve(store, f"r{number}", *shortlist)
            assert decision.deployment is expected
            assert [refusal.deployment for refusal in decision.refusals] == shortlist[:number]
        decision = await reserve(store, "too many", *shortlist)
        assert decision.deployment is None
        assert (decision.headroom, decision.daily_headroom) == (0.0, 0.0)
        assert [refusal.deployment for refusal in decision.refusals] == shortlist
        assert {refusal.reason for refusal in decision.refusals} == {"rpm"}
        assert await used(store, *shortlist) == [1] * 5


async def test_a_run_is_one_step_and_one_call(server: RedisServer) -> None:
    """Consecutive candidates of one shard cost one call, not one each."""
    async with opened(server, clock=None) as store:
        shortlist = [in_shard(2, nth) for nth in range(5)]
        await store.snapshot([])
        with server.client() as client:
            client.config_resetstat()
            for number in range(6):
                await reserve(store, f"r{number}", *shortlist)
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 6


async def test_concurrent_reserves_get_exactly_what_there_is(server: RedisServer) -> None:
    """Many at once, each with the shards in another order, break no quota and leave nothing unused."""
    shortlist = [in_shard(shard, nth, limit=5) for shard in range(SHARDS) for nth in range(2)]
    async with opened(server) as one, opened(server) as two:
        orders = [shortlist[n:] + shortlist[:n] for n in range(8)]
        decisions = await asyncio.gather(
            *(reserve((one, two)[n % 2], f"r{n}", *orders[n % 8]) for n in range(100))
        )
        assert sum(decision.deployment is not None for decision in decisions) == 40
        assert await used(one, *shortlist) == [5] * 8


async def test_without_candidates_nothing_is_taken(server: RedisServer) -> None:
    """The decision is the same as that of an undivided store."""
    async with opened(server) as divided, opened(server, shards=1) as whole:
        assert await reserve(divided, "r") == await reserve(whole, "r") == Decision(None, 0.0, 0.0)


@pytest.mark.parametrize("steps", range(10))
async def test_a_cancelled_reserve_that_is_released_keeps_nothing(server: RedisServer, steps: int) -> None:
    """Whichever shard it was asking when it was cancelled."""
    spent, free = in_shard(0), in_shard(1)
    async with opened(server) as store:
        await reserve(store, "first", spent)
        call = asyncio.create_task(reserve(store, "r", spent, free))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await store.release("r")
        await asyncio.gather(call, return_exceptions=True)
        assert await used(store, spent, free) == [1, 0]


@pytest.mark.parametrize("steps", range(10))
async def test_a_reserve_released_before_its_end_keeps_nothing(server: RedisServer, steps: int) -> None:
    """Calls on one id take effect in order, although the reserve still has shards to ask."""
    spent, free = in_shard(0), in_shard(1)
    async with opened(server) as store:
        await reserve(store, "first", spent)
        call = asyncio.create_task(reserve(store, "r", spent, free))
        for _ in range(steps + 1):
            await asyncio.sleep(0)
        await store.release("r")
        await call
        assert await used(store, spent, free) == [1, 0]


async def test_a_slow_server_is_not_asked_shard_after_shard() -> None:
    """After its timeout a reserve gives up instead of asking the next shard."""

    class SlowLane:
        asked = 0

        def add(self, operation: Any) -> None:
            SlowLane.asked += 1
            loop = asyncio.get_running_loop()
            loop.call_later(0.06, operation.future.set_result, Decision(None, 0.0, 0.0))

    lanes: Any = [(SlowLane(),)] * SHARDS
    router = Sharding(SHARDS, 0.1, "somewhere")
    with pytest.raises(StoreUnavailableError, match="somewhere did not answer"):
        await router.reserve(lanes, "r", [in_shard(n) for n in range(4)], ONE, 60)
    assert SlowLane.asked == 2


# --- settling -----------------------------------------------------------------------------------------------


async def test_a_reservation_made_elsewhere_is_found(server: RedisServer) -> None:
    """Whichever process made it, even if it is not remembered; an unknown id changes nothing."""
    deployments = [in_shard(shard) for shard in range(SHARDS)]
    async with opened(server) as one, opened(server) as two:
        for each in deployments:
            await reserve(one, each.id, each)
        for each in deployments[:2]:
            await two.release(each.id)
            await one.release(each.id)
        await two.settle(deployments[2].id, Demand(5, 0))
        await two.settle("unknown", Demand(5, 0))
        assert await used(two, *deployments) == [0, 0, 5, 1]


async def test_a_reservation_made_here_costs_one_call(server: RedisServer) -> None:
    """Its shard is remembered until it is settled; an unknown one costs one call for each shard."""
    a = in_shard(3)
    async with opened(server) as store:
        await reserve(store, "r", a)
        await store.snapshot([])
        with server.client() as client:
            for calls in (1, SHARDS):
                client.config_resetstat()
                await store.release("r")
                assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == calls


async def test_what_is_remembered_is_bounded(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten, but can be settled; those that were refused are not remembered."""
    monkeypatch.setattr(sharding, "_MAX_REMEMBERED", 10)
    deployments = [in_shard(shard, limit=20) for shard in range(SHARDS)]
    async with opened(server) as store:
        for number in range(40):
            await reserve(store, f"r{number}", deployments[number % SHARDS])
        assert len(store._sharding._made) == 10
        for number in range(40):
            await store.release(f"r{number}")
        assert not store._sharding._made
        assert await used(store, *deployments) == [0] * SHARDS
        await asyncio.gather(*(reserve(store, f"s{n}", deployments[0]) for n in range(30)))
        assert len(store._sharding._made) <= 10


# --- cooldowns and snapshots --------------------------------------------------------------------------------


async def test_a_cooldown_reaches_the_shards_it_concerns(server: RedisServer) -> None:
    """A model's reaches its own shard; a key's or provider's reaches all, and so does lifting it."""
    deployments = [in_shard(shard, limit=50) for shard in range(SHARDS)]
    elsewhere = [
        Deployment(Key("shared", Secret("x"), project=each.key.project), "flash", quotas=each.quotas)
        for each in deployments
    ]
    async with opened(server) as store, opened(server) as other:
        until = ManualClock().time() + 30

        async def refused(*asked: Deployment) -> list[bool]:
            return [not (await reserve(other, f"{id(each)}", each)).deployment for each in asked]

        await store.cool_down(Cooldown(deployments[1].model_scope, until, "m", (LearntLimit(Metric.RPM, 7),)))
        assert await refused(*deployments) == [False, True, False, False]
        assert [s.quotas[0].limit for s in await other.snapshot(deployments)] == [50, 7, 50, 50]
        await store.cool_down(Cooldown.lift(deployments[1].model_scope))
        await store.cool_down(Cooldown(elsewhere[0].key_scope, math.inf, "dead"))
        assert await refused(*elsewhere, *deployments) == [True] * 4 + [False] * 4
        await store.cool_down(Cooldown.lift(elsewhere[0].key_scope))
        await store.cool_down(Cooldown(deployments[0].provider_scope, until, "down"))
        assert await refused(*elsewhere, *deployments) == [True] * 8


async def test_a_snapshot_spans_the_shards(server: RedisServer) -> None:
    """In the order asked for, however many there are, and twice if asked for twice."""
    deployments = [deployment(f"key-{n}", limit=9) for n in range(300)]
    asked = [*reversed(deployments), *deployments[:50]]
    async with opened(server) as store:
        assert {store.shard_of(each) for each in deployments} == set(range(SHARDS))
        await asyncio.gather(*(reserve(store, f"r{n}", deployments[n]) for n in range(0, 300, 3)))
        snapshots = await store.snapshot(asked)
    assert [snapshot.deployment for snapshot in snapshots] == asked
    expected = [int(deployments.index(each) % 3 == 0) for each in asked]
    assert [snapshot.quotas[0].used for snapshot in snapshots] == expected


@pytest.mark.parametrize("shards", [1, SHARDS])
async def test_a_snapshot_of_nothing_asks_every_shard(server: RedisServer, shards: int) -> None:
    """The failover uses this to find out whether the store answers again."""
    async with opened(server, shards=shards) as store:
        await store.snapshot([])
        with server.client() as client:
            client.config_resetstat()
            assert await store.snapshot([]) == []
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == shards


async def test_the_keys_of_each_shard_share_a_hash_tag(server: RedisServer) -> None:
    """What a script uses is in one slot: no key has a tag other than that of its shard."""
    deployments = [in_shard(shard) for shard in range(SHARDS)]
    async with opened(server) as store:
        for each in deployments:
            await reserve(store, each.id, each)
            await store.cool_down(Cooldown(each.key_scope, math.inf, "dead"))
    with server.client() as client:
        keys = [key.decode() for key in client.scan_iter()]
    tags = {
        names.sweep.partition(":sweep")[0]: shard for shard, names in enumerate(key_names("llm_router", 4))
    }
    assert {key.partition("}")[0] + "}" for key in keys} == tags.keys()
    for key in keys:
        scope = key.partition(":scope:")[2]
        if scope.startswith("model:"):
            assert tags[key.partition(":scope:")[0]] == shard_of(scope, SHARDS)


async def test_closing_one_store_leaves_no_connection(server: RedisServer) -> None:
    """The lanes of an event loop share a client, which the last of them closes."""
    with server.client() as client:
        before = client.info("clients")["connected_clients"]
        async with opened(server) as store:
            await asyncio.gather(*(reserve(store, f"r{n}", in_shard(n)) for n in range(SHARDS)))
            assert before < client.info("clients")["connected_clients"] <= before + SHARDS
        for _ in range(100):
            if client.info("clients")["connected_clients"] == before:
                break
            await asyncio.sleep(0.01)
        assert client.info("clients")["connected_clients"] == before


def test_a_sharded_store_outlives_its_event_loop(server: RedisServer) -> None:
    """Connections of an event loop are closed when it ends, whichever lanes it had used."""
    store = RedisStore(server.url, shards=SHARDS)
    for shard in range(SHARDS):
        assert asyncio.run(reserve(store, f"r{shard}", in_shard(shard))).deployment is not None
    with server.client() as client:
        assert client.info("clients")["connected_clients"] == 1

"""Full deployments in Redis: what is known of them answers as their ledgers do, and makes refusing cheap."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from hypothesis import HealthCheck, given, settings

from llm_router import RateLimitStore
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.stores import Decision
from llm_router.stores.redis import RedisStore, scripts
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer
    from tests.stores.store_model import Player, StoreModel, plays, worlds
else:
    from llm_router_tests_store_model import Player, plays, worlds

pytestmark = pytest.mark.slow


START = 1_800_041_000.25
SPAN = 60.3
QUOTAS = (Quota(Metric.RPM, 6), Quota(Metric.TPM, 4_000), Quota(Metric.RPD, 500, Refill.DAILY))
_ids = itertools.count()
CROWDED = "count > (8) and (byte(id, -1) or 0) % (4) == 0"
"""When a refusal notes what is known: if there are many candidates, and then for one reservation in four."""


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every refusal note what is known."""
    source = scripts.load_script().source
    assert source.count(CROWDED) == 1
    source = source.replace(CROWDED, "true")
    script = scripts.Script(source, hashlib.sha1(source.encode()).hexdigest())
    monkeypatch.setattr("llm_router.stores.redis.store.load_script", lambda: script)


def deployment(name: str, *quotas: Quota) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=quotas or QUOTAS)


async def reserve(
    store: RateLimitStore, *candidates: Deployment, tokens: int = 0, reservation_id: str = ""
) -> Decision:
    return await store.reserve(reservation_id or f"r{next(_ids)}", candidates, Demand(1, tokens), 600.0)


async def fill(store: RateLimitStore, clock: ManualClock, *deployments: Deployment) -> None:
    """Spend every deployment: six requests, a second apart, of 200 to 700 tokens."""
    for turn in range(6):
        for each in deployments:
            decision = await reserve(store, each, tokens=200 + 100 * turn)
            assert decision.deployment is each
        clock.shift(1.0)


def forget(server: RedisServer, pattern: str = "*:full:*") -> int:
    """Delete what is known of full deployments; return of how many."""
    with server.client() as client:
        keys = list(client.scan_iter(pattern))
        return client.delete(*keys) if keys else 0


class Commands:
    """Counts the commands that a server runs in a ``with`` block."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def __enter__(self) -> Self:
        with self._server.client() as client:
            client.config_resetstat()
        return self

    def __exit__(self, *error: object) -> None:
        with self._server.client() as client:
            statistics = client.info("commandstats")
        self.counts = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in statistics.items()}

    def count(self, name: str) -> int:
        calls: int = self.counts.get(name, 0)
        return calls


class Unchecked:
    """In place of the model of a player: the two players are compared with each other."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.mark.slow
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=worlds(), operations=plays())
async def test_it_makes_no_difference_to_any_answer(server: RedisServer, world: Any, operations: Any) -> None:
    """A store that forgets it before every call decides alike, to the microsecond."""
    with server.client() as client:
        client.flushall()
    async with AsyncExitStack() as stack:
        players = []
        for namespace in ("knows", "forgets"):
            clock = ManualClock(world.start)
            store = RedisStore(server.url, namespace=namespace, clock=clock)
            opened = await stack.enter_async_context(aclosing(store))
            players.append(Player(opened, clock, world, cast("StoreModel", Unchecked())))
        knows, forgets = players
        for operation in operations:
            forget(server, "{forgets}:full:*")
            await knows.play([operation])
            await forgets.play([operation])
            assert knows.answers[-1:] == forgets.answers[-1:]


async def test_no_ledger_is_read_to_refuse_again(server: RedisServer) -> None:
    """Whatever the demand: a second refusal only reads what the first one left, in one command."""
    clock = ManualClock(START)
    full = [deployment(f"full-{n}") for n in range(128)]
    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        await fill(store, clock, *full)
        assert (await reserve(store, *full, tokens=3_999)).deployment is None
        for tokens in (0, 1, 50, 1_000, 3_999):
            with Commands(server) as commands:
                decision = await reserve(store, *full, tokens=tokens)
            assert len(decision.refusals) == 128
            assert (commands.count("get"), commands.count("set"), commands.count("evalsha")) == (0, 0, 1)
            assert commands.count("mget") <= 3


async def test_a_larger_demand_than_any_before_is_looked_up_once(server: RedisServer) -> None:
    """It is decided by the ledgers, and leaves what is needed for the next one that is as large."""
    clock = ManualClock(START)
    limited = deployment("a", Quota(Metric.TPM, 40_000))
    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        for _ in range(40):
            assert (await reserve(store, limited, tokens=1_000)).deployment is limited
            clock.shift(1.0)
        for tokens, rewritten in ((1_000, 1), (8_000, 0), (20_500, 1), (39_500, 0), (33_000, 0)):
            with Commands(server) as commands:
                [refusal] = (await reserve(store, limited, tokens=tokens)).refusals
            assert refusal.retry_at == START + SPAN + -(-tokens // 1_000) - 1
            assert (commands.count("set") > 0) == (rewritten > 0)


@pytest.mark.parametrize("change", ["release", "settle", "limit", "profile", "time", "lift"])
async def test_what_changes_is_noticed_at_once(server: RedisServer, change: str) -> None:
    """By another process, at its next call, whatever makes room."""
    clock = ManualClock(START)
    limited, raised = deployment("a"), deployment("a", Quota(Metric.RPM, 7), *QUOTAS[1:])
    async with (
        aclosing(RedisStore(server.url, clock=clock)) as store,
        aclosing(RedisStore(server.url, clock=clock)) as other,
    ):
        await reserve(store, limited, tokens=10, reservation_id="first")
        if change == "lift":
            await store.cool_down(Cooldown(limited.model_scope, START + 500.0, "rests"))
        else:
            for _ in range(5):
                await reserve(store, limited, tokens=798)
        for handle in (store, other):
            [refusal] = (await reserve(handle, limited, tokens=5)).refusals
            assert refusal.retry_at > clock.time()
        assert forget(server, "*:full:nothing") == 0
        if change == "release":
            await store.release("first")
        elif change == "settle":
            await store.settle("first", Demand(0, 0))
        elif change == "time":
            clock.shift(refusal.retry_at - clock.time())
        elif change == "lift":
            await store.cool_down(Cooldown.lift(limited.model_scope))
        wanted = raised if change in ("limit", "profile") else limited
        assert (await reserve(other, wanted, tokens=0)).deployment is wanted


async def test_a_full_deployment_opens_when_its_limit_rises(server: RedisServer) -> None:
    """At that time, or as soon as another process has learnt a higher one."""
    clock = ManualClock(START)
    adaptive = Quota(Metric.RPM, 2, adaptive=True)
    rises, higher = deployment("rises", adaptive), deployment("higher", adaptive)
    async with AsyncExitStack() as stack:
        stores = [RedisStore(server.url, clock=clock) for _ in range(2)]
        one, other = [await stack.enter_async_context(aclosing(store)) for store in stores]
        learnt = LearntLimit(Metric.RPM, 3, raised=4, raise_after=20.0)
        for each in (rises, higher):
            await other.cool_down(Cooldown.learn(each.model_scope, learnt))
            for _ in range(3):
                assert (await reserve(one, each)).deployment is each
        for _ in range(2):
            refused = await reserve(one, rises, higher)
            assert [refusal.retry_at for refusal in refused.refusals] == [START + 20.0] * 2
        with server.client() as client:
            assert len(list(client.scan_iter("*:full:*"))) == 2
        await other.cool_down(Cooldown.learn(higher.model_scope, LearntLimit(Metric.RPM, 5)))
        assert (await reserve(one, rises, higher)).deployment is higher
        clock.shift(20.0)
        assert (await reserve(one, rises, higher)).deployment is rises


async def test_a_cooldown_of_a_full_deployment_is_told_whole(server: RedisServer) -> None:
    """That of its model, which what is known of it holds, and that of its key, which lies elsewhere."""
    clock = ManualClock(START)
    limited = deployment("a")
    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        await fill(store, clock, limited)
        model = Cooldown(limited.model_scope, START + 40.0, "busy: «ü»", strikes=3, half_open=True)
        key = Cooldown(limited.key_scope, START + 80.0, "tired")
        await store.cool_down(model)
        for cooldown, reason, retry_at in ((model, "rpm", SPAN), (key, "tired", 80.0)):
            await store.cool_down(cooldown)
            for _ in range(3):
                [refusal] = (await reserve(store, limited)).refusals
                assert (refusal.cooldown, refusal.reason) == (cooldown, reason)
                assert refusal.retry_at == refusal.wake_at == START + retry_at


async def test_a_call_ends_when_it_has_done_enough(server: RedisServer) -> None:
    """A crowd of demands that many full deployments refuse takes several calls, and every answer is right."""
    clock = ManualClock(START)
    full = [deployment(f"full-{n}", Quota(Metric.TPM, 10**6)) for n in range(300)]
    free = deployment("free", Quota(Metric.RPM, 1))
    async with aclosing(RedisStore(server.url, clock=clock, timeout=20)) as store:
        for _ in range(100):
            await asyncio.gather(*(reserve(store, each, tokens=10_000) for each in full))
            clock.shift(0.5)
        with Commands(server) as commands:
            crowd: list[Coroutine[Any, Any, Any]] = []
            for n in range(12):
                candidates = full[25 * n :][:128]
                crowd.append(store.reserve(f"large-{n}", candidates, Demand(1, 900_000), 60.0))
                crowd.append(store.reserve(f"one-{n}", [free], Demand(1, 0), 60.0))
                crowd.append(store.release(f"one-{n}"))
            outcomes = await asyncio.gather(*crowd)
        assert commands.count("evalsha") > 2  # each of two lanes would need one
    for n, decision in enumerate(outcomes[::3]):
        assert [refusal.deployment for refusal in decision.refusals] == full[25 * n :][:128]
        assert {refusal.retry_at for refusal in decision.refusals} == {START + 89 * 0.5 + SPAN}
    assert all(decision.deployment is free for decision in outcomes[1::3])


async def test_what_a_crowd_asks_for_becomes_known(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first refusal, which may be the only one; and never what few candidates were asked for."""
    monkeypatch.setattr("llm_router.stores.redis.store.load_script", scripts.load_script)
    clock = ManualClock(START)
    full = [deployment(f"full-{n}") for n in range(9)]

    async def known(count: int, reservation_id: str) -> int:
        with server.client() as client:
            await reserve(store, *full[:count], reservation_id=reservation_id)
            return len(list(client.scan_iter("*:full:*")))

    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        await fill(store, clock, *full)
        assert [await known(9, f"many-{end}") for end in "1234"] == [0, 0, 0, 9]
        assert forget(server) == 9
        assert [await known(8, f"few-{end}") for end in "1234"] == [0, 0, 0, 0]

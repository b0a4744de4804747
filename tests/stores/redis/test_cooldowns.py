"""Cooldowns in Redis: which keys are read for them, whose clock they go by, and how lifts are counted."""

from __future__ import annotations

import math
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from llm_router import RateLimitStore
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.stores.redis import RedisStore
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer


START = 1_800_041_000.25
ONE = Demand(1, 0)


def deployment(name: str) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=(Quota(Metric.RPM, 1000),))


async def granted(store: RateLimitStore, *candidates: Deployment) -> bool:
    reservation_id = f"{time.perf_counter_ns()}"
    return (await store.reserve(reservation_id, candidates, ONE, 60.0)).deployment is not None


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("count", [1, 16, 17, 60])
async def test_any_number_of_keys_may_cool_down(server: RedisServer, count: int, shards: int) -> None:
    """Each is refused until its own end, whether there are few enough to list them or not."""
    clock = ManualClock(START)
    keys = [deployment(f"key-{n}") for n in range(count)]
    free = deployment("free")
    async with aclosing(RedisStore(server.url, clock=clock, shards=shards)) as store:
        for n, key in enumerate(keys):
            await store.cool_down(Cooldown(key.key_scope, START + 10.0 + n, "rests"))
        for n, key in enumerate(keys):
            assert await granted(store, free)
            assert not await granted(store, key)
            clock.shift(START + 10.0 + n - clock.time())
            assert await granted(store, key)
        assert not any([not await granted(store, key) for key in keys])


async def test_no_key_is_read_for_nothing(server: RedisServer) -> None:
    """While one key cools down, a reserve with other keys reads no more than before."""
    clock = ManualClock(START)
    first, second = deployment("first"), deployment("second")

    async def commands() -> int:
        with server.client() as client:
            client.config_resetstat()
            assert await granted(store, first)
            statistics = client.info("commandstats")
        return sum(
            statistics[name]["calls"] for name in statistics if name in ("cmdstat_get", "cmdstat_mget")
        )

    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        assert await granted(store, first)
        before = await commands()
        await store.cool_down(Cooldown(second.key_scope, START + 10.0, "rests"))
        assert await commands() == before


@pytest.mark.parametrize("off", [-300.0, 0.0, 300.0])
async def test_verdicts_are_on_the_clock_of_whoever_asks(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """When one began and ends, on a machine whose clock is minutes off; a retry is due at once on any."""
    real = time.time
    dead = deployment("dead")
    verdict = Cooldown(
        dead.key_scope, real() + off + 400.0, "dead", half_open=True, strikes=3, since=real() + off - 5.0
    )
    async with aclosing(RedisStore(server.url)) as neighbour, aclosing(RedisStore(server.url)) as store:
        monkeypatch.setattr(time, "time", lambda: real() + off)
        await store.cool_down(verdict)
        [mine] = [each.cooldown for each in await store.snapshot([dead])]
        assert mine is not None
        assert mine.until == pytest.approx(verdict.until, abs=0.5)
        assert mine.since == pytest.approx(verdict.since, abs=0.5)
        monkeypatch.setattr(time, "time", real)
        [theirs] = [each.cooldown for each in await neighbour.snapshot([dead])]
        assert theirs is not None
        assert theirs.until == pytest.approx(verdict.until - off, abs=0.5)
        assert theirs.since == pytest.approx(verdict.since - off, abs=0.5)
        monkeypatch.setattr(time, "time", lambda: real() + off)
        await store.cool_down(Cooldown.retry(dead.key_scope))
        decision = await store.reserve("probe", [dead], ONE, 60.0)
        assert [probe.strikes for probe in decision.probes] == [3]
        [refusal] = (await store.reserve("other", [dead], ONE, 60.0)).refusals
        assert refusal.cooldown is not None
        assert refusal.cooldown.until == pytest.approx(time.time() + 60.0, abs=1.0)


async def test_a_lift_in_one_shard_is_noticed_in_all(server: RedisServer) -> None:
    """The number that a sharded store reports changes, whichever shard is asked next."""
    clock = ManualClock(START)
    keys = [deployment(f"key-{n}") for n in range(16)]
    async with (
        aclosing(RedisStore(server.url, clock=clock, shards=4)) as store,
        aclosing(RedisStore(server.url, clock=clock, shards=4)) as other,
    ):
        assert len({store.shard_of(key) for key in keys}) == 4

        async def lifts() -> set[int]:
            return {
                (await store.reserve(f"{time.perf_counter_ns()}", [key], ONE, 60.0)).lifts for key in keys
            }

        await lifts()
        [before] = await lifts()
        await other.cool_down(Cooldown(keys[0].key_scope, math.inf, "disabled"))
        assert await lifts() == {before}
        await other.cool_down(Cooldown.lift(keys[0].key_scope))
        assert before not in await lifts()


async def test_one_request_probes_a_provider_for_all_shards(server: RedisServer) -> None:
    """Those of other shards wait for it, until the cooldown is lifted or a minute has passed."""
    clock = ManualClock(START)
    keys = [deployment(f"key-{n}") for n in range(16)]
    async with aclosing(RedisStore(server.url, clock=clock, shards=4)) as store:
        assert len({store.shard_of(key) for key in keys}) == 4
        verdict = Cooldown(keys[0].provider_scope, START + 10.0, "down", half_open=True, strikes=2)
        await store.cool_down(verdict)
        for turn in (10.0, 70.0):
            clock.shift(START + turn - clock.time())
            assert [await granted(store, key) for key in keys] == [True] + [False] * 15
            [refusal] = (await store.reserve("refused", [keys[-1]], ONE, 60.0)).refusals
            assert refusal.cooldown is not None
            assert refusal.cooldown.until == START + turn + 60.0
            keys.reverse()
        await store.cool_down(Cooldown.lift(verdict.scope))
        assert all([await granted(store, key) for key in keys])


async def test_the_number_of_lifts_never_returns(server: RedisServer) -> None:
    """Not even if the server was emptied in between."""
    seen = set()
    dead = deployment("dead")
    clock = ManualClock(START)
    async with aclosing(RedisStore(server.url, clock=clock)) as store:
        for _ in range(3):
            await store.cool_down(Cooldown(dead.key_scope, math.inf, "disabled"))
            await store.cool_down(Cooldown.lift(dead.key_scope))
            seen.add((await store.reserve(f"{time.perf_counter_ns()}", [dead], ONE, 60.0)).lifts)
            with server.client() as client:
                client.flushall()
            clock.shift(1.0)
    assert len(seen) == 3

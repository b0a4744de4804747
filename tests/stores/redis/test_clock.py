"""The first call of a Redis store on a machine whose clock differs from the server's."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

import pytest

from llm_router import RateLimitStore, SystemClock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.quota import Demand
from llm_router.errors import StoreUnavailableError
from llm_router.stores.redis import RedisStore

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.servers import RedisServer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("off", [-90_000.0, -300.0, 300.0, 90_000.0])
async def test_a_cooldown_may_be_the_first_call(
    redis_server: RedisServer, pools: Pools, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """Its end is on the caller's clock, and right for every other process."""
    deployment, other = pools.one(), pools.one()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + off)
    store = RedisStore(redis_server.url)
    await store.cool_down(Cooldown(deployment.model_scope, time.time() + 40, "rest"))
    await store.cool_down(Cooldown(other.key_scope, math.inf, "dead"))
    mine = await store.snapshot([deployment, other])
    await store.aclose()
    monkeypatch.setattr(time, "time", real)
    neighbour = RedisStore(redis_server.url)
    theirs = await neighbour.snapshot([deployment, other])
    await neighbour.aclose()
    ends = [snapshot.cooldown.until for snapshot in (*mine, *theirs) if snapshot.cooldown is not None]
    assert len(ends) == 4
    assert 30 < ends[0] - off - time.time() <= 40.5
    assert 30 < ends[2] - time.time() <= 40.5
    assert ends[1] == ends[3] == math.inf


async def test_only_the_first_call_asks_for_the_time(redis_server: RedisServer, pools: Pools) -> None:
    """One more call, once in the lifetime of a store; none if a clock was given."""
    deployment = pools.one()
    with redis_server.client() as client:

        async def count(store: RateLimitStore) -> int:
            client.config_resetstat()
            await store.reserve("r", [deployment], Demand(1, 0), 60)
            statistics = client.info("commandstats")
            return sum(statistics[name]["calls"] for name in statistics if name.startswith("cmdstat_eval"))

        store = RedisStore(redis_server.url)
        await store.snapshot([])  # loads the script
        again, clocked = RedisStore(redis_server.url), RedisStore(redis_server.url, clock=_Still())
        assert [await count(again), await count(again), await count(clocked)] == [2, 1, 1]
        for opened in (store, again, clocked):
            await opened.aclose()


async def test_a_first_call_that_timed_out_takes_no_effect_later(
    redis_server: RedisServer, pools: Pools
) -> None:
    """Not even the very first one: the message says how late the server may begin."""
    deployment = pools.one()
    store = RedisStore(redis_server.url, timeout=0.3)
    redis_server.freeze()
    with pytest.raises(StoreUnavailableError, match="did not answer"):
        await store.reserve("r", [deployment], Demand(1, 0), 60)
    redis_server.thaw()
    await asyncio.sleep(0.1)  # until the server has read its socket
    [snapshot] = await store.snapshot([deployment])
    assert snapshot.quotas[0].used == 0
    await store.aclose()


@pytest.mark.parametrize("step", [-90_000.0, 90_000.0])
async def test_a_clock_that_is_set_costs_no_call_and_delays_no_timeout(
    redis_server: RedisServer, pools: Pools, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The store sees it by another clock: the next call is as usual, and takes no effect once given up."""
    deployment, real = pools.one(), time.time
    store = RedisStore(redis_server.url, timeout=0.3)
    await store.reserve("before", [deployment], Demand(1, 0), 60)
    monkeypatch.setattr(time, "time", lambda: real() + step)
    with redis_server.client() as client:
        client.config_resetstat()
        decision = await store.reserve("after", [deployment], Demand(1, 0), 60)
        assert decision.deployment is deployment
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    monkeypatch.setattr(time, "time", lambda: real() + 2 * step)
    redis_server.freeze()
    with pytest.raises(StoreUnavailableError, match="did not answer"):
        await store.reserve("given up", [deployment], Demand(1, 0), 60)
    redis_server.thaw()
    await asyncio.sleep(0.1)  # for the server to read what lies in its socket
    [snapshot] = await store.snapshot([deployment])
    assert snapshot.quotas[0].used == 2
    assert abs(snapshot.quotas[0].resets_at - real() - 2 * step - 60.3) < 5
    await store.aclose()


class _Still(SystemClock):
    def time(self) -> float:
        return 1_800_014_400.0

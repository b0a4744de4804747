"""Charges: what is stored of them, what they cost, and odd arguments; the contract says what counts."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.stores.base import CHARGES_KEPT, Taking
from llm_router.stores.redis import RedisStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer

START = 1_800_041_000.25
ONE = Demand(1, 100)
QUOTAS = (Quota(Metric.RPM, 100), Quota(Metric.TPM, 100_000), Quota(Metric.RPD, 1000, Refill.DAILY))


def deployment(name: str = "a", *quotas: Quota) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=quotas or QUOTAS)


@pytest.fixture
def clock() -> ManualClock:
    """Provide the clock of all stores."""
    return ManualClock(START)


def opened(server: RedisServer, clock: ManualClock) -> aclosing[RedisStore]:
    return aclosing(RedisStore(server.url, clock=clock, timeout=20))


async def used(store: RedisStore, charged: Deployment) -> list[int]:
    [snapshot] = await store.snapshot([charged])
    return [quota.used for quota in snapshot.quotas]


async def test_a_sequence_is_remembered_for_25_hours(server: RedisServer, clock: ManualClock) -> None:
    """Exactly, whatever its size, by whatever store it comes; in one key that expires."""
    a = deployment()
    async with opened(server, clock) as one, opened(server, clock) as two:
        for store, sequence in ((one, 10**19 + 1), (two, 10**19 + 1), (two, 10**19), (two, 10**19 + 2)):
            await store.charge("any: {name} é \ud800", sequence, a, [Taking(START, ONE)])
        assert await used(one, a) == [2, 200, 2]
    with server.client() as client:
        [key] = client.scan_iter("*charge*")
        assert CHARGES_KEPT * 1000 - 60_000 < client.pttl(key) <= CHARGES_KEPT * 1000 + 60_000


async def test_a_sequence_that_an_earlier_version_stored_is_understood(
    server: RedisServer, clock: ManualClock
) -> None:
    """It is compared as a number, of however many digits."""
    a = deployment()
    with server.client() as client:
        client.set("{llm_router}:charge:3:process:" + a.model_scope, "9")
    async with opened(server, clock) as store:
        for sequence in (8, 9, 10, 10, 9):
            await store.charge("process", sequence, a, [Taking(START, ONE)])
        assert await used(store, a) == [1, 100, 1]


async def test_processes_are_forgotten_by_the_server(server: RedisServer) -> None:
    """Their key expires a minute after the last one announced itself; any name will do."""
    async with aclosing(RedisStore(server.url)) as store:
        assert [await store.announce(name) for name in ("a", "b", "a", "\ud800")] == [1, 2, 2, 3]
    with server.client() as client:
        assert 60_000 < client.pttl("{llm_router}:processes:3") <= 120_000


async def test_a_charge_shares_a_call_with_others(server: RedisServer, clock: ManualClock) -> None:
    """What was asked before it does not see it; what is asked after it does."""
    a = deployment("a", Quota(Metric.RPM, 3))
    async with opened(server, clock) as store:
        before, _, after = await asyncio.gather(
            store.snapshot([a]),
            store.charge("process", 1, a, [Taking(START - 1.0, ONE)] * 2),
            store.snapshot([a]),
        )
        assert [before[0].quotas[0].used, after[0].quotas[0].used] == [0, 2]


@pytest.mark.slow
async def test_a_large_charge_keeps_the_record_small(server: RedisServer, clock: ManualClock) -> None:
    """Everything counts, nothing comes back early, and reservations before it are still settled."""
    a = deployment("a", Quota(Metric.TPM, 10**9), Quota(Metric.RPD, 10**6, Refill.DAILY))
    async with opened(server, clock) as store:
        for number in range(100):
            await store.reserve(f"r{number}", [a], Demand(1, 10), 600.0)
            clock.shift(0.4)
        takings = [Taking(START + 0.002 * n, Demand(1, 1)) for n in range(20_000)]
        await store.charge("process", 1, a, takings[::2], takings[1::2], 1.0)
        assert await used(store, a) == [21_000, 20_100]
        for number in range(100):
            await store.settle(f"r{number}", Demand(1, 0))
        assert await used(store, a) == [20_000, 20_100]
        with server.client() as client:
            [key] = client.scan_iter("*scope*")
            assert client.strlen(key) < 480 * 24 + 500
        clock.shift(START + 60.299 - clock.time())
        assert (await used(store, a))[0] == 20_000
        clock.shift(20.0)
        assert 0 < (await used(store, a))[0] <= 10_300
        clock.shift(20.6)
        assert (await used(store, a))[0] == 0


async def test_a_charge_of_all_that_a_process_remembers_blocks_the_server_for_a_moment_only(
    server: RedisServer, clock: ManualClock
) -> None:
    """Other clients wait no longer than they do for any call; it is measured by the server itself."""
    takings = [Taking(START - 59.0 + n / 9, Demand(1, 1)) for n in range(480)]
    took = []
    async with opened(server, clock) as store:
        for n in range(3):
            a = deployment(f"a{n}")
            await store.reserve(f"r{n}", [a], ONE, 600.0)
            with server.client() as client:
                client.config_resetstat()
            await store.charge("process", 1, a, takings)
            with server.client() as client:
                took.append(client.info("commandstats")["cmdstat_evalsha"]["usec"])
            assert await used(store, a) == [481, 580, 481]
    assert min(took) < 10_000


async def test_a_charge_counts_for_a_daily_quota_that_is_kept_aside(
    server: RedisServer, clock: ManualClock
) -> None:
    """A quota that is daily again knows what was charged while it was not."""
    daily, rolling = (
        deployment("a", Quota(Metric.RPD, 100, refill)) for refill in (Refill.DAILY, Refill.ROLLING)
    )
    async with opened(server, clock) as store:
        await store.charge("process", 1, daily, [Taking(START, ONE)] * 3)
        await store.charge("process", 2, rolling, [Taking(START, ONE)] * 4)
        clock.shift(100.0)
        assert await used(store, daily) == [7]


async def test_takings_of_the_future_count_from_now(server: RedisServer, clock: ManualClock) -> None:
    """The clock of a caller may be ahead."""
    a = deployment()
    async with opened(server, clock) as store:
        await store.charge("process", 1, a, [Taking(START + 1000.0, ONE), Taking(START, ONE)])
        assert await used(store, a) == [2, 200, 2]
        clock.shift(60.3)
        assert await used(store, a) == [0, 0, 2]


async def test_what_a_provider_claims_does_not_spoil_the_sums(
    server: RedisServer, clock: ManualClock
) -> None:
    """More tokens than a double holds exactly: others are still told when there is room."""
    a = deployment("a", Quota(Metric.TPM, 10**6))
    async with opened(server, clock) as store:
        for number in range(12):
            await store.reserve(f"r{number}", [a], Demand(1, 101), 600.0)
            clock.shift(1.0)
        await store.settle("r1", Demand(1, 10**18))
        await store.settle("r3", Demand(1, 10**18))
        for _ in range(70):
            clock.shift(1.0)
            decision = await store.reserve("more", [a], ONE, 60.0)
            assert decision.deployment is a or decision.refusals[0].retry_at > clock.time()
            await store.release("more")
        assert await used(store, a) == [0]


@pytest.mark.parametrize("odd", [math.inf, math.nan, -math.inf, 1e300, -1, 10**400, None, "x"])
async def test_odd_arguments_harm_no_other_caller(server: RedisServer, clock: ManualClock, odd: Any) -> None:
    """They fail alone, or count as something that makes sense."""
    a, b = deployment("a"), deployment("b")
    quarter = deployment("c", Quota(Metric.TPM, 1000))
    async with opened(server, clock) as store:
        good = [store.reserve(f"good {n}", [a], ONE, 60.0) for n in range(4)]
        await store.reserve("r", [b], ONE, 60.0)
        outcomes = await asyncio.gather(
            good[0],
            store.reserve("odd ttl", [b], ONE, odd),
            store.reserve("odd tokens", [b], Demand(1, odd), 60.0),
            store.settle("r", Demand(odd, odd)),
            good[1],
            store.charge("process", 1, quarter, [Taking(odd, ONE)]),
            store.charge("process", 2, quarter, [Taking(START, Demand(1, odd))], since=odd),
            store.charge("process", odd, quarter, [Taking(START, ONE)]),
            store.charge(odd, 3, quarter, [Taking(START, ONE)]),
            good[2],
            store.cool_down(Cooldown(quarter.model_scope, odd, "odd")),
            store.cool_down(Cooldown(quarter.key_scope, odd, "odd")),
            store.cool_down(Cooldown(quarter.model_scope, START + 1.0, "", (LearntLimit(Metric.RPM, odd),))),
            good[3],
            return_exceptions=True,
        )
        for place in (0, 4, 9, 13):
            assert getattr(outcomes[place], "deployment", None) is a, outcomes[place]
        assert await used(store, a) == [4, 400, 4]
        await store.snapshot([b, quarter])
        assert (await store.reserve("later", [b, a], ONE, 60.0)).deployment is not None

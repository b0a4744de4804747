"""What a router learns of limits from a provider that keeps them to itself."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import Deployment, ProviderError, Reply, Request, Router
from llm_router.domain.calendar import next_midnight
from llm_router.domain.kinds import Metric
from llm_router.domain.quota import PROVIDER_TIMEZONE, Quota, Refill
from llm_router.errors import QuotaViolation
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]


def refusal(limit: int | None = None, *, delay: float | None = 1.0) -> ProviderError:
    violations = (QuotaViolation(Metric.RPM, limit),)
    return ProviderError(
        "spent", kind="quota", code=429, violations=violations, retry_delay=delay, charged=False
    )


class Hidden(FakeProvider):
    """Admits so many requests in any minute, and names the quota in its refusals, not the number."""

    def __init__(self, clock: ManualClock, limit: int) -> None:
        super().__init__(clock=clock)
        self.refused = 0
        self._time = clock.time
        self._limit = limit
        self._admitted: list[float] = []

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        now = self._time()
        self._admitted = [at for at in self._admitted if at > now - 60.0]
        if len(self._admitted) >= self._limit:
            self.refused += 1
            raise refusal(delay=self._admitted[0] + 60.0 - now)
        self._admitted.append(now)
        return await super().generate(deployment, request, dispatched)


async def test_a_limit_far_above_the_real_one_is_found_in_the_second_minute(
    make_router: MakeRouter, clock: ManualClock, pools: Pools
) -> None:
    """The first answer after a refusal shows only that the minute is over."""
    provider = Hidden(clock, 10)
    async with make_router([pools.one(rpm=60)], provider=provider) as router:
        for _ in range(1_000):
            await router.send("x")
            clock.shift(1.0)
        [status] = await router.get_all_key_statuses()
    assert provider.refused <= 6
    assert status["limits"]["rpm"]["limit"] in (10, 11)


@pytest.mark.parametrize("limits", [{"tpm": 100_000}, {"rpd": 100_000}, {}])
async def test_a_limit_on_what_nobody_configured_is_found(
    make_router: MakeRouter, clock: ManualClock, pools: Pools, limits: dict[str, Any]
) -> None:
    """A refusal that names it has it counted from then on."""
    provider = Hidden(clock, 10)
    async with make_router([pools.one(**limits)], provider=provider) as router:
        for _ in range(1_000):
            await router.send("x")
            clock.shift(1.0)
        [status] = await router.get_all_key_statuses()
    assert provider.refused <= 9
    assert status["limits"]["rpm"]["limit"] in (10, 11)


class Daily(FakeProvider):
    """Admits 10 requests in any minute and 60 a day (in Los Angeles), and says nothing in its refusals."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.refused: list[int] = []
        self._time = clock.time
        self._admitted: list[float] = []
        self.left = 0

    def begin_day(self, left: int = 60) -> None:
        self.left = left
        self.refused.append(0)

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        now = self._time()
        self._admitted = [at for at in self._admitted if at > now - 60.0]
        if len(self._admitted) >= 10 or not self.left:
            self.refused[-1] += 1
            raise ProviderError("exhausted", kind="quota", code=429, charged=False)
        self._admitted.append(now)
        self.left -= 1
        return await super().generate(deployment, request, dispatched)


@pytest.mark.parametrize("rpd", [1000, None])
async def test_from_the_second_day_on_its_end_is_one_refusal(
    make_router: MakeRouter, clock: ManualClock, pools: Pools, rpd: int | None
) -> None:
    """Also where both the minute and the day were unknown, or the day was not counted before its first end.

    The limit of the minute is not forgotten, and not tried. On a day that admits more, all is used.
    """
    provider = Daily(clock)
    clock.shift(next_midnight(clock.time(), PROVIDER_TIMEZONE) - clock.time())
    async with make_router([pools.one(rpm=60, rpd=rpd)], provider=provider) as router:
        for day in range(5):
            began = clock.time()
            provider.begin_day(60 if day < 4 else 120)
            for _ in range(1_200):
                await router.send("x")
                clock.shift(2.0)
            for _ in range(120):
                await router.send("x")
                clock.shift(600.0)
            assert provider.left == 0
            clock.shift(began + 86_400.0 - clock.time())
    assert provider.refused[2:4] == [1, 1]
    assert rpd is None or provider.refused[1] == 1


@pytest.mark.parametrize("stated", [None, 250])
async def test_a_refusal_of_the_minute_does_not_confirm_that_the_day_is_over(
    make_router: MakeRouter, clock: ManualClock, provider: FakeProvider, pools: Pools, stated: int | None
) -> None:
    """The first one of a day is tried again, also by who probes after a refusal without a name."""
    day = ProviderError(
        "spent",
        kind="quota",
        code=429,
        violations=(QuotaViolation(Metric.RPD, stated),),
        retry_delay=30.0,
        charged=False,
    )
    async with make_router([pools.one(rpm=15, rpd=250)], max_retries=0) as router:
        for _ in range(3):
            assert (await router.send("x")).success
        provider.script(
            ProviderError("exhausted", kind="quota", code=429, retry_delay=5.0, charged=False), day
        )
        assert not (await router.send("x")).success
        await clock.advance(5.1)
        assert not (await router.send("x")).success
        assert (await router.send("x")).retry_after == pytest.approx(30.0)
        [status] = await router.get_all_key_statuses()
        assert status["limits"]["rpd"]["limit"] == 250
        provider.script(day)
        await clock.advance(30.1)
        assert not (await router.send("x")).success
        midnight = next_midnight(clock.time(), PROVIDER_TIMEZONE)
        assert (await router.send("x")).retry_after == pytest.approx(midnight + 1.0 - clock.time())


async def test_no_quota_at_all_is_no_limit_to_keep_to(
    make_router: MakeRouter, clock: ManualClock, provider: FakeProvider, pools: Pools
) -> None:
    """Of two requests that were on their way together, the second teaches nothing more."""
    gate = asyncio.Event()
    provider.script([gate, refusal(0)], times=2)
    async with make_router([pools.one(rpm=10)]) as router:
        tasks = [asyncio.create_task(router.send("x")) for _ in range(2)]
        await clock.advance(1.0)  # until both are on their way
        gate.set()
        assert [(await task).success for task in tasks] == [False, False]
        [status] = await router.get_all_key_statuses()
        assert (status["limits"]["rpm"]["limit"], status["limits"]["rpm"]["source"]) == (10, "configured")


@pytest.mark.parametrize("limit", [-5, 10**18, 2.5, math.nan, "7", True])
async def test_a_limit_that_is_no_number_is_not_stated(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, limit: Any
) -> None:
    """What an adapter reads of a refusal may be nonsense: what was admitted counts."""
    assert QuotaViolation(Metric.RPM, limit).limit is None
    async with make_router([pools.one(rpm=10)]) as router:
        for _ in range(6):
            await router.send("x")
        provider.script(refusal(limit))
        await router.send("x")
        [status] = await router.get_all_key_statuses()
    assert (status["limits"]["rpm"]["limit"], status["limits"]["rpm"]["source"]) == (6, "inferred")


@pytest.mark.parametrize("burst", [1, 3])
async def test_a_steady_limit_rises_to_what_is_configured(
    make_router: MakeRouter, clock: ManualClock, provider: FakeProvider, pools: Pools, burst: int
) -> None:
    """Once the provider admits it again, though its bucket gives out before as much is owed as the limit."""
    quotas = (Quota(Metric.RPM, 10, Refill.STEADY, burst=burst),)
    async with make_router([attrs.evolve(pools.one(), quotas=quotas)]) as router:
        provider.script(refusal(3))
        for _ in range(1_800):
            await router.send("x")
            clock.shift(2.0)
        before = len(provider.calls)
        for _ in range(300):
            await router.send("x")
            clock.shift(2.0)
    assert len(provider.calls) - before >= 70


async def test_what_refusals_suggest_is_logged_once(
    make_router: MakeRouter,
    clock: ManualClock,
    provider: FakeProvider,
    pools: Pools,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In one line for each deployment, however many refusals follow."""
    caplog.set_level(logging.WARNING, "llm_router")
    pool = [pools.one(key_id="a"), pools.one(key_id="b")]
    async with make_router(pool, max_retries=1, totals=False) as router:
        for _ in range(8):
            provider.script(refusal(15, delay=None), refusal(15, delay=None))
            await router.send("x")
            clock.shift(400.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all("probably one project" in line for line in lines)


async def test_limits_rise_after_the_clock_was_set_back(
    make_router: MakeRouter, clock: ManualClock, provider: FakeProvider, pools: Pools
) -> None:
    """The time of the next look at them is set back as well."""
    async with make_router([pools.one(rpm=10)]) as router:

        async def sent(minutes: int) -> int:
            before = len(provider.calls)
            for _ in range(12 * minutes):
                await router.send("x")
                clock.shift(5.0)
            return len(provider.calls) - before

        provider.script(refusal(2))
        await sent(3)
        clock.jump(-7_200.0)
        assert await sent(20) > 100

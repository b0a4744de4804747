"""Forecasts: never later than what happens, and exact where a line alone uses its deployments."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_router import Deployment, Key, Metric, Quota, QuotaExhaustedError, Refill, Response, Router, Secret
from llm_router.engine import reserving
from llm_router.engine.forecast import Forecast, forecast_for
from llm_router.engine.index import FallbackOrder
from llm_router.engine.pool import Pool
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

WINDOW = 60.3


def _next(times: list[float], most: int, now: float) -> float:
    """Return when the next request can be granted: no window may hold more."""
    return max(now, times[-most] + WINDOW) if len(times) >= most else now


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(1, 6),
    gaps=st.lists(st.floats(0, 40), max_size=20),
    known=st.lists(st.booleans(), min_size=20, max_size=20),
    first=st.floats(0, 100),
    ahead=st.integers(0, 20),
)
def test_a_forecast_is_what_the_limit_allows(
    most: int, gaps: list[float], known: list[bool], first: float, ahead: int
) -> None:
    """It is exact where the line made all grants, and too early, but never too late, where others did."""
    exact, partial = Forecast(most, WINDOW), Forecast(most, WINDOW)
    times: list[float] = []
    now = 0.0
    for gap, is_known in zip(gaps, known, strict=False):
        now = _next(times, most, now + gap)
        times.append(now)
        exact.note(now)
        if is_known:
            partial.note(now)
    found = list(times)
    for _ in range(ahead + 1):
        found.append(_next(found, most, max(now, first)))
    assert exact.earliest(ahead, now, first) == pytest.approx(found[-1])
    assert partial.earliest(ahead, now, first) <= found[-1] + 1e-6


def test_what_came_back_early_or_cannot_be_is_not_relied_on() -> None:
    """After a return only whole windows count; more grants than the limit allows cast doubt on all of it."""
    forecast = Forecast(2, 60.0)
    forecast.note(100.0)
    forecast.note(101.0)
    assert forecast.earliest(1, 102.0, 0.0) == 161.0
    forecast.forget()
    assert forecast.earliest(1, 102.0, 0.0) == 102.0
    assert forecast.earliest(2, 102.0, 0.0) == 162.0
    for at in (102.0, 103.0, 104.0):
        forecast.note(at)
    assert forecast.earliest(50, 105.0, 0.0) == 105.0
    assert forecast.earliest(2, 170.0, 0.0) == 230.0


def _order(make_pool: Callable[..., Pool], make_order: Callable[..., FallbackOrder], *quotas: Any) -> Any:
    return make_order(
        make_pool(
            [
                Deployment(Key(f"k{n}", Secret("s"), project=project), "m", "light", quotas=tuple(each))
                for n, (project, *each) in enumerate(quotas)
            ]
        )
    )


def test_only_certain_limits_are_relied_on(
    make_pool: Callable[..., Pool], make_order: Callable[..., FallbackOrder]
) -> None:
    """Keys of one project count once; where one limit is unknown, learnt, steady or daily there is none."""
    five, day = Quota(Metric.RPM, 5), Quota(Metric.RPD, 5, Refill.DAILY)
    forecast = forecast_for(_order(make_pool, make_order, ("a", five), ("a", five, day), ("b", five)))
    assert forecast is not None
    assert forecast.earliest(9, 0.0, 0.0) == 0.0
    assert forecast.earliest(10, 0.0, 0.0) == pytest.approx(WINDOW)
    learnt = Quota(Metric.RPM, 5, adaptive=True)
    for other in (learnt, Quota(Metric.RPM, 5, Refill.STEADY), day, Quota(Metric.TPM, 5)):
        assert forecast_for(_order(make_pool, make_order, ("a", five), ("b", other))) is None
    assert forecast_for(_order(make_pool, make_order, ("a", Quota(Metric.RPM, 0)))) is None


async def _play(router: Router, clock: ManualClock, seed: int) -> list[Response]:
    """Have sends come at random moments, which wait for random times; return their responses."""
    chance = random.Random(seed)
    random.seed(seed)  # when a line asks
    tasks = [asyncio.create_task(router.send("x")) for _ in range(10)]
    for _ in range(60):
        await clock.advance(chance.uniform(0, 2.0))
        tasks.append(asyncio.create_task(router.send("x", max_wait=chance.uniform(20, 400))))
    await clock.advance(420)
    return [task.result() for task in tasks]


async def test_who_is_too_late_is_told_at_once_and_nobody_else(
    pools: Pools, make_router: Callable[..., Router], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are told at once are among those that would have waited in vain; all others are served."""
    pool = pools.many(2, rpm=5)
    async with make_router(pool) as router:
        told = await _play(router, clock, 1)
    monkeypatch.setattr(reserving, "forecast_for", lambda _: None)
    async with make_router(pool) as router:
        untold = await _play(router, clock, 1)
    assert [each.success for each in told] == [each.success for each in untold]
    at_once = [each for each in told if not each.success and each.latency == 0.0]
    in_vain = [each for each in told if not each.success and each.latency > 0.0]
    assert len(at_once) > 3 * len(in_vain)


async def test_who_is_told_is_told_exactly_when(
    pools: Pools, make_router: Callable[..., Router], clock: ManualClock
) -> None:
    """With ten a minute and 35 ahead there is room after four minutes, and not before."""
    async with make_router([pools.one(rpm=10)]) as router:
        await asyncio.gather(*(router.send("x") for _ in range(10)))
        waiting = [asyncio.create_task(router.send("x", max_wait=250)) for _ in range(35)]
        await clock.advance(0)
        late = await router.send("x", max_wait=235)
        assert isinstance(late.error, QuotaExhaustedError)
        assert "35 requests wait before this one" in str(late.error)
        assert late.retry_after == pytest.approx(4 * WINDOW, abs=0.01)
        last = asyncio.create_task(router.send("x", max_wait=245))
        await clock.advance(4 * WINDOW - 0.1)
        assert [task.done() for task in waiting].count(True) == 30
        assert not last.done()
        await clock.advance(1.0)
        assert last.result().success


async def test_a_reload_changes_what_a_line_expects(
    pools: Pools, make_router: Callable[..., Router], clock: ManualClock
) -> None:
    """With a key more, a request that could not be served in time waits; with fewer, it is told so."""
    first, second = pools.one(rpm=2), pools.one(rpm=60)
    async with make_router([first]) as router:
        assert all([(await router.send("x")).success for _ in range(2)])
        waiting = [asyncio.create_task(router.send("x", max_wait=300)) for _ in range(8)]
        await clock.advance(1)
        assert isinstance((await router.send("x", max_wait=70)).error, QuotaExhaustedError)
        await router.reload([first, second])
        await clock.advance(1)
        assert all(task.done() and task.result().success for task in waiting)
        assert (await router.send("x", max_wait=70)).success
        await router.reload([first])
        assert not (await router.send("x", max_wait=1)).success

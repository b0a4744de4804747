"""Pacing: a day's quota lasts for the day, and the share of a workload is kept for it, or lent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import (
    ConfigError,
    Cooldown,
    Exclusion,
    MemoryStore,
    Metric,
    Pacing,
    QuotaExhaustedError,
    Router,
)
from llm_router.cli.words import health_words, state_of
from llm_router.domain.limits import LearntLimit
from llm_router.engine.pacing import PACED, DayPlan
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

HOUR = 3_600.0
DAY = 20 * HOUR
"""Seconds from the start of the clock to midnight in Los Angeles."""


# --- the plan -----------------------------------------------------------------------------------------


def test_a_plan_goes_down_evenly_and_what_is_behind_it_is_spread_anew() -> None:
    """The next request is due when the plan allows it; an idle time makes the rest of the day faster."""
    plan = DayPlan()
    plan.note(0.9, 0.1, 1_000.0, 2_000.0)
    assert (plan.due(1), plan.due(2)) == (1_100.0, 1_000.0)
    plan.note(0.8, 0.1, 1_100.0, 2_000.0)
    assert plan.due(1) == pytest.approx(1_200.0)
    plan.note(0.6, 0.1, 1_200.0, 2_000.0)  # another process took one, too
    assert plan.due(1) == pytest.approx(1_400.0)
    plan.note(0.5, 0.1, 1_700.0, 2_000.0)  # 0.6 for 300 s
    assert plan.due(1) == pytest.approx(1_750.0)
    plan.note(0.0, 0.1, 1_750.0, 2_000.0)  # nothing is left: the store refuses by itself
    assert plan.due(5) < 1_750.0
    plan.note(0.9, 0.1, 2_100.0, 3_000.0)  # the next day
    assert plan.due(1) == pytest.approx(2_190.0)


# --- a day --------------------------------------------------------------------------------------------


async def _call(router: Router, done: list[float], clock: ManualClock, **options: Any) -> None:
    while True:
        if (await router.send("x", max_wait=3 * DAY, timeout=None, **options)).success:
            done.append(clock.time())


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("routers", [1, 2])
async def test_a_days_quota_lasts_for_the_day(pools: Pools, clock: ManualClock, routers: int) -> None:
    """All of it is used, evenly, by however many processes, and also if nothing is sent for hours."""
    pool, store, done = pools.many(2, rpd=20), MemoryStore(clock=clock), list[float]()
    start = clock.time()
    callers: list[asyncio.Task[None]] = []
    for _ in range(routers):
        router = Router(
            pool, store=store, provider=FakeProvider(), clock=clock, rpd_pacing=Pacing(), totals=False
        )
        callers.append(asyncio.create_task(_call(router, done, clock)))
    for hour in range(1, 11):
        await clock.advance(HOUR)
        assert len(done) == pytest.approx(2 * hour, abs=2 * routers)
    await _end(*callers)
    used = len(done)
    await clock.advance(5 * HOUR)
    callers = [asyncio.create_task(_call(router, done, clock))]
    for hour in range(1, 6):
        await clock.advance(HOUR - 1)
        assert len(done) == pytest.approx(used + (40 - used) * hour / 5, abs=3)
    assert len(done) in {39, 40}
    await clock.advance(DAY + 4 * HOUR)
    assert len([at for at in done if at > start + DAY]) == pytest.approx(40, abs=2)
    await _end(*callers)


async def test_who_is_ahead_of_the_pace_is_told_when_to_come_back(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """The error names the reason and the time, explain says the same, and another model serves meanwhile."""
    async with make_router(
        [pools.one(rpd=20), pools.one("other", "heavy", rpd=None)], rpd_pacing=Pacing(burst=2)
    ) as router:
        for _ in range(2):
            assert (await router.send("x", workload="light")).model == "model-a"
        assert (await router.send("x", workload="light")).model == "other"
        response = await router.send("x", model="model-a", fallback="none", max_wait=600)
        assert isinstance(response.error, QuotaExhaustedError)
        assert response.retry_after == pytest.approx(HOUR)
        assert response.error.candidates[0].reason == "rpd pacing"
        explained = (await router.explain("x", model="model-a", fallback="none")).tiers[0].candidates[0]
        assert (explained.exclusion, explained.reason) == (Exclusion.PACED, "rpd pacing")
        assert explained.usable_in == pytest.approx(HOUR)
        await clock.advance(HOUR)
        assert (await router.send("x", model="model-a", fallback="none")).success


async def test_an_error_names_what_is_paced_beside_what_is_full(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    pool = [pools.one("m1", key_id="paced", rpm=9, rpd=40), pools.one("m2", key_id="full", rpm=1, priority=5)]
    async with make_router(pool, rpd_pacing=Pacing()) as router:
        for _ in range(2):
            assert (await router.send("x")).success
        error = (await router.send("x")).error
    assert isinstance(error, QuotaExhaustedError)
    assert [(each.key_id, each.reason) for each in error.candidates] == [
        ("full", "rpm"),
        ("paced", "rpd pacing"),
    ]


async def test_a_status_says_what_is_paced_and_until_when(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """It has the reason and the time that explain gives, the health follows, and both end with the pace."""
    async with make_router([pools.one(rpd=20)], rpd_pacing=Pacing()) as router:
        assert (await router.send("x")).success
        (row,), health = await router.get_all_key_statuses(), await router.health_check()
        explained = (await router.explain("x", workload=row["workload"])).candidates[0]
        assert (row["state"], row["reason"]) == (explained.exclusion, explained.reason) == ("paced", PACED)
        assert row["usable_in_seconds"] == pytest.approx(explained.usable_in)
        assert (row["spent"], row["in_cooldown"]) == ([], False)
        assert (health["healthy"], health["state"], health["paced"]) == (False, "paced", 1)
        assert health["usable_at"] == row["usable_at"] == pytest.approx(clock.time() + HOUR)
        assert "paced until" in state_of(row)
        assert state_of(row).endswith(": rpd pacing")
        assert health_words(health).startswith("paced until")
        await clock.advance(HOUR)
        (row,), health = await router.get_all_key_statuses(), await router.health_check()
        assert (row["state"], row["reason"], health["state"]) == ("ready", None, "healthy")


async def test_what_is_worse_than_the_pace_is_told_instead(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A cooldown has its own reason, but the time of the pace if that is later; disabled is disabled."""
    deployment = pools.one(rpd=20)
    store = MemoryStore(clock=clock)
    async with make_router([deployment], store=store, rpd_pacing=Pacing()) as router:
        assert (await router.send("x")).success
        await store.cool_down(Cooldown(deployment.model_scope, clock.time() + 60, "overloaded"))
        (row,) = await router.get_all_key_statuses()
        assert (row["state"], row["reason"]) == ("cooling_down", "overloaded")
        assert row["usable_in_seconds"] == pytest.approx(HOUR)
        await router.keys.disable(deployment.key.key_id)
        (row,) = await router.get_all_key_statuses()
        assert (row["state"], row["usable_at"]) == ("disabled", None)


async def test_a_share_is_kept_for_a_workload_and_lent_while_it_is_idle(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """While heavy requests come they get their share of the pace; without them the others get all of it."""
    pacing = Pacing(kept={"heavy": 0.7}, idle=HOUR)
    light, heavy = list[float](), list[float]()
    async with make_router([pools.one(workload="heavy", rpd=200)], rpd_pacing=pacing, totals=False) as router:
        lights = [asyncio.create_task(_call(router, light, clock, workload="light")) for _ in range(3)]
        await clock.advance(5 * HOUR)
        assert len(light) == pytest.approx(50, abs=2)
        callers = [asyncio.create_task(_call(router, heavy, clock, workload="heavy"))]
        light.clear()
        await clock.advance(10 * HOUR)
        assert len(light) + len(heavy) == pytest.approx(100, abs=2)
        assert len(heavy) >= 68  # it is 50 if nothing is kept
        await _end(*callers)
        await clock.advance(HOUR)
        light.clear()
        await clock.advance(3 * HOUR)
        assert len(light) >= 28  # of what is left for four hours
        await _end(*lights)


@pytest.mark.parametrize("configured", [None, 1_000])
async def test_a_share_of_a_learnt_limit_is_kept(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, configured: int | None
) -> None:
    """What counts is the limit in force, whether the configuration allows more or says nothing of days."""
    pool, store = [pools.one(workload="heavy", rpm=100, rpd=configured)], MemoryStore(clock=clock)
    await store.cool_down(Cooldown.learn(pool[0].model_scope, LearntLimit(Metric.RPD, 200)))
    light, heavy = list[float](), list[float]()
    pacing = Pacing(kept={"heavy": 0.7}, idle=HOUR)
    async with make_router(pool, store=store, rpd_pacing=pacing, totals=False) as router:
        callers = [asyncio.create_task(_call(router, light, clock, workload="light")) for _ in range(3)]
        callers.append(asyncio.create_task(_call(router, heavy, clock, workload="heavy")))
        await clock.advance(10 * HOUR)
        await _end(*callers)
    assert len(light) + len(heavy) == pytest.approx(100, abs=3)
    assert len(heavy) >= 68


@pytest.mark.parametrize("burst", [1, 5])
async def test_who_finds_nothing_left_is_told_when_the_day_ends(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, burst: int
) -> None:
    """Whatever the burst; and a reload that allows more is followed at once."""
    async with make_router([pools.one(key_id="k", rpd=2)], rpd_pacing=Pacing(burst=burst)) as router:
        assert (await router.send("x")).success
        await clock.advance(0.6 * DAY)
        assert (await router.send("x")).success
        response = await router.send("x")
        assert isinstance(response.error, QuotaExhaustedError)
        assert response.error.candidates[0].reason == "rpd"
        assert response.retry_after == pytest.approx(0.4 * DAY)
        assert (await router.explain("x")).candidates[0].usable_in == pytest.approx(response.retry_after)
        await router.reload([pools.one(key_id="k", rpd=50)])
        assert (await router.send("x")).success


async def test_other_requests_are_not_paced(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """Neither those of deployments without a limit a day, nor after the clock was set back."""
    async with make_router([pools.one(rpm=50)], rpd_pacing=Pacing()) as router:
        assert all([(await router.send("x")).success for _ in range(10)])
    async with make_router([pools.one(rpd=20)], rpd_pacing=Pacing()) as router:
        assert (await router.send("x")).success
        assert not (await router.send("x")).success
        clock.jump(-2 * HOUR)
        assert (await router.send("x")).success
        assert not (await router.send("x")).success


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"burst": 0}, "burst"),
        ({"burst": True}, "burst"),
        ({"burst": float("nan")}, "burst"),
        ({"idle": 0}, "idle"),
        ({"idle": float("inf")}, "idle"),
        ({"kept": 0.5}, "kept must map"),
        ({"kept": {"heavy": 1.0}}, "kept must map"),
        ({"kept": {5: 0.1}}, "kept must map"),
        ({"kept": {"a": 0.6, "b": 0.5}}, "below 1 together"),
    ],
)
def test_numbers_that_cannot_be_meant(options: Any, words: str) -> None:
    """They are refused by name."""
    with pytest.raises(ConfigError, match=words):
        Pacing(**options)


def test_a_router_checks_its_pacing(make_router: Callable[..., Router], pools: Pools) -> None:
    """It must be one, for workloads that there are."""
    with pytest.raises(ConfigError, match="rpd_pacing must be a Pacing"):
        make_router([pools.one()], rpd_pacing=0.5)
    with pytest.raises(ConfigError, match="workload 'huge': use one of 'light'"):
        make_router([pools.one()], rpd_pacing=Pacing(kept={"huge": 0.5}))

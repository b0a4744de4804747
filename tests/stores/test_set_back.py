"""Clocks that are set back, in every store: by NTP, or because a replica of a server has taken over."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from llm_router import RateLimitStore
from llm_router.domain.cooldown import LEARNT_FOR, Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend

pytestmark = pytest.mark.slow

START = 1_800_041_000.25
SPAN = 60.3
DAY = 86_400.0
TTL = 600.0
_ids = itertools.count()


def deployment(*quotas: Quota, key: str = "a") -> Deployment:
    return Deployment(Key(key, Secret("AIza-not-a-key")), "flash", quotas=quotas)


async def grants(store: RateLimitStore, limited: Deployment, tokens: int = 0) -> bool:
    decision = await store.reserve(f"r{next(_ids)}", [limited], Demand(1, tokens), TTL)
    return decision.deployment is not None


async def used(store: RateLimitStore, limited: Deployment) -> list[int]:
    [snapshot] = await store.snapshot([limited])
    return [quota.used for quota in snapshot.quotas]


def set_to(clock: ManualClock, moment: float) -> None:
    """Set a clock to any time, as a correction does."""
    clock._now = moment


@pytest.mark.parametrize("ahead", [3.0, 40.0, 3600.0, DAY])
@pytest.mark.parametrize("refill", [Refill.ROLLING, Refill.STEADY])
async def test_four_minutes_after_a_correction_give_what_four_minutes_give(
    store_backend: Backend, refill: Refill, ahead: float
) -> None:
    """One request while the clock was ahead does not close a quota for longer than a window."""
    clock = ManualClock(START + ahead)
    limited = deployment(Quota(Metric.RPM, 10, refill))
    async with store_backend.open(clock) as store:
        assert await grants(store, limited)
        set_to(clock, START)
        granted = 0
        for _ in range(240):
            clock.shift(1.0)
            granted += await grants(store, limited)
    # A steady quota of 10 gives one every 6.03 s, and is asked every second.
    assert (30 if refill is Refill.ROLLING else 28) <= granted <= 50


@pytest.mark.parametrize(
    ("behind", "windows"), [(1.0, 2), (40.0, 2), (60.0, 2), (61.0, 1), (100.0, 1), (3600.0, 1), (DAY, 1)]
)
async def test_who_asks_only_when_told_waits_two_windows_at_most(
    store_backend: Backend, behind: float, windows: int
) -> None:
    """Of a clock that was set back while nobody asked, and of one window if it was set back by more.

    A clock that passes what was taken between two calls may have been corrected; then nothing is due yet.
    """
    clock = ManualClock(START)
    limited = deployment(Quota(Metric.RPM, 3))
    async with store_backend.open(clock) as store:
        assert all([await grants(store, limited) for _ in range(3)])
        clock.shift(59.0)
        clock.jump(-59.0 - behind)
        asked = clock.monotonic()
        for _ in range(windows + 1):
            decision = await store.reserve(f"r{next(_ids)}", [limited], Demand(1), TTL)
            if decision.deployment is not None:
                break
            clock.shift(decision.refusals[0].retry_at - clock.time() + 1e-6)
    assert decision.deployment is not None
    assert clock.monotonic() - asked <= windows * SPAN + 0.01


async def test_what_was_taken_before_a_jump_keeps_its_age(store_backend: Backend) -> None:
    """What is older than the corrected clock counts as if the clock had never been wrong."""
    clock = ManualClock(START)
    limited = deployment(Quota(Metric.RPM, 2))
    async with store_backend.open(clock) as store:
        assert await grants(store, limited)
        set_to(clock, START + 50.5)
        assert await grants(store, limited)
        set_to(clock, START + 0.5)
        assert await used(store, limited) == [2]
        set_to(clock, START + SPAN - 0.001)
        assert await used(store, limited) == [2]
        assert not await grants(store, limited)
        set_to(clock, START + SPAN)
        assert await grants(store, limited)
        assert not await grants(store, limited)


async def test_no_minute_is_exceeded_while_a_clock_is_corrected_every_few_seconds(
    store_backend: Backend,
) -> None:
    """Between replicas whose clocks differ by a second: no window of true time exceeds the limit."""
    true, clock, off = START, ManualClock(START), random.Random(3)
    limited = deployment(Quota(Metric.RPM, 20))
    granted = []
    async with store_backend.open(clock) as store:
        for step in range(500):
            true += 0.7
            if step % 8 == 0:
                behind = off.choice([0.0, 0.3, 1.0])
            set_to(clock, true - behind)
            if await grants(store, limited):
                granted.append(true)
    # A clock may be a second ahead when something is taken, and right when it comes back.
    assert max(sum(first <= moment < first + 59.3 for moment in granted) for first in granted) <= 20
    assert len(granted) >= 0.9 * 350 / SPAN * 20


@pytest.mark.parametrize("refill", [Refill.ROLLING, Refill.STEADY])
async def test_processes_see_a_correction_alike(store_backend: Backend, refill: Refill) -> None:
    """What one takes after a correction is not older to another one, which saw the correction as well."""
    clock = ManualClock(START)
    limited = deployment(Quota(Metric.RPM, 5, refill))
    async with store_backend.open(clock) as one, store_backend.second(clock) as other:
        most = sum([await grants(one, limited) for _ in range(6)])
        assert not await grants(other, limited)
        clock.jump(-100.0)
        assert not await grants(one, limited)
        assert not await grants(other, limited)
        clock.shift(SPAN)
        assert [await grants(one, limited) for _ in range(most)] == [True] * most
        assert not await grants(other, limited)


@pytest.mark.parametrize("refill", [Refill.ROLLING, Refill.STEADY])
async def test_no_minute_is_exceeded_by_processes_whose_clock_is_set_back_again_and_again(
    store_backend: Backend, refill: Refill
) -> None:
    """Whoever looks when, in no minute of true time is more granted than the limit."""
    draw, clock = random.Random(5), ManualClock(START)
    limited = deployment(Quota(Metric.RPM, 2, refill))
    granted: list[float] = []
    async with (
        store_backend.open(clock) as one,
        store_backend.second(clock) as two,
        store_backend.second(clock) as three,
    ):
        for _ in range(40):
            if draw.random() < 0.15:
                clock.jump(-draw.choice([2.0, 50.0, 100.0, 90_000.0]))
            clock.shift(draw.choice([0.1, 5.0, 20.0]))
            store = draw.choice([one, two, three])
            granted += [clock.monotonic() for _ in range(2) if await grants(store, limited)]
    assert max(sum(first <= moment < first + 59.9 for moment in granted) for first in granted) <= 2


async def test_every_taking_can_be_settled_after_the_clock_was_set_back(store_backend: Backend) -> None:
    """Of any time: from before the jump, while the clock was ahead, and after it was set back."""
    clock = ManualClock(START)
    limited = deployment(Quota(Metric.TPM, 100), Quota(Metric.TPD, 1_000, Refill.DAILY))
    async with store_backend.open(clock) as store:
        for name, moment in (("early", 0.0), ("ahead", 3_000.0), ("ahead too", 3_001.0), ("after", 2.0)):
            set_to(clock, START + moment)
            decision = await store.reserve(name, [limited], Demand(1, 20), 6_000.0)
            assert decision.deployment is limited
        # What was taken before the jump had come back while the clock was ahead.
        assert await used(store, limited) == [60, 80]
        for name, left in (
            ("ahead too", [40, 60]),
            ("after", [20, 40]),
            ("early", [20, 20]),
            ("ahead", [0, 0]),
        ):
            await store.release(name)
            assert await used(store, limited) == left


async def test_a_day_that_has_just_begun_stays(store_backend: Backend) -> None:
    """Set back over midnight by seconds, the clock leaves open which day it is: nothing is given twice."""
    midnight = 1_800_086_400.0
    clock = ManualClock(midnight + 1.0)
    limited = deployment(Quota(Metric.RPD, 5, Refill.DAILY, timezone="UTC"))
    async with store_backend.open(clock) as store:
        assert [await grants(store, limited) for _ in range(6)] == [True] * 5 + [False]
        for moment in (midnight - 5.0, midnight - 0.1, midnight + 3.0):
            set_to(clock, moment)
            assert await used(store, limited) == [5]
            assert not await grants(store, limited)
        set_to(clock, midnight + DAY)
        assert await grants(store, limited)


async def test_a_learnt_limit_is_forgotten_two_weeks_after_a_correction(store_backend: Backend) -> None:
    """However far ahead the clock was when it was learnt."""
    clock = ManualClock(START + 90 * DAY)
    limited = deployment(Quota(Metric.RPM, 10))
    async with store_backend.open(clock) as store:
        learnt = (LearntLimit(Metric.RPM, 2),)
        await store.cool_down(Cooldown(limited.model_scope, clock.time() + 1.0, "told", learnt))
        set_to(clock, START)
        assert not await grants(store, limited)
        set_to(clock, START + 1.0)
        assert [await grants(store, limited) for _ in range(3)] == [True, True, False]
        set_to(clock, START + LEARNT_FOR - 1.0)
        assert [await grants(store, limited) for _ in range(3)] == [True, True, False]
        set_to(clock, START + LEARNT_FOR + SPAN)
        assert all([await grants(store, limited) for _ in range(10)])


async def test_a_quota_that_changed_its_refill_is_not_closed_for_ever(store_backend: Backend) -> None:
    """What was taken while the clock was ahead drains, though nobody is granted anything meanwhile."""
    clock = ManualClock(START + DAY)
    rolling = deployment(Quota(Metric.RPM, 5))
    steady = deployment(Quota(Metric.RPM, 5, Refill.STEADY))
    async with store_backend.open(clock) as store:
        assert all([await grants(store, rolling) for _ in range(5)])
        set_to(clock, START)
        for _ in range(61):
            assert not await grants(store, steady)
            clock.shift(1.0)
        assert await used(store, steady) == [0]
        assert await grants(store, steady)

"""The contract of learnt limits: which limit is in force, from when, and how it changes."""

from __future__ import annotations

import math

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Scope
from llm_router.domain.limits import LEARNT_FOR, LearntLimit, LimitRecord, LimitSource
from llm_router.domain.quota import MAX_LIMIT, Metric
from llm_router.stores.base import RateLimitStore
from llm_router.testing.clock import ManualClock
from llm_router.testing.store_contract.base import (
    MS,
    SPAN,
    START,
    ContractBase,
    close,
    deployment,
    grants,
    move_to,
    quotas_of,
    reserve,
    rpd,
    rpm,
    set_back,
    tpm,
)

__all__ = ["LimitContract"]


class LimitContract(ContractBase):
    """Learnt limits."""

    async def test_a_learnt_limit_lowers_the_configured_one(self) -> None:
        """At once, and what was taken is kept; a lower configured limit stays in force."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10), tpm(100))
            for later in range(4):
                move_to(clock, START + later)
                assert await grants(store, limited, tokens=1)
            await store.cool_down(_learnt(limited.model_scope, START, rpm=3, tpm=500))
            quotas = await quotas_of(store, limited)
            assert [quotas[Metric.RPM].limit, quotas[Metric.TPM].limit] == [3, 100]
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "rpm"
            assert close(refusal.retry_at, START + 1.0 + SPAN)

    async def test_a_learnt_limit_is_added_where_none_is_configured(self) -> None:
        """At the end of the quotas, per minute or per day according to the metric."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(10))
            assert await grants(store, limited, tokens=50)
            await store.cool_down(_learnt(limited.model_scope, START, rpd=2))
            assert list(await quotas_of(store, limited)) == [Metric.RPM, Metric.RPD]
            granted = [await grants(store, limited) for _ in range(3)]
            assert granted == [True, True, False]
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "rpd"

    async def test_a_learnt_limit_holds_for_two_weeks(self) -> None:
        """It applies until a millisecond before their end, and no longer at the end."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(4))
            await store.cool_down(_learnt(limited.model_scope, START, rpm=1, tpm=100))
            move_to(clock, START + LEARNT_FOR - MS)
            assert [await grants(store, limited) for _ in range(2)] == [True, False]
            assert not await grants(store, limited, requests=0, tokens=101)
            move_to(clock, START + LEARNT_FOR)
            assert list(await quotas_of(store, limited)) == [Metric.RPM]
            assert [await grants(store, limited, tokens=999) for _ in range(4)] == [True] * 3 + [False]

    async def test_of_learnt_limits_the_last_holds(self) -> None:
        """A newer statement replaces an older one, be it lower or higher; of one refusal the lowest holds."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10))
            for limit, expected in ((5, 5), (7, 7), (2, 2), (9, 9), (12, 10)):
                await store.cool_down(_learnt(limited.model_scope, START, rpm=limit))
                assert (await quotas_of(store, limited))[Metric.RPM].limit == expected
                clock.shift(60.0)
            several = tuple(LearntLimit(Metric.RPM, limit) for limit in (6, 4, 8))
            await store.cool_down(Cooldown(limited.model_scope, START, "says several", several))
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 4

    async def test_learnt_limits_are_forgotten_on_request(self) -> None:
        """A lift may end them as well; a plain lift does not."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10))
            await store.cool_down(_learnt(limited.model_scope, START + 60.0, rpm=3, tpm=500))
            await store.cool_down(Cooldown.lift(limited.model_scope))
            assert [await grants(store, limited, tokens=100) for _ in range(4)] == [True] * 3 + [False]
            await store.cool_down(Cooldown.lift(limited.model_scope, limits=True))
            assert list(await quotas_of(store, limited)) == [Metric.RPM]
            assert [await grants(store, limited, tokens=999) for _ in range(8)] == [True] * 7 + [False]

    async def test_a_limit_learnt_again_holds_for_another_two_weeks(self) -> None:
        """Each time the provider states it, they start again."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10))
            await store.cool_down(_learnt(limited.model_scope, START, rpm=1))
            clock.shift(LEARNT_FOR / 2)
            await store.cool_down(_learnt(limited.model_scope, START, rpm=1))
            move_to(clock, START + 1.5 * LEARNT_FOR - MS)
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 1
            move_to(clock, START + 1.5 * LEARNT_FOR)
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 10

    async def test_a_learnt_limit_of_zero_closes_until_it_is_forgotten(self) -> None:
        """Nothing fits while it is in force; the refusal says when that ends: no caller waits for ever."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10))
            await store.cool_down(_learnt(limited.model_scope, START, rpm=0))
            clock.shift(100.0)
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "rpm"
            assert close(refusal.retry_at, START + LEARNT_FOR)
            assert close(refusal.wake_at, START + LEARNT_FOR)
            move_to(clock, START + LEARNT_FOR)
            assert await grants(store, limited)

    async def test_a_learnt_limit_belongs_to_the_model_of_a_project(self) -> None:
        """It applies to other keys of the project, and not to another model of the key."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(9), key="a", project="p")
            sibling = deployment(rpm(9), key="b", project="p")
            other = deployment(rpm(9), key="a", project="p", model="other")
            assert await grants(store, sibling)
            await store.cool_down(_learnt(limited.model_scope, START, rpm=1))
            assert not await grants(store, sibling)
            assert not await grants(store, limited)
            assert await grants(store, other)

    async def test_a_limit_is_learnt_with_a_cooldown_that_is_shorter_than_another(self) -> None:
        """The limit stays if a later cooldown wins, and if the cooldown is lifted."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(9))
            await store.cool_down(Cooldown(limited.model_scope, START + 50.0, "long"))
            await store.cool_down(_learnt(limited.model_scope, START + 5.0, rpm=1))
            [snapshot] = await store.snapshot([limited])
            assert snapshot.cooldown is not None
            assert snapshot.cooldown.reason == "long"
            await store.cool_down(Cooldown.lift(limited.model_scope))
            assert [await grants(store, limited) for _ in range(2)] == [True, False]

    async def test_a_limit_can_be_learnt_before_the_deployment_is_seen(self) -> None:
        """It applies from the first reserve."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(9))
            await store.cool_down(_learnt(limited.model_scope, START, rpm=1))
            assert [await grants(store, limited) for _ in range(2)] == [True, False]

    # --- limits that rise, and limits that are only where to start -----------------------------------

    async def test_a_limit_rises_by_itself(self) -> None:
        """At the time set when it was learnt; refusals say when, and another handle sees the same."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as other:
            limited = deployment(rpm(10))
            rises = LearntLimit(Metric.RPM, 2, LimitSource.INFERRED, raised=3, raise_after=20.0)
            await store.cool_down(Cooldown.learn(limited.model_scope, rises))
            assert [await grants(each, limited) for each in (store, other, store)] == [True, True, False]
            [refusal] = (await reserve(other, limited)).refusals
            assert refusal.reason == "rpm"
            assert close(refusal.retry_at, START + 20.0)
            assert close(refusal.wake_at, START + 20.0)
            move_to(clock, START + 20.0 - MS)
            assert not await grants(store, limited)
            move_to(clock, START + 20.0)
            assert [await grants(each, limited) for each in (other, store)] == [True, False]
            assert (await quotas_of(other, limited))[Metric.RPM].limit == 3

    async def test_a_risen_limit_stays_below_the_configured_one(self) -> None:
        """What is configured is a cap."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(4))
            rises = LearntLimit(Metric.RPM, 2, raised=9, raise_after=20.0)
            await store.cool_down(Cooldown.learn(limited.model_scope, rises))
            move_to(clock, START + 20.0)
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 4

    async def test_a_learnt_limit_takes_the_place_of_an_adaptive_one(self) -> None:
        """Lower or higher; the adaptive one is in force until then, and again when it is forgotten."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(attrs.evolve(rpm(4), adaptive=True), attrs.evolve(rpd(9), adaptive=True))
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 4
            for limit in (6, 2, 7):
                await store.cool_down(_learnt(limited.model_scope, START, rpm=limit))
                assert (await quotas_of(store, limited))[Metric.RPM].limit == limit
            assert [await grants(store, limited) for _ in range(8)] == [True] * 7 + [False]
            assert (await quotas_of(store, limited))[Metric.RPD].limit == 9
            await store.cool_down(Cooldown.lift(limited.model_scope, limits=True))
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 4

    async def test_a_snapshot_shows_what_was_learnt(self) -> None:
        """The limit, how it is known, when it was learnt, and how it rises."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as other:
            limited = deployment(rpm(10), tpm(1000))
            rises = LearntLimit(Metric.RPM, 2, LimitSource.INFERRED, raised=3, raise_after=20.0)
            stated = LearntLimit(Metric.RPD, 50)
            await store.cool_down(Cooldown.learn(limited.model_scope, rises, stated))
            for moment, limit in ((START, 2), (START + 20.0, 3)):
                move_to(clock, moment)
                quotas = await quotas_of(other, limited)
                assert quotas[Metric.RPM].limit == limit
                assert _same(quotas[Metric.RPM].learnt, 2, LimitSource.INFERRED, START, 3, START + 20.0)
                assert _same(quotas[Metric.RPD].learnt, 50, LimitSource.STATED, START, 50, math.inf)
                assert quotas[Metric.TPM].learnt is None

    async def test_one_of_several_that_conclude_the_same_is_obeyed(self) -> None:
        """A limit that replaces a certain one is learnt only if that one is still there."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as other:
            limited = deployment(rpm(10))

            async def learn(by: RateLimitStore, limit: int | None, replaces: float | None) -> int:
                entry = LearntLimit(Metric.RPM, limit, replaces=replaces)
                await by.cool_down(Cooldown.learn(limited.model_scope, entry))
                return (await quotas_of(by, limited))[Metric.RPM].limit

            assert await learn(store, 5, 0.0) == 5
            assert await learn(other, 6, 0.0) == 5
            record = (await quotas_of(other, limited))[Metric.RPM].learnt
            assert record is not None
            assert await learn(other, 6, record.learnt_at) == 6
            assert await learn(store, 7, record.learnt_at) == 6
            assert await learn(store, None, record.learnt_at) == 6
            record = (await quotas_of(store, limited))[Metric.RPM].learnt
            assert record is not None
            assert await learn(store, None, record.learnt_at) == 10
            assert await learn(store, 8, record.learnt_at) == 10
            assert await learn(store, 9, None) == 9

    async def test_a_clock_that_is_set_back_delays_no_rise(self) -> None:
        """It comes as long after the correction as it was to come after the limit was learnt."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10))
            rises = LearntLimit(Metric.RPM, 1, raised=2, raise_after=20.0)
            await store.cool_down(Cooldown.learn(limited.model_scope, rises))
            set_back(clock, START - 3600.0)
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 1
            await grants(store, limited)
            move_to(clock, START - 3600.0 + 20.0)
            assert (await quotas_of(store, limited))[Metric.RPM].limit == 2

    async def test_odd_limits_are_bounded(self) -> None:
        """No amount and no time is too large for a store to keep."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(attrs.evolve(rpm(4), adaptive=True))
            for limit, raise_after in ((10**30, 1e300), (-5, -1e300), (3, math.nan)):
                odd = LearntLimit(Metric.RPM, limit, raised=10**30, raise_after=raise_after)
                await store.cool_down(Cooldown.learn(limited.model_scope, odd))
                quota = (await quotas_of(store, limited))[Metric.RPM]
                assert 0 <= quota.limit <= MAX_LIMIT


def _learnt(scope: str, until: float, **limits: int) -> Cooldown:
    """Make a cooldown that teaches ``limits``."""
    learnt = tuple(LearntLimit(Metric(metric), limit) for metric, limit in limits.items())
    return Cooldown(Scope(scope), until, "the provider said so", learnt)


def _same(
    record: LimitRecord | None,
    limit: int,
    source: LimitSource,
    learnt_at: float,
    raised: int,
    raise_at: float,
) -> bool:
    """Return whether that is what a record says, to the microseconds that a store keeps."""
    assert record is not None
    return (
        (record.limit, record.source, record.raised) == (limit, source, raised)
        and close(record.learnt_at, learnt_at)
        and close(record.raise_at, raise_at)
    )

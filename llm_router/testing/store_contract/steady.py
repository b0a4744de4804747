"""The contract of steady quotas: a small bucket that refills at a constant rate."""

from __future__ import annotations

import math

from llm_router.domain.quota import MINUTE, Demand, Metric
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
    set_back,
    steady,
    used,
)

__all__ = ["SteadyContract"]


class SteadyContract(ContractBase):
    """Steady quotas."""

    async def test_a_steady_quota_gives_its_capacity_at_once_and_no_more(self) -> None:
        """The burst is granted, one more is not; the default is 5 % of requests and half of tokens."""
        async with self.open_store(ManualClock(START)) as store:
            for number, (quota, burst) in enumerate(
                (
                    (steady(Metric.RPM, 60, burst=4), 4),
                    (steady(Metric.RPM, 60), 3),
                    (steady(Metric.RPM, 1), 1),
                    (steady(Metric.TPM, 20), 10),
                )
            ):
                limited = deployment(quota, key=f"key-{number}")
                granted = [await grants(store, limited, tokens=1) for _ in range(burst + 2)]
                assert granted == [True] * burst + [False] * 2

    async def test_a_steady_quota_refills_at_a_constant_rate(self) -> None:
        """A request comes back every (window + guard) / (limit - burst + 1) seconds, and not earlier."""
        clock = ManualClock(START)
        drop = SPAN / (60 - 2 + 1)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.RPM, 60, burst=2))
            assert [await grants(store, limited) for _ in range(3)] == [True, True, False]
            for drops in range(1, 6):
                move_to(clock, START + drops * drop - MS)
                assert not await grants(store, limited)
                move_to(clock, START + drops * drop + MS)
                assert await grants(store, limited)
                assert not await grants(store, limited)

    async def test_a_steady_quota_knows_when_it_has_room(self) -> None:
        """At ``retry_at`` the demand fits, and a millisecond before it does not."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.TPM, 9_000, burst=1_000))
            assert await grants(store, limited, tokens=950)
            for tokens in (999, 51, 700, 1_000):
                [refusal] = (await reserve(store, limited, tokens=tokens)).refusals
                assert refusal.reason == "tpm"
                move_to(clock, refusal.retry_at - MS)
                assert not await grants(store, limited, tokens=tokens)
                move_to(clock, refusal.retry_at)
                assert await grants(store, limited, tokens=tokens)

    async def test_a_minute_of_a_steady_quota_holds_at_most_the_limit(self) -> None:
        """A saturating caller never gets more than the limit within any 60 s, and most of it."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            for limit, burst in ((10, 1), (10, 5), (10, 10)):
                limited = deployment(steady(Metric.RPM, limit, burst=burst), key=f"key-{burst}")
                granted = []
                for _ in range(260):
                    clock.shift(0.5)
                    if await grants(store, limited):
                        granted.append(clock.time())
                spans = [sum(first <= moment < first + MINUTE for moment in granted) for first in granted]
                assert max(spans) <= limit
                assert len(granted) >= 130 / SPAN * (limit - burst)

    async def test_an_idle_steady_quota_holds_no_more_than_its_capacity(self) -> None:
        """However long it was idle, the bucket holds its capacity and no more."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.RPM, 60, burst=3))
            assert await grants(store, limited)
            clock.shift(100_000.0)
            assert await used(store, limited) == [0]
            assert [await grants(store, limited) for _ in range(4)] == [True] * 3 + [False]

    async def test_a_demand_beyond_a_steady_capacity_never_fits(self) -> None:
        """A demand larger than the bucket is refused for ever; others are not."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(steady(Metric.TPM, 100, burst=10))
            [refusal] = (await reserve(store, limited, tokens=11)).refusals
            assert refusal.retry_at == math.inf
            assert refusal.wake_at <= START
            assert await grants(store, limited, tokens=10)

    async def test_a_settled_steady_reservation_is_given_back(self) -> None:
        """A settle gives back the difference between estimate and use, a release gives back everything."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(steady(Metric.TPM, 1_000, burst=500))
            await reserve(store, limited, tokens=500, reservation_id="one")
            await store.settle("one", Demand(1, 200))
            assert await used(store, limited) == [200]
            await reserve(store, limited, tokens=300, reservation_id="two")
            assert not await grants(store, limited, tokens=1)
            await store.release("two")
            assert await used(store, limited) == [200]

    async def test_more_than_the_estimate_keeps_a_steady_quota_closed_for_longer(self) -> None:
        """Use beyond the estimate is owed, and must drain before anything fits."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.TPM, 1_000, burst=500))
            await reserve(store, limited, tokens=500, reservation_id="one")
            await store.settle("one", Demand(1, 700))
            assert await used(store, limited) == [700]
            [refusal] = (await reserve(store, limited, tokens=1)).refusals
            assert abs(refusal.retry_at - (START + 201 * SPAN / 501)) < MS

    async def test_what_has_drained_is_not_given_back_again(self) -> None:
        """A late release gives back only what has not drained yet: a minute never exceeds the limit."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.TPM, 100, burst=50))
            await reserve(store, limited, tokens=50, reservation_id="released")
            clock.shift(59.5)
            assert await grants(store, limited, tokens=50)
            await store.release("released")
            assert await used(store, limited) == [50]
            assert not await grants(store, limited, tokens=2)

    async def test_a_forgotten_steady_reservation_gives_nothing_back(self) -> None:
        """A release after the bucket was full again does not touch what others have taken since."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.RPM, 60, burst=2))
            await reserve(store, limited, requests=2, reservation_id="old")
            clock.shift(200.0)
            assert await grants(store, limited, requests=2)
            await store.release("old")
            assert not await grants(store, limited)

    async def test_a_changed_steady_limit_keeps_the_debt(self) -> None:
        """Another burst applies at once, and what was taken before is still owed."""
        async with self.open_store(ManualClock(START)) as store:
            before = deployment(steady(Metric.RPM, 60, burst=3))
            after = deployment(steady(Metric.RPM, 60, burst=5))
            assert [await grants(store, before) for _ in range(4)] == [True] * 3 + [False]
            assert [await grants(store, after) for _ in range(3)] == [True] * 2 + [False]

    async def test_a_steady_quota_drains_from_a_correction_of_the_clock(self) -> None:
        """What was taken while the clock was ahead drains at the usual rate, once."""
        for ahead in (5.0, 3600.0, 86_400.0):
            clock = ManualClock(START + ahead)
            async with self.open_store(clock) as store:
                limited = deployment(steady(Metric.RPM, 60, burst=3))
                assert [await grants(store, limited) for _ in range(4)] == [True] * 3 + [False]
                set_back(clock, START)
                assert not await grants(store, limited)
                [refusal] = (await reserve(store, limited)).refusals
                assert refusal.retry_at <= START + SPAN / 58 + MS
                for _ in range(20):
                    clock.shift(SPAN / 58)
                    assert await grants(store, limited)
                    assert not await grants(store, limited)

    async def test_a_reserve_of_nothing_moves_no_steady_debt(self) -> None:
        """The bucket is as full as it was, and full again when it would have been."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.TPM, 1_000, burst=500))
            assert await grants(store, limited, tokens=500)
            full_at = (await quotas_of(store, limited))[Metric.TPM].resets_at
            for _ in range(5):
                clock.shift(0.1)
                before = await used(store, limited)
                assert await grants(store, limited)
                assert await used(store, limited) == before
                assert close((await quotas_of(store, limited))[Metric.TPM].resets_at, full_at)

"""The contract of decisions: the first candidate that fits, all quotas or none, and exact refusals."""

from __future__ import annotations

import asyncio
import math

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.quota import Metric, Quota, Refill
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
    steady,
    tpm,
    used,
)

__all__ = ["DecisionContract"]


class DecisionContract(ContractBase):
    """What a reserve decides, takes and returns."""

    async def test_the_first_candidate_with_room_is_taken(self) -> None:
        """Each of eight candidates is used up before the next, strictly in the given order."""
        async with self.open_store(ManualClock(START)) as store:
            candidates = [
                deployment(rpm(2), key=f"key-{n}", priority=9 - n, weight=float(n)) for n in range(8)
            ]
            for n in (n for n in range(8) for _ in range(2)):
                decision = await reserve(store, *candidates)
                assert decision.deployment is candidates[n]
                assert [refusal.deployment for refusal in decision.refusals] == candidates[:n]
                assert {refusal.reason for refusal in decision.refusals} <= {"rpm"}
            decision = await reserve(store, *candidates)
            assert decision.deployment is None
            assert [refusal.deployment for refusal in decision.refusals] == candidates

    async def test_the_longest_list_of_candidates(self) -> None:
        """Of 128 candidates the only one with room is found, the last; all others are among the refusals."""
        async with self.open_store(ManualClock(START)) as store:
            candidates = [deployment(rpm(1), tpm(10), rpd(9), key=f"key-{n}") for n in range(128)]
            for candidate in candidates[:-1]:
                assert await grants(store, candidate)
            decision = await reserve(store, *candidates)
            assert decision.deployment is candidates[-1]
            assert [refusal.deployment for refusal in decision.refusals] == candidates[:-1]
            decision = await reserve(store, *candidates)
            assert decision.deployment is None
            assert [refusal.deployment for refusal in decision.refusals] == candidates
            assert all(close(refusal.wake_at, START + SPAN) for refusal in decision.refusals)

    async def test_without_candidates_nothing_is_taken(self) -> None:
        """The decision has no deployment and no refusals."""
        async with self.open_store(ManualClock(START)) as store:
            decision = await reserve(store)
            assert decision.deployment is None
            assert decision.refusals == ()

    async def test_a_deployment_without_quotas_always_fits(self) -> None:
        """A metric without a quota is unlimited and has full headroom."""
        async with self.open_store(ManualClock(START)) as store:
            unlimited = deployment()
            for _ in range(50):
                decision = await reserve(store, unlimited, tokens=10**6)
                assert decision.deployment is unlimited
                assert (decision.headroom, decision.daily_headroom) == (1.0, 1.0)

    async def test_all_quotas_are_taken_or_none(self) -> None:
        """If one quota lacks room, the others stay as they were."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(9), tpm(100), rpd(9), steady(Metric.TPD, 1_000, burst=500))
            assert await grants(store, limited, tokens=60)
            before = await store.snapshot([limited])
            for _ in range(20):
                assert not await grants(store, limited, tokens=50)
            assert await store.snapshot([limited]) == before
            assert await used(store, limited) == [1, 60, 1, 60]
            assert await grants(store, limited, tokens=40)

    async def test_a_refused_candidate_is_left_alone_when_another_is_taken(self) -> None:
        """Only the chosen candidate's quotas are taken."""
        async with self.open_store(ManualClock(START)) as store:
            tight, loose = deployment(rpm(9), tpm(10), key="tight"), deployment(rpm(9), tpm(99), key="loose")
            decision = await reserve(store, tight, loose, tokens=50)
            assert decision.deployment is loose
            assert await used(store, tight) == [0, 0]
            assert await used(store, loose) == [1, 50]

    async def test_headroom_is_the_share_that_remains_of_the_tightest_quota(self) -> None:
        """It is reported separately for rolling and daily quotas, after the taking."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(10), tpm(1_000), rpd(4))
            decision = await reserve(store, limited, tokens=500)
            assert abs(decision.headroom - 0.5) < 1e-6
            assert abs(decision.daily_headroom - 0.75) < 1e-6
            decision = await reserve(store, limited, requests=3, tokens=100)
            assert abs(decision.headroom - 0.4) < 1e-6
            assert decision.daily_headroom == 0.0

    async def test_headroom_counts_quotas_that_the_demand_leaves_alone(self) -> None:
        """The headroom of a demand without tokens includes used tokens; a limit of 0 has no headroom."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(10), tpm(1_000))
            assert await grants(store, limited, tokens=900)
            assert abs((await reserve(store, limited)).headroom - 0.1) < 1e-6
            assert (await reserve(store, deployment(tpm(0), key="nothing"))).headroom == 0.0

    async def test_the_refusal_names_the_quota_that_takes_longest(self) -> None:
        """Of several quotas without room, the last one to have room is the reason and sets ``retry_at``."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(2), tpm(100), rpd(50))
            assert await grants(store, limited, tokens=50)
            clock.shift(20.0)
            assert await grants(store, limited, tokens=50)
            clock.shift(1.0)
            [refusal] = (await reserve(store, limited, tokens=60)).refusals
            assert refusal.deployment is limited
            assert refusal.reason == "tpm"
            assert close(refusal.retry_at, START + 20.0 + SPAN)
            [refusal] = (await reserve(store, limited, tokens=0)).refusals
            assert refusal.reason == "rpm"
            assert close(refusal.retry_at, START + SPAN)

    async def test_the_demand_fits_at_retry_at_and_not_before(self) -> None:
        """For every kind of refill: refused a millisecond before ``retry_at``, granted at it."""
        quotas = (
            (rpm(2),),
            (tpm(5_000),),
            (steady(Metric.RPM, 40, burst=2),),
            (steady(Metric.TPM, 1_000_000, burst=3_000),),
            (rpd(3),),
            (Quota(Metric.TPD, 4_000, Refill.DAILY),),
            (rpm(3), tpm(4_000), rpd(7)),
        )
        for limited in (deployment(*several, key=f"key-{n}") for n, several in enumerate(quotas)):
            clock = ManualClock(START)
            async with self.open_store(clock) as store:
                refused = 0
                while refused < 4:
                    decision = await reserve(store, limited, tokens=1_300)
                    if decision.deployment is not None:
                        clock.shift(0.01)
                        continue
                    refused += 1
                    retry_at = decision.refusals[0].retry_at
                    assert clock.time() < retry_at < START + 5 * 86_400
                    move_to(clock, retry_at - MS)
                    assert not await grants(store, limited, tokens=1_300)
                    move_to(clock, retry_at)
                    assert await grants(store, limited, tokens=1_300)

    async def test_a_refusal_says_when_the_smallest_demand_fits(self) -> None:
        """The refusal of a large demand does not hide a deployment from small ones."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(3), tpm(100))
            assert await grants(store, limited, tokens=90)
            clock.shift(5.0)
            [refusal] = (await reserve(store, limited, tokens=50)).refusals
            assert close(refusal.retry_at, START + SPAN)
            assert refusal.wake_at <= clock.time()
            assert await grants(store, limited, tokens=10)
            [refusal] = (await reserve(store, limited, tokens=95)).refusals
            assert close(refusal.retry_at, START + 5.0 + SPAN)
            assert close(refusal.wake_at, START + SPAN)

    async def test_a_refusal_wakes_no_later_than_the_demand_fits(self) -> None:
        """A quota that the demand does not need delays neither ``retry_at`` nor ``wake_at``."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(1), tpm(100))
            await reserve(store, limited, tokens=0)
            clock.shift(10.0)
            await reserve(store, limited, requests=0, tokens=100)
            [refusal] = (await reserve(store, limited, tokens=0)).refusals
            assert close(refusal.retry_at, START + SPAN)
            assert close(refusal.wake_at, START + SPAN)

    async def test_a_demand_beyond_the_limit_never_fits(self) -> None:
        """What exceeds the whole quota is refused for ever; smaller demands still fit."""
        async with self.open_store(ManualClock(START)) as store:
            for number, quota in enumerate((tpm(100), Quota(Metric.TPD, 100, Refill.DAILY))):
                limited = deployment(quota, key=f"key-{number}")
                [refusal] = (await reserve(store, limited, tokens=101)).refusals
                assert refusal.retry_at == math.inf
                assert refusal.reason == quota.metric.value
                assert refusal.wake_at <= START
                assert await grants(store, limited, tokens=100)

    async def test_a_limit_of_zero_admits_nothing_but_zero(self) -> None:
        """With a limit of 0 nothing ever fits, except a demand that needs none of it."""
        async with self.open_store(ManualClock(START)) as store:
            for number, refill in enumerate(Refill):
                closed = deployment(Quota(Metric.TPM, 0, refill), key=f"key-{number}")
                [refusal] = (await reserve(store, closed, tokens=1)).refusals
                assert refusal.reason == "tpm"
                assert refusal.retry_at == math.inf
                assert refusal.wake_at == math.inf
                assert await grants(store, closed, tokens=0)

    async def test_an_amount_of_zero_fits_a_full_quota(self) -> None:
        """A demand that needs nothing of a spent quota is not refused because of it."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(9), tpm(100))
            assert await grants(store, limited, tokens=100)
            assert await grants(store, limited, tokens=0)
            assert not await grants(store, limited, tokens=1)
            assert await used(store, limited) == [2, 100]

    async def test_a_refusal_changes_nothing(self) -> None:
        """However many refusals there are, nothing is taken, and room comes back when the first one said."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = [deployment(rpm(1), rpd(20), key=f"key-{n}") for n in range(8)]
            for candidate in limited:
                assert await grants(store, candidate)
            before = await store.snapshot(limited)
            for _ in range(30):
                clock.shift(1.0)
                assert (await reserve(store, *limited)).deployment is None
            after = await store.snapshot(limited)
            assert after == before
            move_to(clock, START + SPAN)
            assert await grants(store, limited[0])

    async def test_concurrent_reserves_get_exactly_the_limit(self) -> None:
        """Of a hundred at the same time with a limit of 15, fifteen are granted."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(15), tpm(100_000))
            granted = await asyncio.gather(*(grants(store, limited, tokens=10) for _ in range(100)))
            assert sum(granted) == 15
            assert await used(store, limited) == [15, 150]

    async def test_concurrent_reserves_spread_over_candidates_without_loss(self) -> None:
        """Eight deployments with a limit of 15 grant exactly 120 of 150 concurrent requests."""
        async with self.open_store(ManualClock(START)) as store:
            candidates = [deployment(rpm(15), key=f"key-{n}") for n in range(8)]
            decisions = await asyncio.gather(*(reserve(store, *candidates) for _ in range(150)))
            assert sum(decision.deployment is not None for decision in decisions) == 120
            assert [await used(store, candidate) for candidate in candidates] == [[15]] * 8

    async def test_concurrent_demands_of_mixed_size_stay_within_the_tokens(self) -> None:
        """Large and small demands together never exceed the limit, nor leave room for a refused one."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(tpm(20_000))
            sizes = [4_000, 900, 2_500, 1] * 15
            granted = await asyncio.gather(*(grants(store, limited, tokens=size) for size in sizes))
            taken = sum(size for size, fits in zip(sizes, granted, strict=True) if fits)
            assert taken <= 20_000
            assert await used(store, limited) == [taken]
            smallest_refused = min(size for size, fits in zip(sizes, granted, strict=True) if not fits)
            assert taken + smallest_refused > 20_000

    async def test_a_refusal_by_cooldown_and_quota_names_the_later(self) -> None:
        """The one that ends last is the reason; ``wake_at`` is after both."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(1))
            assert await grants(store, limited)
            await store.cool_down(Cooldown(limited.model_scope, START + 10.0, "short"))
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "rpm"
            assert close(refusal.retry_at, START + SPAN)
            assert close(refusal.wake_at, START + SPAN)
            await store.cool_down(Cooldown(limited.model_scope, START + 100.0, "long"))
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "long"
            assert close(refusal.retry_at, START + 100.0)
            assert close(refusal.wake_at, START + 100.0)

    async def test_every_quota_of_a_metric_keeps_its_own_window(self) -> None:
        """A window other than a minute is respected."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(Quota(Metric.RPM, 1, window=10.0, guard=0.5))
            assert await grants(store, limited)
            [refusal] = (await reserve(store, limited)).refusals
            assert close(refusal.retry_at, START + 10.5)
            assert close((await quotas_of(store, limited))[Metric.RPM].resets_at, START + 10.5)
            move_to(clock, START + 10.5)
            assert await grants(store, limited)

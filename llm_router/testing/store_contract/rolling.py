"""The contract of rolling quotas: no window, wherever it starts, holds more than the limit."""

from __future__ import annotations

import random

from llm_router.domain.cooldown import Cooldown, LearntLimit
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
    rpm,
    set_back,
    tpm,
    used,
)

__all__ = ["RollingContract"]


def _most_in_a_span(takings: list[tuple[float, int]], span: float) -> int:
    """Return the most that any half-open interval of ``span`` seconds holds."""
    return max(
        sum(amount for moment, amount in takings[first:] if moment < start + span)
        for first, (start, _) in enumerate(takings)
    )


class RollingContract(ContractBase):
    """Rolling quotas."""

    async def test_a_rolling_quota_grants_exactly_its_limit(self) -> None:
        """Of more demands than fit, exactly the limit is granted, of requests and of tokens."""
        async with self.open_store(ManualClock(START)) as store:
            for limit in (1, 2, 3, 15, 60):
                requests = deployment(rpm(limit), key=f"requests-{limit}")
                granted = [await grants(store, requests) for _ in range(limit + 5)]
                assert granted == [True] * limit + [False] * 5
                tokens = deployment(tpm(7 * limit + 6), key=f"tokens-{limit}")
                granted = [await grants(store, tokens, tokens=7) for _ in range(limit + 5)]
                assert granted == [True] * limit + [False] * 5

    async def test_a_rolling_quota_comes_back_one_window_and_guard_after_each_taking(self) -> None:
        """Each taking comes back separately, when the window and the guard have passed, and not before."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(3))
            for later in (0.0, 10.0, 25.0):
                move_to(clock, START + later)
                assert await grants(store, limited)
            for later in (0.0, 10.0, 25.0):
                move_to(clock, START + SPAN + later - MS)
                assert not await grants(store, limited)
                move_to(clock, START + SPAN + later)
                assert await grants(store, limited)
                assert not await grants(store, limited)

    async def test_a_rolling_quota_without_guard_comes_back_after_the_window(self) -> None:
        """A guard of 0 leaves just the window."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(1, guard=0.0))
            assert await grants(store, limited)
            move_to(clock, START + MINUTE - MS)
            assert not await grants(store, limited)
            move_to(clock, START + MINUTE)
            assert await grants(store, limited)

    async def test_no_span_of_a_minute_ever_holds_more_than_the_limit(self) -> None:
        """Whatever the arrivals, every interval of 60 s holds at most the limit, also across minutes."""
        clock = ManualClock(START)
        arrivals = random.Random(7)  # noqa: S311 - the same in every run
        async with self.open_store(clock) as store:
            limited = deployment(rpm(7), tpm(900))
            takings = []
            for _ in range(300):
                clock.shift(arrivals.choice((0.0, 0.1, 1.0, 5.0, 14.9)))
                tokens = arrivals.randrange(1, 400)
                if await grants(store, limited, tokens=tokens):
                    takings.append((clock.time(), tokens))
            assert len(takings) > 50
            assert _most_in_a_span([(moment, 1) for moment, _ in takings], MINUTE) <= 7
            assert _most_in_a_span(takings, MINUTE) <= 900

    async def test_a_burst_across_a_calendar_minute_is_one_burst(self) -> None:
        """What is taken in the last second of a minute still counts in the first second of the next."""
        clock = ManualClock(START - START % 60 + 59.0)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(5))
            before = [await grants(store, limited) for _ in range(5)]
            clock.shift(1.5)
            after = [await grants(store, limited) for _ in range(5)]
            assert before == [True] * 5
            assert after == [False] * 5

    async def test_a_large_rolling_quota_is_kept_to_a_slice_of_its_window(self) -> None:
        """Above 240, takings may come back together: at most 1/240 of a window late, and never early."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(tpm(100_000))
            takings = []
            for _ in range(900):
                clock.shift(0.11)
                if await grants(store, limited, tokens=997):
                    takings.append((clock.time(), 997))
            assert _most_in_a_span(takings, MINUTE) <= 100_000
            first_refill = takings[100][0]
            assert takings[0][0] + SPAN <= first_refill <= takings[0][0] + SPAN + MINUTE / 240 + 0.11
            assert len(takings) >= 160

    async def test_a_large_demand_waits_for_enough_takings_to_come_back(self) -> None:
        """``retry_at`` is when exactly enough older takings are back."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(tpm(200))
            for later in range(4):
                move_to(clock, START + later)
                assert await grants(store, limited, tokens=50)
            for tokens, returning in ((1, 0), (50, 0), (51, 1), (150, 2), (151, 3), (200, 3)):
                [refusal] = (await reserve(store, limited, tokens=tokens)).refusals
                assert close(refusal.retry_at, START + returning + SPAN)

    async def test_a_clock_set_back_returns_nothing_early(self) -> None:
        """If time jumps back, what is taken still counts, and the limit applies."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(2))
            assert await grants(store, limited)
            set_back(clock, START - 30.0)
            assert await grants(store, limited)
            assert not await grants(store, limited)
            move_to(clock, START + SPAN - MS)
            assert not await grants(store, limited)
            assert await used(store, limited) == [2]
            move_to(clock, START + SPAN)
            assert await grants(store, limited)

    async def test_a_changed_limit_holds_at_once_and_keeps_what_was_taken(self) -> None:
        """A raised limit grants the difference, a lowered one waits until enough has come back."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            before, raised, lowered = (deployment(rpm(limit)) for limit in (5, 8, 3))
            assert [await grants(store, before) for _ in range(6)] == [True] * 5 + [False]
            clock.shift(1.0)
            assert [await grants(store, raised) for _ in range(4)] == [True] * 3 + [False]
            [refusal] = (await reserve(store, lowered)).refusals
            assert close(refusal.retry_at, START + 1.0 + SPAN)
            assert (await quotas_of(store, lowered))[rpm(3).metric].limit == 3
            assert await used(store, lowered) == [8]

    async def test_a_limit_raised_from_small_to_large_keeps_what_was_taken(self) -> None:
        """A quota with an entry for each taking continues when its limit becomes large, and back."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            small, large = deployment(tpm(200)), deployment(tpm(1000))
            assert await grants(store, small, tokens=200)
            clock.shift(0.1)
            assert await grants(store, large, tokens=800)
            assert not await grants(store, large, tokens=1)
            clock.shift(SPAN + MINUTE / 240)
            assert await used(store, large) == [0]
            assert await grants(store, small, tokens=200)

    async def test_a_rolling_quota_comes_back_within_a_window_of_a_correction(self) -> None:
        """However far ahead the clock was; until then what was taken counts, once."""
        for ahead in (5.0, 45.0, 3600.0, 86_400.0):
            clock = ManualClock(START + ahead)
            async with self.open_store(clock) as store, self.second_store(store, clock) as second:
                limited = deployment(rpm(3))
                assert await grants(store, limited)
                set_back(clock, START)
                assert await used(store, limited) == [1]
                assert [await grants(store, limited) for _ in range(3)] == [True, True, False]
                [refusal] = (await reserve(store, limited)).refusals
                assert refusal.retry_at <= START + SPAN + MS
                move_to(clock, START + SPAN - MS)
                assert not await grants(store, limited)
                for _ in range(3):
                    clock.shift(SPAN)
                    for handle in (store, second, store):
                        assert await grants(handle, limited)
                    assert not await grants(second, limited)

    async def test_what_was_taken_before_the_clock_was_set_back_can_be_settled(self) -> None:
        """What was not used is given back, and nothing else."""
        clock = ManualClock(START + 86_400.0)
        async with self.open_store(clock) as store:
            limited = deployment(tpm(100))
            await reserve(store, limited, tokens=60, reservation_id="one")
            await reserve(store, limited, tokens=30, reservation_id="two")
            set_back(clock, START)
            assert await grants(store, limited, tokens=10)
            await store.settle("one", Demand(1, 20))
            await store.release("two")
            assert await used(store, limited) == [30]

    async def test_a_reserve_of_nothing_moves_no_taking(self) -> None:
        """At a large limit, where takings within a slice come back together, it is none of them."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(tpm(1000), rpm(1000))
            assert await grants(store, limited, tokens=100)
            for later, requests, expected in ((0.1, 1, 0.1), (0.2, 0, 0.1), (0.24, 0, 0.1)):
                move_to(clock, START + later)
                assert await grants(store, limited, requests=requests)
                quotas = await quotas_of(store, limited)
                assert close(quotas[Metric.TPM].resets_at, START + SPAN)
                assert close(quotas[Metric.RPM].resets_at, START + expected + SPAN)
            [refusal] = (await reserve(store, limited, tokens=1000)).refusals
            assert close(refusal.retry_at, START + SPAN)
            move_to(clock, START + SPAN)
            assert await used(store, limited) == [0, 2]

    async def test_a_reserve_of_nothing_moves_no_taking_under_a_learnt_limit(self) -> None:
        """A limit that was learnt is as large as one that is configured."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(5))
            learnt = (LearntLimit(Metric.TPM, 5_000),)
            await store.cool_down(Cooldown(limited.model_scope, START, "says so", learnt))
            assert await grants(store, limited, tokens=100)
            clock.shift(0.2)
            assert await grants(store, limited)
            assert close((await quotas_of(store, limited))[Metric.TPM].resets_at, START + SPAN)

    async def test_what_a_reserve_of_nothing_used_counts_from_its_own_time(self) -> None:
        """It comes back with the takings of its slice, at the end of these; or alone, when these are gone."""
        for settled, others, back in ((0.15, 0, 0.1), (0.15, 30, 0.2), (SPAN + 0.05, 0, 0.1)):
            clock = ManualClock(START)
            async with self.open_store(clock) as store:
                limited = deployment(tpm(1000))
                assert await grants(store, limited, tokens=100)
                move_to(clock, START + 0.1)
                await reserve(store, limited, reservation_id="nothing")
                move_to(clock, START + settled)
                await store.settle("nothing", Demand(1, 50))
                if others:
                    move_to(clock, START + 0.2)
                    assert await grants(store, limited, tokens=others)
                left = others + (150 if settled < SPAN else 50)
                assert await used(store, limited) == [left]
                assert close((await quotas_of(store, limited))[Metric.TPM].resets_at, START + back + SPAN)
                move_to(clock, START + back + SPAN - MS)
                assert await used(store, limited) == [left]
                move_to(clock, START + back + SPAN)
                assert await used(store, limited) == [0]

    async def test_what_a_reserve_of_nothing_used_counts_where_others_gave_back(self) -> None:
        """What they took is back, and what it used is not."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(tpm(1000))
            await reserve(store, limited, tokens=100, reservation_id="something")
            clock.shift(0.1)
            await reserve(store, limited, reservation_id="nothing")
            await store.release("something")
            clock.shift(5.0)
            await store.settle("nothing", Demand(1, 50))
            assert await used(store, limited) == [50]
            assert close((await quotas_of(store, limited))[Metric.TPM].resets_at, START + 0.1 + SPAN)

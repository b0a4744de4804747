"""The contract of daily quotas: everything comes back at midnight in the provider's time zone."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from llm_router.domain.quota import Demand, Metric
from llm_router.testing.clock import ManualClock
from llm_router.testing.store_contract.base import (
    MS,
    START,
    ContractBase,
    close,
    deployment,
    grants,
    move_to,
    quotas_of,
    reserve,
    rpd,
    set_back,
    used,
)

__all__ = ["DailyContract"]

_PACIFIC = "America/Los_Angeles"


def _moment(year: int, month: int, day: int, hour: int = 0, timezone: str = _PACIFIC) -> float:
    """Return a wall-clock hour in seconds since the epoch."""
    return datetime(year, month, day, hour, tzinfo=ZoneInfo(timezone)).timestamp()


class DailyContract(ContractBase):
    """Daily quotas."""

    async def test_a_daily_quota_grants_exactly_its_limit_until_midnight(self) -> None:
        """The limit is granted once a day; all of it comes back at midnight, nothing a millisecond before."""
        clock = ManualClock(_moment(2027, 5, 3, 9))
        midnight = _moment(2027, 5, 4)
        async with self.open_store(clock) as store:
            for limit in (1, 2, 3, 15, 60):
                limited = deployment(rpd(limit), key=f"key-{limit}")
                granted = [await grants(store, limited) for _ in range(limit + 2)]
                assert granted == [True] * limit + [False] * 2
            limited = deployment(rpd(3), key="key-3")
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "rpd"
            assert close(refusal.retry_at, midnight)
            assert close(refusal.wake_at, midnight)
            move_to(clock, midnight - MS)
            assert not await grants(store, limited)
            move_to(clock, midnight)
            assert [await grants(store, limited) for _ in range(4)] == [True] * 3 + [False]

    async def test_a_day_on_which_the_clocks_change_has_its_own_length(self) -> None:
        """Midnight is that of the wall clock: 23 hours after the previous one in March, 25 in November."""
        for month, day, hours in ((3, 14, 23), (11, 7, 25)):
            start = _moment(2027, month, day)
            clock = ManualClock(start)
            async with self.open_store(clock) as store:
                limited = deployment(rpd(1))
                assert await grants(store, limited)
                [refusal] = (await reserve(store, limited)).refusals
                assert close(refusal.retry_at, start + hours * 3600)
                move_to(clock, refusal.retry_at - MS)
                assert not await grants(store, limited)
                move_to(clock, refusal.retry_at)
                assert await grants(store, limited)

    async def test_midnight_is_that_of_the_quotas_time_zone(self) -> None:
        """Quotas in different time zones come back at different midnights."""
        clock = ManualClock(_moment(2027, 5, 3, 9))
        async with self.open_store(clock) as store:
            for number, (timezone, midnight) in enumerate(
                (
                    ("Asia/Tokyo", _moment(2027, 5, 5, timezone="Asia/Tokyo")),
                    ("UTC", _moment(2027, 5, 4, timezone="UTC")),
                    ("Asia/Kathmandu", _moment(2027, 5, 4, timezone="Asia/Kathmandu")),
                )
            ):
                limited = deployment(rpd(1, timezone), key=f"key-{number}")
                assert await grants(store, limited)
                [refusal] = (await reserve(store, limited)).refusals
                assert close(refusal.retry_at, midnight)

    async def test_what_is_taken_right_before_midnight_counts_on_both_days(self) -> None:
        """Within the guard before midnight it is uncertain for which day the provider counts it."""
        midnight = _moment(2027, 5, 4)
        clock = ManualClock(midnight - 3600)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(3))
            move_to(clock, midnight - 0.4)
            assert await grants(store, limited)
            move_to(clock, midnight - 0.2)
            assert await grants(store, limited, requests=2)
            [refusal] = (await reserve(store, limited)).refusals
            assert close(refusal.retry_at, midnight)
            move_to(clock, midnight)
            assert await used(store, limited) == [2]
            assert [await grants(store, limited) for _ in range(2)] == [True, False]
            move_to(clock, _moment(2027, 5, 5))
            assert [await grants(store, limited) for _ in range(4)] == [True] * 3 + [False]

    async def test_a_day_spent_before_midnight_waits_for_the_midnight_after(self) -> None:
        """If all of it was taken within the guard, nothing is left of the next day either."""
        midnight = _moment(2027, 5, 4)
        clock = ManualClock(midnight - 0.1)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(2))
            assert await grants(store, limited, requests=2)
            [refusal] = (await reserve(store, limited)).refusals
            assert close(refusal.retry_at, _moment(2027, 5, 5))
            assert close((await quotas_of(store, limited))[Metric.RPD].resets_at, _moment(2027, 5, 5))
            move_to(clock, _moment(2027, 5, 5) - MS)
            assert not await grants(store, limited)
            move_to(clock, _moment(2027, 5, 5))
            assert await grants(store, limited, requests=2)

    async def test_a_reservation_from_before_midnight_is_settled_where_it_counts(self) -> None:
        """After midnight a release returns what counts today, and nothing of what counted yesterday."""
        midnight = _moment(2027, 5, 4)
        clock = ManualClock(midnight - 60)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(9))
            await reserve(store, limited, requests=2, reservation_id="yesterday")
            move_to(clock, midnight - 0.2)
            await reserve(store, limited, requests=4, reservation_id="both")
            move_to(clock, midnight + 60)
            assert await grants(store, limited)
            assert await used(store, limited) == [5]
            await store.release("yesterday")
            assert await used(store, limited) == [5]
            await store.settle("both", Demand(1, 0))
            assert await used(store, limited) == [2]

    async def test_a_reservation_is_given_back_on_both_sides_before_midnight(self) -> None:
        """What is released before midnight counts on neither day."""
        midnight = _moment(2027, 5, 4)
        clock = ManualClock(midnight - 0.2)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(2))
            await reserve(store, limited, requests=2, reservation_id="released")
            await store.release("released")
            assert await grants(store, limited)
            move_to(clock, midnight)
            assert await used(store, limited) == [1]

    async def test_days_of_silence_leave_nothing_behind(self) -> None:
        """After more than one midnight a quota is full again, whatever was taken right before the first."""
        clock = ManualClock(_moment(2027, 5, 4) - 0.1)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(2))
            assert await grants(store, limited, requests=2)
            move_to(clock, _moment(2027, 5, 6, 12))
            assert await used(store, limited) == [0]
            assert await grants(store, limited, requests=2)

    async def test_a_changed_daily_limit_keeps_what_was_taken(self) -> None:
        """A raised limit grants the difference the same day, a lowered one nothing."""
        async with self.open_store(ManualClock(_moment(2027, 5, 3, 9))) as store:
            before, raised, lowered = (deployment(rpd(limit)) for limit in (3, 5, 2))
            assert [await grants(store, before) for _ in range(4)] == [True] * 3 + [False]
            assert [await grants(store, raised) for _ in range(3)] == [True] * 2 + [False]
            assert not await grants(store, lowered)
            assert await used(store, lowered) == [5]

    async def test_a_day_ends_by_the_corrected_clock(self) -> None:
        """What was taken while the clock was days ahead counts today, once, and no longer than today."""
        for ahead in (1, 3):
            clock = ManualClock(START + ahead * 86_400.0)
            async with self.open_store(clock) as store:
                limited = deployment(rpd(5))
                await reserve(store, limited, reservation_id="one")
                assert [await grants(store, limited) for _ in range(2)] == [True, True]
                set_back(clock, START)
                assert await used(store, limited) == [3]
                await store.release("one")
                assert [await grants(store, limited) for _ in range(4)] == [True] * 3 + [False]
                [refusal] = (await reserve(store, limited)).refusals
                assert refusal.retry_at <= START + 86_400.0
                for _ in range(4):
                    clock.shift(86_400.0)
                    assert [await grants(store, limited) for _ in range(6)] == [True] * 5 + [False]

    async def test_a_reserve_of_nothing_moves_no_day(self) -> None:
        """Within the guard before midnight, what was taken comes back at that midnight all the same."""
        midnight = _moment(2027, 5, 4)
        clock = ManualClock(midnight - 10.0)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(3))
            assert await grants(store, limited)
            move_to(clock, midnight - 0.1)
            assert await grants(store, limited, requests=0)
            assert await used(store, limited) == [1]
            assert close((await quotas_of(store, limited))[Metric.RPD].resets_at, midnight)

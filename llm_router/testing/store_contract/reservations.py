"""The contract of reservations: settled, released, expired, cancelled, each at most once."""

from __future__ import annotations

import asyncio

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.quota import Demand, Metric
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
    steady,
    tpm,
    used,
)

__all__ = ["ReservationContract"]


class ReservationContract(ContractBase):
    """What happens to a reservation."""

    async def test_a_release_gives_everything_back(self) -> None:
        """All quotas are as if nothing had been taken."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(1), tpm(100), rpd(1))
            assert (await reserve(store, limited, tokens=80, reservation_id="one")).deployment is limited
            await store.release("one")
            assert await used(store, limited) == [0, 0, 0]
            assert await grants(store, limited, tokens=100)

    async def test_a_settle_below_the_estimate_gives_the_difference_back(self) -> None:
        """The unused part is free at once; the used part comes back a window after it was taken."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(9), tpm(100))
            await reserve(store, limited, tokens=60, reservation_id="one")
            clock.shift(30.0)
            assert await grants(store, limited, tokens=40)
            clock.shift(10.0)
            await store.settle("one", Demand(1, 10))
            assert await used(store, limited) == [2, 50]
            assert not await grants(store, limited, tokens=51)
            assert await grants(store, limited, tokens=50)
            move_to(clock, START + SPAN)
            assert await used(store, limited) == [2, 90]
            assert [await grants(store, limited, tokens=n) for n in (11, 10)] == [False, True]

    async def test_a_settle_above_the_estimate_counts_to_the_last_token(self) -> None:
        """Beyond the limit as well: the quota stays closed until enough has come back."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(9), tpm(100), rpd(9))
            await reserve(store, limited, tokens=50, reservation_id="one")
            clock.shift(20.0)
            assert await grants(store, limited, tokens=30)
            await store.settle("one", Demand(1, 150))
            assert await used(store, limited) == [2, 180, 2]
            decision = await reserve(store, limited, tokens=1)
            assert close(decision.refusals[0].retry_at, START + SPAN)
            assert (await reserve(store, limited)).headroom == 0.0
            move_to(clock, START + SPAN)
            assert await grants(store, limited, tokens=70)
            assert not await grants(store, limited, tokens=1)

    async def test_nothing_is_granted_where_a_quota_is_full(self) -> None:
        """A demand of no request and no token fits a full quota, or one of 0, and leaves no trace."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            full, closed = deployment(rpm(1), tpm(9), rpd(1)), deployment(rpm(0), tpm(9), model="closed")
            slow = deployment(steady(Metric.RPM, 6, burst=1), model="slow")
            assert await grants(store, full, tokens=9)
            assert await grants(store, slow)
            before = [await quotas_of(store, each) for each in (full, closed, slow)]
            for n, each in enumerate((full, closed, slow, full, closed, slow)):
                decision = await reserve(store, each, requests=0, reservation_id=f"nothing-{n}")
                assert decision.deployment is each
                assert not decision.refusals
                end = store.release(f"nothing-{n}") if n < 3 else store.settle(f"nothing-{n}", Demand(0, 0))
                await end
            assert [await quotas_of(store, each) for each in (full, closed, slow)] == before
            assert not await grants(store, full)
            move_to(clock, START + SPAN)
            assert await used(store, full) == [0, 0, 1]
            assert await grants(store, slow)

    async def test_nothing_is_refused_during_a_cooldown(self) -> None:
        """Whatever scope cools down, a demand of no request and no token waits for its end as any other."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(1))
            for n, scope in enumerate((limited.model_scope, limited.key_scope)):
                await store.cool_down(Cooldown(scope, START + 10.0 * (n + 1), "busy"))
                decision = await reserve(store, limited, requests=0)
                assert decision.deployment is None
                [refusal] = decision.refusals
                assert refusal.cooldown is not None
                assert close(refusal.retry_at, START + 10.0 * (n + 1))
                move_to(clock, START + 10.0 * (n + 1))
                assert (await reserve(store, limited, requests=0)).deployment is limited
            assert await used(store, limited) == [0]

    async def test_nothing_that_turns_out_to_be_something(self) -> None:
        """A demand of nothing is settled with what was used after all, as of the time it was granted."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(2), tpm(9))
            await reserve(store, limited, requests=0, reservation_id="nothing")
            clock.shift(10.0)
            await store.settle("nothing", Demand(1, 5))
            assert await used(store, limited) == [1, 5]
            move_to(clock, START + SPAN)
            assert await used(store, limited) == [0, 0]

    async def test_requests_are_settled_as_tokens_are(self) -> None:
        """A reservation that made more or fewer requests than estimated counts with those that it made."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(9), tpm(100), rpd(9))
            await reserve(store, limited, requests=2, tokens=50, reservation_id="one")
            await store.settle("one", Demand(5, 50))
            assert await used(store, limited) == [5, 50, 5]
            await reserve(store, limited, requests=3, tokens=50, reservation_id="two")
            await store.settle("two", Demand(1, 50))
            assert await used(store, limited) == [6, 100, 6]

    async def test_unexpected_use_counts_from_the_time_of_the_reserve(self) -> None:
        """The tokens of a reservation that was estimated at none count from the time of the reserve."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(9), tpm(100))
            assert await grants(store, limited, tokens=10)
            clock.shift(5.0)
            await reserve(store, limited, tokens=0, reservation_id="one")
            clock.shift(5.0)
            assert await grants(store, limited, tokens=20)
            clock.shift(5.0)
            await store.settle("one", Demand(1, 70))
            assert await used(store, limited) == [3, 100]
            for moment, before, after in ((5.0, 90, 20), (10.0, 20, 0)):
                move_to(clock, START + moment + SPAN - MS)
                assert (await used(store, limited))[1] == before
                move_to(clock, START + moment + SPAN)
                assert (await used(store, limited))[1] == after

    async def test_a_late_settle_changes_nothing(self) -> None:
        """If what it took has come back already, correcting it does not change what others took."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(5), tpm(100))
            for reservation_id in ("lower", "higher"):
                await reserve(store, limited, tokens=40, reservation_id=reservation_id)
            move_to(clock, START + SPAN)
            assert await grants(store, limited, tokens=60)
            await store.settle("lower", Demand(0, 0))
            await store.settle("higher", Demand(1, 99))
            assert await used(store, limited) == [1, 60]

    async def test_the_second_settle_or_release_changes_nothing(self) -> None:
        """Whichever came first decides."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(9), tpm(100), rpd(9))
            for key in ("one", "two"):
                await reserve(store, limited, tokens=50, reservation_id=key)
            await store.settle("one", Demand(1, 30))
            await store.settle("one", Demand(1, 10))
            await store.release("one")
            assert await used(store, limited) == [2, 80, 2]
            await store.release("two")
            await store.release("two")
            await store.settle("two", Demand(1, 50))
            assert await used(store, limited) == [1, 30, 1]

    async def test_unknown_reservations_are_ignored(self) -> None:
        """Settling or releasing what was never granted is not an error and has no effect."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(1), tpm(100))
            assert await grants(store, limited, tokens=50)
            assert (await reserve(store, limited, reservation_id="refused")).deployment is None
            for reservation_id in ("refused", "never made", "", "odd: {'%s'}\n"):
                await store.release(reservation_id)
                await store.settle(reservation_id, Demand(0, 0))
                await store.settle(reservation_id, Demand(9, 9))
            assert await used(store, limited) == [1, 50]

    async def test_an_expired_reservation_keeps_what_it_took(self) -> None:
        """After it has expired neither settle nor release changes anything; just before, both do."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(9), rpd(9))
            for reservation_id in ("in time", "released", "settled"):
                await reserve(store, limited, ttl=30.0, reservation_id=reservation_id)
            move_to(clock, START + 30.0 - MS)
            await store.release("in time")
            assert await used(store, limited) == [2, 2]
            move_to(clock, START + 30.0)
            await store.release("released")
            await store.settle("settled", Demand(5, 5))
            assert await used(store, limited) == [2, 2]
            move_to(clock, START + SPAN)
            assert await used(store, limited) == [0, 2]

    async def test_reservations_expire_each_in_its_own_time(self) -> None:
        """A long one made first does not keep a short one alive, nor does a short one end a long one."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(9))
            for reservation_id, ttl in (("long", 300.0), ("short", 3.0)):
                await reserve(store, limited, ttl=ttl, reservation_id=reservation_id)
            clock.shift(10.0)
            assert await grants(store, limited)
            await store.release("short")
            assert await used(store, limited) == [3]
            await store.release("long")
            assert await used(store, limited) == [2]

    async def test_only_the_reservation_named_is_corrected(self) -> None:
        """Of many made at the same time each keeps its own amount."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(50), tpm(100_000))
            for n in range(20):
                await reserve(store, limited, tokens=100 + n, reservation_id=f"number-{n}")
            for n in range(0, 20, 2):
                await store.release(f"number-{n}")
            assert await used(store, limited) == [10, sum(100 + n for n in range(1, 20, 2))]

    async def test_a_cancelled_reserve_that_is_released_keeps_nothing(self) -> None:
        """At whichever await it is cancelled: once its id is released, nothing is taken."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(10), tpm(1_000), rpd(100))
            for awaits in range(40):
                reservation_id = f"cancelled-{awaits}"
                task = asyncio.ensure_future(
                    reserve(store, limited, tokens=100, reservation_id=reservation_id)
                )
                for _ in range(awaits):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await store.release(reservation_id)
                assert await used(store, limited) == [0, 0, 0]
            assert await grants(store, limited, requests=10, tokens=1_000)

    async def test_many_cancelled_reserves_keep_nothing_once_released(self) -> None:
        """Cancelled together, half-way, while others continue: the others keep what they were granted."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(1_000))
            for awaits in range(6):
                tasks = [
                    asyncio.ensure_future(reserve(store, limited, reservation_id=f"{awaits}-{n}"))
                    for n in range(20)
                ]
                for _ in range(awaits):
                    await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(*(store.release(f"{awaits}-{n}") for n in range(0, 20, 2)))
            assert await used(store, limited) == [60]

    async def test_a_cancelled_settle_takes_effect_before_what_follows_or_not_at_all(self) -> None:
        """After a cancelled settle, a release gives back either everything or nothing more."""
        async with self.open_store(ManualClock(START)) as store:
            for awaits in range(12):
                limited = deployment(tpm(1_000), key=f"key-{awaits}")
                reservation_id = f"half-settled-{awaits}"
                await reserve(store, limited, tokens=500, reservation_id=reservation_id)
                task = asyncio.ensure_future(store.settle(reservation_id, Demand(1, 30)))
                for _ in range(awaits):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await store.release(reservation_id)
                assert await used(store, limited) in ([0], [30])

    async def test_reservations_expire_after_a_correction_of_the_clock(self) -> None:
        """One made while the clock was ahead is forgotten as soon as any other."""
        clock = ManualClock(START + 7200.0)
        async with self.open_store(clock) as store:
            limited = deployment(rpd(9))
            for reservation_id in ("in time", "late"):
                await reserve(store, limited, ttl=30.0, reservation_id=reservation_id)
            set_back(clock, START)
            assert await used(store, limited) == [2]
            move_to(clock, START + 30.0 - MS)
            await store.release("in time")
            assert await used(store, limited) == [1]
            move_to(clock, START + 30.0)
            await store.release("late")
            assert await used(store, limited) == [1]

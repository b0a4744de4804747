"""The contract of charges: what was taken without asking counts all the same, once, from its own time."""

from __future__ import annotations

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand, Metric
from llm_router.stores.base import ExternalStore, Ranking, RateLimitStore, Standing, Taking
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

__all__ = ["ChargeContract"]

_DAY = 86_400.0


def _takings(*ats: float, tokens: int = 0) -> list[Taking]:
    return [Taking(at, Demand(1, tokens)) for at in ats]


async def _charge(
    store: RateLimitStore, charged: Deployment, *takings: Taking, sequence: int = 1, source: str = "process-a"
) -> None:
    await store.charge(source, sequence, charged, takings)


class ChargeContract(ContractBase):
    """Charging what was taken elsewhere."""

    async def test_a_charge_counts_from_its_own_time(self) -> None:
        """Each taking comes back a window after it was made."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(4), tpm(1_000))
            await _charge(store, limited, *_takings(START - 30.0, START - 10.0, tokens=100))
            assert await used(store, limited) == [2, 200]
            assert [await grants(store, limited) for _ in range(3)] == [True, True, False]
            move_to(clock, START - 30.0 + SPAN - MS)
            assert not await grants(store, limited)
            move_to(clock, START - 30.0 + SPAN)
            assert [await grants(store, limited) for _ in range(2)] == [True, False]
            move_to(clock, START - 10.0 + SPAN)
            assert [await grants(store, limited) for _ in range(2)] == [True, False]

    async def test_a_charge_lies_between_what_was_granted(self) -> None:
        """Older and newer grants keep their own times, and are settled as before."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(tpm(1_000))
            await reserve(store, limited, tokens=100, reservation_id="early")
            move_to(clock, START + 20.0)
            await reserve(store, limited, tokens=200, reservation_id="late")
            await _charge(store, limited, *_takings(START + 10.0, tokens=400))
            assert await used(store, limited) == [700]
            await store.settle("late", Demand(1, 250))
            await store.settle("early", Demand(1, 50))
            assert await used(store, limited) == [700]
            for at, left in ((SPAN, 650), (10.0 + SPAN, 250), (20.0 + SPAN, 0)):
                move_to(clock, START + at - MS)
                assert await used(store, limited) != [left]
                move_to(clock, START + at)
                assert await used(store, limited) == [left]

    async def test_a_charge_of_nothing_moves_nothing(self) -> None:
        """What was taken comes back when it would have, whatever else the charge counts."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(tpm(1_000), rpm(1_000))
            assert await grants(store, limited, tokens=100)
            clock.shift(0.2)
            await _charge(store, limited, *_takings(START + 0.1, START + 0.2))
            assert await used(store, limited) == [100, 3]
            quotas = await quotas_of(store, limited)
            assert close(quotas[Metric.TPM].resets_at, START + SPAN)
            assert close(quotas[Metric.RPM].resets_at, START + 0.2 + SPAN)

    async def test_what_has_come_back_is_not_charged(self) -> None:
        """A taking that is older than the window, or of yesterday, counts nothing."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(5), rpd(100))
            await _charge(store, limited, *_takings(START - _DAY, START - SPAN, START - 1.0))
            assert await used(store, limited) == [1, 2]

    async def test_a_charge_needs_no_room(self) -> None:
        """A quota may be overdrawn, and is closed until enough has come back."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(2), rpd(3))
            assert await grants(store, limited)
            await _charge(store, limited, *_takings(*(START - 10.0 + n for n in range(5))))
            assert await used(store, limited) == [6, 6]
            move_to(clock, START + SPAN + 1.0)
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "rpd"

    async def test_a_charge_minds_no_cooldown(self) -> None:
        """It counts while the deployment cools down, under learnt limits too."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10))
            learnt = (LearntLimit(Metric.RPM, 3),)
            await store.cool_down(Cooldown(limited.model_scope, START + 5.0, "rests", learnt))
            await _charge(store, limited, *_takings(START - 1.0, START))
            assert await used(store, limited) == [2]
            move_to(clock, START + 5.0)
            assert [await grants(store, limited) for _ in range(2)] == [True, False]

    async def test_a_steady_quota_is_charged(self) -> None:
        """What was taken counts at once; it drains like anything else."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(steady(Metric.RPM, 60, burst=3))
            await _charge(store, limited, *_takings(START, START, START))
            assert not await grants(store, limited)
            move_to(clock, START + SPAN)
            assert await used(store, limited) == [0]

    async def test_a_charge_may_be_repeated(self) -> None:
        """Of one source and model, a sequence that is not above the last one changes nothing."""
        async with self.open_store(ManualClock(START)) as store:
            limited, other = deployment(rpm(100)), deployment(rpm(100), model="other")
            for sequence in (5, 5, 4, 6):
                await _charge(store, limited, *_takings(START), sequence=sequence)
            await _charge(store, limited, *_takings(START), sequence=5, source="process-b")
            await _charge(store, other, *_takings(START), sequence=5)
            assert await used(store, limited) == [3]
            assert await used(store, other) == [1]

    async def test_an_empty_charge_is_harmless(self) -> None:
        """Nothing to charge, and nothing taken, change nothing."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(1), tpm(10))
            await _charge(store, limited)
            await _charge(store, limited, Taking(START, Demand(0, 0)), sequence=2)
            assert await used(store, limited) == [0, 0]
            assert await grants(store, limited)

    async def test_a_charge_of_thousands(self) -> None:
        """Many takings at once: all count, and none comes back early."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(5_000))
            await _charge(store, limited, *_takings(*(START - 50.0 + n * 0.01 for n in range(3_000))))
            assert await used(store, limited) == [3_000]
            move_to(clock, START - 50.0 + SPAN - MS)
            assert await used(store, limited) == [3_000]
            move_to(clock, START - 50.0 + 30.0 + 1.0 + SPAN)
            assert await used(store, limited) == [0]

    async def test_what_was_counted_is_not_charged_again(self) -> None:
        """Takings in the present record are there already."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(10), rpd(50))
            decision = await reserve(store, limited)
            move_to(clock, START + 5.0)
            since = await store.charge(
                "process-a", 1, limited, _takings(START + 1.0), _takings(START), decision.since
            )
            assert since == decision.since
            assert await used(store, limited) == [2, 2]

    async def test_what_another_record_counted_is_charged(self) -> None:
        """Takings of a record that the store does not have any more count again."""
        async with self.open_store(ManualClock(START)) as store:
            if not isinstance(store, ExternalStore):
                return
            limited = deployment(rpm(10), rpd(50))
            counted = _takings(START - 20.0, START - 10.0)
            since = await store.charge("process-a", 1, limited, [], counted, START - 1_000.0)
            assert since > START - 1_000.0
            assert await used(store, limited) == [2, 2]
            assert (await reserve(store, limited)).since == since

    async def test_a_record_that_is_not_the_known_one_grants_nothing(self) -> None:
        """The candidate is named; the next one is asked; after a charge all is well."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            if not isinstance(store, ExternalStore):
                return
            lost, other = deployment(rpm(10)), deployment(rpm(10), model="other")
            assert (await reserve(store, other)).since > 0
            store.known[lost.model_scope] = START - 1_000.0
            decision = await reserve(store, lost, other)
            assert decision.deployment is other
            assert decision.lost == (lost,)
            assert [refusal.deployment for refusal in decision.refusals] == [lost]
            since = await store.charge("process-a", 1, lost, [], _takings(START - 1.0), START - 1_000.0)
            store.known[lost.model_scope] = since
            move_to(clock, START + 2.0)  # beyond QUIET
            decision = await reserve(store, lost, other)
            assert (decision.deployment, decision.since, decision.lost) == (lost, since, ())
            assert await used(store, lost) == [2]

    async def test_processes_announce_themselves(self) -> None:
        """Each counts for a minute after its last announcement."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            if not isinstance(store, ExternalStore):
                return
            assert await store.announce("a") == 1
            move_to(clock, START + 30.0)
            assert await store.announce("b") == 2
            assert await store.announce("b") == 2
            move_to(clock, START + 59.0)
            assert await store.announce("b") == 2
            move_to(clock, START + 61.0)
            assert await store.announce("b") == 1

    async def test_processes_that_announce_themselves_are_ranked(self) -> None:
        """By their names, so that no two of one rank are counted, whenever each asked last."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            if not isinstance(store, Ranking):
                return
            for name in "cab":
                await store.standing(name)
            assert [await store.standing(name) for name in "bca"] == [
                Standing(3, 1),
                Standing(3, 2),
                Standing(3, 0),
            ]
            move_to(clock, START + 30.0)
            assert await store.standing("b") == Standing(3, 1)
            move_to(clock, START + 61.0)
            assert await store.standing("b") == Standing(1, 0)

"""What each of several processes may take of a quota alone: together not more than the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Demand, Deployment, MemoryStore, Metric, Quota, Refill, StoreUnavailableError
from llm_router.domain.deployment import Scope
from llm_router.stores import Decision, Ranking, Standing
from llm_router.stores.failover import FailoverStore
from llm_router.stores.failover.peers import Part, Peers
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

SCOPE = Scope("model:gemini:a:flash")


def parts(quota: Quota, count: int, scope: Scope = SCOPE) -> list[Quota]:
    return [Part(1.0 / count, Standing(count, rank)).of(quota, scope) for rank in range(count)]


@pytest.mark.parametrize("refill", [Refill.ROLLING, Refill.DAILY])
@pytest.mark.parametrize("limit", [0, 1, 2, 5, 12, 100, 10**15])
def test_the_parts_of_a_quota_are_the_whole(refill: Refill, limit: int) -> None:
    """In whole requests that differ by one at most, however many processes there are."""
    quota = Quota(Metric.RPM, limit, refill)
    for count in range(1, 14):
        limits = [part.limit for part in parts(quota, count)]
        assert sum(limits) == limit
        assert max(limits) - min(limits) <= 1
        assert {part.window for part in parts(quota, count)} == {quota.window}


@pytest.mark.parametrize("burst", [None, 1, 2, 7])
def test_the_parts_of_a_steady_quota_are_the_whole(burst: int | None) -> None:
    """What all may send at once as well: where that is less than one each, only some have a part."""
    quota = Quota(Metric.RPM, 20, Refill.STEADY, burst=burst)
    for count in range(1, 14):
        some = [part for part in parts(quota, count) if part.limit]
        assert sum(part.limit for part in some) == quota.limit
        assert sum(part.capacity for part in some) == quota.capacity


def test_the_processes_that_have_a_part_differ_by_model() -> None:
    """So that none is without any, as long as there are many models."""
    quota = Quota(Metric.RPM, 2)
    scopes = [Scope(f"model:gemini:a:{number}") for number in range(60)]
    taken = [
        sum(each) for each in zip(*([p.limit for p in parts(quota, 12, s)] for s in scopes), strict=True)
    ]
    assert min(taken) > 0


def test_without_ranks_nothing_is_shared_that_is_too_small() -> None:
    """Each takes what all can take, and nothing of what only some could."""
    part = Part(0.25, Standing(4))
    taken = [part.of(Quota(Metric.RPM, limit), SCOPE).limit for limit in (3, 4, 7, 8)]
    assert taken == [0, 1, 1, 2]


class Shared(MemoryStore):
    """A store of several processes, which counts and ranks those of the last minute."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.known: dict[Scope, float] = {}
        self.is_down = False
        self._seen: dict[str, float] = {}
        self._time = clock.time

    async def reserve(self, *args: Any, **options: Any) -> Decision:
        self._answer()
        return await super().reserve(*args, **options)

    async def charge(self, *args: Any, **options: Any) -> float:
        self._answer()
        return await super().charge(*args, **options)

    async def announce(self, source: str) -> int:
        return (await self.standing(source)).count

    async def standing(self, source: str) -> Standing:
        self._answer()
        self._seen[source] = self._time()
        alive = sorted(name for name, at in self._seen.items() if at > self._time() - 60.0)
        return Standing(len(alive), alive.index(source))

    async def advice(self) -> list[str]:
        return []

    def _answer(self) -> None:
        if self.is_down:
            raise StoreUnavailableError("cannot be reached")


async def announce(fronts: list[FailoverStore], clock: ManualClock) -> None:
    for _ in range(8):
        for front in fronts:
            await front._announce()
        clock.shift(2.0)


@pytest.mark.parametrize(
    "quota",
    [
        Quota(Metric.RPM, 5),
        Quota(Metric.RPM, 30),
        Quota(Metric.RPD, 5, Refill.DAILY),
        Quota(Metric.RPM, 20, Refill.STEADY, burst=2),
    ],
)
@pytest.mark.parametrize("idles", [0.0, 70.0])
async def test_alone_many_processes_keep_a_small_limit(
    pools: Pools, clock: ManualClock, quota: Quota, idles: float
) -> None:
    """Twelve at once, also where all idled for a minute and came back a moment before the store failed."""
    limited, shared = Deployment(pools.one().key, "m", quotas=(quota,)), Shared(clock)
    assert isinstance(shared, Ranking)
    fronts = [FailoverStore(shared, clock=clock, owns_store=False) for _ in range(12)]
    await announce(fronts, clock)
    clock.shift(idles)
    for front in fronts:
        await front._announce()
    shared.is_down = True
    granted = 0
    for n in range(9):
        for number, front in enumerate(fronts):
            decision = await front.reserve(f"{number}-{n}", [limited], Demand(1, 1), 60.0)
            granted += decision.deployment is limited
            if decision.deployment is None:
                assert decision.refusals[0].retry_at < clock.time() + 2 * 86_400.0
    assert granted == (2 if quota.burst else quota.limit)
    for front in fronts:
        await front.aclose()


async def test_fewer_processes_are_believed_a_little_later(clock: ManualClock) -> None:
    """Of those that come back together, or were forgotten, the first one does not see the others."""
    shared = Shared(clock)
    first, second = (Peers(shared, "auto", 0.25, clock) for _ in range(2))
    await first.announce()
    assert first.share == 1.0
    await second.announce()
    await first.announce()
    assert first.share == second.share == 0.5
    clock.shift(100.0)
    shared._seen.clear()
    for _ in range(6):
        await first.announce()
        assert first.share == 0.5
        clock.shift(10.0)
    clock.shift(1.0)
    await first.announce()
    assert first.share == 1.0


async def test_what_a_store_counts_that_has_lost_the_names_is_not_believed(clock: ManualClock) -> None:
    """A process that had just begun does not know how many there are; one that began earlier does."""
    shared = Shared(clock)
    long, short = (Peers(shared, "auto", 0.25, clock) for _ in range(2))
    await long.announce()
    clock.shift(11.0)
    await long.announce()
    shared._seen.clear()
    await short.announce()
    assert (long.share, short.share) == (1.0, 1.0)
    clock.shift(1.0)
    for each in (long, short):
        each.names_were_lost(clock.time())
        await each.announce()
    assert (long.share, short.share) == (0.5, 0.25)
    clock.shift(10.0)
    await short.announce()
    assert short.share == 0.5


async def test_alone_what_exceeds_a_part_is_not_refused_for_ever(pools: Pools, clock: ManualClock) -> None:
    """It is asked for again soon, unless it exceeds the limit itself."""
    limited, shared = pools.one(rpm=None, tpm=1_000), Shared(clock)
    fronts = [FailoverStore(shared, clock=clock, owns_store=False) for _ in range(4)]
    await announce(fronts, clock)
    shared.is_down = True
    for tokens, is_for_ever in [(251, False), (1_000, False), (1_001, True)]:
        decision = await fronts[0].reserve(f"r{tokens}", [limited], Demand(1, tokens), 60.0)
        [refusal] = decision.refusals
        assert refusal.deployment is limited
        assert (refusal.retry_at == float("inf")) is is_for_ever
    for front in fronts:
        await front.aclose()

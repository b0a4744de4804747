from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_router import Deployment, ProviderError
from llm_router.domain.kinds import Metric
from llm_router.engine.facts import SharedFacts
from llm_router.engine.paces import Paces
from llm_router.engine.suspicions import Suspicions
from llm_router.errors import QuotaViolation
from llm_router.records import MemoryRecords
from llm_router.stores.base import QuotaSnapshot
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


class Records(MemoryRecords):
    """Records that can fail, and count what is put."""

    fails = False
    puts = 0

    async def put(self, *args: Any, **kwargs: Any) -> int:
        self.puts += 1
        if self.fails:
            raise ZeroDivisionError
        return await super().put(*args, **kwargs)


def suspicious(deployment: Deployment, clock: ManualClock) -> Suspicions:
    """Return suspicions after three refusals below the limit."""
    suspicions = Suspicions()
    error = ProviderError("no", kind="quota", code=429, violations=(QuotaViolation(Metric.RPM, 100),))
    for minute in range(3):
        quotas = [QuotaSnapshot(Metric.RPM, 100, 5, 0.0)]
        suspicions.note(deployment, error, quotas, clock.time() - 60.0 * minute)
    return suspicions


async def test_a_fact_is_told_once_and_again_after_a_failure(pools: Pools, clock: ManualClock) -> None:
    """Others know it for an hour; what cannot be told is told the next time."""
    one, other = pools.one(), pools.one()
    records = Records(clock=clock)
    facts = SharedFacts(suspicious(one, clock), records, clock)
    records.fails = True
    await facts.publish([one, other])
    assert await facts.known() == {}
    records.fails = False
    for _ in range(2):
        await facts.publish([one, other])
    assert records.puts == 2
    strangers = SharedFacts(Suspicions(), records, clock)
    known = await strangers.known()
    assert list(known) == [one.model_scope]
    assert known[one.model_scope]["kind"] == "outside_traffic"
    clock.shift(3601.0)
    assert await strangers.known() == {}


async def test_facts_are_bounded(pools: Pools, clock: ManualClock, monkeypatch: Any) -> None:
    """What was told is forgotten rather than kept without end; a name that is too long is not told."""
    monkeypatch.setattr("llm_router.engine.facts._SHOWN", 0)
    one, long = pools.one(), pools.one("m" * 600)
    records = Records(clock=clock)
    facts = SharedFacts(suspicious(one, clock), records, clock)
    await facts.publish([one])
    await facts.publish([one])
    assert records.puts == 1
    assert len(facts._told) == 1
    await SharedFacts(suspicious(long, clock), records, clock).publish([long])
    assert records.puts == 1


def test_paces_follow_what_is_given_back(pools: Pools, monkeypatch: Any) -> None:
    """A sample above what is counted now is of another day, or was given back; there are not too many."""
    paces, scope = Paces(), pools.one().model_scope
    for minute, used in enumerate((1, 5, 9)):
        paces.note(scope, Metric.RPD, used, 60.0 * minute)
    assert [sample.used for sample in paces.note(scope, Metric.RPD, 6, 130.0)] == [1, 5, 6]
    assert [sample.used for sample in paces.note(scope, Metric.RPD, 0, 190.0)] == [0]
    assert [sample.at for sample in paces.note(scope, Metric.RPD, 3, 20.0)] == [20.0]
    monkeypatch.setattr("llm_router.engine.paces._MOST", 0)
    assert len(paces.note(scope, Metric.RPD, 9, 500.0)) == 1

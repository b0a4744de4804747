"""How the projects with one limit take turns in trying one request more."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import attrs
import pytest

from llm_router import MemoryStore, Metric, ProviderError, Router
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.limits import LearntLimit, LimitRecord, LimitSource
from llm_router.engine.limits import FIRST_WAIT, LONGEST_WAIT
from llm_router.engine.tries import concerns_others, follow, proves_more, put_off, takes_turns
from llm_router.errors import QuotaViolation
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

NOW = 1_800_000_000.0
RPM, TPM, RPD = Metric.RPM, Metric.TPM, Metric.RPD
INFERRED, UNKNOWN = LimitSource.INFERRED, LimitSource.UNKNOWN


def record(limit: int = 10, *, due_in: float = 100.0, source: LimitSource = INFERRED) -> LimitRecord:
    """Make the record of a limit that was learnt ten minutes ago."""
    return LimitRecord(limit, source, NOW - 600.0, limit + 1, NOW + due_in)


def entry(limit: int = 10, wait: float = FIRST_WAIT) -> LearntLimit:
    return LearntLimit(RPM, limit, INFERRED, limit + 1, wait)


def test_only_settled_limits_of_requests_per_minute_take_turns() -> None:
    """Not those of days and tokens, nor those that follow the traffic of others, nor those never to rise."""
    assert takes_turns(entry())
    for other in (
        attrs.evolve(entry(), metric=TPM),
        attrs.evolve(entry(), metric=RPD),
        entry(wait=FIRST_WAIT - 1.0),
        entry(wait=math.inf),
        LearntLimit(RPM, None),
    ):
        assert not takes_turns(other)
    assert concerns_others(entry(10), record(10))
    for before in (None, record(11), record(10, source=UNKNOWN)):
        assert not concerns_others(entry(10), before)
    assert proves_more(entry(11), record(10))
    for learnt, before in (
        (entry(10), record(10)),
        (entry(11), record(10, source=UNKNOWN)),
        (attrs.evolve(entry(11), metric=RPD), record(10)),
    ):
        assert not proves_more(learnt, before)


def test_who_finds_the_limit_that_others_have_tries_after_them() -> None:
    """What is due, unlike, unknown or not learnt at all is not waited for."""
    others = [record(), record(due_in=-1.0), record(9), record(source=UNKNOWN), None, record(due_in=50.0)]
    own, later = put_off(entry(), others, NOW, failed=False)
    assert own == entry(wait=3 * FIRST_WAIT)
    assert later == {}
    assert put_off(entry(), [None, record(9)], NOW, failed=False) == (entry(), {})


def test_a_failed_try_puts_off_those_of_all_others() -> None:
    """In the order in which they were to come, one after the other, the own one last; never sooner."""
    others = [record(due_in=30.0), record(due_in=20.0), record(due_in=1_000.0), record(due_in=-1.0)]
    own, later = put_off(entry(wait=240.0), others, NOW, failed=True)
    assert own.raise_after == 4 * 240.0
    assert later == {
        place: LearntLimit(RPM, 10, INFERRED, 11, turn * 240.0, NOW - 600.0)
        for turn, place in ((1, 1), (2, 0))
    }


@pytest.mark.parametrize(
    ("limit", "wait", "size", "apart"),
    [
        (10, 240.0, 2, 240.0),  # as long as the wait has doubled so far
        (10, LONGEST_WAIT, 2, LONGEST_WAIT),
        (10, LONGEST_WAIT, 8, 480.0),  # together they have many requests
        (10, LONGEST_WAIT, 16, LONGEST_WAIT / 4),  # each has its turn within two hours
        (2, 5 * LONGEST_WAIT, 4, 2.5 * LONGEST_WAIT),  # more often than each by itself
        (10, 3 * LONGEST_WAIT, 2, 3 * LONGEST_WAIT),  # it is seldom used up
        (10, 3 * LONGEST_WAIT, 32, 86_400.0 / 32),
    ],
)
def test_tries_of_a_group_are_rare_and_yet_each_has_its_turn(
    limit: int, wait: float, size: int, apart: float
) -> None:
    """The whole group tries about as often as one that is alone."""
    own, _ = put_off(entry(limit, wait), [record(limit)] * (size - 1), NOW, failed=True)
    assert own.raise_after == pytest.approx(size * apart)


def test_what_one_project_proves_others_try_at_once() -> None:
    """Those that had the same limit, unless they are at it already."""
    trying = LimitRecord(10, INFERRED, NOW - 600.0, 12, NOW - 1.0)
    others = [record(), record(9), None, record(source=UNKNOWN), trying]
    expected = {0: LearntLimit(RPM, 10, INFERRED, 12, 0.0, NOW - 600.0)}
    assert follow(entry(12), record(10), others, NOW) == expected


Learn = Callable[..., Awaitable[list[LimitRecord]]]


@pytest.fixture
def learn(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> Learn:
    """Have the first of two projects with a limit of two try a third request; return what both know then."""

    async def learn(*, admitted: bool) -> list[LimitRecord]:
        store = MemoryStore(clock=clock)
        first, second = pool = pools.many(2)
        for deployment, wait in ((first, 100.0), (second, 200.0)):
            await store.cool_down(
                Cooldown.learn(deployment.model_scope, attrs.evolve(entry(2), raise_after=wait))
            )
        async with make_router(pool, store=store) as router:
            clock.shift(150.0)
            for _ in range(4):
                assert (await router.send("x")).success
            clock.shift(15.0)
            if not admitted:
                violations = (QuotaViolation(RPM, None),)
                provider.script(
                    ProviderError("spent", kind="quota", code=429, charged=False, violations=violations)
                )
            assert (await router.send("x")).success is admitted
        learnt = [snapshot.quotas[0].learnt for snapshot in await store.snapshot(pool)]
        return [each for each in learnt if each]

    return learn


@pytest.mark.parametrize("admitted", [True, False])
async def test_what_one_project_is_answered_holds_for_the_other(
    learn: Learn, clock: ManualClock, *, admitted: bool
) -> None:
    """A try that is refused puts off that of the other project; one that is answered brings it about."""
    learnt = await learn(admitted=admitted)
    expected = [(3, 5, 10.0), (2, 3, 0.0)] if admitted else [(2, 3, 400.0), (2, 3, 200.0)]
    assert [(each.limit, each.raised, pytest.approx(each.raise_at - clock.time())) for each in learnt] == [
        (limit, raised, pytest.approx(wait)) for limit, raised, wait in expected
    ]


async def test_too_many_projects_try_each_by_itself(
    learn: Learn, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are looked at would be put off again and again, by each of those that are not."""
    monkeypatch.setattr("llm_router.engine.learning._OTHERS", 1)
    learnt = await learn(admitted=False)
    waits = [each.raise_at - clock.time() for each in learnt]
    assert waits == [pytest.approx(200.0), pytest.approx(35.0)]

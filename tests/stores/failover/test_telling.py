"""A store that answers again is told what was spent, settled and cooled down meanwhile, once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, Metric, Quota, Refill
from llm_router.domain.cooldown import LearntLimit
from llm_router.errors import StoreCorruptError
from llm_router.stores import Taking
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, TIMEOUT, Remote, granted, recover, settle_down, used
else:
    from llm_router_tests_remote import OUTAGE, TIMEOUT, Remote, granted, recover, settle_down, used


async def test_what_was_spent_alone_counts_where_there_is_no_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Others have filled the quota meanwhile; it stays closed for longer."""
    limited = pools.one(rpm=20, rpd=100)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 5, "a") == 5
    remote.fail(None)
    for n in range(20):
        await remote.reserve(f"other{n}", [limited], Demand(1, 0), 60.0)
    await recover(front, remote, clock, limited)
    assert await used(remote, limited) == {"rpm": 25, "rpd": 25}


async def test_what_was_spent_alone_counts_from_its_own_time(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """It is back a window after it was spent, not a window after it was told."""
    limited = pools.one(rpm=20)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 5, "a") == 5
    clock.shift(50.0)
    await recover(front, remote, clock, limited)
    assert await used(remote, limited) == {"rpm": 5}
    clock.shift(9.3)
    assert await used(remote, limited) == {"rpm": 0}


@pytest.mark.parametrize("tokens", [1, 1_000])
async def test_what_is_settled_later_counts(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, tokens: int
) -> None:
    """Reservations of the store, and of this process, that are settled during the outage or after it."""
    limited = pools.one(rpm=1_000, tpm=1_000_000)
    assert await granted(front, limited, 20, "a", 1) == 20
    remote.fail(OUTAGE)
    assert await granted(front, limited, 20, "b", 1) == 20
    for n in range(10):
        await front.settle(f"a{n}", Demand(1, tokens))
        await front.settle(f"b{n}", Demand(1, tokens))
    await recover(front, remote, clock, limited)
    for n in range(10, 20):
        await front.settle(f"a{n}", Demand(1, tokens))
        await front.settle(f"b{n}", Demand(1, tokens))
    assert await used(remote, limited) == {"rpm": 40, "tpm": 40 * tokens}


async def test_what_the_store_granted_is_settled_though_it_has_expired(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """What was used more than estimated counts, at the time at which it was taken."""
    limited = pools.one(rpm=None, rpd=None, tpm=None)
    limited = Deployment(limited.key, "m", "light", quotas=(Quota(Metric.TPD, 10**6, Refill.DAILY),))
    await front.reserve("a", [limited], Demand(1, 1), 60.0)
    remote.fail(OUTAGE)
    await front.settle("a", Demand(1, 1_000))
    clock.shift(100.0)
    await recover(front, remote, clock, limited)
    assert await used(remote, limited) == {"tpd": 1_000}


async def test_a_settle_during_the_return_counts(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is told of the estimate, more turns out to be used."""
    limited = pools.one(rpm=1_000, tpm=1_000_000)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 10, "a", 1) == 10
    charge = remote.charge

    async def slowly(*args: Any) -> float:
        if args[3]:
            for n in range(10):
                await front.settle(f"a{n}", Demand(1, 500))
        return await charge(*args)

    monkeypatch.setattr(remote, "charge", slowly)
    await recover(front, remote, clock, limited)
    assert await used(remote, limited) == {"rpm": 10, "tpm": 5_000}


async def test_cooldowns_of_an_outage_are_told_whole(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later one keeps what was learnt with an earlier one; one found while it is told is told as well."""
    limited, other = pools.one(rpm=20), pools.one(rpm=20)
    now, scope = clock.time(), limited.model_scope
    await granted(front, limited, 1, "a")
    remote.fail(OUTAGE)
    await front.cool_down(Cooldown(scope, now + 300.0, "429", (LearntLimit(Metric.RPM, 7),)))
    await front.cool_down(Cooldown(scope, now + 600.0, "again"))
    cool_down = remote.cool_down

    async def slowly(cooldown: Cooldown) -> None:
        await cool_down(cooldown)
        if cooldown.scope == scope:
            monkeypatch.undo()
            await front.cool_down(Cooldown(other.model_scope, now + 900.0, "found meanwhile"))
            await front.cool_down(Cooldown(scope, now + 900.0, "found meanwhile"))

    monkeypatch.setattr(remote, "cool_down", slowly)
    await recover(front, remote, clock, limited)
    snapshots = await remote.snapshot([limited, other])
    assert [snapshot.cooldown is not None and snapshot.cooldown.until for snapshot in snapshots] == [
        now + 900.0
    ] * 2
    assert snapshots[0].quotas[0].limit == 7
    assert not front._backlog.cooldowns


async def test_a_lift_during_an_outage_is_told(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """What came before it is not; what was learnt stays."""
    limited = pools.one(rpm=20)
    scope = limited.model_scope
    await remote.cool_down(Cooldown(scope, math.inf, "disabled"))
    remote.fail(OUTAGE)
    await granted(front, limited, 1, "a")
    await front.cool_down(Cooldown(scope, math.inf, "429", (LearntLimit(Metric.RPM, 7),)))
    await front.cool_down(Cooldown.lift(scope))
    await recover(front, remote, clock, limited)
    [snapshot] = await remote.snapshot([limited])
    assert (snapshot.cooldown, snapshot.quotas[0].limit) == (None, 7)


async def test_charges_are_told_once_though_the_answer_was_lost(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has counted it, and the process tells it again."""
    limited = pools.one(rpm=20)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 3, "a") == 3
    charge = remote.charge

    async def lost(*args: Any) -> float:
        since = await charge(*args)
        if args[3]:
            monkeypatch.undo()
            raise OUTAGE
        return since

    monkeypatch.setattr(remote, "charge", lost)
    remote.fail(None)
    for _ in range(3):
        clock.shift(4.0)
        await front.snapshot([limited])
        await settle_down()
    assert front.trouble is None
    assert await used(remote, limited) == {"rpm": 3}


async def test_a_charge_that_failed_is_repeated_though_the_store_was_probed_meanwhile(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """The probe writes, and must not make the charge look like an old one."""
    limited = pools.one(rpm=20)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 3, "a") == 3
    remote.fail(None)
    calls, charge = 0, remote.charge

    async def fails_once(*args: Any) -> float:
        nonlocal calls
        if args[3]:
            calls += 1
            if calls == 1:
                raise OUTAGE
        return await charge(*args)

    remote.charge = fails_once  # type: ignore[method-assign]
    for _ in range(3):
        clock.shift(4.0)
        await front.snapshot([limited])
        await settle_down()
    assert (front.trouble, calls) == (None, 2)
    assert await used(remote, limited) == {"rpm": 3}


async def test_a_settle_that_overload_refused_is_made_later(
    remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Within seconds, by the next call that announces the process."""
    front, limited = FailoverStore(remote, clock=clock), pools.one(rpm=20, tpm=10_000)
    await front.reserve("a", [limited], Demand(1, 10), 600.0)
    await settle_down()
    remote.once = [TIMEOUT, TIMEOUT]  # then the store answers a write
    await front.settle("a", Demand(1, 500))
    assert (front.trouble, front._backlog.settlements) == (None, 1)
    clock.shift(10.0)
    await front.reserve("b", [limited], Demand(1, 0), 600.0)
    await settle_down()
    assert not front._backlog.settlements
    assert await used(remote, limited) == {"rpm": 2, "tpm": 500}
    await front.aclose()


async def test_what_the_store_cannot_read_holds_up_nothing_else(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settlement or a cooldown that it refuses for good is told once; those behind it are told."""
    ill, well = pools.one(rpm=20, tpm=10_000), pools.one(rpm=20, tpm=10_000)
    for name, each in (("ill", ill), ("well", well)):
        await front.reserve(name, [each], Demand(1, 10), 600.0)
    remote.fail(OUTAGE)
    for name, each in (("ill", ill), ("well", well)):
        await front.settle(name, Demand(1, 500))
        await front.cool_down(Cooldown(each.model_scope, clock.time() + 300.0, "rests"))
    settle, cool_down = remote.settle, remote.cool_down

    async def settles(reservation_id: str, used: Demand) -> None:
        if reservation_id == "ill":
            raise StoreCorruptError("holds something else")
        await settle(reservation_id, used)

    async def cools(cooldown: Cooldown) -> None:
        if cooldown.scope == ill.model_scope:
            raise StoreCorruptError("holds something else")
        await cool_down(cooldown)

    monkeypatch.setattr(remote, "settle", settles)
    monkeypatch.setattr(remote, "cool_down", cools)
    await recover(front, remote, clock, well)
    assert (await used(remote, well))["tpm"] == 500
    [snapshot] = await remote.snapshot([well])
    assert snapshot.cooldown is not None
    assert not front._backlog.cooldowns
    assert not front._backlog.settlements


def test_takings_are_shown() -> None:
    """For people who read logs of a store of their own."""
    assert repr(Taking(1.0, Demand(1, 2))) == "Taking(at=1.0, used=Demand(requests=1, tokens=2))"

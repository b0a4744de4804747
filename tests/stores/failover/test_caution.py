"""After an outage or a loss others may not have told the store yet what they took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, Metric
from llm_router.domain.cooldown import LearntLimit
from llm_router.errors import StoreError
from llm_router.stores import Decision, DeploymentSnapshot
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, TIMEOUT, Remote, granted, recover, settle_down, used
else:
    from llm_router_tests_remote import OUTAGE, TIMEOUT, Remote, granted, recover, settle_down, used


async def test_after_an_outage_a_window_of_caution(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Others may not have told yet what they spent: this process takes no more than its share at first."""
    limited = pools.one(rpm=20)
    await granted(front, limited, 1, "a")
    remote.fail(OUTAGE)
    await granted(front, limited, 1, "b")
    await recover(front, remote, clock, limited)
    assert await granted(front, limited, 20, "c") == 3
    clock.shift(60.4)
    assert await granted(front, limited, 20, "d") == 20


async def test_a_daily_quota_is_spent_with_caution_for_a_minute(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """No window says for how long others may not have told yet what they spent."""
    limited = pools.one(rpm=None, rpd=20)
    await granted(front, limited, 1, "a")
    remote.fail(OUTAGE)
    await granted(front, limited, 1, "b")
    await recover(front, remote, clock, limited)
    assert await granted(front, limited, 20, "c") == 3
    clock.shift(60.0)
    assert await granted(front, limited, 20, "d") == 15


@pytest.mark.parametrize("ahead", [0.0, 0.5])
async def test_after_the_caution_the_store_is_asked_directly(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, ahead: float
) -> None:
    """A window after the store lost something, by its own clock, which may be a little ahead."""
    limited, lost_at = pools.one(rpm=20), clock.time() + ahead
    reserve = remote.reserve

    async def loses(*args: Any) -> Decision:
        decision = await reserve(*args)
        decision.reset_at = lost_at
        return decision

    remote.reserve = loses  # type: ignore[method-assign]
    await granted(front, limited, 1, "a")
    assert front._shards.careful
    assert await granted(front, limited, 20, "b") == 4
    clock.shift(60.4)
    assert await granted(front, limited, 30, "c") == 20
    assert not front._shards.careful


async def test_a_second_loss_is_noticed_though_the_share_is_used_up(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is asked, and takes nothing; it is not asked of what a cooldown alone refuses."""
    limited, stated, free = pools.one(rpm=20), pools.one(rpm=None), pools.one(rpm=None)
    reset_at, reserve, asked = 0.0, remote.reserve, list[Deployment]()

    async def loses(*args: Any) -> Decision:
        asked[:] = args[1]
        decision = await reserve(*args)
        decision.reset_at = reset_at
        return decision

    async def fails(_: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        raise OUTAGE  # or the limit that the store has forgotten would be noticed

    monkeypatch.setattr(remote, "reserve", loses)
    monkeypatch.setattr(remote, "snapshot", fails)
    await front.cool_down(Cooldown(stated.model_scope, 1.0, "429", (LearntLimit(Metric.RPM, 4),)))
    assert await granted(front, limited, 9, "a") == 9
    assert await granted(front, stated, 1, "b") == 1
    await remote.cool_down(Cooldown.learn(stated.model_scope, LearntLimit(Metric.RPM, None)))
    reset_at = clock.time()
    assert await granted(front, limited, 1, "c") == 1
    await settle_down()
    for n in range(2):
        clock.shift(5.0)
        reset_at = clock.time()
        remote.calls.clear()
        decision = await front.reserve(f"d{n}", [limited, stated], Demand(1, 10), 60.0)
        assert [refusal.reason for refusal in decision.refusals] == ["rpm", "rpm"]
        await settle_down()
        assert remote.calls.count("charge") == 2
    await front.cool_down(Cooldown(free.key_scope, clock.time() + 9.0, "rests"))
    await front.reserve("e", [limited, free], Demand(1, 10), 60.0)
    assert asked == [limited]
    monkeypatch.undo()
    assert await used(remote, limited) == {"rpm": 10}
    assert await used(remote, stated) == {}


async def test_caution_lets_a_second_candidate_serve(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Where one is refused by the share, or by the store, the next one is asked; every refusal is told."""
    mine, full, free = pools.one(rpm=4), pools.one(rpm=4), pools.one(rpm=40)
    for n in range(4):
        await remote.reserve(f"other{n}", [full], Demand(), 60.0)
    remote.fail(OUTAGE)
    await granted(front, mine, 1, "a")
    await recover(front, remote, clock, mine)
    decision = await front.reserve("b", [mine, full, free], Demand(), 60.0)
    assert decision.deployment is free
    assert [refusal.deployment for refusal in decision.refusals] == [mine, full]
    assert [refusal.reason for refusal in decision.refusals] == ["rpm", "rpm"]
    await front.release("b")
    assert await used(remote, free) == {"rpm": 0}
    assert await used(remote, mine) == {"rpm": 1}


@pytest.mark.parametrize("is_careful", [False, True])
@pytest.mark.parametrize("failure", [OUTAGE, TIMEOUT])
async def test_a_grant_stands_though_another_record_could_not_be_charged(
    front: FailoverStore,
    remote: Remote,
    pools: Pools,
    clock: ManualClock,
    failure: StoreError,
    is_careful: bool,
) -> None:
    """What was lost is charged at the next call; the grant is taken once, and can be given back."""
    limited, other = pools.one(rpm=20), pools.one(rpm=20)
    await granted(front, other, 1, "a")
    if is_careful:
        remote.fail(OUTAGE)
        await granted(front, limited, 1, "b")
        await recover(front, remote, clock, limited)
        await front.release("b0")
    reserve, charge, ids = remote.reserve, remote.charge, []

    async def loses(reservation_id: str, candidates: Sequence[Deployment], *args: Any) -> Decision:
        left = [each for each in candidates if each is not other]
        if not left:
            return Decision(None, 0.0, 0.0, lost=(other,))
        ids.append(reservation_id)
        decision = await reserve(reservation_id, left, *args)
        decision.lost = tuple(each for each in candidates if each is other)
        return decision

    async def fails(*_: Any) -> float:
        raise failure

    remote.reserve, remote.charge = loses, fails  # type: ignore[method-assign]
    decision = await front.reserve("r", [other, limited], Demand(1, 10), 600.0)
    assert decision.deployment is limited
    assert front.trouble is None
    assert ids == ["r"]
    remote.reserve, remote.charge = reserve, charge  # type: ignore[method-assign]
    before = await used(remote, limited)
    await front.release("r")
    assert (await used(remote, limited))["rpm"] == before["rpm"] - 1


async def test_a_charge_that_fails_before_anything_is_granted_is_a_failure_of_the_store(
    front: FailoverStore, remote: Remote, pools: Pools
) -> None:
    """The policy decides, as it does when the reserve itself fails."""
    limited = pools.one(rpm=20)
    await granted(front, limited, 1, "a")
    reserve, lost = remote.reserve, [True]

    async def loses(*args: Any) -> Decision:
        if not lost:
            return await reserve(*args)
        remote.fail(OUTAGE)
        return Decision(None, 0.0, 0.0, lost=(limited,))

    remote.reserve = loses  # type: ignore[method-assign]
    assert (await front.reserve("b", [limited], Demand(1, 10), 600.0)).deployment is limited
    assert front.trouble == "cannot be reached"

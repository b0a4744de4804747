"""What this process spent counts, whatever happens to the store: in the failover store, without a server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, Metric, Quota, Refill, Router
from llm_router.domain.cooldown import LearntLimit
from llm_router.domain.limits import LimitRecord, LimitSource
from llm_router.errors import StoreCorruptError, StoreError, StoreTimeoutError, StoreUnavailableError
from llm_router.stores import Decision, DeploymentSnapshot, RateLimitStore, Taking
from llm_router.stores.base import Refusal
from llm_router.stores.failover import FailoverStore
from llm_router.stores.failover.rooms import Rooms
from llm_router.stores.failover.times import Times
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, TIMEOUT, Remote, granted, recover, settle_down, used
else:
    from llm_router_tests_remote import OUTAGE, TIMEOUT, Remote, granted, recover, settle_down, used


async def test_alone_what_was_spent_before_counts(front: FailoverStore, remote: Remote, pools: Pools) -> None:
    """A share of 20 is 5: two of them were spent through the store."""
    limited = pools.one(rpm=20)
    assert await granted(front, limited, 2, "a") == 2
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "b") == 3


async def test_alone_the_day_counts(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """What was spent hours ago counts against the day, and not against the minute."""
    limited = pools.one(rpm=400, rpd=40)
    assert await granted(front, limited, 7, "a") == 7
    clock.shift(3 * 3600.0)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "b") == 3


async def test_alone_only_a_share_of_the_room_is_taken(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Others had taken 30 of 40: a quarter of the room of 8 is 2, and the rest comes a minute later."""
    limited = pools.one(rpm=40)
    for n in range(30):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 60.0)
    assert await granted(front, limited, 2, "a") == 2
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "b") == 2
    clock.shift(60.4)
    assert await granted(front, limited, 20, "c") == 10


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("before", [0, 1])
async def test_a_refusal_shows_that_there_is_no_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, metric: Metric, before: int
) -> None:
    """A process that was refused takes nothing alone until a window or a day is over."""
    refill = Refill.DAILY if metric.is_daily else Refill.ROLLING
    limited = Deployment(pools.one().key, "m", "light", quotas=(Quota(metric, 40, refill),))
    assert await granted(front, limited, before, "a", 1) == before
    for n in range(40 - before):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 600.0)
    clock.shift(5.0)
    assert await granted(front, limited, 1, "b", 1) == 0
    clock.shift(5.0)
    assert await granted(front, limited, 1, "c", 1) == 0  # nothing has come back: as old as the first
    remote.fail(OUTAGE)
    clock.shift(55.0)
    assert await granted(front, limited, 9, "d", 1) == 0
    clock.shift(86_400.0 if metric.is_daily else 0.4)
    assert await granted(front, limited, 40, "e", 1) == 10


async def test_a_refusal_of_much_leaves_a_share_of_the_rest(
    front: FailoverStore, remote: Remote, pools: Pools
) -> None:
    """Less than 400 of 1,000 tokens were left: this process takes a quarter of 400 alone."""
    limited = pools.one(rpm=None, tpm=1_000)
    await remote.reserve("other", [limited], Demand(1, 700), 60.0)
    assert await granted(front, limited, 1, "a", 400) == 0
    remote.fail(OUTAGE)
    assert await granted(front, limited, 40, "b", 10) == 10


async def test_a_refusal_because_of_a_cooldown_shows_no_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """It says nothing of the quotas: the whole share is left."""
    limited = pools.one(rpm=40)
    await remote.cool_down(Cooldown(limited.model_scope, clock.time() + 5.0, "rests"))
    assert await granted(front, limited, 1, "a") == 0
    remote.fail(OUTAGE)
    assert await granted(front, limited, 40, "b") == 10


async def test_a_snapshot_shows_the_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Of each quota: 32 are left in the minute, but 20 in the day, of which 5 are a quarter."""
    limited = pools.one(rpm=40, rpd=60)
    assert await granted(front, limited, 1, "a") == 1
    for n in range(31):
        await remote.reserve(f"early{n}", [limited], Demand(1, 1), 60.0)
    clock.shift(120.0)
    for n in range(8):
        await remote.reserve(f"late{n}", [limited], Demand(1, 1), 60.0)
    await front.snapshot([limited])
    remote.fail(OUTAGE)
    assert await granted(front, limited, 40, "b") == 5
    await front.aclose()


async def test_what_a_store_shows_that_has_lost_something_is_not_believed(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Others may not have told it yet what they took; what was seen before counts for a window."""
    limited = pools.one(rpm=40)
    for n in range(36):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 600.0)
    assert await granted(front, limited, 1, "a") == 1
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "b") == 0
    remote.fail(None)
    for n in range(36):
        await remote.release(f"other{n}")
    await recover(front, remote, clock, limited)
    await front.snapshot([limited])
    assert await granted(front, limited, 1, "c") == 0
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "d") == 0
    clock.shift(60.4)
    assert await granted(front, limited, 40, "e") == 10


async def test_the_grant_that_shows_a_loss_shows_no_room(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others had taken is not in it, nor in a snapshot: what was shown before counts."""
    limited, reset_at, reserve = pools.one(rpm=40), clock.time(), remote.reserve
    for n in range(36):
        await remote.reserve(f"other{n}", [limited], Demand(1, 1), 600.0)
    assert await granted(front, limited, 1, "a") == 1

    async def loses(*args: Any) -> Decision:
        decision = await reserve(*args)
        decision.reset_at = reset_at
        return decision

    for n in range(36):
        await remote.release(f"other{n}")
    monkeypatch.setattr(remote, "reserve", loses)
    clock.shift(1.0)
    await front.snapshot([limited])
    assert await granted(front, limited, 1, "b") == 1
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "c") == 0


def test_rooms_are_forgotten(pools: Pools) -> None:
    """A day after they were shown, or a longer window; and where the clock was set back behind them."""
    for forgets_after, window, is_kept in [
        (90_001.0, 0.0, False),
        (90_001.0, 1e6, True),
        (-1.0, 60.0, False),
        (0.0, 60.0, True),
    ]:
        clock, limited = ManualClock(100.0), pools.one(rpm=1)
        rooms = Rooms(Times(clock))
        rooms.note_refusals([Refusal(limited, "rpm", 170.0, 170.0)], Demand())
        clock._now += forgets_after
        rooms.forget(window)
        assert (rooms.get(Metric.RPM, limited.model_scope) is not None) is is_kept


@pytest.mark.parametrize("quotas", [(), (Quota(Metric.RPM, 200),)])
async def test_alone_learnt_limits_are_cut_to_the_share(
    front: FailoverStore, remote: Remote, pools: Pools, quotas: tuple[Quota, ...]
) -> None:
    """A limit of 20 that the provider stated is 5 for this process, learnt before or during the outage."""
    before, during = (
        Deployment(pools.one().key, model, "light", quotas=quotas) for model in ("before", "during")
    )
    learnt = (LearntLimit(Metric.RPM, 20),)
    await front.cool_down(Cooldown(before.model_scope, 1.0, "429", learnt))
    remote.fail(OUTAGE)
    assert await granted(front, before, 9, "b") == 5
    assert await granted(front, during, 9, "d") == 9
    await front.cool_down(Cooldown(during.model_scope, 1.0, "429", learnt))
    assert await granted(front, during, 9, "e") <= 5


async def test_alone_a_limit_rises_and_replaces_an_adaptive_one(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """The share is that of the limit in force: 20 in place of 4, and then 40, shown by the store before."""
    limited = Deployment(pools.one().key, "m", "light", quotas=(Quota(Metric.RPM, 4, adaptive=True),))
    rises = LearntLimit(Metric.RPM, 20, LimitSource.INFERRED, raised=40, raise_after=90.0)
    await remote.cool_down(Cooldown.learn(limited.model_scope, rises))
    [seen] = await front.snapshot([limited])
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "a") == 5
    clock.shift(89.0)
    assert await granted(front, limited, 9, "b") == 5
    clock.shift(1.0)
    assert await granted(front, limited, 9, "c") == 5
    [alone] = await front.snapshot([limited])
    assert alone.quotas[0].limit == 10
    assert alone.quotas[0].learnt == seen.quotas[0].learnt


@pytest.mark.parametrize("is_used_before", [True, False])
async def test_alone_a_limit_that_another_process_learnt_is_known(
    remote: Remote, pools: Pools, clock: ManualClock, *, is_used_before: bool
) -> None:
    """It is looked at on calls that are made anyway: at the first one, and again within about a minute."""
    limited, front = pools.one(rpm=100), FailoverStore(remote, clock=clock, local_share=0.5)
    if is_used_before:
        assert await granted(front, limited, 1, "a") == 1
        await settle_down()
    await remote.cool_down(Cooldown.learn(limited.model_scope, LearntLimit(Metric.RPM, 10)))
    for n in range(8):
        clock.shift(10.0)
        await granted(front, limited, 1, f"b{n}-")
        await settle_down()
    clock.shift(61.0)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 40, "c") == 5
    await front.aclose()


async def test_looking_at_limits_costs_little(remote: Remote, pools: Pools, clock: ManualClock) -> None:
    """Each model is looked at once a minute or less, a few at a time, and never before a grant."""
    pool = [pools.one(rpm=None) for _ in range(40)]
    front, snapshot, looks = FailoverStore(remote, clock=clock), remote.snapshot, list[Deployment]()

    async def seen(deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        assert 0 < len(deployments) <= 32
        looks.extend(deployments)
        return await snapshot(deployments)

    remote.snapshot = seen  # type: ignore[method-assign]
    for second in range(240):
        await front.reserve(f"r{second}", pool[second % 40 :] + pool[: second % 40], Demand(), 60.0)
        clock.shift(1.0)
        await settle_down()
    assert set(looks) == set(pool)
    assert 120 <= len(looks) <= 160
    remote.fail(OUTAGE)
    await front.reserve("alone", pool, Demand(), 60.0)
    remote.calls.clear()
    clock.shift(90.0)
    await front.reserve("later", pool, Demand(), 60.0)
    await settle_down()
    assert "snapshot" not in remote.calls
    await front.aclose()


async def record_of(store: RateLimitStore, deployment: Deployment) -> LimitRecord:
    [snapshot] = await store.snapshot([deployment])
    assert snapshot.quotas[0].learnt is not None
    return snapshot.quotas[0].learnt


async def learn(store: RateLimitStore, deployment: Deployment, limit: int, replaces: float | None) -> None:
    entry = LearntLimit(Metric.RPM, limit, raised=limit + 1, raise_after=50.0, replaces=replaces)
    await store.cool_down(Cooldown.learn(deployment.model_scope, entry))


@pytest.mark.parametrize("is_seen", [True, False])
async def test_limits_learnt_alone_replace_what_the_store_had(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, *, is_seen: bool
) -> None:
    """Of several that replace each other the last is told, and it rises when it was to."""
    limited = pools.one(rpm=20)
    await learn(front, limited, 8, None)
    if is_seen:
        await front.snapshot([limited])
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "a") == 1
    clock.shift(1.0)
    for limit in (7, 6, 5):
        await learn(front, limited, limit, (await record_of(front, limited)).learnt_at)
        await front.cool_down(Cooldown.retry(limited.model_scope))
    await learn(front, limited, 9, 1.0)  # not obeyed
    clock.shift(20.0)
    await recover(front, remote, clock, limited)
    record = await record_of(remote, limited)
    assert (record.limit, record.raised) == (5, 6)
    assert abs(record.raise_at - record.learnt_at - 29.0) < 1e-3


async def test_a_limit_learnt_alone_does_not_replace_a_newer_one(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """What another process has learnt meanwhile stays; the next snapshot shows it."""
    limited = pools.one(rpm=20)
    await learn(front, limited, 8, None)
    known = await record_of(front, limited)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "a") == 1
    await learn(front, limited, 7, known.learnt_at)
    remote.fail(None)
    await learn(remote, limited, 3, known.learnt_at)
    await recover(front, remote, clock, limited)
    assert (await record_of(remote, limited)).limit == 3
    assert (await record_of(front, limited)).limit == 3


@pytest.mark.parametrize(("peers", "share"), [(1, 36), (4, 9), (12, 3)])
async def test_the_share_is_one_over_the_processes_alive(
    remote: Remote, pools: Pools, clock: ManualClock, peers: int, share: int
) -> None:
    """As many as the store counted last."""
    remote.peers, limited, other = peers, pools.one(rpm=36), pools.one(rpm=36)
    front = FailoverStore(remote, clock=clock)
    await granted(front, other, 1, "a")
    await settle_down()
    remote.fail(OUTAGE)
    assert await granted(front, limited, 50, "b") == share
    await front.aclose()


@pytest.mark.parametrize(("peers", "share"), [(1, 9), (4, 9), (12, 3)])
@pytest.mark.parametrize("shift", [61.0, -1.0])
async def test_a_number_of_processes_that_is_old_is_not_believed(
    remote: Remote, pools: Pools, clock: ManualClock, peers: int, share: int, shift: float
) -> None:
    """A process that idled for a minute takes a quarter, or less if they were more than four."""
    remote.peers, limited = peers, pools.one(rpm=36)
    front = FailoverStore(remote, clock=clock)
    await granted(front, pools.one(rpm=36), 1, "a")
    await settle_down()
    remote.fail(OUTAGE)
    clock._now += shift
    assert await granted(front, limited, 50, "b") == share
    await front.aclose()


@pytest.mark.parametrize("call", ["settle", "release", "snapshot", "cool_down", "reserve"])
async def test_processes_announce_themselves_on_any_call(
    remote: Remote, pools: Pools, clock: ManualClock, call: str
) -> None:
    """So a process that only ends what it began counts as alive."""
    front, limited = FailoverStore(remote, clock=clock), pools.one(rpm=None)
    await granted(front, limited, 1, "a")
    await settle_down()
    clock.shift(11.0)
    match call:
        case "settle":
            await front.settle("a0", Demand(1, 1))
        case "release":
            await front.release("a0")
        case "snapshot":
            await front.snapshot([limited])
        case "cool_down":
            await front.cool_down(Cooldown.lift(limited.model_scope))
        case _:
            await granted(front, limited, 1, "b")
    await settle_down()
    assert remote.calls.count("announce") == 2
    await front.aclose()


async def test_processes_announce_themselves_every_ten_seconds(
    remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """On calls that are made anyway, a little more often at first; a clock that jumps delays none."""
    front, limited = FailoverStore(remote, clock=clock), pools.one(rpm=None)
    for n in range(120):
        await granted(front, limited, 3, f"{n}-")
        await settle_down()
        clock.shift(1.0)
    assert 12 <= remote.calls.count("announce") <= 16
    clock._now -= 86_400.0
    await granted(front, limited, 1, "back")
    await settle_down()
    assert 13 <= remote.calls.count("announce") <= 17
    await front.aclose()


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
    assert not front._untold


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


async def test_overload_is_no_outage(front: FailoverStore, remote: Remote, pools: Pools) -> None:
    """A call that times out while another is answered is passed on; the process does not go alone."""
    limited = pools.one(rpm=20)
    for _ in range(5):
        remote.once = [TIMEOUT]
        with pytest.raises(StoreTimeoutError):
            await front.reserve("a", [limited], Demand(), 60.0)
    assert front.trouble is None
    remote.once = [TIMEOUT, TIMEOUT]
    assert (await front.reserve("b", [limited], Demand(), 60.0)).deployment is limited
    assert front.trouble == "no answer within 2 s"


async def test_a_send_outlasts_overload(
    remote: Remote, pools: Pools, clock: ManualClock, provider: FakeProvider
) -> None:
    """It backs off and tries again; where the overload stays, it says when to come back."""
    async with Router([pools.one()], store=remote, provider=provider, clock=clock) as router:
        remote.once = [TIMEOUT]
        sending = asyncio.create_task(router.send("x"))
        await clock.advance(2.0)
        assert (await sending).success
        monkeyed = remote.reserve

        async def overloaded(*args: Any) -> Decision:
            remote.once = [TIMEOUT]
            return await monkeyed(*args)

        remote.reserve = overloaded  # type: ignore[method-assign]
        sending = asyncio.create_task(router.send("x"))
        await clock.advance(10.0)
        response = await sending
    assert not response.success
    assert response.retry_after == 1.0
    assert "no answer within 2 s" in str(response.error)


async def test_a_connection_that_breaks_once_is_no_outage(
    front: FailoverStore, remote: Remote, pools: Pools
) -> None:
    """The store answers when it is asked again."""
    limited = pools.one(rpm=20)
    remote.once = [OUTAGE]
    assert (await front.reserve("a", [limited], Demand(), 60.0)).deployment is limited
    remote.once = [OUTAGE]
    await front.settle("a", Demand(1, 5))
    remote.once = [OUTAGE]
    await front.cool_down(Cooldown(limited.model_scope, 2e9, "rests"))
    remote.once = [OUTAGE]
    [snapshot] = await front.snapshot([limited])
    assert snapshot.cooldown is not None
    assert front.trouble is None
    assert not front._untold


async def test_a_store_that_only_reads_is_in_trouble_once(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Read-only or full for a minute: one change of state and back, not one for every probe."""
    limited = pools.one(rpm=None)
    remote.writes = StoreUnavailableError("is a read-only replica")
    for n in range(60):
        await granted(front, limited, 2, f"{n}-")
        await settle_down()
        clock.shift(1.0)
    remote.writes = None
    for n in range(60, 100):
        await granted(front, limited, 1, f"{n}-")
        await settle_down()
        clock.shift(1.0)
    messages = [record.getMessage().split(",")[0] for record in caplog.records]
    assert messages == ["the store fails", "the store answers again"]


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
    assert front._careful
    assert await granted(front, limited, 20, "b") == 4
    clock.shift(60.4)
    assert await granted(front, limited, 30, "c") == 20
    assert not front._careful


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


class Divided(Remote):
    """A store of two shards, each of which may fail."""

    shards = 2

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.down: set[int] = set()

    def shard_of(self, deployment: Deployment) -> int:
        return int(deployment.model[-1])

    def _check(self, *deployments: Deployment) -> None:
        for shard in sorted(set(map(self.shard_of, deployments)) & self.down):
            raise StoreUnavailableError("cannot be reached", shard=shard)

    async def reserve(self, *args: Any) -> Decision:
        self._check(*args[1])
        return await super().reserve(*args)

    async def charge(self, *args: Any) -> float:
        self._check(args[2])
        return await super().charge(*args)


async def test_a_shard_that_is_down_takes_no_other_along(pools: Pools, clock: ManualClock) -> None:
    """The projects of the healthy one have their whole quota; those of the other a share."""
    remote = Divided(clock)
    front = FailoverStore(remote, clock=clock, local_share=0.25)
    well, ill = pools.one("model-0", rpm=20), pools.one("model-1", rpm=20)
    remote.down = {1}
    assert await granted(front, ill, 9, "a") == 5
    assert await granted(front, well, 30, "b") == 20
    trouble = front.trouble
    assert trouble == "cannot be reached (1 of 2 shards)"
    assert (await front.reserve("c", [ill, well], Demand(), 60.0)).deployment is None
    assert len(await front.snapshot([well, ill])) == 2
    remote.down = set()
    clock.shift(60.4)
    await granted(front, ill, 1, "d")
    await settle_down()
    assert front.trouble is None
    await front.aclose()


async def test_a_clock_that_is_set_back_keeps_nothing_for_a_day(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """What was taken a day ahead counts as taken now, and comes back within a window."""
    limited = pools.one(rpm=20)
    clock.shift(86_400.0)
    assert await granted(front, limited, 3, "a") == 3
    clock._now -= 86_400.0
    assert await granted(front, limited, 1, "b") == 1
    clock.shift(61.0)
    assert await granted(front, limited, 1, "c") == 1
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "d") == 4


@pytest.mark.slow
async def test_the_ledger_of_this_process_stays_small(
    front: FailoverStore, pools: Pools, clock: ManualClock
) -> None:
    """A hundred thousand requests over a day and over many keys leave a few hundred entries for each."""
    pool = [pools.one(rpm=10**6, rpd=10**6) for _ in range(3)]
    for n in range(20_000):
        await front.reserve(f"r{n}", [pool[n % 3]], Demand(1, 1), 60.0)
        if n % 7:
            await front.settle(f"r{n}", Demand(1, 2))
        clock.shift(4.3)
    assert front._own.open_reservations < 30
    assert all(len(record.entries) <= 481 for record in front._own)
    clock.shift(2 * 86_400.0)
    await front.reserve("last", [pool[0]], Demand(1, 1), 60.0)
    assert len(list(front._own)) == 1


async def test_what_is_charged_of_a_full_ledger_is_what_was_taken(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Joining entries loses nothing, whatever is settled afterwards."""
    limited = Deployment(pools.one().key, "m", "light", quotas=(Quota(Metric.TPM, 10**9),))
    remote.fail(OUTAGE)
    taken = 0
    for n in range(3_000):
        decision = await front.reserve(f"r{n}", [limited], Demand(1, 10), 600.0)
        assert decision.deployment is limited
        clock.shift(0.0199)
    for n in range(0, 3_000, 2):
        await front.settle(f"r{n}", Demand(1, n))
        taken += n - 10
    clock._now -= 0.5  # within the second that may go unnoticed
    await recover(front, remote, clock, limited)
    assert await used(remote, limited) == {"tpm": 30_000 + taken}


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
    assert (front.trouble, len(front._unsettled)) == (None, 1)
    clock.shift(10.0)
    await front.reserve("b", [limited], Demand(1, 0), 600.0)
    await settle_down()
    assert not front._unsettled
    assert await used(remote, limited) == {"rpm": 2, "tpm": 500}
    await front.aclose()


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
    assert not front._untold
    assert not front._unsettled


def test_takings_are_shown() -> None:
    """For people who read logs of a store of their own."""
    assert repr(Taking(1.0, Demand(1, 2))) == "Taking(at=1.0, used=Demand(requests=1, tokens=2))"

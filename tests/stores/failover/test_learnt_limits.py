"""Limits that were learnt, by this process or another one, hold for a process on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from llm_router import Cooldown, Demand, Deployment, Metric, Quota
from llm_router.domain.cooldown import LearntLimit
from llm_router.domain.limits import LimitRecord, LimitSource
from llm_router.stores import DeploymentSnapshot, RateLimitStore
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, Remote, granted, recover, settle_down
else:
    from llm_router_tests_remote import OUTAGE, Remote, granted, recover, settle_down


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

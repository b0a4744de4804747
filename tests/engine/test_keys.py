"""The statuses of keys, and the health of a router."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

from llm_router import (
    Cooldown,
    Demand,
    Deployment,
    KeyManager,
    MemoryStore,
    Metric,
    Quota,
    RateLimitStore,
    Refill,
    StoreUnavailableError,
)
from llm_router.cli.words import fraction
from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.quota import MAX_LIMIT
from llm_router.engine.index import FallbackOrder
from llm_router.engine.lease import Lease
from llm_router.engine.pool import Pool
from llm_router.engine.reserving import Selector
from llm_router.engine.state import SendState
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import DeploymentSnapshot
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

MakeDeployment = Callable[..., Deployment]
MakeSelector = Callable[..., Selector]
MakeOrder = Callable[..., FallbackOrder]
MakeSend = Callable[..., SendState]
MakeKeys = Callable[..., KeyManager]


class Fragile(MemoryStore):
    """A store in memory that answers neither reads nor charges while ``fails`` is set."""

    fails = False

    async def charge(self, *args: Any) -> float:
        if self.fails:
            raise StoreUnavailableError("no answer within 2 s")
        return await super().charge(*args)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        if self.fails:
            raise StoreUnavailableError("no answer within 2 s")
        return await super().snapshot(deployments)


@pytest.fixture
def store(clock: ManualClock) -> Fragile:
    return Fragile(clock=clock)


@pytest.fixture
def make_keys(clock: ManualClock, store: Fragile, make_selector: MakeSelector) -> MakeKeys:
    """Make a key manager of deployments, with an upstream for each provider they name."""

    def make(
        deployments: Sequence[Deployment],
        inactive: Sequence[Deployment] = (),
        behind: RateLimitStore | None = None,
    ) -> KeyManager:
        upstreams = {
            deployment.key.provider: Upstream(deployment.key.provider, FakeProvider())
            for deployment in deployments
        }
        pool = Pool(deployments, upstreams)
        kept = behind or store
        selector = make_selector(pool, kept)
        return KeyManager(pool, inactive, kept, selector, tuple(upstreams.values()), clock, lambda: None)

    return make


def make_unreachable(keys: KeyManager, name: str, now: float) -> None:
    """Open the breaker of a provider."""
    [upstream] = [upstream for upstream in keys.upstreams if upstream.name == name]
    for key_id in "abc":
        upstream.breaker.record_failure(key_id, now)


# --- statuses -----------------------------------------------------------------------------------------


async def test_a_status_describes_its_deployment(
    make_keys: MakeKeys, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """The status of an unused deployment shows its fields, no cooldown and no usage."""
    deployment = make_deployment("flash", "heavy", key_id="k", project="p", priority=3, provider="other")
    [status] = await make_keys([deployment]).get_all_key_statuses()
    assert status == {
        "key_id": "k",
        "model": "flash",
        "provider": "other",
        "project": "p",
        "workload": "heavy",
        "priority": 3,
        "active": True,
        "state": "ready",
        "usable_in_seconds": 0.0,
        "usable_at": clock.time(),
        "in_cooldown": False,
        "quarantined": False,
        "disabled": False,
        "cooldown_until": None,
        "cooldown_remaining": 0.0,
        "reason": None,
        "spent": [],
        "room_in": 0.0,
        "limits": {
            "rpm": {
                "used": 0,
                "limit": 15,
                "remaining": 15,
                "full_until": None,
                "refill": "rolling",
                "window_seconds": 60.0,
                "configured": 15,
                "configured_as": "cap",
                "counted_since": None,
                "source": "configured",
                "learnt_at": None,
                "raised_at": None,
                "reset_in_seconds": 0.0,
                "reset_at": clock.time(),
                "per_hour": None,
                "used_up_in_seconds": None,
                "used_up_at": None,
                "learnt_ago": None,
                "raised_in": None,
                "resets_in": 0.0,
            }
        },
        "project_limits": {},
        "today": None,
        "days": [],
        "facts": [],
        "failures": [],
        "rpm_usage": "0/15",
        "tpm_usage": "0/∞",
        "rpd_usage": "0/∞",
        "tpd_usage": "0/∞",
    }


async def test_a_usage_is_what_is_taken_of_the_limit(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile
) -> None:
    """Each metric's usage shows what is taken and its limit."""
    quotas = (
        Quota(Metric.RPM, 15),
        Quota(Metric.TPM, 1_000),
        Quota(Metric.RPD, 200, Refill.DAILY),
        Quota(Metric.TPD, 9_000, Refill.DAILY),
    )
    deployment = attrs.evolve(make_deployment(), quotas=quotas)
    for number in range(3):
        await store.reserve(str(number), [deployment], Demand(1, 70), 60.0)
    [status] = await make_keys([deployment]).get_all_key_statuses()
    usages = (status["rpm_usage"], status["tpm_usage"], status["rpd_usage"], status["tpd_usage"])
    assert usages == ("3/15", "210/1000", "3/200", "210/9000")


async def test_a_usage_shows_a_learnt_limit(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """A learnt limit replaces the configured one in the usage."""
    deployment = make_deployment(rpm=15)
    learnt = (LearntLimit(Metric.RPM, 4),)
    await store.cool_down(Cooldown(deployment.model_scope, clock.time() + 1.0, "rpm spent", learnt))
    [status] = await make_keys([deployment]).get_all_key_statuses()
    assert status["rpm_usage"] == "0/4"


async def test_a_status_says_how_a_limit_is_known(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """What was learnt, from what, how long ago, and when more is tried; what is unknown has no limit."""
    quotas = (
        Quota(Metric.RPM, 4, adaptive=True),
        Quota(Metric.TPM, MAX_LIMIT, adaptive=True),
        Quota(Metric.RPD, 50, Refill.DAILY),
    )
    deployment = attrs.evolve(make_deployment(), quotas=quotas)
    learnt = LearntLimit(Metric.RPM, 10, LimitSource.INFERRED, raised=11, raise_after=120.0)
    too_many = LearntLimit(Metric.RPD, 200)
    await store.cool_down(Cooldown.learn(deployment.model_scope, learnt, too_many))
    clock.shift(30.0)
    [status] = await make_keys([deployment]).get_all_key_statuses()
    rpm, tpm, rpd = (status["limits"][metric] for metric in ("rpm", "tpm", "rpd"))
    assert (rpm["limit"], rpm["configured"], rpm["source"]) == (10, None, "inferred")
    assert (rpm["learnt_ago"], rpm["raised_in"]) == (30.0, 90.0)
    assert (tpm["limit"], tpm["configured"], tpm["source"], tpm["learnt_ago"]) == (
        None,
        None,
        "unknown",
        None,
    )
    assert (rpd["limit"], rpd["configured"], rpd["source"]) == (50, 50, "configured")
    assert (tpm["learnt_ago"], rpd["learnt_ago"]) == (None, None)
    assert (status["rpm_usage"], status["tpm_usage"], status["rpd_usage"]) == ("0/10", "0/∞", "0/50")


async def test_inactive_deployments_come_last_and_are_marked(
    make_keys: MakeKeys, make_deployment: MakeDeployment
) -> None:
    """Inactive deployments follow the active ones, both in their configured order."""
    on, off = [make_deployment() for _ in range(2)], [make_deployment() for _ in range(2)]
    statuses = await make_keys(on, off).get_all_key_statuses()
    assert [status["key_id"] for status in statuses] == [each.key.key_id for each in (*on, *off)]
    assert [status["active"] for status in statuses] == [True, True, False, False]


async def test_a_cooldown_shows_its_reason_and_remaining_time(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """A cooldown shows on every deployment of its (project, model) until it ends."""
    deployments = [make_deployment(project="p"), make_deployment(project="p"), make_deployment("b")]
    keys = make_keys(deployments)
    await store.cool_down(Cooldown(deployments[0].model_scope, clock.time() + 30.0, "rpm spent"))
    clock.shift(10.0)
    statuses = await keys.get_all_key_statuses()
    shown = [
        (row["in_cooldown"], row["quarantined"], row["cooldown_remaining"], row["reason"]) for row in statuses
    ]
    assert shown == [(True, False, 20.0, "rpm spent")] * 2 + [(False, False, 0.0, None)]
    clock.shift(20.0)
    assert not any(status["in_cooldown"] for status in await keys.get_all_key_statuses())


async def test_a_quarantine_has_no_remaining_time(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile
) -> None:
    """A quarantined deployment, active or not, shows no remaining time."""
    active, inactive = make_deployment(), make_deployment()
    for deployment in (active, inactive):
        await store.cool_down(Cooldown(deployment.key_scope, math.inf, "key: dead"))
    for status in await make_keys([active], [inactive]).get_all_key_statuses():
        assert (status["in_cooldown"], status["quarantined"]) == (True, True)
        assert (status["cooldown_remaining"], status["reason"]) == (None, "key: dead")


async def test_a_deployment_avoided_by_this_process_is_shown(
    make_keys: MakeKeys, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """A deployment that only this process avoids shows as cooling down until it no longer does."""
    avoided, other = make_deployment(), make_deployment()
    keys = make_keys([avoided, other])
    keys.pool.avoid(keys.pool.states[avoided], clock.time() + 8.0, "no route to host")
    first, second = await keys.get_all_key_statuses()
    assert (first["in_cooldown"], first["cooldown_remaining"]) == (True, 8.0)
    assert (first["quarantined"], first["reason"]) == (False, "no route to host")
    assert not second["in_cooldown"]
    clock.shift(8.0)
    assert not (await keys.get_all_key_statuses())[0]["in_cooldown"]


@pytest.mark.parametrize(("seconds", "remaining", "reason"), [(5.0, 8.0, "path"), (12.0, 12.0, "spent")])
async def test_the_later_end_of_a_cooldown_and_an_avoidance_is_shown(
    make_keys: MakeKeys,
    make_deployment: MakeDeployment,
    store: Fragile,
    clock: ManualClock,
    seconds: float,
    remaining: float,
    reason: str,
) -> None:
    """The status shows whichever ends later, with its own reason."""
    deployment = make_deployment()
    keys = make_keys([deployment])
    keys.pool.avoid(keys.pool.states[deployment], clock.time() + 8.0, "path")
    await store.cool_down(Cooldown(deployment.model_scope, clock.time() + seconds, "spent"))
    [status] = await keys.get_all_key_statuses()
    assert (status["cooldown_remaining"], status["reason"]) == (remaining, reason)


async def test_statuses_raise_a_store_error(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile
) -> None:
    """Statuses raise if the store cannot be read."""
    store.fails = True
    with pytest.raises(StoreUnavailableError):
        await make_keys([make_deployment()]).get_all_key_statuses()


# --- health -------------------------------------------------------------------------------------------


async def test_health_counts_keys_and_deployments(
    make_keys: MakeKeys, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """The health of an unused router counts distinct keys and active deployments."""
    active = [
        make_deployment("a", key_id="k1"),
        make_deployment("b", key_id="k1"),
        make_deployment(key_id="k2"),
    ]
    inactive = [make_deployment("c", key_id="k2"), make_deployment(key_id="k3")]
    assert await make_keys(active, inactive).health() == {
        "healthy": True,
        "state": "healthy",
        "usable_in_seconds": 0.0,
        "usable_at": clock.time(),
        "total_keys": 3,
        "active_keys": 2,
        "in_cooldown": 0,
        "quarantined": 0,
        "disabled": 0,
        "spent": 0,
        "paced": 0,
        "deployments": 3,
        "waiting": 0,
        "line": {"requests": 0, "interactive": 0, "batch": 0, "tenants": {}},
        "cache": None,
        "store": "Fragile",
        "store_ok": True,
        "problems": [],
        "facts": [],
    }


async def test_a_key_cools_down_when_all_its_deployments_do(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """A key counts as cooling down once all its deployments are, and then no key is usable."""
    deployments = [make_deployment("a", key_id="k1"), make_deployment("b", key_id="k1")]
    keys = make_keys(deployments)
    counts = []
    for deployment in deployments:
        await store.cool_down(Cooldown(deployment.model_scope, clock.time() + 30.0, "rpm spent"))
        health = await keys.health()
        counts.append((health["in_cooldown"], health["quarantined"], health["healthy"]))
    assert counts == [(0, 0, True), (1, 0, False)]
    assert (await keys.health())["problems"] == []  # it ends by itself
    clock.shift(30.0)
    assert (await keys.health())["healthy"]


async def test_a_quarantined_key_is_a_problem(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile
) -> None:
    """A quarantined key is not counted as cooling down, and each of its models is a problem."""
    dead = [make_deployment("a", key_id="dead"), make_deployment("b", key_id="dead")]
    keys = make_keys([*dead, make_deployment(key_id="alive")])
    await store.cool_down(Cooldown(dead[0].key_scope, math.inf, "key: dead"))
    health = await keys.health()
    assert (health["quarantined"], health["in_cooldown"], health["healthy"]) == (1, 0, True)
    assert health["problems"] == ["dead/a: key: dead", "dead/b: key: dead"]


async def test_a_key_with_one_quarantined_model_cools_down_with_the_other(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """A key counts as quarantined only if all its models are."""
    gone, spent = make_deployment("a", key_id="k"), make_deployment("b", key_id="k")
    keys = make_keys([gone, spent])
    await store.cool_down(Cooldown(gone.model_scope, math.inf, "model: gone"))
    await store.cool_down(Cooldown(spent.model_scope, clock.time() + 30.0, "rpm spent"))
    health = await keys.health()
    assert (health["quarantined"], health["in_cooldown"], health["healthy"]) == (0, 1, False)
    clock.shift(30.0)
    health = await keys.health()
    assert (health["in_cooldown"], health["healthy"]) == (0, True)


async def test_an_inactive_deployment_does_not_make_a_key_usable(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """A key is judged by its active deployments only."""
    active, inactive = make_deployment("a", key_id="k"), make_deployment("b", key_id="k")
    await store.cool_down(Cooldown(active.model_scope, clock.time() + 30.0, "rpm spent"))
    health = await make_keys([active], [inactive]).health()
    assert (health["in_cooldown"], health["healthy"]) == (1, False)


async def test_one_of_several_providers_may_be_unreachable(
    make_keys: MakeKeys, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """A router is healthy as long as one provider can be reached, and names the others as problems."""
    keys = make_keys([make_deployment(provider="near"), make_deployment(provider="far")])
    make_unreachable(keys, "far", clock.time() - 0.25)
    health = await keys.health()
    assert health["healthy"]
    assert health["problems"] == ["provider far: cannot be reached, tried again in 0.8 s"]
    assert (health["in_cooldown"], health["quarantined"]) == (0, 0)
    make_unreachable(keys, "near", clock.time())
    health = await keys.health()
    assert not health["healthy"]
    assert len(health["problems"]) == 2
    clock.shift(1.0)
    assert (await keys.health())["problems"] == []


async def test_a_store_error_is_reported_and_not_raised(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile
) -> None:
    """Health reports a store error and still counts keys and deployments."""
    store.fails = True
    health = await make_keys([make_deployment()], [make_deployment()]).health()
    assert (health["healthy"], health["store_ok"]) == (False, False)
    assert health["problems"] == ["store: no answer within 2 s"]
    assert (health["total_keys"], health["active_keys"], health["deployments"]) == (2, 1, 1)


async def test_a_process_on_its_own_is_healthy_and_says_so(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """With a local fallback the router stays healthy, and the problem names the failing store."""
    failover = FailoverStore(store, clock=clock)
    keys = make_keys([make_deployment()], behind=failover)
    assert (await keys.health())["store_ok"]
    store.fails = True
    health = await keys.health()
    assert (health["healthy"], health["store_ok"], health["store"]) == (True, False, "Fragile")
    assert health["state"] == "store_lost"
    assert health["problems"] == ["store: no answer within 2 s; this process is on its own"]
    await failover.aclose()


async def test_a_refusing_failover_reports_its_trouble_once(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """With the policy "closed" a store error is listed as one problem."""
    failover = FailoverStore(store, policy="closed", clock=clock)
    keys = make_keys([make_deployment()], behind=failover)
    store.fails = True
    health = await keys.health()
    assert (health["healthy"], health["store_ok"]) == (False, False)
    [problem] = health["problems"]
    assert problem.startswith("store: no answer within 2 s")
    await failover.aclose()


async def test_waiting_requests_are_counted(
    make_keys: MakeKeys,
    make_deployment: MakeDeployment,
    make_order: MakeOrder,
    make_send: MakeSend,
    clock: ManualClock,
) -> None:
    """Health counts the requests that wait, until they are served or cancelled."""
    keys = make_keys([make_deployment(rpm=1)])
    send = make_send(make_order(keys.pool))
    lease = await keys.selector.acquire(send, 0.0)
    assert isinstance(lease, Lease)
    lease.mark_dispatched()
    tasks = [asyncio.create_task(keys.selector.acquire(send, 200.0)) for _ in range(2)]
    await clock.advance(0)
    assert (await keys.health())["waiting"] == 2
    await clock.advance(61.0)
    assert (await keys.health())["waiting"] == 1
    tasks[1].cancel()
    await clock.advance(0)
    assert (await keys.health())["waiting"] == 0


# --- what is spent ------------------------------------------------------------------------------------


async def test_a_spent_quota_is_shown_until_it_has_room(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """It is neither a cooldown nor a problem; but nothing can be sent meanwhile."""
    spent, other = make_deployment(rpm=1, rpd=100), make_deployment(rpm=1)
    keys = make_keys([spent, other])
    await store.reserve("1", [spent], Demand(1, 1), 60.0)
    first, second = await keys.get_all_key_statuses()
    assert (first["spent"], first["in_cooldown"]) == (["rpm"], False)
    assert first["room_in"] == pytest.approx(60.3)
    assert first["state"] == "spent"
    assert first["usable_at"] == pytest.approx(clock.time() + 60.3)
    assert (second["spent"], second["room_in"]) == ([], 0.0)
    health = await keys.health()
    assert (health["healthy"], health["spent"], health["in_cooldown"]) == (True, 1, 0)
    await store.reserve("2", [other], Demand(1, 1), 60.0)
    health = await keys.health()
    assert (health["healthy"], health["spent"], health["problems"]) == (False, 2, [])
    assert health["state"] == "spent"
    assert health["usable_in_seconds"] == pytest.approx(60.3)
    clock.shift(60.4)
    assert (await keys.health())["healthy"]


@pytest.mark.parametrize(
    ("quota", "seconds"),
    [
        (Quota(Metric.RPM, 60, Refill.STEADY, burst=60), 1.0),
        (Quota(Metric.RPM, 0), None),
        (Quota(Metric.RPD, 60, Refill.DAILY), 20 * 3600.0),
    ],
    ids=["steady", "zero", "daily"],
)
async def test_room_comes_back_as_the_quota_does(
    make_keys: MakeKeys,
    make_deployment: MakeDeployment,
    store: Fragile,
    quota: Quota,
    seconds: float | None,
) -> None:
    """One by one, never, or at midnight in Los Angeles."""
    deployment = attrs.evolve(make_deployment(), quotas=(quota,))
    keys = make_keys([deployment])
    for number in range(60):
        await store.reserve(str(number), [deployment], Demand(1, 1), 60.0)
    [status] = await keys.get_all_key_statuses()
    assert status["spent"] == [quota.metric.value]
    assert status["room_in"] == (None if seconds is None else pytest.approx(seconds, abs=2.0))


async def test_what_began_to_be_counted_is_known_to_be_counted_in_part(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile, clock: ManualClock
) -> None:
    """A limit stated of what nobody configured is not said to be unused before its window was counted."""
    deployment = make_deployment(rpm=15)
    keys, began = make_keys([deployment]), clock.time()
    for metric in (Metric.TPM, Metric.RPD, Metric.RPM):
        await store.cool_down(Cooldown.learn(deployment.model_scope, LearntLimit(metric, 3)))
    for seconds, parts in ((0.0, {"tpm", "rpd"}), (61.0, {"rpd"}), (86_400.0, set())):
        await clock.advance(seconds)
        [status] = await keys.get_all_key_statuses()
        limits = status["limits"]
        assert {metric for metric, limit in limits.items() if limit["counted_since"]} == parts
        assert all(limits[metric]["counted_since"] == pytest.approx(began, abs=0.01) for metric in parts)
        assert {fraction(limits[metric]) for metric in parts} <= {"≥0/3!"}
    assert fraction(limits["rpd"]) == "0/3!"


async def test_what_a_configuration_says_of_a_quota(
    make_keys: MakeKeys, make_deployment: MakeDeployment, store: Fragile
) -> None:
    """A cap, one to be learnt, and one that was left out and that a refusal has named, are told apart."""
    deployment = attrs.evolve(
        make_deployment(), quotas=(Quota(Metric.RPM, 15), Quota(Metric.TPM, 100, adaptive=True))
    )
    await store.cool_down(Cooldown.learn(deployment.model_scope, LearntLimit(Metric.RPD, 3)))
    [status] = await make_keys([deployment]).get_all_key_statuses()
    found = {metric: limit["configured_as"] for metric, limit in status["limits"].items()}
    assert found == {"rpm": "cap", "tpm": "learn", "rpd": "unlimited"}


async def test_what_a_refusal_said_of_a_spent_quota_is_more_exact(
    make_keys: MakeKeys,
    make_deployment: MakeDeployment,
    make_order: MakeOrder,
    make_send: MakeSend,
    clock: ManualClock,
) -> None:
    """A snapshot knows when all of a quota is back; a refusal, when the first of it is."""
    keys = make_keys([make_deployment(rpm=2)])
    send = make_send(make_order(keys.pool))
    for _ in range(2):
        lease = await keys.selector.acquire(send, 0.0)
        assert isinstance(lease, Lease)
        lease.mark_dispatched()
        clock.shift(20)
    [status] = await keys.get_all_key_statuses()
    assert status["room_in"] == pytest.approx(40.3)
    await keys.selector.acquire(send, 0.0)
    [status] = await keys.get_all_key_statuses()
    assert status["room_in"] == pytest.approx(20.3)

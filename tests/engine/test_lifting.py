"""Keys are lifted, disabled and enabled by hand, for every process that shares the store."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_router import (
    Cooldown,
    Deployment,
    Key,
    MemoryStore,
    Metric,
    ProviderError,
    Quota,
    Router,
    Secret,
    StoreUnavailableError,
    UnknownKeyError,
    UnknownModelError,
)
from llm_router.domain.limits import LearntLimit
from llm_router.domain.quota import Demand
from llm_router.errors import QuotaViolation
from llm_router.stores import Decision
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]


def deployment(
    key_id: str, model: str = "model-a", *, project: str = "", priority: int = 1, rpm: int = 1_000
) -> Deployment:
    """Make a deployment."""
    key = Key(key_id, Secret(f"secret-of-{key_id}"), project=project)
    return Deployment(key, model, "light", priority=priority, quotas=(Quota(Metric.RPM, rpm),))


def invalid_key() -> ProviderError:
    """Return the failure of a key that is called invalid."""
    return ProviderError("API key not valid", kind="key", code=400)


def missing_model() -> ProviderError:
    """Return the failure of a model that does not exist."""
    return ProviderError("model not found", kind="model", code=404)


def no_path() -> ProviderError:
    """Return the failure of a request that did not reach the provider."""
    return ProviderError("no route", kind="network", charged=False)


async def used(router: Router, count: int = 4) -> set[str | None]:
    """Return the keys that answer ``count`` prompts; None for one that is not answered."""
    responses = [await router.send("x") for _ in range(count)]
    return {response.key_id if response.success else None for response in responses}


# --- disable and enable -------------------------------------------------------------------------------


async def test_a_disabled_key_is_used_by_no_process(make_router: MakeRouter, clock: ManualClock) -> None:
    """Until it is enabled: both in routers that run and in those that start."""
    store = MemoryStore(clock=clock)
    pool = [deployment("off", priority=0), deployment("on")]
    one, two = (make_router(pool, store=store) for _ in range(2))
    assert await used(two) == {"off"}
    await one.keys.disable("off")
    clock.shift(400 * 86_400.0)
    for router in (one, two, make_router(pool, store=store)):
        assert await used(router) == {"on"}
    await one.keys.enable("off")
    assert await used(one) == {"off"}
    await two.send("notices it")
    assert await used(two) == {"off"}


async def test_disabling_is_no_fault(make_router: MakeRouter, provider: FakeProvider) -> None:
    """Statuses and health show it as what it is, with the reason that was given."""
    async with make_router([deployment("off"), deployment("on")]) as router:
        [status] = await router.keys.disable("off", reason="to be rotated")
        assert (status["key_id"], status["disabled"], status["quarantined"]) == ("off", True, False)
        assert (status["in_cooldown"], status["cooldown_remaining"]) == (True, None)
        assert status["reason"] == "disabled: to be rotated"
        health = await router.health_check()
        assert (health["disabled"], health["quarantined"], health["in_cooldown"]) == (1, 0, 0)
        assert (health["healthy"], health["problems"]) == (True, [])
        await router.keys.disable("on")
        assert not (await router.health_check())["healthy"]
        [status] = await router.keys.enable("off")
        assert (status["disabled"], status["in_cooldown"], status["reason"]) == (False, False, None)


async def test_a_model_is_disabled_for_its_project(make_router: MakeRouter) -> None:
    """The keys of one project share it; their other models stay, and so do other projects."""
    pool = [
        deployment("one", project="p", priority=0),
        deployment("two", project="p", priority=0),
        deployment("one", "model-b", project="p"),
        deployment("else", priority=2),
    ]
    async with make_router(pool) as router:
        changed = await router.keys.disable("one", "models/model-a")
        assert [(row["key_id"], row["model"]) for row in changed] == [("one", "model-a"), ("two", "model-a")]
        response = await router.send("x")
        assert (response.key_id, response.model) == ("one", "model-b")
        assert (await router.health_check())["disabled"] == 1
        await router.keys.enable("one")  # which was not disabled itself
        assert (await router.send("x")).model == "model-b"
        await router.keys.enable("two", "model-a")
        assert (await router.send("x")).model == "model-a"


async def test_an_inactive_key_can_be_disabled(make_router: MakeRouter) -> None:
    """It then stays out of use when it is active one day."""
    async with make_router([deployment("on")], inactive=[deployment("off")]) as router:
        [status] = await router.keys.disable("off")
        assert (status["active"], status["disabled"]) == (False, True)


async def test_disabling_survives_a_restart(
    make_router: MakeRouter, clock: ManualClock, tmp_path: Path
) -> None:
    """And an enabled key is used again after the next one."""
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    pool = [deployment("off", priority=0), deployment("on")]
    async with make_router(pool, store=url) as router:
        await router.keys.disable("off")
    async with make_router(pool, store=url) as router:
        assert await used(router) == {"on"}
        await router.keys.enable("off")
    async with make_router(pool, store=url) as router:
        assert await used(router) == {"off"}


async def test_disabling_goes_before_a_verdict_that_lasts_for_ever(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """Such as an earlier version left behind: of two that never end, a store keeps the first."""
    store, dead = MemoryStore(clock=clock), deployment("dead")
    await store.cool_down(Cooldown(dead.key_scope, math.inf, "key: dead"))
    async with make_router([dead], store=store) as router:
        for _ in range(2):
            [status] = await router.keys.disable("dead")
            assert status["disabled"]
        [status] = await router.keys.enable("dead")
        assert not status["in_cooldown"]


async def test_a_verdict_does_not_end_what_is_disabled(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Nor does a request that was on its way: neither one that fails nor one that tries again."""
    gate = asyncio.Event()
    async with make_router([deployment("k")], max_retries=0) as router:
        provider.script(missing_model(), key_id="k")
        await router.send("x")
        clock.shift(300)
        provider.script([gate, "an answer"], key_id="k")
        probe = asyncio.create_task(router.send("x"))
        await clock.advance(0)
        await router.keys.disable("k")
        gate.set()
        await clock.advance(0)
        assert probe.result().success
        assert await used(router) == {None}
        [status] = await router.keys.enable("k")
        assert not status["disabled"]


async def test_a_waiting_request_goes_on_when_its_key_is_enabled(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """It need not wait for the quota of another one."""
    async with make_router([deployment("off"), deployment("on", rpm=1)]) as router:
        await router.keys.disable("off")
        await router.send("x")
        task = asyncio.create_task(router.send("x", max_wait=100))
        await clock.advance(1)
        assert not task.done()
        await router.keys.enable("off")
        await clock.advance(0)
        assert task.result().key_id == "off"


# --- lift ---------------------------------------------------------------------------------------------


async def test_a_lifted_key_is_tried_at_once(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """In all processes, also in one that has nothing else to ask."""
    store = MemoryStore(clock=clock)
    alone = deployment("dead", priority=0)
    one, two = make_router([alone], store=store), make_router([alone, deployment("other")], store=store)
    provider.script(invalid_key(), key_id="dead", times=2)
    assert await used(one, 2) == {None}
    clock.shift(10)
    assert await used(one, 2) == {None}
    assert await used(two) == {"other"}
    [status] = await two.keys.lift("dead")
    assert not status["in_cooldown"]
    clock.shift(0.2)
    assert await used(one) == {"dead"}
    assert await used(two) == {"dead"}


async def test_a_lift_forgets_strikes(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """The next failure is the first one again."""
    async with make_router([deployment("k", priority=0), deployment("other")], max_retries=1) as router:
        provider.script(missing_model(), key_id="k", times=3)
        for seconds in (300, 0):
            await router.send("x")
            clock.shift(seconds)
        await router.keys.lift("k")
        await router.send("x")
        [status, _] = await router.get_all_key_statuses()
        assert status["cooldown_remaining"] == 300.0


async def test_a_lift_of_one_model_leaves_the_others(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """With a model only that is lifted; without, all of them, the key and its project."""
    pool = [deployment("k", model) for model in ("model-a", "model-b")]
    async with make_router(pool) as router:
        for scope in (pool[0].model_scope, pool[1].model_scope):
            await router.keys.store.cool_down(Cooldown(scope, clock.time() + 60, "rpm spent"))
        await router.keys.lift("k", "model-a")
        statuses = await router.get_all_key_statuses()
        assert [status["in_cooldown"] for status in statuses] == [False, True]
        for scope in (pool[0].key_scope, pool[0].project_scope):
            await router.keys.store.cool_down(Cooldown(scope, clock.time() + 60, "not billed"))
        statuses = await router.keys.lift("k")
        assert [status["in_cooldown"] for status in statuses] == [False, False]


async def test_a_lift_leaves_what_is_disabled(make_router: MakeRouter) -> None:
    """The key, a model of it, or both at once."""
    pool = [deployment("k", model) for model in ("model-a", "model-b")]
    async with make_router(pool) as router:
        await router.keys.disable("k")
        await router.keys.disable("k", "model-a")
        await router.keys.lift("k")
        await router.keys.enable("k", "model-a")
        statuses = await router.get_all_key_statuses()
        assert [status["disabled"] for status in statuses] == [True, True]
        await router.keys.enable("k")
        statuses = await router.get_all_key_statuses()
        assert [status["disabled"] for status in statuses] == [False, False]


async def test_a_lift_ends_what_this_process_avoids(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Here at once; elsewhere a model that seemed gone for all is tried again, too."""
    store = MemoryStore(clock=clock)
    pool = [deployment(f"k{number}", "back") for number in range(5)]
    one, two = (make_router(pool, store=store, max_retries=5) for _ in range(2))
    provider.script(missing_model(), times=3)
    assert not (await one.send("x")).success
    assert not (await one.send("x")).success
    assert len(provider.calls) == 3
    for number in range(5):
        await two.keys.lift(f"k{number}", "back")
    clock.shift(0.2)
    assert (await one.send("x")).success


async def test_a_process_with_everything_parked_asks_before_it_fails(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Also where the next to be ready is one that this process alone avoids."""
    store = MemoryStore(clock=clock)
    pool = [deployment("dead", priority=0), deployment("far")]
    one, two = (make_router(pool, store=store, max_retries=1, base_backoff=60) for _ in range(2))
    provider.script(missing_model(), key_id="dead")
    provider.script(no_path(), key_id="far", times=2)
    task = asyncio.create_task(one.send("x"))
    await clock.advance(0)
    await task
    await two.keys.lift("dead")
    clock.shift(0.2)
    assert await used(one, 1) == {"dead"}


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lift", "disable", "enable"])
async def test_an_unknown_key_or_model_is_named(make_router: MakeRouter, method: str) -> None:
    """With what may have been meant, and all that there are."""
    pool = [deployment("key-one"), deployment("key-two", "model-b")]
    async with make_router(pool) as router:
        change = getattr(router.keys, method)
        with pytest.raises(UnknownKeyError, match="'key-onne': did you mean 'key-one'") as caught:
            await change("key-onne")
        assert "use one of 'key-one', 'key-two'" in str(caught.value)
        with pytest.raises(UnknownKeyError, match="use one of"):
            await change("x")
        with pytest.raises(UnknownModelError, match=r"'key-one' has no model 'model-b': .*'model-a'"):
            await change("key-one", "model-b")


async def test_of_many_keys_only_some_are_listed(make_router: MakeRouter) -> None:
    """An error that names a thousand keys would not be read."""
    async with make_router([deployment(f"key-{number:02}") for number in range(23)]) as router:
        with pytest.raises(UnknownKeyError, match=r"'key-19' and 3 more$"):
            await router.keys.lift("x")


async def test_a_change_that_the_store_does_not_take_is_an_error(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """This process goes by it all the same."""

    class Away(MemoryStore):
        async def cool_down(self, cooldown: Cooldown) -> None:
            raise StoreUnavailableError("no answer within 2 s")

        async def charge(self, *args: Any) -> float:
            raise StoreUnavailableError("no answer within 2 s")

        async def reserve(self, *args: Any) -> Decision:
            raise StoreUnavailableError("no answer within 2 s")

    failover = FailoverStore(Away(clock=clock), clock=clock)
    async with make_router([deployment("k")], store=failover) as router:
        with pytest.raises(StoreUnavailableError, match="no answer within 2 s"):
            await router.keys.disable("k")
        assert await used(router) == {None}
    await failover.aclose()


async def test_a_lift_forgets_learnt_limits(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """The configured limit applies at once."""
    store, pool = MemoryStore(clock=clock), [deployment("k", rpm=15)]
    refusal = ProviderError(
        "429", kind="quota", code=429, retry_delay=5.0, violations=(QuotaViolation(Metric.RPM, 2),)
    )
    one, two = (make_router(pool, store=store) for _ in range(2))
    provider.script(refusal)
    assert not (await one.send("x", timeout=1)).success
    clock.shift(61.0)
    assert [(await two.send("x")).success for _ in range(3)] == [True, True, False]
    await one.keys.lift("k", "model-a")
    assert sum([(await one.send("x")).success for _ in range(20)]) == 13


async def test_limits_alone_are_forgotten(make_router: MakeRouter, clock: ManualClock) -> None:
    """What is cooling down stays so; what is forgotten is forgotten for every key of the project."""
    pool = [deployment(key, model, project="p", rpm=15) for key in "ab" for model in ("model-a", "model-b")]
    async with make_router(pool) as router:
        for each in pool[:2]:
            await router.keys.store.cool_down(Cooldown.learn(each.model_scope, LearntLimit(Metric.RPM, 2)))
        await router.keys.store.cool_down(Cooldown(pool[0].model_scope, clock.time() + 60, "rpm spent"))
        changed = await router.keys.forget_limits("a", "model-a")
        assert [(row["key_id"], row["model"], row["rpm_usage"]) for row in changed] == [
            ("a", "model-a", "0/15"),
            ("b", "model-a", "0/15"),
        ]
        assert changed[0]["in_cooldown"]
        assert [row["rpm_usage"] for row in await router.keys.statuses_of("b")] == ["0/15", "0/2"]
        await router.keys.forget_limits("b")
        assert [row["rpm_usage"] for row in await router.keys.statuses_of("a")] == ["0/15", "0/15"]
        with pytest.raises(UnknownKeyError):
            await router.keys.forget_limits("c")


async def test_a_limit_that_another_process_forgets_is_noticed_by_every_other(
    make_router: MakeRouter, clock: ManualClock
) -> None:
    """By one whose other key has room all the time, and by one in which all requests wait; of a day, too."""
    store = MemoryStore(clock=clock)
    day, other = deployment("day", priority=0), deployment("other", rpm=10_000)
    await store.cool_down(Cooldown.learn(day.model_scope, LearntLimit(Metric.RPD, 3)))
    busy, waiting = make_router([day, other], store=store), make_router([day], store=store)
    assert [(await busy.send("x")).key_id for _ in range(4)] == ["day"] * 3 + ["other"]
    patient = asyncio.create_task(waiting.send("x", max_wait=90_000.0))
    await clock.advance(10.0)
    await make_router([day], store=store).keys.forget_limits("day")
    assert (await busy.send("x")).key_id == "other"
    await clock.advance(60.0)
    assert await used(busy) == {"day"}
    assert not patient.done()
    await clock.advance(60.0)
    assert (await patient).success


# --- seen by the next send ----------------------------------------------------------------------------


class Counting(MemoryStore):
    """A store that counts what it is asked.

    Attributes:
        asked: The number of candidates of each reserve.
    """

    asked: list[int]

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.asked.append(len(candidates))
        return await super().reserve(reservation_id, candidates, demand, ttl)


@pytest.mark.slow
@pytest.mark.parametrize("sends", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 40, 300])
@pytest.mark.parametrize("spent", [0, 20])
@pytest.mark.parametrize("how", ["lift", "enable"])
async def test_the_next_send_sees_what_another_process_lifted(
    make_router: MakeRouter,
    provider: FakeProvider,
    clock: ManualClock,
    sends: int,
    count: int,
    spent: int,
    how: str,
) -> None:
    """With everything parked, however often that was found a moment ago, by a clock that stands still."""
    store = MemoryStore(clock=clock)
    pool = [deployment(f"k{n}") for n in range(count)] + [deployment(f"s{n}", rpm=1) for n in range(spent)]
    one, two = (make_router(pool, store=store, max_retries=0) for _ in range(2))
    for n in range(count):
        await two.keys.disable(f"k{n}")
    for _ in range(spent):
        assert (await one.send("x")).success
    if how == "lift":
        for n in range(count):
            await store.cool_down(Cooldown.lift(pool[n].key_scope))
            await store.cool_down(Cooldown(pool[n].key_scope, math.inf, "said to be invalid"))
    assert not any([(await one.send("x")).success for _ in range(sends)])
    await getattr(two.keys, how)(f"k{count - 1}")
    assert (await one.send("x")).key_id == f"k{count - 1}"


async def test_a_crowd_that_is_refused_asks_little(make_router: MakeRouter, clock: ManualClock) -> None:
    """Of many requests refused at once, one asks about every deployment, and each other about a few."""
    store = Counting(clock=clock)
    store.asked = []
    pool = [deployment(f"k{n}") for n in range(500)]
    async with make_router(pool, store=store) as router:
        for each in pool:
            await store.cool_down(Cooldown(each.key_scope, clock.time() + 300, "busy"))
        assert not (await router.send("x")).success
        first, store.asked = sum(store.asked), []
        assert first == 500
        for _ in range(50):
            assert not (await router.send("x")).success
        assert len(store.asked) == 50
        assert max(store.asked) <= 8


async def test_a_crowd_without_quota_asks_nothing(make_router: MakeRouter, clock: ManualClock) -> None:
    """Where nothing is cooled down, nothing can be lifted: what was found a moment ago holds."""
    store = Counting(clock=clock)
    store.asked = []
    async with make_router([deployment(f"k{n}", rpm=1) for n in range(20)], store=store) as router:
        for _ in range(21):
            response = await router.send("x")
        assert not response.success
        store.asked = []
        for _ in range(50):
            assert not (await router.send("x")).success
        assert store.asked == []

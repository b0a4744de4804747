"""Limits that all models of a project share: found, kept for all of them, and given up again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

from llm_router import (
    Clock,
    Demand,
    Deployment,
    Key,
    KeyStatus,
    MemoryStore,
    ProviderError,
    RateLimitStore,
    Reply,
    Request,
    Router,
    Secret,
    StoreError,
    Usage,
    open_store,
)
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import EVERY_MODEL, ProjectDeployment
from llm_router.domain.kinds import FaultScope, Metric
from llm_router.domain.limits import LearntLimit, LimitRecord, LimitSource
from llm_router.domain.quota import Quota
from llm_router.engine.learning import LimitLearner, Refused
from llm_router.engine.project_limits import added_up, shared_state
from llm_router.engine.project_store import ProjectStore
from llm_router.engine.reserving import Selector
from llm_router.errors import ExtensionError, QuotaViolation
from llm_router.stores.base import Decision, DeploymentSnapshot, QuotaSnapshot, Refusal
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock
from llm_router.testing.virtual import VirtualClock, VirtualLoop, run

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.engine.conftest import MakePool

MakeRouter = Callable[..., Router]
TwoHandles = Callable[[Clock, VirtualLoop], list[RateLimitStore]]
_P = TypeVar("_P", bound=FakeProvider)


def refusal(
    limit: int | None = None,
    *,
    metric: Metric = Metric.RPM,
    delay: float | None = 30.0,
    scope: FaultScope = FaultScope.PROJECT,
) -> ProviderError:
    violations = (QuotaViolation(metric, limit),)
    return ProviderError(
        "spent", kind="quota", scope=scope, code=429, violations=violations, retry_delay=delay, charged=False
    )


class Limited(FakeProvider):
    """Admits so many requests in any minute: of all models together, and of some by themselves."""

    def __init__(
        self, clock: Clock, limit: int, models: Mapping[str, int] | None = None, *, states: bool = False
    ) -> None:
        super().__init__(clock=clock)
        self.limits = {EVERY_MODEL: limit, **(models or {})}
        self.admitted: list[tuple[float, str]] = []
        self.refused: list[tuple[float, str]] = []
        self._time = clock.time
        self._states = states

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        dispatched()
        now = self._time()
        for name in (deployment.model, EVERY_MODEL):
            recent = [at for at, model in self.admitted if at > now - 60.0 and name in (model, EVERY_MODEL)]
            limit = self.limits.get(name)
            if limit is not None and len(recent) >= limit:
                self.refused.append((now, name))
                scope = FaultScope.PROJECT if name == EVERY_MODEL else FaultScope.DEPLOYMENT
                stated = limit if self._states else None
                raise refusal(stated, delay=recent[-limit] + 60.0 - now, scope=scope)
        self.admitted.append((now, deployment.model))
        await asyncio.sleep(0.5)
        return await super().generate(deployment, request, dispatched)


def two_models() -> list[Deployment]:
    """Two models of one project of which nothing is known."""
    key = Key("k", Secret("secret"), project="p")
    quotas = (Quota(Metric.RPM, 4, adaptive=True),)
    return [Deployment(key, model, "light", quotas=quotas) for model in ("model-a", "model-b")]


async def use_up(routers: Iterable[Router], clock: VirtualClock, hours: float, callers: int = 20) -> None:
    """Send all the time: every caller once more as soon as it is answered."""
    ends = clock.time() + hours * 3600.0

    async def call(router: Router) -> None:
        while clock.time() < ends:
            response = await router.send("x", max_wait=600.0)
            if not response.success:
                await asyncio.sleep(response.retry_after or 1.0)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call(router)) for router in routers for _ in range(callers)]
        await asyncio.sleep(hours * 3600.0)
        for task in tasks:
            task.cancel()


@pytest.fixture(params=["memory", "sqlite", "failover", pytest.param("redis", marks=pytest.mark.slow)])
def two_handles(request: pytest.FixtureRequest, tmp_path: Path) -> TwoHandles:
    """Open two handles on one store, in virtual time."""
    kind: str = request.param
    url = request.getfixturevalue("redis_url") if kind == "redis" else f"sqlite:///{tmp_path}/state.sqlite3"

    def handles(clock: Clock, loop: VirtualLoop) -> list[RateLimitStore]:
        if kind == "memory":
            return [MemoryStore(clock=clock)] * 2
        stores = [open_store(url, clock=clock) for _ in range(2)]
        if kind == "failover":
            stores = [FailoverStore(store, clock=clock) for store in stores]
        for store in stores:
            loop.await_methods(store)
        return stores

    return handles


def use_up_by_two(
    two_handles: TwoHandles, make: Callable[[Clock], _P], hours: float, callers: int = 20
) -> tuple[_P, float, list[KeyStatus]]:
    """Have two routers use a provider up; return it, when they began, and what both show at the end."""

    async def main(loop: VirtualLoop) -> tuple[_P, float, list[KeyStatus]]:
        clock = VirtualClock(loop)
        began, provider, stores = clock.time(), make(clock), two_handles(clock, loop)
        routers = [Router(two_models(), store=each, provider=provider, clock=clock) for each in stores]
        await use_up(routers, clock, hours, callers)
        shown = [row for router in routers for row in await router.get_all_key_statuses()]
        for router in routers:
            await router.aclose()
        for store in stores:
            await store.aclose()
        return provider, began, shown

    return run(main)


def test_two_routers_on_one_store_keep_the_limit_of_a_project(two_handles: TwoHandles) -> None:
    """One is refused while it finds the limit; after that only tries are, and all of the quota is used."""
    provider, began, _ = use_up_by_two(two_handles, lambda clock: Limited(clock, 10), 1.0)
    later = [at for at, _ in provider.refused if at > began + 130.0]
    assert len(provider.refused) - len(later) <= 10
    assert len(set(later)) <= 5
    assert len(later) <= 2 * len(set(later))  # both may send at the very moment of a try
    assert len(provider.admitted) >= 0.95 * 600


@pytest.mark.parametrize("states", [False, True])
def test_the_limit_of_a_model_holds_beside_that_of_its_project(*, states: bool) -> None:
    """Both are learnt, each from its own refusals."""

    async def main(loop: VirtualLoop) -> Limited:
        clock = VirtualClock(loop)
        provider = Limited(clock, 10, {"model-a": 3}, states=states)
        async with Router(two_models(), provider=provider, clock=clock) as router:
            await use_up([router], clock, 1.0)
            rows = {row["model"]: row for row in await router.get_all_key_statuses()}
        assert rows["model-a"]["limits"]["rpm"]["limit"] in (3, 4)
        assert all(row["project_limits"]["rpm"]["limit"] in (10, 11) for row in rows.values())
        return provider

    provider = run(main)
    assert len(provider.refused) <= 24
    assert len(provider.admitted) >= 0.97 * 600


def test_a_router_that_starts_anew_finds_what_was_learnt() -> None:
    """Before its first request: only tries are refused."""

    async def main(loop: VirtualLoop) -> tuple[int, int]:
        clock = VirtualClock(loop)
        provider, store = Limited(clock, 10), MemoryStore(clock=clock)
        for _ in range(2):
            before = len(provider.admitted), len(provider.refused)
            async with Router(two_models(), store=store, provider=provider, clock=clock) as router:
                await use_up([router], clock, 0.5)
        return len(provider.admitted) - before[0], len(provider.refused) - before[1]

    admitted, refused = run(main)
    assert admitted >= 0.95 * 300
    assert refused <= 5


def test_a_first_limit_that_was_too_low_rises_within_minutes(pair: list[Deployment]) -> None:
    """Another program had most of the minute in which it was found."""

    async def main(loop: VirtualLoop) -> list[float]:
        clock = VirtualClock(loop)
        provider = Limited(clock, 5)
        async with Router(pair, provider=provider, clock=clock) as router:
            await use_up([router], clock, 1.5 / 60.0)
            provider.limits[EVERY_MODEL] = 30
            await use_up([router], clock, 10.0 / 60.0, 50)
        return [at for at, _ in provider.admitted if at > clock.time() - 180.0]

    assert len(run(main)) >= 60  # of 90; at the first limit it would be 15


def test_a_limit_that_is_raised_is_used() -> None:
    """The limit of a project rises as any other does: by an answer that shows it to be too low."""

    async def main(loop: VirtualLoop) -> tuple[int, int]:
        clock = VirtualClock(loop)
        provider = Limited(clock, 10)
        async with Router(two_models(), provider=provider, clock=clock) as router:
            await use_up([router], clock, 0.5)
            provider.limits[EVERY_MODEL] = 30
            await use_up([router], clock, 0.6, 40)
            before = len(provider.admitted)
            await use_up([router], clock, 0.2, 40)
            return len(provider.admitted) - before, len(provider.refused)

    admitted, refused = run(main)
    assert admitted >= 0.9 * 30 * 12
    assert refused <= 20


# --- spending ------------------------------------------------------------------------------------------


def spent(delay: float | None = None) -> ProviderError:
    """What a project may spend in ten minutes is spent."""
    return ProviderError(
        "spend-based rate limit",
        kind="quota",
        scope="project",
        code=429,
        retry_delay=delay,
        charged=False,
        spending=True,
    )


class Spender(FakeProvider):
    """Admits so many requests of a project in any ten minutes."""

    def __init__(self, clock: Clock, limit: int) -> None:
        super().__init__(clock=clock)
        self.limit = limit
        self.admitted: list[float] = []
        self.refused: list[float] = []
        self._time = clock.time

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        dispatched()
        now = self._time()
        if len([at for at in self.admitted if at > now - 600.0]) >= self.limit:
            self.refused.append(now)
            raise spent()
        self.admitted.append(now)
        await asyncio.sleep(0.5)
        return await super().generate(deployment, request, dispatched)


def test_what_a_project_may_spend_is_learnt_in_requests_of_ten_minutes(two_handles: TwoHandles) -> None:
    """By two routers on one store: once ten minutes have been counted only tries are refused."""
    provider, began, shown = use_up_by_two(two_handles, lambda clock: Spender(clock, 60), 2.0, 10)
    assert all(row["project_limits"]["spending"]["limit"] in (60, 61) for row in shown)
    later = [at for at in provider.refused if at > began + 1_300.0]
    assert len(provider.refused) - len(later) <= 30
    assert len(later) <= 6
    assert len([at for at in provider.admitted if at > began + 1_300.0]) >= 0.95 * 60 * 9


def test_what_may_be_spent_is_used_again_once_it_is_more() -> None:
    """It rises as any limit does that was learnt."""

    async def main(loop: VirtualLoop) -> int:
        clock = VirtualClock(loop)
        provider = Spender(clock, 60)
        async with Router(two_models(), provider=provider, clock=clock) as router:
            await use_up([router], clock, 1.5)
            provider.limit = 120
            await use_up([router], clock, 1.5)
        return len([at for at in provider.admitted if at > clock.time() - 600.0])

    assert run(main) >= 110


async def test_spending_is_shown_explained_and_forgotten(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """Beside the quotas of the project, by a name of its own, with the window over which it is counted."""
    project = ProjectDeployment.spending_of(pair[0])
    await store.cool_down(Cooldown.learn(project.model_scope, LearntLimit(Metric.RPM, 1)))
    await store.cool_down(
        Cooldown(pair[0].project_scope, clock.time() + 1.0, "spend limit spent, says the provider")
    )
    async with make_router(pair, store=store) as router:
        assert not (await router.send("x")).success
        clock.shift(1.0)
        assert (await router.send("x")).success
        response = await router.send("x")
        assert response.retry_after == pytest.approx(600.3)
        for row in await router.get_all_key_statuses():
            assert (row["state"], row["spent"]) == ("spent", ["spending"])
            limit = row["project_limits"]["spending"]
            assert (limit["used"], limit["limit"], limit["window_seconds"]) == (1, 1, 600.0)
        for candidate in (await router.explain("x")).candidates:
            assert (candidate.exclusion, candidate.reason) == ("quota", "spending of the whole project")
            assert [quota.name for quota in candidate.project_quotas] == ["spending"]
        clock.shift(61.0)  # the minute of each model is over, and not those ten
        assert not (await router.send("x")).success
        for row in await router.keys.forget_limits("k"):
            assert (row["project_limits"], row["spent"]) == ({}, [])
        assert (await router.send("x")).success


async def test_spending_is_known_to_be_counted_in_part_for_ten_minutes(
    make_router: MakeRouter, provider: FakeProvider, pair: list[Deployment], clock: ManualClock
) -> None:
    """From the refusal on by which it is found, and whatever the minutes of the models count."""
    began = clock.time()
    provider.script(spent(), times=1)
    async with make_router(pair, max_retries=0) as router:
        await router.send("x")
        for seconds, since in ((0.0, began), (600.0, began), (1.0, None)):
            clock.shift(seconds)
            for row in await router.get_all_key_statuses():
                limit = row["project_limits"]["spending"]
                assert (limit["counted_since"], limit["configured_as"]) == (since, "unlimited")


async def test_spending_is_counted_beside_a_quota_of_the_project(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """Three reservations are one: all are settled, and a refusal of the last gives the others back."""
    project = await keep(store, pair[0], 9)
    spending = ProjectDeployment.spending_of(pair[0])
    await store.cool_down(Cooldown.learn(spending.model_scope, LearntLimit(Metric.RPM, 1)))
    async with make_router(pair, store=store) as router:
        await router.get_all_key_statuses()
        assert (await router.send("x")).success
        assert not (await router.send("x")).success
    assert [await store.used(each) for each in (project, spending)] == [1, 1]
    assert sorted([await store.used(each) for each in pair]) == [0, 1]


async def test_money_that_is_gone_is_no_limit(
    make_router: MakeRouter, provider: FakeProvider, store: Recording, pair: list[Deployment]
) -> None:
    """Credits that are spent, and a cap on the month, do not come back in ten minutes."""
    error = ProviderError("credits", kind="quota", scope="project", code=402, charged=False, lasting=True)
    provider.script(error, times=1)
    async with make_router(pair, store=store) as router:
        await router.send("x")
        for row in await router.get_all_key_statuses():
            assert (row["project_limits"], row["reason"]) == ({}, "money spent, says the provider")


@pytest.mark.parametrize("scope", [FaultScope.PROJECT, FaultScope.DEPLOYMENT])
async def test_what_is_used_up_for_longer_teaches_no_limit(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    scope: FaultScope,
) -> None:
    """Also where the refusal names a quota, and states its limit."""
    violations = (QuotaViolation(Metric.RPM, 10),)
    provider.script(
        ProviderError("gone", kind="quota", scope=scope, code=429, lasting=True, violations=violations),
        times=1,
    )
    async with make_router(pair, store=store, max_retries=0) as router:
        await router.send("x")
        for row in await router.get_all_key_statuses():
            assert (row["project_limits"], row["limits"]["rpm"]["limit"]) == ({}, 100)


# --- the store in front --------------------------------------------------------------------------------


class Recording(MemoryStore):
    """A store that notes its calls, and fails in one of them."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.calls: list[tuple[str, str]] = []
        self.fails_on_project: BaseException | None = None
        self.hangs_on_project = False
        self.decides_on_project: Decision | None = None
        self.hangs_after = math.inf

    def _note(self, way: str, reservation_id: str) -> bool:
        """Note a call; return whether it is to hang once it is done."""
        self.calls.append((way, reservation_id))
        return len(self.calls) == self.hangs_after

    async def reserve(self, reservation_id: str, *args: Any, **kwargs: Any) -> Decision:
        hangs = self._note("reserve", reservation_id)
        decision = await super().reserve(reservation_id, *args, **kwargs)
        if hangs:
            await asyncio.Event().wait()
        if reservation_id.endswith("*"):
            if self.hangs_on_project:
                await asyncio.Event().wait()
            if self.fails_on_project is not None:
                raise self.fails_on_project
            return self.decides_on_project or decision
        return decision

    async def settle(self, reservation_id: str, used: Demand) -> None:
        self.calls.append(("settle", reservation_id))
        await super().settle(reservation_id, used)

    async def release(self, reservation_id: str) -> None:
        hangs = self._note("release", reservation_id)
        await super().settle(reservation_id, Demand(0, 0))
        if hangs:
            await asyncio.Event().wait()

    async def used(self, deployment: Deployment) -> int:
        [snapshot] = await self.snapshot([deployment])
        return snapshot.quotas[0].used


@pytest.fixture
def store(clock: ManualClock) -> Recording:
    return Recording(clock)


@pytest.fixture
def pair(pools: Pools) -> list[Deployment]:
    """Two models of one project with room enough."""
    return [pools.one(model, key_id="k", project="p", rpm=100) for model in ("model-a", "model-b")]


async def keep(store: RateLimitStore, deployment: Deployment, limit: int) -> Deployment:
    """Have a store know a limit of a project, and return what stands for its models."""
    project = ProjectDeployment.of(deployment)
    await store.cool_down(Cooldown.learn(project.model_scope, LearntLimit(Metric.RPM, limit)))
    return project


async def hear(router: Router, store: RateLimitStore, deployment: Deployment, clock: ManualClock) -> None:
    """Have a router hear that the project has a limit, from another process, and wait until it is over."""
    until = clock.time() + 1.0
    await store.cool_down(Cooldown(deployment.project_scope, until, "rpm spent, says the provider"))
    assert not (await router.send("x", model_preference=deployment.model, fallback="none")).success
    clock.shift(1.0)


async def test_a_send_goes_through_the_store_itself_while_no_project_has_a_limit(
    make_router: MakeRouter, provider: FakeProvider, store: Recording, pair: list[Deployment]
) -> None:
    """Also after refusals that are those of a model, or of money, or of what there is none of."""
    money = ProviderError("spent", kind="quota", scope="project", code=402, charged=False, lasting=True)
    none = refusal(0)
    of_model = refusal(scope=FaultScope.DEPLOYMENT)
    for error in (of_model, money, none):
        provider.script(error, times=1)
    async with make_router(pair, store=store, max_retries=5) as router:
        for _ in range(3):
            await router.send("x")
        assert not any("*" in name for _, name in store.calls)


async def test_what_is_granted_on_a_model_is_counted_on_the_project(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """Both reservations are settled, each once."""
    project = await keep(store, pair[0], 3)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        store.calls.clear()
        assert (await router.send("x")).success
    (_, first), (_, second), *ends = store.calls
    assert second == f"{first}*"
    assert ends == [("settle", first), ("settle", second)]
    assert await store.used(project) == 1


async def test_a_project_without_room_refuses_all_its_deployments(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], pools: Pools, clock: ManualClock
) -> None:
    """It says why and until when; what a model had granted is given back, and other projects are used."""
    await keep(store, pair[0], 3)
    other = pools.one("model-c", key_id="other", rpm=1, priority=2)
    async with make_router([*pair, other], store=store) as router:
        await hear(router, store, pair[0], clock)
        clock.shift(60.3)
        for _ in range(3):
            assert (await router.send("x")).key_id == "k"
        assert (await router.send("x")).key_id == "other"
        response = await router.send("x")
    assert response.error is not None
    assert "rpm of the whole project (2)" in str(response.error)
    assert response.retry_after == pytest.approx(60.3)
    assert [await store.used(each) for each in pair] in ([3, 0], [2, 1], [1, 2], [0, 3])


async def test_who_waits_for_a_project_asks_when_it_has_room(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """Fifty that wait do not ask for each other, nor again and again."""
    await keep(store, pair[0], 2)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        for _ in range(2):
            assert (await router.send("x")).success
        store.calls.clear()
        tasks = [asyncio.create_task(router.send("x", max_wait=200.0)) for _ in range(50)]
        await clock.advance(60.0)
        assert not any(task.done() for task in tasks)
        assert sum(name == "reserve" for name, _ in store.calls) <= 8
        await clock.advance(1.0)
        assert sum(task.done() for task in tasks) == 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_store_that_fails_on_the_project_gets_the_rest_back(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """So does one that fails with an error of its own."""
    project = await keep(store, pair[0], 3)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        store.fails_on_project = StoreError("down")
        assert not (await router.send("x")).success
        store.fails_on_project = ZeroDivisionError()
        with pytest.raises(ExtensionError, match=r"Recording\.reserve\(\) raised ZeroDivisionError"):
            await router.send("x")
        assert [await store.used(each) for each in (*pair, project)] == [0, 0, 0]
        store.fails_on_project = None
        assert (await router.send("x")).success


@pytest.mark.parametrize(
    ("wrong", "promise"),
    [
        (lambda star, _: Decision(star, headroom=cast("float", None)), "headroom is a number, not None"),
        (lambda star, _: Decision(star, daily_headroom=math.nan), "daily_headroom is a number, not nan"),
        (lambda _, other: Decision(other), "on a deployment that it was given"),
        (lambda _, other: Decision(None, refusals=(Refusal(other, "rpm", 9e9, 9e9),)), "refusals are of dep"),
        (lambda _, __: Decision(None, refusals=cast("tuple[Refusal]", None)), "are a tuple of Refusals"),
    ],
)
async def test_a_decision_on_a_project_that_makes_no_sense(
    make_router: MakeRouter,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
    wrong: Callable[[Deployment, Deployment], Decision],
    promise: str,
) -> None:
    """The error of a user's store names it, and what was taken is given back."""
    project = await keep(store, pair[0], 3)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        store.decides_on_project = wrong(project, pair[0])
        with pytest.raises(ExtensionError, match=rf"Recording\.reserve\(\) must return .*{promise}"):
            await router.send("x")
        assert [await store.used(each) for each in (*pair, project)] == [0, 0, 0]


async def test_what_is_cancelled_between_the_two_reservations_takes_nothing(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    project = await keep(store, pair[0], 3)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        store.hangs_on_project = True
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [await store.used(each) for each in (*pair, project)] == [0, 0, 0]


async def test_what_was_never_sent_is_given_back_to_the_project(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
) -> None:
    """And whoever waits for it is told at once."""
    project = await keep(store, pair[0], 1)
    async with make_router(pair, store=store, max_retries=0) as router:
        await hear(router, store, pair[0], clock)
        provider.script(ProviderError("no path", kind="network", charged=False), times=1)
        provider.delay = 5.0
        first = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        second = asyncio.create_task(router.send("x", max_wait=100.0))
        for _ in range(3):
            await clock.advance(5.0)
        assert not first.result().success
        assert second.result().success
    assert await store.used(project) == 1


@pytest.mark.parametrize("pause", [0.05, 1.0])
async def test_tokens_that_come_back_to_the_project_are_used_by_its_other_models(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
    pause: float,
) -> None:
    """Whoever waits for them is told at once, also right after the refusal."""
    project = await keep(store, pair[0], 100)
    await store.cool_down(Cooldown.learn(project.model_scope, LearntLimit(Metric.TPM, 1000)))
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        clock.shift(61.0)
        provider.script(Reply("x", usage=Usage(input_tokens=10)), times=1)
        provider.delay = 2.0
        first = asyncio.create_task(router.send("word " * 600, model_preference="model-a"))
        await clock.advance(2.0 - pause)
        second = asyncio.create_task(
            router.send("word " * 600, model_preference="model-b", fallback="none", max_wait=100.0)
        )
        await clock.advance(pause)
        await clock.advance(2.5)
        assert first.result().success
        assert second.done()
        assert second.result().success
        second.cancel()


async def test_who_waits_for_tokens_of_a_project_is_told_once_a_refusal(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a project of thousands of keys that is not for each answer."""
    told: list[Selector] = []
    project = await keep(store, pair[0], 100)
    await store.cool_down(Cooldown.learn(project.model_scope, LearntLimit(Metric.TPM, 1000)))
    provider.script(*(Reply("x", usage=Usage(input_tokens=1)) for _ in range(8)))
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        clock.shift(61.0)
        monkeypatch.setattr(Selector, "look_again", lambda self: told.append(self))  # noqa: PLW0108 - is bound
        for _ in range(2):
            waits = await router.send("word " * 3000, model_preference="model-a", fallback="none")
            assert not waits.success
            for _ in range(3):
                assert (await router.send("word " * 5, model_preference="model-b")).success
        assert len(told) == 2


async def test_a_probe_that_finds_the_project_without_room_is_passed_on(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """It is not sent, so the next request has to find out; and that one does, once there is room."""
    project = await keep(store, pair[0], 1)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        await store.reserve("elsewhere", [project], Demand(1, 1), 600.0)
        scope = pair[0].project_scope
        await store.cool_down(Cooldown(scope, clock.time() + 2.0, "quota", half_open=True, strikes=1))
        clock.shift(3.0)
        assert not (await router.send("x")).success
        clock.shift(61.0)
        assert (await router.send("x")).success
        [snapshot, _] = await store.snapshot(pair)
        assert snapshot.cooldown is None


@pytest.mark.parametrize(
    ("stands", "window"), [(ProjectDeployment.of, 60.3), (ProjectDeployment.spending_of, 600.3)]
)
async def test_a_project_that_cools_down_has_room_no_sooner_than_its_quota(
    make_router: MakeRouter,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
    stands: Callable[[Deployment], Deployment],
    window: float,
) -> None:
    """The later of both is told, for no call more; also while a request probes the cooldown."""
    await store.cool_down(Cooldown.learn(stands(pair[0]).model_scope, LearntLimit(Metric.RPM, 1)))
    async with make_router(pair, store=store) as router:
        await router.explain("x")
        assert (await router.send("x")).success
        back = clock.time() + window
        assert (await router.send("x")).retry_after == pytest.approx(window)
        for seconds in (5.0, 1000.0):
            clock.shift(1.0)
            until = clock.time() + seconds
            await store.cool_down(Cooldown(pair[0].project_scope, until, "rpm spent, says the provider"))
            store.calls.clear()
            response = await router.send("x")
            assert len(store.calls) == 1
            assert response.retry_after == pytest.approx(max(back, until) - clock.time())
        await store.cool_down(Cooldown.lift(pair[0].project_scope))
        clock.shift(window)
        assert (await router.send("x")).success


async def test_a_probe_is_waited_for_no_shorter_than_the_quota_of_the_project(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """What becomes of it changes nothing before the project has room."""
    project, scope = await keep(store, pair[0], 1), pair[0].project_scope
    async with make_router(pair, store=store) as router:
        await router.explain("x")
        cooldown = Cooldown(scope, clock.time() + 5.0, "spent", half_open=True, strikes=1, since=clock.time())
        await store.cool_down(cooldown)
        assert (await router.send("x")).retry_after == pytest.approx(5.0)
        clock.shift(5.0)
        await store.reserve("elsewhere", [project], Demand(1, 1), 600.0)
        assert (await router.send("x")).retry_after == pytest.approx(60.3)
        clock.shift(1.0)
        await store.reserve("a probe", pair[:1], Demand(1, 1), 600.0)
        assert (await router.send("x")).retry_after == pytest.approx(59.3)


async def test_a_smaller_request_has_room_in_a_project_that_cools_down(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """What was refused to a larger one says nothing of it, and it is told the end of the cooldown."""
    project = await keep(store, pair[0], 100)
    await store.cool_down(Cooldown.learn(project.model_scope, LearntLimit(Metric.TPM, 1000)))
    async with make_router(pair, store=store) as router:
        await router.explain("x")
        assert (await router.send("word " * 600)).success
        assert (await router.send("word " * 600)).retry_after == pytest.approx(60.3)
        until = clock.time() + 5.0
        await store.cool_down(Cooldown(pair[0].project_scope, until, "rpm spent, says the provider"))
        assert (await router.send("word " * 600)).retry_after == pytest.approx(60.3)
        assert (await router.send("word " * 5)).retry_after == pytest.approx(5.0)


async def test_a_limit_that_rises_while_a_project_cools_down(
    make_pool: MakePool, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """What was refused below it is not told any more."""
    project, pool, demand = await keep(store, pair[0], 1), make_pool(pair), Demand(1, 1)
    front, shared = (
        ProjectStore(store, pool, clock),
        shared_state(pool.states[pair[0]], ProjectDeployment.of(pair[0])),
    )
    pool.share(shared)
    await store.reserve("elsewhere", [project], demand, 600.0)
    assert (await front.reserve("a", pair, demand, 60.0)).deployment is None
    cooled = Refusal(pair[0], "spent", clock.time() + 5.0, clock.time() + 5.0)
    assert front.later(cooled, demand).retry_at == pytest.approx(clock.time() + 60.3)
    await LimitLearner(pool, store, clock, lambda: None).learn(shared, (LearntLimit(Metric.RPM, 2),))
    assert front.later(cooled, demand) is cooled


async def test_quota_that_comes_back_while_a_project_cools_down_is_used_after_it(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
) -> None:
    """Whoever waits goes by what is known then: the cooldown."""
    await keep(store, pair[0], 1)
    async with make_router(pair, store=store, max_retries=0) as router:
        await router.explain("x")
        provider.script(ProviderError("no path", kind="network", charged=False), times=1)
        provider.delay = 2.0
        first = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        assert (await router.send("x")).retry_after == pytest.approx(60.2)
        until = clock.time() + 5.0
        await store.cool_down(Cooldown(pair[0].project_scope, until, "rpm spent, says the provider"))
        second = asyncio.create_task(router.send("x", max_wait=100.0))
        for _ in range(4):
            await clock.advance(2.0)
        assert not first.result().success
        assert second.result().success
        second.cancel()


async def fill(
    router: Router, store: Recording, deployments: Iterable[Deployment], taken: int = 1
) -> list[Deployment]:
    """Have a router know of a limit of one request of each project, of which so many are taken."""
    projects = []
    for deployment in deployments:
        project = await keep(store, deployment, 1)
        for number in range(taken):
            await store.reserve(f"elsewhere {deployment.id} {number}", [project], Demand(1, 1), 600.0)
        state = router.keys.pool.states[deployment]
        router.keys.pool.share(shared_state(state, ProjectDeployment.of(deployment)))
        projects.append(project)
    store.calls.clear()
    return projects


async def test_after_full_projects_the_first_one_with_room_is_taken(
    make_router: MakeRouter, store: Recording, pools: Pools, clock: ManualClock
) -> None:
    """In the order of the candidates, and within one call of the selector; everything else is given back."""
    names = [f"k{n}" for n in range(8)]
    deployments = [pools.one(key_id=name, project=name, rpm=9, priority=n) for n, name in enumerate(names)]
    async with make_router(deployments, store=store) as router:
        projects = await fill(router, store, deployments[:5])
        projects += await fill(router, store, deployments[5:6], taken=0)
        response = await router.send("x")
        assert response.key_id == "k5"
        assert len(store.calls) == 24  # for each project two reserves, and two releases or settles
        [attempt] = response.attempt_log
        assert [each.key_id for each in attempt.passed_over] == names[:5]
        assert {each.reason for each in attempt.passed_over} == {"rpm of the whole project"}
        assert [await store.used(each) for each in projects] == [1] * 6
        clock.shift(1.0)
        store.calls.clear()
        assert (await router.send("x")).key_id == "k6"  # whose project has no limits that are known
        assert [await store.used(each) for each in deployments] == [0, 0, 0, 0, 0, 1, 1, 0]
        assert not router._sender.selector._store._parts  # type: ignore[attr-defined]  # a ProjectStore


def test_every_store_goes_on_to_the_project_that_has_room(two_handles: TwoHandles, pools: Pools) -> None:
    """What was taken on the way is given back, and the times told are those of each project."""
    deployments = [pools.one(key_id=f"k{n}", project=f"p{n}", rpm=9, priority=n) for n in range(6)]

    async def main(loop: VirtualLoop) -> None:
        clock = VirtualClock(loop)
        [store, other] = two_handles(clock, loop)
        async with Router(
            deployments, store=store, provider=FakeProvider(clock=clock), clock=clock
        ) as router:
            projects = [await keep(store, each, 1) for each in deployments]
            for project in projects[:5]:
                await store.reserve(f"elsewhere {project.id}", [project], Demand(1, 1), 600.0)
                await asyncio.sleep(1.0)
            await router.explain("x")
            response = await router.send("x")
            assert [each.key_id for each in response.attempt_log[0].passed_over] == [
                "k0",
                "k1",
                "k2",
                "k3",
                "k4",
            ]
            assert response.key_id == "k5"
            found = await store.snapshot([*projects, *deployments])
            assert [each.quotas[0].used for each in found] == [1] * 6 + [0] * 5 + [1]
            assert (await router.send("x")).retry_after == pytest.approx(55.3, abs=0.1)
        await asyncio.gather(*(each.aclose() for each in {store, other}))

    run(main)


async def test_one_reserve_asks_so_often_and_no_more(
    make_pool: MakePool, store: Recording, pools: Pools, clock: ManualClock
) -> None:
    """The selector goes on with the rest."""
    demand = Demand(1, 1)
    deployments = [pools.one(key_id=f"k{n}", project=f"p{n}", rpm=100) for n in range(20)]
    pool = make_pool(deployments)
    front = ProjectStore(store, pool, clock)
    for each in deployments:
        project = await keep(store, each, 1)
        await store.reserve(f"elsewhere {each.id}", [project], demand, 600.0)
        pool.share(shared_state(pool.states[each], ProjectDeployment.of(each)))
    store.calls.clear()
    decision = await front.reserve("a", deployments, demand, 60.0)
    assert [refusal.deployment for refusal in decision.refusals] == deployments[:8]
    assert not front._parts


async def test_a_probe_goes_to_the_project_that_has_room(
    make_router: MakeRouter, store: Recording, pools: Pools, clock: ManualClock
) -> None:
    """What is granted and given back on the way takes no probe along, and the lifts are the newest."""
    deployments = [pools.one(key_id=f"k{n}", project=f"p{n}", rpm=9, priority=n) for n in range(4)]
    provider = deployments[0].provider_scope
    async with make_router(deployments, store=store) as router:
        await fill(router, store, deployments[:3])
        await fill(router, store, deployments[3:], taken=0)
        now = clock.time()
        await store.cool_down(Cooldown(provider, now + 2.0, "spent", half_open=True, strikes=1, since=now))
        clock.shift(3.0)
        assert (await router.send("x")).key_id == "k3"
        assert [each.cooldown for each in await store.snapshot(deployments)] == [None] * 4
        assert router._sender.selector.quarantines.lifts == 3  # as of the last call: three passed it on


@pytest.mark.parametrize("calls", range(1, 9))
async def test_a_reserve_that_goes_on_may_be_cancelled_at_any_call(
    make_router: MakeRouter, store: Recording, pools: Pools, clock: ManualClock, calls: int
) -> None:
    """What it took is given back, whichever of its calls hangs."""
    deployments = [pools.one(key_id=f"k{n}", project=f"p{n}", rpm=9, priority=n) for n in range(4)]
    async with make_router(deployments, store=store) as router:
        projects = await fill(router, store, deployments[:3])
        projects += await fill(router, store, deployments[3:], taken=0)
        store.hangs_after = calls
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        assert len(store.calls) == calls
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [await store.used(each) for each in deployments] == [0, 0, 0, 0]
        assert [await store.used(each) for each in projects] == [1, 1, 1, 0]
        assert not router._sender.selector._store._parts  # type: ignore[attr-defined]  # a ProjectStore


async def test_a_later_answer_that_is_no_decision_leaves_nothing_noted(
    make_router: MakeRouter, clock: ManualClock, pools: Pools
) -> None:
    """Of a user's store, once the first project has refused."""

    class Odd(Recording):
        async def reserve(self, reservation_id: str, *args: Any, **kwargs: Any) -> Any:
            decision = await super().reserve(reservation_id, *args, **kwargs)
            return None if reservation_id.endswith(".1") else decision

    store = Odd(clock)
    deployments = [pools.one(key_id=f"k{n}", project=f"p{n}", rpm=9, priority=n) for n in range(2)]
    async with make_router(deployments, store=store) as router:
        await fill(router, store, deployments[:1])
        await fill(router, store, deployments[1:], taken=0)
        with pytest.raises(ExtensionError, match="must return a Decision, not None"):
            await router.send("x")
        assert not router._sender.selector._store._parts  # type: ignore[attr-defined]  # a ProjectStore


async def test_quota_that_comes_back_before_a_refusal_is_told_is_used_at_once(
    make_router: MakeRouter, provider: FakeProvider, pair: list[Deployment], clock: ManualClock
) -> None:
    """It came back while that which was granted on the model was given back: nobody else tells of it."""
    refused, go_on = set[str](), asyncio.Event()

    class Hesitant(Recording):
        async def reserve(self, reservation_id: str, *args: Any, **kwargs: Any) -> Decision:
            decision = await super().reserve(reservation_id, *args, **kwargs)
            if decision.deployment is None:
                refused.add(reservation_id.removesuffix("*"))
            return decision

        async def release(self, reservation_id: str) -> None:
            await super().release(reservation_id)
            if reservation_id in refused:
                await go_on.wait()

    store = Hesitant(clock)
    async with make_router(pair, store=store) as router:
        await router.send("x")  # the first goes alone
        await fill(router, store, pair[:1], taken=0)
        provider.dispatch = asyncio.Event()
        first = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        second = asyncio.create_task(router.send("x", max_wait=90.0))
        await clock.advance(0.1)
        assert refused
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        provider.dispatch = None
        go_on.set()
        await clock.advance(1.0)
        assert second.done()
        assert (await second).success


@pytest.mark.parametrize("is_late", [False, True])
async def test_what_was_granted_in_vain_keeps_nobody_from_its_model(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, *, is_late: bool
) -> None:
    """The last of a model was held by a request that its project refused, while another one asked for it."""
    project_asked, go_on, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Hesitant(Recording):
        async def reserve(self, reservation_id: str, *args: Any, **kwargs: Any) -> Decision:
            decision = await super().reserve(reservation_id, *args, **kwargs)
            if decision.deployment is None and not go_on.is_set():
                if reservation_id.endswith("*"):
                    project_asked.set()
                    await go_on.wait()
                elif is_late:
                    await heard.wait()
            return decision

    store = Hesitant(clock)
    deployment = pools.one("model-a", key_id="k", project="p", rpm=1)
    async with make_router([deployment], store=store) as router:
        assert (await router.send("x")).success  # the first goes alone
        clock.shift(61.0)
        [project] = await fill(router, store, [deployment], taken=0)
        await store.reserve("elsewhere", [project], Demand(1, 1), 600.0)
        clock.shift(30.0)
        first = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        assert project_asked.is_set()
        second = asyncio.create_task(router.send("x", max_wait=90.0))
        await clock.advance(0.1)
        go_on.set()
        await clock.advance(0.1)
        heard.set()
        assert not (await first).success
        await clock.advance(31.0)  # the project has room again, and the model had it all the time
        assert second.done()
        assert (await second).success


async def test_what_one_limit_of_a_project_granted_in_vain_is_not_waited_for(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """A request holds the last of its requests and is refused for what was spent, while another one asks."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    class Hesitant(Recording):
        async def reserve(self, reservation_id: str, *args: Any, **kwargs: Any) -> Decision:
            decision = await super().reserve(reservation_id, *args, **kwargs)
            if reservation_id.endswith("* spending") and decision.deployment is None and not asked.is_set():
                asked.set()
                await go_on.wait()
            return decision

    store = Hesitant(clock)
    async with make_router(pair, store=store) as router:
        assert (await router.send("x")).success  # the first goes alone
        await fill(router, store, pair[:1], taken=0)
        spending = ProjectDeployment.spending_of(pair[0])
        await store.cool_down(Cooldown.learn(spending.model_scope, LearntLimit(Metric.RPM, 1)))
        router.keys.pool.share(shared_state(router.keys.pool.states[pair[0]], spending))
        await store.reserve("elsewhere", [spending], Demand(1, 1), 600.0)
        clock.shift(570.0)
        first = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        assert asked.is_set()
        second = asyncio.create_task(router.send("x", max_wait=90.0))
        await clock.advance(0.1)
        go_on.set()
        await clock.advance(31.0)  # what was spent is over, and there were requests left all the time
        assert not (await first).success
        assert second.done()
        assert (await second).success


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.5])
def test_lines_do_not_wake_each_other_for_ever(pools: Pools, seconds: float) -> None:
    """Where a store is slow, each was granted what another gave back, and gave it back in turn."""

    class Slow(Recording):
        is_slow = False

        async def reserve(self, *args: Any, **kwargs: Any) -> Decision:
            await asyncio.sleep(seconds * self.is_slow)
            decision = await super().reserve(*args, **kwargs)
            await asyncio.sleep(seconds * self.is_slow)
            return decision

    async def main(loop: VirtualLoop) -> int:
        clock = VirtualClock(loop)
        store = Slow(clock)
        workloads = [f"w{n}" for n in range(6)]
        deployments = [pools.one(workload=each, key_id=each, project="p", rpm=1) for each in workloads]
        provider = FakeProvider(clock=clock)
        router = Router(deployments, store=store, provider=provider, clock=clock, workloads=workloads)
        assert (await router.send("x")).success
        await asyncio.sleep(61.0)
        [project] = await fill(router, store, deployments[:1], taken=0)
        await store.reserve("elsewhere", [project], Demand(1, 1), 600.0)
        store.is_slow = True
        callers = [
            asyncio.create_task(router.send("x", workload=each, fallback="none", max_wait=600.0))
            for each in workloads
        ]
        await asyncio.sleep(50.0)
        calls = len(store.calls)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        return calls

    assert run(main) < 6 * 6 * 4


async def test_what_is_refused_without_asking_knows_of_every_lift(
    make_pool: MakePool, store: Recording, pair: list[Deployment], pools: Pools, clock: ManualClock
) -> None:
    """An older number than the selector knows would have it look again, and so for ever."""
    await keep(store, pair[0], 1)
    other, demand = pools.one("model-c", key_id="other"), Demand(1, 1)
    pool = make_pool([*pair, other])
    front = ProjectStore(store, pool, clock)
    pool.share(shared_state(pool.states[pair[0]], ProjectDeployment.of(pair[0])))
    assert (await front.reserve("a", pair, demand, 60.0)).deployment is pair[0]
    assert (await front.reserve("b", pair, demand, 60.0)).deployment is None
    for until in (math.inf, -math.inf, math.inf):
        await store.cool_down(Cooldown(other.model_scope, until, "spent"))
    lifts = (await front.reserve("c", [other], demand, 60.0)).lifts
    store.calls.clear()
    decision = await front.reserve("d", pair, demand, 60.0)
    assert (lifts, decision.lifts, len(decision.refusals)) == (1, 1, 2)
    assert not store.calls
    clock.shift(0.2)
    assert len((await front.reserve("e", pair, demand, 60.0)).refusals) == 2
    assert store.calls


# --- how it begins and ends ----------------------------------------------------------------------------


async def test_what_the_models_took_before_the_refusal_counts(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
) -> None:
    """And what they take in the next minute is the limit, if the provider names none."""
    async with make_router(pair, store=store, max_retries=0) as router:
        found: list[tuple[int | None, int, str]] = []
        for _ in range(2):  # the first may have been used up by others
            for model in ("model-a", "model-a", "model-b"):
                assert (await router.send("x", model_preference=model)).success
            provider.script(refusal(None, delay=5.0), times=1)
            assert not (await router.send("x")).success
            [row, _] = await router.get_all_key_statuses()
            limit = row["project_limits"]["rpm"]
            found.append((limit["limit"], limit["used"], limit["source"]))
            clock.shift(61.0)
    assert found == [(None, 3, "unknown"), (3, 3, "inferred")]


async def test_of_two_processes_that_begin_at_once_one_charges(
    make_router: MakeRouter, clock: ManualClock, pair: list[Deployment]
) -> None:
    """What the models took is counted on the project once."""

    class Slow(MemoryStore):
        """Lets both look before either writes."""

        async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
            found = await super().snapshot(deployments)
            for _ in range(5):
                await asyncio.sleep(0)
            return found

    store, provider = Slow(clock=clock), FakeProvider()
    options: dict[str, Any] = {"store": store, "provider": provider, "max_retries": 0}
    async with make_router(pair, **options) as one, make_router(pair, **options) as other:
        for _ in range(3):
            await asyncio.gather(one.send("x"), other.send("x"))
        provider.script(refusal(100), times=2)
        await asyncio.gather(one.send("x"), other.send("x"))
        [snapshot] = await store.snapshot([ProjectDeployment.of(pair[0])])
    assert [quota.used for quota in snapshot.quotas] == [6]


async def test_answers_of_every_model_are_looked_at_once_a_limit_is_found(
    make_pool: MakePool, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """Also where the next look at the limits of a model was due much later."""
    pool = make_pool(pair)
    for state in pool:
        state.limits_due = clock.time() + 600.0
    learner = LimitLearner(pool, store, clock, lambda: None)
    refused = Refused(refusal(10), clock.time(), None, repeated=False)
    await learner.infer_of_project(refused, pool.states[pair[0]])
    assert [state.limits_due - clock.time() for state in pool] == [pytest.approx(60.3)] * 2
    assert list(pool.shared) == [pair[0].project_scope]


async def test_a_stated_limit_is_believed_at_once(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
) -> None:
    async with make_router(pair, store=store, max_retries=0) as router:
        provider.script(refusal(7, delay=5.0), times=1)
        await router.send("x")
        statuses = await router.get_all_key_statuses()
        explanation = await router.explain("x")
        health = await router.health_check()
    for row in statuses:
        assert (row["project_limits"]["rpm"]["limit"], row["limits"]["rpm"]["limit"]) == (7, 100)
        assert row["project_limits"]["rpm"]["source"] == "stated"
    [quota] = explanation.candidates[0].project_quotas
    assert (quota.status["limit"], quota.status["source"]) == (7, "stated")
    assert health["state"] == "unusable"  # it cools down


async def test_a_spent_project_is_shown_and_explained(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """Also by a process that has not heard of its limit, as one that only reports."""
    await keep(store, pair[0], 1)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        assert (await router.send("x")).success
        assert not (await router.send("x")).success
        rows, known = await router.get_all_key_statuses(), await router.explain("x")
        async with make_router(pair, store=store) as reporting:
            seen, explained = await reporting.get_all_key_statuses(), await reporting.explain("x")
    for row in (*rows, *seen):
        assert (row["state"], row["spent"]) == ("spent", ["rpm"])
        assert row["usable_in_seconds"] == pytest.approx(60.3)
    for candidate in (*known.candidates, *explained.candidates):
        assert (candidate.exclusion, candidate.reason) == ("quota", "rpm of the whole project")
        assert candidate.usable_in == pytest.approx(60.3)
        assert candidate.project_quotas[0].fits is False


@pytest.mark.parametrize("look", [Router.explain, Router.get_all_key_statuses])
async def test_what_was_shown_of_a_project_holds_for_the_next_request(
    make_router: MakeRouter,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
    look: Callable[..., Awaitable[object]],
) -> None:
    """Also where this process had not heard of it."""
    project = await keep(store, pair[0], 1)
    await store.reserve("elsewhere", [project], Demand(1, 1), 600.0)
    async with make_router(pair, store=store) as router:
        await look(router, *(["x"] if look is Router.explain else []))
        response = await router.send("x")
    assert not response.success
    assert response.retry_after == pytest.approx(60.3)


async def test_forgetting_the_limits_of_a_key_forgets_those_of_its_project(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], clock: ManualClock
) -> None:
    """Not with the name of a model; and lifting everything of a key does as well."""
    async with make_router(pair, store=store) as router:
        for forget in (router.keys.forget_limits, router.keys.lift):
            await keep(store, pair[0], 1)
            await hear(router, store, pair[0], clock)
            clock.shift(61.0)
            assert (await router.send("x")).success
            assert not (await router.send("x")).success
            await forget("k", "model-a")
            assert not (await router.send("x")).success
            for row in await forget("k"):
                assert row["project_limits"] == {}
            store.calls.clear()
            assert (await router.send("x")).success
            assert not any(name.endswith("*") for _, name in store.calls)


async def test_a_limit_that_was_forgotten_elsewhere_is_not_kept_any_more(
    make_router: MakeRouter, store: Recording, pools: Pools, clock: ManualClock
) -> None:
    """The next answer that is a reason to look at limits shows that there is none."""
    [deployment] = [pools.one(key_id="k", project="p", rpm=2)]
    project = await keep(store, deployment, 1)
    async with make_router([deployment], store=store) as router:
        await hear(router, store, deployment, clock)
        nothing = [LearntLimit(metric, None) for metric in Metric]
        await store.cool_down(Cooldown.learn(project.model_scope, *nothing))
        for _ in range(2):
            assert (await router.send("x")).success
        clock.shift(61.0)
        store.calls.clear()
        assert (await router.send("x")).success
        assert not any(name.endswith("*") for _, name in store.calls)


async def test_a_reload_keeps_the_limits_of_the_projects_that_stay(
    make_router: MakeRouter, store: Recording, pair: list[Deployment], pools: Pools, clock: ManualClock
) -> None:
    await keep(store, pair[0], 1)
    other = pools.one("model-c", key_id="other", rpm=100)
    async with make_router(pair, store=store) as router:
        await hear(router, store, pair[0], clock)
        await router.reload([*pair, other])
        for _ in range(2):
            assert (await router.send("x", model_preference="model-a")).success
        assert {attempt.key_id for attempt in (await router.send("x")).attempt_log} == {"other"}
        await router.reload([other])
        store.calls.clear()
        assert (await router.send("x")).success
        assert not any(name.endswith("*") for _, name in store.calls)
        await router.reload([*pair, other])
        response = await router.send("x", model_preference="model-a", fallback="none")
        assert "rpm of the whole project" in str(response.error)


async def test_a_project_is_asked_for_before_the_first_request_that_may_be_sent_on_it(
    make_router: MakeRouter, store: Recording, pools: Pools
) -> None:
    """Of a router that starts, and of one that a reload gives a project that it had not, or had before."""
    there, other = (pools.one(key_id=name, project=name, rpm=100) for name in ("there", "other"))
    project = await keep(store, there, 1)
    await store.reserve("elsewhere", [project], Demand(1, 1), 600.0)
    async with make_router([there], store=store) as router:
        assert not (await router.send("x")).success
        for _ in range(2):
            await router.reload([other])
            assert (await router.send("x")).key_id == "other"
            await router.reload([other, there])
            response = await router.send("x", model_preference=there.model)
            assert response.key_id == "other"
            await router.reload([there])
            assert not (await router.send("x")).success
    assert await store.used(there) == 0


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_a_store_that_cannot_say_which_projects_have_limits_loses_no_request(
    make_router: MakeRouter, pair: list[Deployment], clock: ManualClock, fault: str
) -> None:
    """It is asked for a second at most, and once, also if who asks gives up."""

    class Silent(Recording):
        async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
            self.calls.append(("snapshot", ""))
            if fault == "hangs":
                await asyncio.Event().wait()
            raise RuntimeError("out of order")

    store = Silent(clock)
    async with make_router(pair, store=store) as router:
        hasty = asyncio.create_task(router.send("x"))
        await clock.advance(0.5)
        hasty.cancel()
        sent = asyncio.create_task(router.send("x"))
        await clock.advance(1.1)
        assert (await sent).success
        assert (await router.send("x")).success
    assert store.calls.count(("snapshot", "")) == 1


async def test_of_very_many_projects_none_is_asked_for(make_router: MakeRouter, pools: Pools) -> None:
    """That would take longer than it is worth."""

    class Counting(MemoryStore):
        asked = 0

        async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
            self.asked += len(deployments)
            return await super().snapshot(deployments)

    for count, expected in ((512, 1024), (513, 0)):
        store = Counting()
        deployments = [pools.one(key_id=f"k{n}", project=f"p{n}") for n in range(count)]
        async with make_router(deployments, store=store) as router:
            assert (await router.send("x")).success
        assert store.asked == expected


async def test_a_day_of_a_project_that_is_spent_is_over_for_all_its_models(
    make_router: MakeRouter,
    provider: FakeProvider,
    store: Recording,
    pair: list[Deployment],
    clock: ManualClock,
) -> None:
    """From then on its requests are counted by day, and tomorrow's limit is what is learnt of it."""
    async with make_router(pair, store=store, max_retries=0) as router:
        provider.script(refusal(250, metric=Metric.RPD, delay=36.0), times=1)
        assert not (await router.send("x")).success
        rows = await router.get_all_key_statuses()
        assert all(row["in_cooldown"] and (row["usable_in_seconds"] or 0.0) > 3600.0 for row in rows)
        assert rows[0]["project_limits"]["rpd"]["limit"] == 250


async def test_a_user_store_may_return_anything(
    make_pool: MakePool, clock: ManualClock, pair: list[Deployment]
) -> None:
    """What is no decision is passed on, for the selector to say so."""

    class Odd(MemoryStore):
        async def reserve(self, *args: Any, **kwargs: Any) -> Any:
            return "granted"

    front = ProjectStore(Odd(clock=clock), make_pool(pair), clock)
    found: object = await front.reserve("a", pair, Demand(1, 1), 1.0)
    assert found == "granted"


def test_a_sum_needs_the_count_of_every_model() -> None:
    """What is not counted, or only since today's end was met, says nothing of the project."""
    minute = QuotaSnapshot(Metric.RPM, 10, 4, 100.0)
    in_part = LimitRecord(10**15, LimitSource.UNKNOWN, 50.0, 10**15, 1e9)
    day = QuotaSnapshot(Metric.RPD, 10**15, 4, 100.0, in_part)
    assert added_up([[minute], [minute]], Metric.RPM) == QuotaSnapshot(Metric.RPM, 20, 8, 100.0)
    assert added_up([[minute], []], Metric.RPM) is None
    assert added_up([[day], [day]], Metric.RPD) is None
    assert added_up([], Metric.RPM) is None

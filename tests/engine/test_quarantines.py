"""Quarantines end when their cause does: by a probe, a replaced credential, a lift, or a second look."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from llm_router import (
    Cooldown,
    Deployment,
    Key,
    MemoryStore,
    Metric,
    ProviderError,
    Quota,
    Refill,
    Response,
    Router,
    Secret,
)
from llm_router.errors import QuotaViolation
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]

DAY = 24 * 3600.0


def deployment(
    key_id: str, model: str = "model-a", *, secret: str = "", project: str = "", priority: int = 1
) -> Deployment:
    """Make a deployment with plenty of quota."""
    key = Key(key_id, Secret(secret or f"secret-of-{key_id}"), project=project)
    quotas = (Quota(Metric.RPM, 1_000), Quota(Metric.RPD, 10_000, Refill.DAILY))
    return Deployment(key, model, "light", priority=priority, quotas=quotas)


def invalid_key() -> ProviderError:
    """Return the failure of a key that is called invalid."""
    return ProviderError("API key not valid", kind="key", code=400)


def forbidden(kind: str = "key") -> ProviderError:
    """Return the failure of a key, or of a model on its project, that is forbidden."""
    return ProviderError("The caller does not have permission", kind=kind, code=403)


def missing_model() -> ProviderError:
    """Return the failure of a model that does not exist."""
    return ProviderError("model not found", kind="model", code=404)


async def send_all(routers: Iterable[Router]) -> list[Response]:
    """Send one prompt through each router."""
    return [await router.send("x") for router in routers]


def made_on(provider: FakeProvider, key_id: str) -> int:
    """Count the requests that reached the provider with a key."""
    return sum(call.key_id == key_id for call in provider.calls)


async def test_a_key_is_invalid_only_with_a_second_witness(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Valid keys are called invalid now and then: after ten seconds one request asks again."""
    provider.script(invalid_key(), key_id="doubtful")
    async with make_router([deployment("doubtful", priority=0), deployment("other")]) as router:
        assert (await router.send("x")).key_id == "other"
        clock.shift(10)
        assert (await router.send("x")).key_id == "doubtful"
        assert (await router.send("x")).key_id == "doubtful"
        assert (await router.health_check())["quarantined"] == 0


async def test_an_invalid_key_is_tried_again_once_a_day(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """It costs one request a day until it answers; then it is used as before."""
    provider.script(invalid_key(), key_id="dead", times=4)
    async with make_router([deployment("dead", priority=0), deployment("alive")]) as router:
        for seconds, made in ((0, 1), (10, 2), (DAY - 1, 2), (1, 3), (DAY, 4)):
            clock.shift(seconds)
            assert (await router.send("x")).key_id == "alive"
            assert made_on(provider, "dead") == made
        clock.shift(DAY)
        assert [(await router.send("x")).key_id for _ in range(3)] == ["dead"] * 3


async def test_requests_in_flight_are_no_second_witness(make_router: MakeRouter, clock: ManualClock) -> None:
    """Ten requests that are refused at once are one event: the key is asked again after ten seconds."""
    gate = asyncio.Event()
    provider = FakeProvider(clock=clock)
    provider.script([gate, invalid_key()], key_id="doubtful", times=4)
    async with make_router(
        [deployment("doubtful", priority=0), deployment("other")], provider=provider
    ) as router:
        tasks = [asyncio.create_task(router.send("x")) for _ in range(4)]
        await clock.advance(1)
        gate.set()
        await clock.advance(0)
        assert all(task.result().key_id == "other" for task in tasks)
        clock.shift(10)
        assert (await router.send("x")).key_id == "doubtful"


@pytest.mark.parametrize("failure", [missing_model, lambda: forbidden("model")], ids=["404", "403"])
async def test_a_missing_model_is_tried_again_later_and_later(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, failure: Callable[[], ProviderError]
) -> None:
    """One request after 5 minutes, 30 minutes, 2, 6 and 24 hours, then every day."""
    provider.script(*[failure() for _ in range(7)], key_id="k")
    async with make_router([deployment("k", priority=0), deployment("other", "model-b")]) as router:
        await router.send("x")
        for made, seconds in enumerate((300, 1_800, 7_200, 21_600, DAY, DAY), 1):
            clock.shift(seconds - 1)
            await router.send("x")
            assert made_on(provider, "k") == made
            clock.shift(1)
            await router.send("x")
            assert made_on(provider, "k") == made + 1
        clock.shift(DAY)
        assert (await router.send("x")).key_id == "k"


async def test_one_request_tries_again_for_all_processes(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Five routers on one store make one request between them."""
    store = MemoryStore(clock=clock)
    provider.script(missing_model(), key_id="k", times=2)
    pool = [deployment("k", priority=0), deployment("other", "model-b")]
    routers = [make_router(pool, store=store) for _ in range(5)]
    await send_all(routers)
    assert made_on(provider, "k") == 1
    clock.shift(300)
    await send_all(routers)
    assert made_on(provider, "k") == 2


async def test_a_probe_that_succeeds_frees_all(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """The other requests follow at once, in the same process and in others."""
    store = MemoryStore(clock=clock)
    provider.script(missing_model(), key_id="k")
    pool = [deployment("k", priority=0), deployment("other", "model-b")]
    first, second = (make_router(pool, store=store) for _ in range(2))
    await send_all([first, second])
    clock.shift(300)
    assert [response.key_id for response in await send_all([first, second, first])] == ["k"] * 3


async def test_a_replaced_credential_ends_the_quarantine(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """A corrected secret is used from the second request on; the old one stays out."""
    store = MemoryStore(clock=clock)
    provider.script(invalid_key(), key_id="k", times=3)
    wrong = [deployment("k", secret="wrong", priority=0), deployment("other")]
    right = [deployment("k", secret="right", priority=0), deployment("other")]
    async with make_router(wrong, store=store) as router:
        await router.send("x")
        clock.shift(10)
        await router.send("x")
    async with make_router(wrong, store=store) as router:
        assert (await router.send("x")).key_id == "other"
        assert made_on(provider, "k") == 2
    provider.by_key["k"].clear()
    async with make_router(right, store=store) as router:
        await router.send("x")  # meets the quarantine, and ends it
        assert (await router.send("x")).key_id == "k"


async def test_a_shared_project_has_one_quarantine(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Two keys of one project do not end each other's quarantine of a model."""
    provider.script(missing_model(), times=20)
    pool = [deployment("one", project="shared"), deployment("two", project="shared")]
    async with make_router(pool) as router:
        for _ in range(5):
            await router.send("x")
    assert len(provider.calls) == 1


async def test_a_process_that_starts_tries_an_old_quarantine(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """If the last try is over an hour old, once per process and one request for all of them."""
    store = MemoryStore(clock=clock)
    provider.script(invalid_key(), key_id="k", times=20)
    pool = [deployment("k", priority=0), deployment("other")]
    async with make_router(pool, store=store) as router:
        await router.send("x")
        clock.shift(10)
        await router.send("x")
    clock.shift(3_590)
    await send_all([make_router(pool, store=store) for _ in range(3)])
    assert made_on(provider, "k") == 2
    clock.shift(20)
    routers = [make_router(pool, store=store) for _ in range(3)]
    await send_all([*routers, *routers])
    assert made_on(provider, "k") == 3


@pytest.mark.parametrize(("code", "lasting"), [(403, False), (401, False), (400, True)])
async def test_five_forbidden_keys_are_nobodys_fault(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, code: int, *, lasting: bool
) -> None:
    """All keys are told so for fifteen seconds: none is quarantined, and all are used again."""
    keys = [f"k{number}" for number in range(5)]
    for key_id in keys:
        told = (ProviderError("not valid", kind="key", code=code, lasting=lasting) for _ in range(50))
        provider.script(*told, key_id=key_id)
    pool = [deployment(key_id) for key_id in keys]
    async with make_router(pool, base_backoff=0.001) as router:
        for _ in range(15):
            task = asyncio.create_task(router.send("x"))
            await clock.advance(1)
            assert "not valid" in str(task.result().error)
        provider.by_key.clear()
        await clock.advance(31)
        health = await router.health_check()
        assert (health["healthy"], health["quarantined"], health["in_cooldown"]) == (True, 0, 0)
        assert (await router.send("x")).success


async def test_a_model_that_is_gone_for_three_projects_is_gone_for_all(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """The other keys are not tried one by one, and the provider stays in use for other models."""
    keys = [f"k{number}" for number in range(20)]
    for key_id in keys:
        provider.script(missing_model(), key_id=key_id)
    pool = [deployment(key_id, "retired", priority=0) for key_id in keys]
    async with make_router([*pool, deployment("other", "model-b")], max_retries=5) as router:
        for _ in range(5):
            assert (await router.send("x")).key_id == "other"
    assert sum(call.model == "retired" for call in provider.calls) == 3


async def test_a_lift_reaches_running_routers(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """At their next store call, whether they have other keys or not."""
    store = MemoryStore(clock=clock)
    alone = deployment("k", priority=0)
    pool = [alone, deployment("other")]
    one, two = make_router([alone], store=store), make_router(pool, store=store)
    await store.cool_down(Cooldown(alone.key_scope, float("inf"), "disabled"))
    assert not (await one.send("x")).success
    assert (await two.send("x")).key_id == "other"
    await store.cool_down(Cooldown.lift(alone.key_scope))
    clock.shift(0.2)
    assert (await one.send("x")).success
    assert (await two.send("x")).key_id in ("other", "k")
    assert (await two.send("x")).key_id == "k"


async def test_strikes_of_a_daily_quota_are_shared(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Ten short-lived processes on one store learn from each other that the day is over."""
    store = MemoryStore(clock=clock)
    spent = ProviderError(
        "spent", kind="quota", code=429, retry_delay=36.0, violations=(QuotaViolation("rpd", None),)
    )
    provider.script(spent, times=20)
    for _ in range(10):
        async with make_router([deployment("k")], store=store) as router:
            await router.send("x")
        clock.shift(40)
    assert len(provider.calls) == 2


async def test_a_project_that_is_not_billed_is_left_alone_as_a_whole(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """Its other models and keys are not tried; those of other projects are."""
    unbilled = ProviderError("billing is not active", kind="key", code=400, scope="project")
    for key_id in ("one", "two"):
        provider.script(unbilled, key_id=key_id)
    pool = [
        deployment("one", project="p", priority=0),
        deployment("two", "model-b", project="p", priority=0),
        deployment("other"),
    ]
    async with make_router(pool) as router:
        assert [(await router.send("x")).key_id for _ in range(5)] == ["other"] * 5
        assert len(provider.calls) == 6
        clock.shift(300)
        await router.send("x")
        assert provider.calls[6].key_id != "other"


async def test_quarantines_are_logged_when_they_begin_and_end(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, one line when it is over, no secret in either."""
    caplog.set_level(logging.INFO, "llm_router")
    provider.script(missing_model(), key_id="k")
    async with make_router([deployment("k", priority=0), deployment("other", "model-b")]) as router:
        await router.send("x")
        clock.shift(300)
        await router.send("x")
    messages = [record.getMessage() for record in caplog.records if record.name == "llm_router"]
    assert len(messages) == 2
    assert "tried again in 5 min" in messages[0]
    assert "used again" in messages[1]
    assert not any("secret" in message for message in messages)


async def test_a_model_that_is_forbidden_everywhere_does_not_bench_its_provider(
    make_router: MakeRouter, provider: FakeProvider
) -> None:
    """It is left alone as a whole; other models of the same keys answer at once."""
    keys = [f"k{number}" for number in range(6)]

    def answer(deployment: Deployment, _: object) -> str:
        if deployment.model == "retired":
            raise forbidden("model")
        return "an answer"

    provider.script(answer, times=50)
    pool = [deployment(key_id, "retired", priority=0) for key_id in keys]
    pool += [deployment(key_id, "model-b") for key_id in keys]
    async with make_router(pool, max_retries=5) as router:
        responses = [await router.send("x") for _ in range(10)]
        assert all(response.model == "model-b" for response in responses)
        health = await router.health_check()
        assert (health["healthy"], health["quarantined"], health["in_cooldown"]) == (True, 0, 0)
    assert sum(call.model == "retired" for call in provider.calls) == 3


@pytest.mark.parametrize("failure", [missing_model, lambda: forbidden("model")], ids=["404", "403"])
async def test_all_models_forbidden_for_ten_seconds_are_nobodys_fault(
    make_router: MakeRouter,
    provider: FakeProvider,
    clock: ManualClock,
    failure: Callable[[], ProviderError],
) -> None:
    """Five keys with two models each, without a telling reason: all of them can be used afterwards."""
    keys = [f"k{number}" for number in range(5)]
    pool = [deployment(key_id, model) for key_id in keys for model in ("model-a", "model-b")]
    broken = True

    def answer(deployment: Deployment, _: object) -> str:
        if broken:
            raise failure()
        return "an answer"

    provider.script(answer, times=500)
    async with make_router(pool, base_backoff=0.001) as router:
        for _ in range(20):
            task = asyncio.create_task(router.send("x", model_preference="model-a"))
            await clock.advance(0.5)
            assert not task.result().success
        broken = False
        await clock.advance(31)
        assert (await router.send("x", model_preference="model-a")).model == "model-a"
        statuses = await router.get_all_key_statuses()
        assert not any(status["in_cooldown"] for status in statuses)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_corrected_secret_works_at_once_after_a_restart(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A wrong key in .env is put out for a day; the corrected one is ready, and answers at once."""
    url = request.getfixturevalue("redis_url") if kind == "redis" else f"sqlite:///{tmp_path}/state.sqlite3"
    entry = {"key_id": "k", "provider": "gemini", "model_name": "m", "limits": {"rpm": 100}}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))

    def answer(deployment: Deployment, _: object) -> str:
        if deployment.key.secret.reveal() == "the-wrong-secret":
            raise invalid_key()
        return "an answer"

    async def send(secret: str) -> tuple[bool, bool, int, bool]:
        (tmp_path / ".env").write_text(f"API_KEY_k={secret}\n")
        provider = FakeProvider([answer])
        keys = tmp_path / "keys.json"
        async with Router.from_config(keys, env={}, store=url, provider=provider) as router:
            [before] = await router.get_all_key_statuses()
            response = await router.send("x")
            [after] = await router.get_all_key_statuses()
        return before["quarantined"], response.success, len(provider.calls), after["quarantined"]

    assert await send("the-wrong-secret") == (False, False, 1, True)
    assert await send("the-wrong-secret") == (True, False, 0, True)
    assert await send("the-corrected-secret") == (False, True, 1, False)


async def test_ten_short_processes_ask_for_a_spent_day_twice(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, tmp_path: Path
) -> None:
    """On one SQLite file: the first is refused, one of the next makes sure, and that was it."""
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    spent = ProviderError(
        "spent", kind="quota", code=429, retry_delay=36.0, violations=(QuotaViolation("rpd", None),)
    )
    provider.script(spent, times=40)
    for minutes in (1, 1, 5, 5, 10, 15, 30, 30, 60, 60):
        async with make_router([deployment("k")], store=url) as router:
            assert not (await router.send("x")).success
        clock.shift(60.0 * minutes)
    assert len(provider.calls) == 2


async def test_a_suspended_project_is_tried_again_once_a_day(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """After it was asked once more, in case it was said by mistake."""
    suspended = ProviderError("suspended", kind="key", code=403, scope="project", lasting=True)
    provider.script(suspended, key_id="k", times=9)
    async with make_router([deployment("k", priority=0), deployment("other")]) as router:
        for seconds, made in ((0, 1), (10, 2), (DAY - 1, 2), (1, 3), (DAY, 4)):
            clock.shift(seconds)
            assert (await router.send("x")).key_id == "other"
            assert made_on(provider, "k") == made

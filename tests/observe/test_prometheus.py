"""The sink for Prometheus, read back by the parser of prometheus_client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llm_router import ConfigError, ProviderError, Router
from llm_router.domain.kinds import FaultScope
from llm_router.errors import QuotaViolation
from llm_router.observe import PrometheusObserver, Reloaded, StoreBack, StoreLost
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def observer(registry: CollectorRegistry) -> PrometheusObserver:
    return PrometheusObserver(registry)


def read(registry: CollectorRegistry) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the labels and the value of every sample, by the sample's name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """Add up the samples of a name that have the labels."""
    samples = read(registry).get(f"llm_router_{name}", [])
    return sum(value for own, value in samples if labels.items() <= own.items())


def minute_429(limit: int | None = None, scope: FaultScope = FaultScope.DEPLOYMENT) -> ProviderError:
    violations = (QuotaViolation("rpm", limit),)
    return ProviderError(
        "spent", kind="quota", scope=scope, code=429, retry_delay=30, violations=violations, charged=False
    )


async def test_requests_429s_tokens_and_times(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    registry: CollectorRegistry,
    observer: PrometheusObserver,
) -> None:
    """Sends, attempts, 429s, tokens and latencies are counted, by tenant where that makes sense."""
    provider.script(minute_429())
    pool = [pools.one("m", priority=0), pools.one("m", priority=1)]
    async with make_router(pool, observers=[observer]) as router:
        for tenant in ("acme", "acme", "other-one"):
            await router.send("one two three", workload="light", metadata={"tenant": tenant, "user": "u"})
        await router.send("x")
    assert total(registry, "sends_total", outcome="ok") == 4
    assert total(registry, "sends_total", workload="light", tenant="acme", feature="") == 2
    assert total(registry, "attempts_total", provider="gemini", model="m", outcome="ok") == 4
    assert total(registry, "attempts_total", key_id="key-1", outcome="429") == 1
    assert total(registry, "rate_limited_total", key_id="key-1") == total(registry, "rate_limited_total") == 1
    assert total(registry, "tokens_total", type="input", tenant="acme") == 6
    assert total(registry, "tokens_total", type="output", tenant="other-one") == len("echo: one two three")
    assert total(registry, "attempt_seconds_count", model="m") == 5
    assert total(registry, "send_seconds_count", workload="light") == 3
    assert total(registry, "verdicts_total", verdict="cooled_down", scope="model") == 1


async def test_waiting_is_shown_while_it_lasts(
    make_router: MakeRouter,
    pools: Pools,
    clock: ManualClock,
    registry: CollectorRegistry,
    observer: PrometheusObserver,
) -> None:
    """The gauge goes up and down again, also for a request that gives up or is cancelled."""
    async with make_router([pools.one("m", rpm=1)], observers=[observer]) as router:
        await router.send("x")
        tasks = [asyncio.create_task(router.send("x", max_wait=wait)) for wait in (90, 70, 90)]
        await clock.advance(1)
        assert total(registry, "waiting", reason="quota") == 3
        tasks[2].cancel()
        await clock.advance(61)
        await clock.advance(61)
        await asyncio.gather(*tasks, return_exceptions=True)
        await router.send("x")
    assert total(registry, "waiting", reason="quota") == 0
    assert total(registry, "wait_seconds_count", reason="quota") == 3
    assert total(registry, "refusals_total", reason="rpm", model="m") > 0
    assert total(registry, "refusals_total", reason="no_room") == 1


async def test_quotas_limits_and_cooldowns(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    registry: CollectorRegistry,
    observer: PrometheusObserver,
) -> None:
    """After a refresh the gauges show what is left of each limit, how it is known, and what cools down."""
    where = {"provider": "gemini", "project": "p", "model": "m"}
    deployment = pools.one("m", rpm=10, rpd=None, tpm=100, key_id="k", project="p")
    async with make_router([deployment], observers=[observer], max_retries=0) as router:
        await router.send("one two three four five")
        await observer.refresh(router.keys)
        assert total(registry, "quota_limit", metric="rpm", source="configured", **where) == 10
        assert total(registry, "quota_remaining_ratio", metric="rpm", **where) == pytest.approx(0.9)
        assert total(registry, "quota_remaining_ratio", metric="tpm", **where) == pytest.approx(0.95)
        assert "llm_router_cooldown_until_seconds" not in read(registry)
        provider.script(minute_429(limit=4))
        await router.send("x")
        assert total(registry, "quota_limit", metric="rpm", source="stated", **where) == 4
        assert total(registry, "quota_limit", metric="rpm") == 4
        await observer.refresh(router.keys)
        assert total(registry, "quota_limit", metric="rpm", source="stated", **where) == 4
        assert total(registry, "quota_remaining_ratio", metric="rpm", **where) == pytest.approx(0.75)
        assert total(registry, "cooldown_until_seconds", key_id="k", model="m") == clock.time() + 30
        clock.shift(31)
        await observer.refresh(router.keys)
        assert "llm_router_cooldown_until_seconds" not in read(registry)


async def test_what_is_only_counted_has_no_gauge(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    registry: CollectorRegistry,
    observer: PrometheusObserver,
) -> None:
    """No limit is known of what a refusal named without a number, and a gauge would show one."""
    async with make_router([pools.one(rpm=None, tpm=100)], observers=[observer], max_retries=0) as router:
        provider.script(minute_429())
        await router.send("x")
        await observer.refresh(router.keys)
    shown = {labels["metric"] for labels, _ in read(registry)["llm_router_quota_limit"]}
    assert shown == {"tpm"}


async def test_a_limit_that_all_models_of_a_project_share_is_no_limit_of_a_model(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    registry: CollectorRegistry,
    observer: PrometheusObserver,
) -> None:
    """A refresh knows nothing of it, so it is not shown before one either."""
    deployment = pools.one("m", rpm=10, rpd=None, key_id="k", project="p")
    async with make_router([deployment], observers=[observer], max_retries=0) as router:
        await observer.refresh(router.keys)
        before = read(registry)["llm_router_quota_limit"]
        provider.script(minute_429(limit=4, scope=FaultScope.PROJECT))
        await router.send("x")
        assert read(registry)["llm_router_quota_limit"] == before


async def test_a_limit_of_nothing_has_nothing_left(
    make_router: MakeRouter, pools: Pools, registry: CollectorRegistry, observer: PrometheusObserver
) -> None:
    """A limit of 0 is shown, and is not divided by."""
    async with make_router([pools.one(rpm=0)], observers=[observer]) as router:
        await observer.refresh(router.keys)
    assert read(registry)["llm_router_quota_limit"][0][1] == 0
    assert read(registry)["llm_router_quota_remaining_ratio"][0][1] == 0


async def test_series_do_not_grow_without_end(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, registry: CollectorRegistry
) -> None:
    """Tenants and keys beyond the bound are counted together; deployments beyond it are left out."""
    observer = PrometheusObserver(registry, labels=["tenant"], max_series=3)
    provider.script(*[minute_429(limit=9)] * 6)
    async with make_router(pools.many(6, "m"), observers=[observer], max_retries=0) as router:
        for number in range(12):
            await router.send("x", metadata={"tenant": f"t{number}"})
        assert total(registry, "sends_total") == 12
        assert total(registry, "sends_total", tenant="other") == 9
        assert {labels["key_id"] for labels, _ in read(registry)["llm_router_attempts_total"]} >= {"other"}
        assert len(read(registry)["llm_router_rate_limited_total"]) == 4
        assert len(read(registry)["llm_router_quota_limit"]) == 3
        await observer.refresh(router.keys)
    assert len(read(registry)["llm_router_quota_limit"]) == 3
    assert total(registry, "deployments_not_shown") == 3


async def test_what_is_done_by_hand_is_counted(
    make_router: MakeRouter, pools: Pools, registry: CollectorRegistry, observer: PrometheusObserver
) -> None:
    """Verdicts are counted by what they are and what they are about; one without end is infinite."""
    async with make_router([pools.one(key_id="k")], observers=[observer]) as router:
        await router.keys.disable("k")
        await observer.refresh(router.keys)
        assert total(registry, "cooldown_until_seconds", key_id="k") == float("inf")
        await router.keys.enable("k")
    assert total(registry, "verdicts_total", verdict="disabled", scope="key") == 1
    assert total(registry, "verdicts_total", verdict="lifted", scope="key") == 1


def test_the_store(registry: CollectorRegistry, observer: PrometheusObserver) -> None:
    """Whether the store answers is 1 or 0."""
    assert total(registry, "store_up") == 1
    observer.observe(StoreLost(at=0.0, reason="down"))
    assert total(registry, "store_up") == 0
    observer.observe(StoreBack(at=1.0, seconds=1.0))
    assert total(registry, "store_up") == 1


def test_reloads(registry: CollectorRegistry, observer: PrometheusObserver) -> None:
    """They are counted."""
    observer.observe(Reloaded(at=0.0, added=("k/m",)))
    assert total(registry, "reloads_total") == 1


def test_labels_have_names_that_prometheus_takes(registry: CollectorRegistry) -> None:
    """A name with a dash or a dot becomes one with underscores; one that is taken is a mistake."""
    PrometheusObserver(registry, labels=["cost-centre", "team.name"])
    with pytest.raises(ConfigError, match="'model' is a label of these metrics anyway"):
        PrometheusObserver(CollectorRegistry(), labels=["model"])
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusObserver(registry)


async def test_no_sample_shows_a_prompt_or_a_key(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    registry: CollectorRegistry,
    observer: PrometheusObserver,
) -> None:
    """Nothing of what was said, and no text of an error, is in the exposition."""
    provider.script(ProviderError("no: the prompt", kind="server", code=503), "the answer")
    async with make_router(pools.many(2), observers=[observer], base_backoff=0.0) as router:
        await router.send("the prompt")
        await router.send("the prompt")
        await observer.refresh(router.keys)
    exposed = generate_latest(registry).decode()
    for hidden in ("AIza", "the prompt", "the answer"):
        assert hidden not in exposed

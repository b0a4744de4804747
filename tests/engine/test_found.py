"""What a router has found out by itself: failures, facts, and the pace of a day."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Deployment, ProviderError, Router
from llm_router.domain.kinds import Metric
from llm_router.engine.failures import FAILURES_KEPT
from llm_router.engine.suspicions import Suspicions
from llm_router.errors import QuotaViolation
from llm_router.records import MemoryRecords
from llm_router.stores.base import QuotaSnapshot
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]
SECRET = "AIza-secret-of-k"


def refusal(limit: int | None = None, metric: Metric = Metric.RPM) -> ProviderError:
    """A refusal for want of quota, whose text quotes what it must not."""
    return ProviderError(
        f"quota of {SECRET} exceeded by the prompt of tenant acme",
        kind="quota",
        code=429,
        violations=(QuotaViolation(metric, limit),),
        retry_delay=1.0,
        charged=False,
    )


def bare(**fields: Any) -> ProviderError:
    """A refusal that names no quota."""
    return ProviderError("exhausted", kind="quota", code=429, charged=False, **fields)


async def status_of(router: Router, place: int = 0) -> Any:
    return (await router.get_all_key_statuses())[place]


async def test_the_last_failures_of_a_key_are_kept_in_words(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Ten at most, the latest first, on every model of the key, and never the provider's own text."""
    pool = [pools.one("a", key_id="k", rpm=None), pools.one("b", key_id="k", rpm=None), pools.one()]
    async with make_router(pool, max_retries=0) as router:
        provider.script(refusal(9))
        await router.send("x", model="a", fallback="none")
        clock.shift(2.0)
        provider.script(ProviderError("wrong", kind="request", code=400))
        await router.send("x", model="a", fallback="none")
        for _ in range(FAILURES_KEPT):
            clock.shift(100.0)
            provider.script(ProviderError(f"{SECRET} and the prompt", kind="server", code=503), key_id="k")
            await router.send("x", model="b", fallback="none")
        first, second, other = await router.get_all_key_statuses()
    assert first["failures"] == second["failures"]
    assert other["failures"] == []
    assert [failure["code"] for failure in first["failures"]] == [503] * FAILURES_KEPT
    assert first["failures"][0] == {
        "at": clock.time(),
        "model": "b",
        "kind": "server",
        "code": 503,
        "words": "the model is overloaded or broken",
    }
    assert "prompt" not in json.dumps(first["failures"])


async def test_what_failed_in_one_process_is_seen_in_another(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Within five seconds, without a call for it; and a process that shares nothing keeps it to itself."""
    records, pool = MemoryRecords(clock=clock), [pools.one(key_id="k", rpm=None)]
    provider.script(refusal(9), ProviderError("busy", kind="server", code=503))
    options = {"records": records, "max_retries": 0}
    async with (
        make_router(pool, **options) as router,
        make_router(pool, **options, provider=FakeProvider()) as other,
        make_router(pool, max_retries=0, totals=False) as alone,
    ):
        await router.send("x")
        assert (await status_of(other))["failures"] == []
        await clock.advance(6.0)
        await alone.send("x")
        await clock.advance(6.0)
        [told] = (await status_of(other))["failures"]
        assert [told] == (await status_of(router))["failures"]
        assert (told["code"], [each["code"] for each in (await status_of(alone))["failures"]]) == (429, [503])


async def test_a_refusal_and_a_timeout_are_failures_too(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """A 429 says which quota; a call that takes too long has no code."""
    async with make_router([pools.one(key_id="k")], max_retries=0) as router:
        provider.script(refusal(9))
        await router.send("x")
        clock.shift(2.0)
        provider.delay = 99.0
        task = asyncio.create_task(router.send("x", timeout=5.0))
        await clock.advance(6.0)
        assert not (await task).success
        late, refused = (await status_of(router))["failures"]
    assert (late["kind"], late["code"], late["words"]) == ("timeout", None, "no answer came in time")
    words = "a quota is spent: rpm (limit 9); the provider says to try again in 1 s"
    assert (refused["code"], refused["words"]) == (429, words)


@pytest.mark.parametrize(
    ("refused", "kinds", "words"),
    [
        (("a", "b"), [["shared_project"], ["shared_project"], []], "probably one project"),
        (("a",), [["outside_traffic"], [], []], "something that does not use this store"),
    ],
)
async def test_refusals_below_the_limit_are_suspicious(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    refused: tuple[str, ...],
    kinds: list[list[str]],
    words: str,
) -> None:
    """Those that come together name the keys; those of one key alone, somebody else. Once means nothing."""
    pool = [pools.one(key_id=name, rpm=100) for name in "abc"]
    async with make_router(pool, max_retries=2) as router:
        for number in range(3):
            assert not any(row["facts"] for row in await router.get_all_key_statuses()), number
            for name in refused:
                provider.script(refusal(100), key_id=name)
            for _ in range(9):
                assert (await router.send("x")).success
            clock.shift(400.0)
        statuses = await router.get_all_key_statuses()
        assert [[fact["kind"] for fact in row["facts"]] for row in statuses] == kinds
        [fact] = statuses[0]["facts"]
        [*_, told] = (await router.health_check())["facts"]
        assert told.startswith(f"{refused[-1]}/model-a: refused")
        async with make_router(pool, records=router.records) as other:
            assert [row["facts"] for row in await other.get_all_key_statuses()] == [
                row["facts"] for row in statuses
            ]
        assert words in fact["words"]
        assert fact["keys"] == [name for name in refused if name != "a"]
        clock.shift(3600.0)
        assert not any(row["facts"] for row in await router.get_all_key_statuses())


@pytest.mark.parametrize(
    ("error", "tpm", "used", "is_suspicious"),
    [
        (refusal(100), None, 79, True),
        (refusal(100), None, 80, False),
        (refusal(50), None, 40, False),
        (refusal(0), None, 0, False),
        (refusal(), None, 10, False),
        (bare(), None, 10, False),
        (refusal(100, Metric.TPM), 1_000, 10, False),
        (bare(scope="project"), None, 10, False),
    ],
    ids=[
        "below",
        "near",
        "near the stated one",
        "none at all",
        "no number",
        "bare",
        "tokens",
        "another scope",
    ],
)
def test_a_refusal_that_our_requests_explain_is_not_suspicious(
    pools: Pools, error: ProviderError, tpm: int | None, used: int, *, is_suspicious: bool
) -> None:
    """Only one that comes well below each limit that it may be about, and more than twice."""
    deployment, suspicions = pools.one(rpm=100, tpm=tpm), Suspicions()
    quotas = [QuotaSnapshot(Metric.RPM, 100, used, 0.0)]
    for number in range(3):
        suspicions.note(deployment, error, quotas, 60.0 * number)
        assert bool(suspicions.about(deployment, 60.0 * number)) == (is_suspicious and number == 2)


async def test_the_pace_of_a_day_forecasts_its_end(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """At first by the mean since midnight, then by what was seen since; idle, it lasts."""
    deployment: Deployment = pools.one(rpm=None, rpd=100)
    async with make_router([deployment]) as router:
        for _ in range(40):
            await router.send("x")
        day = (await status_of(router))["limits"]["rpd"]
        assert (day["used"], day["remaining"], day["refill"]) == (40, 60, "daily")
        assert day["per_hour"] == pytest.approx(10.0)  # the clock stands at 04:00 in Los Angeles
        assert day["used_up_in_seconds"] == pytest.approx(6 * 3600.0)
        assert day["reset_in_seconds"] == pytest.approx(20 * 3600.0)
        clock.shift(300.0)
        for _ in range(30):
            await router.send("x")
        day = (await status_of(router))["limits"]["rpd"]
        assert day["used_up_in_seconds"] == pytest.approx(300.0)
        assert day["used_up_at"] == pytest.approx(clock.time() + 300.0)
        clock.shift(899.0)
        assert (await status_of(router))["limits"]["rpd"]["used_up_at"] is None

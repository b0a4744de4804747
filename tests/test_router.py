"""The router through its public API, with a fake provider and a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import (
    BlockedError,
    ConfigError,
    DeadlineExceededError,
    Deployment,
    EmptyAnswerError,
    FailureKind,
    InvalidRequestError,
    MemoryStore,
    ProviderError,
    QuotaExhaustedError,
    Reply,
    Request,
    RoundRobin,
    Router,
    RouterClosedError,
    SendOptions,
    StoreUnavailableError,
    UnknownModelError,
    UnknownWorkloadError,
    Usage,
)
from llm_router.errors import QuotaViolation
from llm_router.stores import Decision
from llm_router.stores.base import DeploymentSnapshot
from llm_router.testing import FakeProvider, ManualClock
from llm_router.testing.clock import settle

if TYPE_CHECKING:
    from tests.conftest import Pools


def failure(kind: FailureKind | str, **details: Any) -> ProviderError:
    return ProviderError(f"scripted {kind}", kind=kind, **details)


def minute_429(delay: float = 36.0, limit: int | None = None) -> ProviderError:
    violations = (QuotaViolation("rpm", limit),)
    return failure("quota", code=429, retry_delay=delay, violations=violations, charged=False)


def day_429(delay: float = 36.0) -> ProviderError:
    return failure("quota", code=429, retry_delay=delay, violations=(QuotaViolation("rpd", None),))


async def test_an_answer_comes_back_whole(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """A response has the text, the deployment that answered, the usage and the finish reason."""
    async with make_router([pools.one("model-a", "heavy", key_id="k1")]) as router:
        response = await router.send("hello", workload="heavy")
    assert response.success
    assert response.text == "echo: hello"
    assert (response.model, response.key_id, response.workload) == ("model-a", "k1", "heavy")
    assert (response.usage.input_tokens > 0, response.finish_reason, response.attempts) == (True, "STOP", 1)
    assert (response.error, response.retry_after) == (None, None)
    assert response.raise_for_error() is response


@pytest.mark.parametrize("limit", [1, 2, 3, 15, 60])
async def test_exactly_the_limit_passes(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock, limit: int
) -> None:
    """A limit of N requests per minute lets exactly N pass, and N again a minute later."""
    async with make_router([pools.one(rpm=limit)]) as router:
        for _ in range(2):
            responses = await asyncio.gather(*(router.send("x") for _ in range(limit + 5)))
            assert sum(response.success for response in responses) == limit
            clock.shift(60.3)
    assert len(provider.calls) == 2 * limit


async def test_a_refusal_names_every_candidate_with_reason_and_time(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A refused send names every candidate with its reason, and the time at which the first has room."""
    deployments = [pools.one(rpm=1, key_id="first"), pools.one(rpm=1, key_id="second")]
    async with make_router(deployments) as router:
        assert (await router.send("x")).success
        clock.shift(10)
        assert (await router.send("x")).success
        clock.shift(10)
        response = await router.send("x")
    assert not response.success
    assert isinstance(response.error, QuotaExhaustedError)
    assert response.retry_after == pytest.approx(40.3, abs=0.001)
    waits = sorted((c.retry_after, c.reason) for c in response.error.candidates)
    assert [reason for _, reason in waits] == ["rpm", "rpm"]
    assert [wait for wait, _ in waits] == pytest.approx([40.3, 50.3], abs=0.001)
    assert response.attempts == 0
    with pytest.raises(QuotaExhaustedError, match=r"retry in 40\.3 s"):
        _ = response.text


async def test_retry_after_is_when_this_request_fits(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """The ``retry_after`` of a large request is when *it* fits, not when a small one would."""
    async with make_router([pools.one(rpm=None, tpm=1_000)]) as router:
        assert (await router.send(Request(contents="a " * 600))).success
        clock.shift(20)
        small = await router.send("hi")
        large = await router.send("b " * 900)
    assert small.success
    assert not large.success
    assert large.retry_after == pytest.approx(40.3, abs=1.0)


async def test_a_large_refusal_does_not_hide_a_deployment(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """After the refusal of a large request a small one is still served."""
    async with make_router([pools.one(rpm=None, tpm=1_000)]) as router:
        assert (await router.send("a " * 900)).success
        assert not (await router.send("b " * 900)).success
        assert (await router.send("hi")).success


async def test_a_request_beyond_every_limit_has_no_retry_after(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """Waiting does not help a request for more than the limit."""
    async with make_router([pools.one(rpm=None, tpm=100)]) as router:
        response = await router.send("a " * 5_000, max_wait=1_000)
    assert not response.success
    assert response.retry_after is None


async def test_a_large_request_finds_the_one_roomy_deployment(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """A request that only one of many deployments can take finds that one."""
    deployments = [*pools.many(30, rpm=None, tpm=100), pools.one(rpm=None, tpm=100_000, key_id="roomy")]
    async with make_router(deployments) as router:
        for _ in range(5):
            response = await router.send("a " * 1_000)
            assert response.success
            assert response.key_id == "roomy"


async def test_priority_then_share_decide(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """A lower priority number is used up before a higher one is touched; equals share the load."""
    deployments = [
        pools.one(rpm=2, key_id="first-a", priority=0),
        pools.one(rpm=2, key_id="first-b", priority=0),
        pools.one(rpm=9, key_id="second", priority=1),
    ]
    async with make_router(deployments) as router:
        for _ in range(5):
            assert (await router.send("x")).success
    used = [call.key_id for call in provider.calls]
    assert sorted(used[:2]) == ["first-a", "first-b"]
    assert sorted(used[2:4]) == ["first-a", "first-b"]
    assert used[4] == "second"


async def test_round_robin_takes_turns(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """Under round robin every deployment gets the same number of requests."""
    async with make_router(pools.many(5), strategy=RoundRobin()) as router:
        for _ in range(20):
            await router.send("x")
    counts = {
        key: [c.key_id for c in provider.calls].count(key) for key in {c.key_id for c in provider.calls}
    }
    assert set(counts.values()) == {4}


async def test_keys_of_one_project_share_their_quota(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """Two keys of one project have one quota together."""
    deployments = [pools.one(rpm=3, project="shared"), pools.one(rpm=3, project="shared")]
    async with make_router(deployments) as router:
        responses = await asyncio.gather(*(router.send("x") for _ in range(10)))
    assert sum(response.success for response in responses) == 3


# --- failures -----------------------------------------------------------------------------------------


async def test_a_429_cools_that_model_of_that_project_only(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """The refused deployment cools down for as long as the provider said; the key's other model works on."""
    one = pools.one("model-a", key_id="k1", priority=0)
    other = pools.one("model-b", key_id="k1", priority=1)
    provider.script(minute_429(36.0), key_id="k1")
    async with make_router([one, other]) as router:
        response = await router.send("x")
        assert response.success
        assert (response.model, response.attempts) == ("model-b", 2)
        statuses = {s["model"]: s for s in await router.get_all_key_statuses()}
        assert statuses["model-a"]["in_cooldown"]
        assert statuses["model-a"]["cooldown_remaining"] == pytest.approx(36.0)
        assert not statuses["model-b"]["in_cooldown"]
        clock.shift(35.9)
        assert (await router.send("x", model_preference="model-a")).model == "model-b"
        clock.shift(0.2)
        assert (await router.send("x", model_preference="model-a")).model == "model-a"


async def test_a_429_without_a_delay_cools_down_for_30_to_60_s(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """If the provider names no delay, one is drawn."""
    provider.script(failure("quota", code=429))
    async with make_router([pools.one()]) as router:
        response = await router.send("x")
    assert not response.success
    assert response.retry_after is not None
    assert 30.0 <= response.retry_after <= 60.0


async def test_a_day_refusal_that_our_ledger_doubts_is_probed_once(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """The first PerDay refusal cools down for its short delay, the second until midnight in Los Angeles."""
    provider.script(day_429(36.0), day_429(36.0))
    async with make_router([pools.one(rpd=1_500)]) as router:
        first = await router.send("x")
        assert first.retry_after == pytest.approx(36.0)
        clock.shift(36.1)
        second = await router.send("x")
    # The clock stands at 04:00 in Los Angeles: 20 h to go.
    assert second.retry_after == pytest.approx(20 * 3600 - 36.1, abs=2.0)


async def test_minute_refusals_never_grow_to_a_day(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """However often a minute quota is refused, the cooldown lasts for a quarter of an hour at most."""
    async with make_router([pools.one(rpm=None)]) as router:
        for _ in range(12):
            provider.script(minute_429(20.0))
            response = await router.send("x")
            assert response.retry_after is not None
            assert 20.0 <= round(response.retry_after, 3) <= 900.0
            clock.shift(response.retry_after + 0.1)


async def test_limit_zero_is_tried_again_later_and_later(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """A project without quota for a model is asked by one request after 5 minutes, then after 30."""
    provider.script(minute_429(36.0, limit=0), times=2)
    async with make_router([pools.one()]) as router:
        assert (await router.send("x")).retry_after == pytest.approx(300.0)
        clock.shift(299)
        assert not (await router.send("x")).success
        assert len(provider.calls) == 1
        clock.shift(1)
        assert (await router.send("x")).retry_after == pytest.approx(1_800.0)
        clock.shift(1_800)
        assert (await router.send("x")).success


async def test_a_stated_limit_is_learnt(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """A lower limit that a refusal states applies from then on."""
    provider.script(minute_429(5.0, limit=2))
    async with make_router([pools.one(rpm=15)]) as router:
        await router.send("x")
        clock.shift(100)
        responses = [await router.send("x") for _ in range(5)]
    assert sum(response.success for response in responses) == 2


async def test_a_dead_key_is_quarantined_and_reported(
    make_router: Callable[..., Router],
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A key that is rejected twice is left alone for a day; status, health and one log line say so."""
    provider.script(failure("key", code=400), key_id="dead", times=2)
    async with make_router([pools.one(key_id="dead", priority=0), pools.one(key_id="alive")]) as router:
        for _ in range(2):
            response = await router.send("x")
            assert (response.success, response.key_id, response.attempts) == (True, "alive", 2)
            clock.shift(10)
        clock.shift(23 * 3600)
        assert (await router.send("x")).key_id == "alive"
        health = await router.health_check()
    assert (health["healthy"], health["total_keys"], health["quarantined"]) == (True, 2, 1)
    assert any("dead" in problem for problem in health["problems"])
    assert len([r for r in caplog.records if "quarantined" in r.getMessage()]) == 1


async def test_a_missing_model_takes_out_that_deployment_only(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """After a 404 the key's other models stay in use."""
    provider.script(failure("model", code=404))
    one, other = pools.one("gone", key_id="k", priority=0), pools.one("there", key_id="k")
    async with make_router([one, other]) as router:
        assert (await router.send("x")).model == "there"
        assert (await router.send("x", model_preference="gone")).model == "there"
    assert [call.model for call in provider.calls].count("gone") == 1


async def test_a_wrong_request_is_tried_once(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """A request that is itself wrong is not tried on other keys, and no key is blamed."""
    provider.script(failure("request", code=400))
    async with make_router(pools.many(5)) as router:
        response = await router.send("x")
        health = await router.health_check()
    assert (response.success, response.attempts, response.retry_after) == (False, 1, None)
    assert len(provider.calls) == 1
    assert (health["in_cooldown"], health["quarantined"]) == (0, 0)


async def test_retries_go_to_other_deployments_and_are_counted(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """There are at most ``max_retries`` retries, each elsewhere, and every call is counted."""
    provider.script(failure("server", code=503), times=9)
    async with make_router(pools.many(6), max_retries=3) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(60)
        response = task.result()
    assert not response.success
    assert response.attempts == len(provider.calls) == len(response.attempt_log) == 4
    assert len({call.key_id for call in provider.calls}) == 4
    assert isinstance(response.error, ProviderError)


async def test_the_only_deployment_is_tried_again(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """With one deployment a retry waits until the backoff of the failure is over."""
    provider.script(failure("server", code=503), times=2)
    async with make_router([pools.one()], base_backoff=0.5) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(10)
        response = task.result()
    assert response.success
    assert response.attempts == 3


async def test_backoff_grows_and_is_jittered(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """The n-th backoff lies between 0 and base × 2^(n-1) seconds."""
    provider.script(failure("network"), times=3)
    async with make_router(pools.many(8), base_backoff=1.0) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(30)
        assert task.result().success
    gaps = [after.at - before.at for before, after in pairwise(provider.calls)]
    for gap, ceiling in zip(gaps, [1.0, 2.0, 4.0], strict=True):
        assert 0.0 <= gap <= ceiling + 0.001


async def test_success_resets_the_failure_count(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """After a success the backoff of the next failure starts small again."""
    deployment = pools.one(rpm=None)
    async with make_router([deployment], max_retries=0, base_backoff=1.0) as router:
        for _ in range(3):
            provider.script(failure("server", code=503))
            response = await router.send("x")
            assert response.retry_after is not None
            clock.shift(response.retry_after + 0.01)
        assert response.retry_after == pytest.approx(4.0)
        assert (await router.send("x")).success
        provider.script(failure("server", code=503))
        assert (await router.send("x")).retry_after == pytest.approx(1.0)


async def test_an_outage_quarantines_no_key(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """When several keys fail on the network at once, the path is to blame, and all keys stay usable."""
    provider.script(failure("network", charged=False), times=3)
    async with make_router(pools.many(10), max_retries=2) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(3)
        assert not task.result().success
        provider.script(failure("network", charged=False), times=3)
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.001)
        health = await router.health_check()
        await clock.advance(60)
        after = await router.send("x")
        healthy = await router.health_check()
    assert after.success
    assert health["quarantined"] == 0
    assert healthy["healthy"]
    assert not healthy["problems"]


async def test_a_provider_with_an_open_breaker_is_not_asked(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """While its circuit breaker is open, a send fails at once and says when to retry."""
    provider.script(failure("network"), times=3)
    async with make_router(pools.many(10), max_retries=2, base_backoff=0.001) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.1)
        assert task.result().attempts == 3
        response = await router.send("x")
        health = await router.health_check()
    assert len(provider.calls) == 3
    assert response.retry_after is not None
    assert 0 < response.retry_after <= 1.0
    assert not health["healthy"]
    assert any("cannot be reached" in problem for problem in health["problems"])


async def test_a_blocked_prompt_fails_without_blaming_the_key(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """The response to a blocked prompt has the reason; the quota is used, and the key does not cool down."""
    provider.script(Reply("", usage=Usage(input_tokens=3), blocked="SAFETY"))
    async with make_router([pools.one()]) as router:
        response = await router.send("x")
        status = (await router.get_all_key_statuses())[0]
    assert isinstance(response.error, BlockedError)
    assert response.error.reason == "SAFETY"
    assert (status["in_cooldown"], status["rpm_usage"]) == (False, "1/15")


async def test_timeout_ends_a_send(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A send to a provider that hangs ends at the timeout."""
    async with make_router([pools.one()], provider=FakeProvider(clock=clock, delay=1e6)) as router:
        task = asyncio.create_task(router.send("x", timeout=5))
        await clock.advance(4.9)
        assert not task.done()
        await clock.advance(0.2)
        response = task.result()
    assert isinstance(response.error, DeadlineExceededError)
    assert response.attempts == 1
    assert response.latency == pytest.approx(5.0)


async def test_a_failure_that_sent_nothing_returns_its_quota(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """If nothing reached the provider, nothing is counted."""
    provider.script(failure("network", charged=False))
    async with make_router([pools.one(rpm=1)], max_retries=0) as router:
        await router.send("x")
        assert (await router.get_all_key_statuses())[0]["rpm_usage"] == "0/1"


async def test_real_usage_replaces_the_estimate(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """The token quota ends up with what the provider counted."""
    provider.script(Reply("ok", usage=Usage(input_tokens=777)))
    async with make_router([pools.one(tpm=10_000)]) as router:
        await router.send("hello")
        assert (await router.get_all_key_statuses())[0]["tpm_usage"] == "777/10000"


async def test_estimates_learn_per_model(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """For a model that counts more than was estimated, later requests reserve more."""
    async with make_router([pools.one(tpm=10**6)]) as router:
        for _ in range(8):
            provider.script(Reply("ok", usage=Usage(input_tokens=20)))
            await router.send("ten tokens or so, they say")
        provider.script(Reply("ok", usage=None))
        before = int((await router.get_all_key_statuses())[0]["tpm_usage"].split("/")[0])
        await router.send("ten tokens or so, they say")
        after = int((await router.get_all_key_statuses())[0]["tpm_usage"].split("/")[0])
    assert 15 <= after - before <= 25


async def test_a_failing_store_makes_a_failed_response(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """A store that does not answer makes an unsuccessful response and an unhealthy router."""

    class Broken(MemoryStore):
        async def reserve(self, *args: Any, **kwargs: Any) -> Decision:
            raise StoreUnavailableError("no answer from the store within 2 s")

        async def snapshot(self, *args: Any, **kwargs: Any) -> list[DeploymentSnapshot]:
            raise StoreUnavailableError("no answer from the store within 2 s")

    async with make_router([pools.one()], store=Broken()) as router:
        response = await router.send("x")
        health = await router.health_check()
    assert not response.success
    assert "no answer from the store" in str(response.error)
    assert (health["healthy"], health["store_ok"]) == (False, False)


# --- waiting ------------------------------------------------------------------------------------------


async def test_waiting_ends_when_the_quota_comes_back(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """With ``max_wait`` a send waits exactly as long as it must."""
    async with make_router([pools.one(rpm=1)]) as router:
        await router.send("x")
        task = asyncio.create_task(router.send("y", max_wait=120))
        await clock.advance(60.2)
        assert not task.done()
        await clock.advance(0.2)
        response = task.result()
    assert response.success
    assert response.waited == pytest.approx(60.3, abs=0.01)


async def test_a_send_that_cannot_be_served_in_time_fails_at_once(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """If there is no room before ``max_wait`` ends, a send does not wait."""
    async with make_router([pools.one(rpm=1)]) as router:
        await router.send("x")
        response = await router.send("y", max_wait=10)
    assert not response.success
    assert response.retry_after == pytest.approx(60.3)
    assert response.waited == 0.0


async def test_waiters_are_released_one_by_one_in_order(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Room for one request goes to the first in line."""
    async with make_router([pools.one(rpm=2)]) as router:
        await router.send("0")
        clock.shift(7)
        await router.send("1")
        tasks = [asyncio.create_task(router.send(str(n), max_wait=1_000)) for n in range(2, 8)]
        await clock.advance(53.4)
        assert sum(task.done() for task in tasks) == 1
        await clock.advance(7)
        assert sum(task.done() for task in tasks) == 2
        await clock.advance(200)
        assert all(task.result().success for task in tasks)
    assert [call.request.contents for call in provider.calls] == [str(n) for n in range(8)]


async def test_a_waiter_gives_up_after_max_wait(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """Behind a long line a send gives up when its ``max_wait`` has passed."""
    async with make_router([pools.one(rpm=1)]) as router:
        tasks = [asyncio.create_task(router.send(str(n), max_wait=100)) for n in range(4)]
        await clock.advance(100.1)
        responses = [task.result() for task in tasks]
    assert [response.success for response in responses] == [True, True, False, False]
    assert responses[3].waited <= 100.01


async def test_waiters_are_woken_by_quota_that_comes_back_early(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """A failed call that used no quota lets the next request in at once."""
    release = asyncio.Event()

    class Slow(FakeProvider):
        async def generate(
            self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
        ) -> Reply:
            if request.contents == "slow":
                await release.wait()
                raise failure("network", charged=False)
            return await super().generate(deployment, request, dispatched)

    async with make_router([pools.one(rpm=1)], provider=Slow(clock=clock), max_retries=0) as router:
        slow = asyncio.create_task(router.send("slow"))
        await clock.advance(0)
        waiting = asyncio.create_task(router.send("next", max_wait=100))
        await clock.advance(1)
        release.set()
        await clock.advance(2)
        assert not slow.result().success
        assert waiting.result().success


async def test_a_cancelled_waiter_leaves_the_line(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """The next in line moves up, and nothing is left behind."""
    async with make_router([pools.one(rpm=1)]) as router:
        await router.send("x")
        first, second = (asyncio.create_task(router.send(n, max_wait=100)) for n in "ab")
        await clock.advance(1)
        first.cancel()
        await clock.advance(60)
        assert first.cancelled()
        assert second.result().success
        assert (await router.health_check())["waiting"] == 0
    await clock.advance(100)  # the longest limit: the timer that all limits share has no use any more
    assert clock.pending == 0


@pytest.mark.slow
async def test_every_span_of_a_minute_holds_at_most_the_limit(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Under constant pressure no 60 s of the provider's log hold more than N requests of a key."""
    async with make_router(pools.many(3, rpm=5)) as router:
        tasks = []
        for _ in range(40):
            tasks += [asyncio.create_task(router.send("x", max_wait=30)) for _ in range(3)]
            await clock.advance(7.3)
        await clock.advance(60)
    for key in {call.key_id for call in provider.calls}:
        times = [call.at for call in provider.calls if call.key_id == key]
        assert all(later - earlier > 60.0 for earlier, later in zip(times, times[5:], strict=False))
    assert len(provider.calls) >= 4 * 3 * 5  # and the quota is used


# --- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"workload": "hefty"}, UnknownWorkloadError),
        ({"model_preference": "no-such-model"}, UnknownModelError),
        ({"max_output_tokens": -1}, InvalidRequestError),
        ({"max_output_tokens": 1.5}, InvalidRequestError),
        ({"timeout": 0}, InvalidRequestError),
        ({"max_wait": -1}, InvalidRequestError),
        ({"fallback": "perhaps"}, InvalidRequestError),
        ({"prompt": ""}, InvalidRequestError),
    ],
)
async def test_wrong_arguments_raise_at_once(
    make_router: Callable[..., Router],
    provider: FakeProvider,
    pools: Pools,
    arguments: dict[str, Any],
    error: type[Exception],
) -> None:
    """A call with wrong arguments reserves nothing and sends nothing."""
    async with make_router([pools.one()]) as router:
        with pytest.raises(error):
            await router.send(**({"prompt": "x"} | arguments))
        assert (await router.get_all_key_statuses())[0]["rpm_usage"] == "0/15"
    assert provider.calls == []


async def test_named_arguments_win_over_a_request(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """Arguments of the call take precedence over those of the Request."""
    async with make_router([pools.one()]) as router:
        await router.send(Request(contents="x", temperature=0.1, max_output_tokens=5), temperature=0.9)
    request = provider.calls[0].request
    assert (request.temperature, request.max_output_tokens) == (0.9, 5)


async def test_send_one_shot_is_a_send(make_router: Callable[..., Router], pools: Pools) -> None:
    """``send_one_shot`` takes the same options as ``send``."""
    async with make_router([pools.one()]) as router:
        response = await router.send_one_shot(prompt="x", workload="light", max_output_tokens=10)
    assert response.text == "echo: x"


async def test_a_closed_router_says_so(make_router: Callable[..., Router], pools: Pools) -> None:
    """Using a closed router is an error, as it would open its store anew; closing it twice is not."""
    router = make_router([pools.one(key_id="a")])
    await router.aclose()
    await router.aclose()
    keys, conversation = router.keys, router.conversation("c")
    for use in (
        lambda: router.send("x"),
        lambda: router.explain("x"),
        router.health_check,
        router.get_all_key_statuses,
        router.cache_savings,
        router.reload,
        conversation.history,
        conversation.clear,
        keys.health,
        keys.report,
        keys.snapshots,
        keys.get_all_key_statuses,
        lambda: keys.statuses_of("a"),
        lambda: keys.lift("a"),
        lambda: keys.disable("a"),
        lambda: keys.enable("a"),
        lambda: keys.forget_limits("a"),
    ):
        with pytest.raises(RouterClosedError, match="make a new one"):
            await use()


def test_wrong_pools_are_refused(make_router: Callable[..., Router], pools: Pools) -> None:
    """A router needs deployments without duplicates or unknown workloads, and a positive rate."""
    with pytest.raises(ConfigError, match="at least one"):
        make_router([])
    with pytest.raises(ConfigError, match="twice"):
        make_router([pools.one(key_id="k"), pools.one(key_id="k")])
    with pytest.raises(ConfigError, match="hefty"):
        make_router([pools.one(workload="hefty")])
    with pytest.raises(ConfigError, match="max_requests_per_second"):
        make_router([pools.one()], max_requests_per_second=0)


async def test_routers_are_independent_unless_they_share_a_store(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """Two routers count separately; on one store they share a quota."""
    deployment = pools.one(rpm=1)
    async with make_router([deployment]) as one, make_router([deployment]) as two:
        assert (await one.send("x")).success
        assert (await two.send("x")).success
    store = MemoryStore(clock=clock)
    async with make_router([deployment], store=store) as one, make_router([deployment], store=store) as two:
        assert (await one.send("x")).success
        assert not (await two.send("x")).success


async def test_a_sibling_learns_of_a_cooldown_at_its_next_call(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """When two routers share a store, neither tries what the other has cooled down."""
    store = MemoryStore(clock=clock)
    deployment = pools.one(rpm=None)
    async with make_router([deployment], store=store) as one, make_router([deployment], store=store) as two:
        provider.script(minute_429(40.0))
        await one.send("x")
        response = await two.send("x")
    assert len(provider.calls) == 1
    assert response.retry_after == pytest.approx(40.0)


def test_a_router_works_over_two_event_loops(pools: Pools) -> None:
    """The same router serves one asyncio.run after another."""
    router = Router([pools.one()], provider=FakeProvider(), max_requests_per_second=100)

    async def burst() -> list[bool]:
        return [r.success for r in await asyncio.gather(*(router.send("x", max_wait=1) for _ in range(5)))]

    assert asyncio.run(burst()) == [True] * 5
    assert asyncio.run(burst()) == [True] * 5


@pytest.mark.slow
async def test_ten_thousand_deployments_keep_every_limit(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """No counter is evicted: of 10,000 × rpm 2, the 20,001st request is refused."""
    async with make_router(pools.many(10_000, rpm=2)) as router:
        successes = 0
        for _ in range(20_050):
            successes += (await router.send("x")).success
    assert successes == 20_000


async def test_inactive_deployments_are_shown_and_not_used(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """A switched-off key appears in the statuses, and nothing is sent through it."""
    async with make_router([pools.one(key_id="on")], inactive=[pools.one(key_id="off")]) as router:
        await router.send("x")
        statuses = await router.get_all_key_statuses()
        health = await router.health_check()
    assert [(s["key_id"], s["active"]) for s in statuses] == [("on", True), ("off", False)]
    assert (health["total_keys"], health["active_keys"]) == (2, 1)
    assert {call.key_id for call in provider.calls} == {"on"}


def test_the_repr_of_a_manual_clock_shows_its_time() -> None:
    """The repr of the tests' clock has its time."""
    assert repr(ManualClock(5.0)) == "ManualClock(5.0)"


class _Preparing(FakeProvider):
    """A provider that must be prepared, and records the order of events."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.events: list[str] = []
        self.fails = fails

    async def prepare(self) -> None:
        self.events.append("prepare")
        await asyncio.sleep(0)
        if self.fails:
            self.fails -= 1
            raise ImportError
        self.events.append("prepared")

    def validate(self, request: Request) -> None:
        self.events.append("validate")


async def test_a_provider_is_prepared_before_the_first_send(pools: Pools) -> None:
    """Concurrent first sends prepare it once, and all of them wait for it."""
    provider = _Preparing()
    router = Router(pools.many(3), provider=provider)
    responses = await asyncio.gather(*(router.send("x") for _ in range(5)))
    assert all(response.success for response in responses)
    assert provider.events == ["prepare", "prepared"] + ["validate"] * 5


async def test_a_provider_is_prepared_before_the_first_stream(pools: Pools) -> None:
    """The first stream prepares it, once; reading statuses does not need it."""
    provider = _Preparing()
    async with Router(pools.many(2), provider={"gemini": provider}) as router:
        await router.get_all_key_statuses()
        assert provider.events == []
        for _ in range(2):
            async with router.stream("x") as stream:
                assert (await stream.collect()).success
    assert provider.events == ["prepare", "prepared", "validate", "validate"]


async def test_a_failed_preparation_is_tried_again(pools: Pools) -> None:
    """The send whose preparation fails raises the error; the next send prepares again."""
    provider = _Preparing(fails=1)
    router = Router(pools.many(2), provider=provider)
    with pytest.raises(ImportError):
        await router.send("x")
    assert (await router.send("x")).success


async def test_an_answer_without_usable_content_is_no_success(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """One request was made and counted; the response says why there is nothing, and no key is blamed."""
    provider.script(Reply("", usage=Usage(input_tokens=3), failed="MALFORMED_FUNCTION_CALL"))
    async with make_router([pools.one()]) as router:
        response = await router.send("x")
        health = await router.health_check()
    assert (response.success, response.attempts, response.retry_after) == (False, 1, None)
    assert isinstance(response.error, EmptyAnswerError)
    assert response.error.reason == "MALFORMED_FUNCTION_CALL"
    assert health["healthy"]


async def test_a_router_that_is_closed_sends_nothing_more(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """What waits for room or for its next attempt is told so; what is on its way is answered."""
    router = make_router([pools.one(rpm=2)], base_backoff=5)
    provider.script([gate := asyncio.Event(), "late"])
    on_its_way = asyncio.create_task(router.send("x"))
    await clock.advance(0)
    provider.script(failure("server", code=503))
    retrying = asyncio.create_task(router.send("x"))
    await clock.advance(0)
    waiting = [asyncio.create_task(router.send("x", max_wait=100)) for _ in range(3)]
    await clock.advance(0)
    await router.aclose()
    gate.set()
    await clock.advance(61)
    for task in (retrying, *waiting):
        assert isinstance(task.exception(), RouterClosedError)
    assert on_its_way.result().text.endswith("late")
    assert len(provider.calls) == 2


async def test_a_request_that_is_granted_while_the_router_closes_is_not_sent(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Its quota is given back."""

    class Slow(MemoryStore):
        async def reserve(self, *args: Any) -> Decision:
            await gate.wait()
            return await super().reserve(*args)

    gate, store, pool = asyncio.Event(), Slow(clock=clock), [pools.one(rpm=2)]
    router = make_router(pool, store=store)
    task = asyncio.create_task(router.send("x"))
    await clock.advance(0)
    await router.aclose()
    gate.set()
    await clock.advance(0)
    assert isinstance(task.exception(), RouterClosedError)
    assert provider.calls == []
    [snapshot] = await store.snapshot(pool)
    assert snapshot.quotas[0].used == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"workloads": "light"}, "'workloads': did you mean 'workload'"), ({"zzz": 1}, "'zzz': use one of")],
)
async def test_a_misspelt_option_is_named_with_its_method(
    make_router: Callable[..., Router],
    provider: FakeProvider,
    pools: Pools,
    options: dict[str, Any],
    words: str,
) -> None:
    """The error is that of the method which was called, not of one behind it."""
    async with make_router([pools.one()]) as router:
        for call in (router.send, router.send_one_shot):
            with pytest.raises(TypeError, match=rf"^send\(\) has no option {words}"):
                await call(prompt="x", **options)
        with pytest.raises(TypeError, match=rf"^stream\(\) has no option {words}"):
            async with router.stream("x", **options):
                pass
    assert provider.calls == []


# --- failures of a model or a tool --------------------------------------------------------------------


async def test_an_overloaded_model_gives_way_to_another(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """After two of its keys, where the fallback allows it; else the others of its keys are tried."""
    cases: list[tuple[SendOptions, list[str]]] = [
        ({"model_preference": "a"}, ["a", "a", "b"]),
        ({"model_preference": "a", "fallback": "none"}, ["a", "a", "a"]),
    ]
    for options, models in cases:
        provider.calls.clear()
        provider.script(*[failure("server", code=503) for _ in range(2)])
        pool = [*pools.many(5, model="a"), *pools.many(2, model="b")]
        async with make_router(pool, base_backoff=0.01) as router:
            task = asyncio.create_task(router.send("x", **options))
            await clock.advance(1)
            assert task.result().success
        assert [call.model for call in provider.calls] == models


async def test_what_one_model_cannot_do_another_may(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """No second key of that model is tried, and nothing is avoided afterwards."""
    unable = failure("request", code=400, scope="model")
    provider.script(unable)
    pool = [*pools.many(3, model="a", priority=0), *pools.many(2, model="b")]
    async with make_router(pool) as router:
        response = await router.send("x")
        assert (response.success, response.model, response.attempts) == (True, "b", 2)
        assert (await router.send("x")).model == "a"
        provider.script(unable)
        response = await router.send("x", model_preference="a", fallback="model")
        assert (response.success, response.attempts) == (False, 1)


async def test_a_tool_without_quota_does_not_stop_plain_prompts(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """Where grounding is spent on every key, a prompt without it is sent as if nothing had happened."""
    spent = failure(
        "quota", code=429, scope="feature", feature="google_search", retry_delay=50.0, charged=False
    )
    provider.script(spent, times=2)
    async with make_router(pools.many(2)) as router:
        assert not (await router.send("x", config={"tools": [{"google_search": {}}]})).success
        assert all([(await router.send("x")).success for _ in range(6)])
        assert not any(status["in_cooldown"] for status in await router.get_all_key_statuses())


async def test_a_request_whose_tool_has_no_quota_is_not_sent_there_again(
    make_router: Callable[..., Router], clock: ManualClock, pools: Pools
) -> None:
    """Where the provider knows the features of a request, no later one is refused for want of that quota."""

    class Metered(FakeProvider):
        def features(self, request: Request) -> tuple[str, ...]:
            return ("google_search",) if request.config else ()

    provider = Metered()
    grounded: dict[str, Any] = {"tools": [{"google_search": {}}]}
    spent = failure(
        "quota", code=429, scope="feature", feature="google_search", retry_delay=50.0, charged=False
    )
    async with make_router(pools.many(2), provider=provider) as router:
        provider.script(spent)
        first = await router.send("x", config=grounded)
        assert (first.success, first.attempts) == (True, 2)
        provider.script("fine", spent)
        again = [await router.send("x", config=grounded) for _ in range(2)]
        assert [(each.success, each.attempts) for each in again] == [(True, 1), (False, 1)]
        explained = await router.explain("x", config=grounded)
        assert explained.retry_after == 50.0
        assert [each.reason for each in explained.tiers[0].candidates] == ["no google_search for now"] * 2
        third = await router.send("x", config=grounded)
        assert (third.success, third.attempts, third.retry_after) == (False, 0, 50.0)
        assert all([(await router.send("x")).attempts == 1 for _ in range(4)])
        clock.shift(50.1)
        assert (await router.send("x", config=grounded)).attempts == 1


async def test_a_request_whose_tool_has_no_quota_waits_for_it_without_holding_up_others(
    make_router: Callable[..., Router], provider: FakeProvider, clock: ManualClock, pools: Pools
) -> None:
    """It learns when to come back, or waits until then; those without the tool do not stand behind it."""
    grounded: dict[str, Any] = {"tools": [{"google_search": {}}]}
    spent = failure(
        "quota", code=429, scope="feature", feature="google_search", retry_delay=50.0, charged=False
    )
    async with make_router(pools.many(2)) as router:
        provider.script(spent, times=2)
        response = await router.send("x", config=grounded)
        assert response.retry_after == 50.0
        assert "no google_search for now (2)" in str(response.error)
        clock.shift(50)
        provider.script(spent, times=2)
        waiting = asyncio.create_task(router.send("x", config=grounded, max_wait=60.0))
        await settle()
        assert (await router.send("x", max_wait=60.0)).waited == 0.0
        await clock.advance(50.1)
        assert waiting.done()
        assert (await waiting).attempts == 3

"""End to end: the router, the real google-genai SDK, HTTP, and an emulator that counts strictly."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from llm_router import (
    Chunk,
    Deployment,
    Key,
    MemoryStore,
    Metric,
    Quota,
    Refill,
    Response,
    Router,
    Secret,
)
from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec
from llm_router.providers._gemini_session import HttpBackend
from llm_router.providers.gemini import GeminiProvider
from llm_router.testing import ManualClock, ScaledClock

MODEL = "gemini-flash-latest"
KEYS = 20
RPM = 15
SPEED = 20.0
"""A minute passes in 3 s."""
GUARD = 1.5 * SPEED
"""1.5 s of real time: the most that 300 concurrent calls may take from reservation to being counted."""


def pool(*, guard: float = 0.3, keys: int = KEYS, rpm: int = RPM) -> list[Deployment]:
    quotas = (Quota(Metric.RPM, rpm, guard=guard), Quota(Metric.RPD, 1_500, Refill.DAILY, guard=guard))
    return [
        Deployment(Key(f"key-{n}", Secret(f"emulated-secret-{n}")), MODEL, "light", quotas=quotas)
        for n in range(keys)
    ]


@pytest.fixture(params=["aiohttp", pytest.param("httpx", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> HttpBackend:
    backend: HttpBackend = request.param
    return backend


@pytest.mark.slow
async def test_six_hundred_at_once_and_half_of_them_fit(backend: HttpBackend) -> None:
    """20 keys × 15 a minute: 300 are accepted, none is refused upstream, 300 are told when to retry."""
    emulator = GeminiEmulator(default_quota=QuotaSpec(rpm=RPM, rpd=1_500))
    with emulator.run_in_thread():
        provider = GeminiProvider(base_url=emulator.url, http_backend=backend)
        async with Router(pool(), provider=provider) as router:
            started = asyncio.get_running_loop().time()
            responses = await asyncio.gather(*(router.send(f"prompt {n}") for n in range(600)))
            took = asyncio.get_running_loop().time() - started
        await provider.aclose()
    accepted = [response for response in responses if response.success]
    refused = [response for response in responses if not response.success]
    assert len(accepted) == emulator.accepted == emulator.requests == KEYS * RPM
    assert emulator.refused == 0
    assert {response.attempts for response in accepted} == {1}
    waits = [response.retry_after for response in refused]
    assert all(wait is not None and 60.3 - took <= wait <= 60.3 for wait in waits)
    assert all(counts.peak_requests == RPM for counts in emulator.by_bucket.values())


@pytest.mark.slow
async def test_six_hundred_that_wait_all_succeed() -> None:
    """If they may wait, all 600 are answered over two windows, and none is refused upstream."""
    clock = ScaledClock(SPEED)
    emulator = GeminiEmulator(default_quota=QuotaSpec(rpm=RPM, rpd=1_500), clock=clock)
    with emulator.run_in_thread():
        async with Router(pool(guard=GUARD), clock=clock, base_url=emulator.url) as router:
            responses = await asyncio.gather(
                *(router.send(f"prompt {n}", max_wait=600, timeout=None) for n in range(600))
            )
    assert all(response.success for response in responses)
    assert (emulator.accepted, emulator.refused) == (600, 0)
    assert max(counts.peak_requests for counts in emulator.by_bucket.values()) == RPM
    # On a slow machine the last of the 600 begin to wait late. Half of them go as fast as it can; then
    # none goes before the first quota has come back, and that is the longest pause.
    waits = sorted(response.waited for response in responses)
    pauses = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert pauses.index(max(pauses)) == 299


async def test_a_429_cools_down_for_as_long_as_its_body_says(clock: ManualClock) -> None:
    """A 429 with QuotaFailure and RetryInfo cools its deployment down for the stated delay."""
    emulator = GeminiEmulator(quotas={MODEL: QuotaSpec(rpm=2)}, clock=clock)
    async with emulator:
        deployments = pool(keys=1, rpm=15)
        async with Router(deployments, clock=clock, base_url=emulator.url) as router:
            assert [(await router.send("x")).success for _ in range(2)] == [True, True]
            clock.shift(20)
            response = await router.send("x")
            assert (response.success, emulator.refused) == (False, 1)
            assert response.retry_after == pytest.approx(40.0, abs=0.5)
            clock.shift(41)
            assert [(await router.send("x")).success for _ in range(3)] == [True, True, False]
            # The router learned the stated limit, so it did not even send the third.
            assert emulator.refused == 1


async def test_the_429_of_a_fault_ends_with_its_delay(clock: ManualClock) -> None:
    """It states no limit, so the deployment cools down for its delay and then works again."""
    async with GeminiEmulator(clock=clock) as emulator:
        emulator.inject(Fault.status(429), times=1)
        async with Router(pool(keys=1), clock=clock, base_url=emulator.url) as router:
            response = await router.send("x")
            assert (response.success, response.attempts) == (False, 1)
            assert response.retry_after == pytest.approx(36.4)
            assert (await router.health_check())["quarantined"] == 0
            clock.shift(36.5)
            assert (await router.send("x")).success


@pytest.mark.parametrize(
    ("fault", "succeeds", "upstream"),
    [
        (Fault.status(503), True, 2),
        (Fault.status(500), True, 2),
        (Fault.drop(), True, 2),
        (Fault.cut_json(429), True, 2),
        (Fault.cut_json(), True, 2),
        (Fault.empty(), True, 2),
        (Fault.status(429), True, 2),
        (Fault.status(429, body="slow down", headers={"Retry-After": "5"}), True, 2),
        (Fault.bare_429(), True, 2),
        (Fault.list_429(), True, 2),
        (Fault.status(404), True, 2),
        (Fault.block(), False, 1),
        (Fault.safety(), False, 1),
    ],
    ids=lambda value: getattr(getattr(value, "kind", None), "value", None),
)
async def test_requests_upstream_are_attempts_reported(fault: Fault, succeeds: bool, upstream: int) -> None:
    """For every kind of failure the response reports the requests the server saw; only the router retries."""
    async with GeminiEmulator() as emulator:
        emulator.inject(fault, times=1)
        async with Router(pool(keys=3), base_url=emulator.url, base_backoff=0.001) as router:
            response = await router.send("x")
        assert response.success is succeeds
        assert response.attempts == emulator.requests == upstream


async def test_a_conversation_moves_between_models() -> None:
    """A history from one model can be sent to another, through the SDK."""
    async with GeminiEmulator() as emulator:
        deployments = [
            Deployment(
                Key("a", Secret("s1")), "model-a", "light", priority=0, quotas=(Quota(Metric.RPM, 1),)
            ),
            Deployment(Key("b", Secret("s2")), "model-b", "light"),
        ]
        async with Router(deployments, base_url=emulator.url) as router:
            conversation = router.conversation("c", system_instruction="Be brief.", workload="light")
            first, second = await conversation.send("one"), await conversation.send("two")
            assert (first.model, second.model) == ("model-a", "model-b")
            assert second.success
            assert [content["role"] for content in await conversation.history()] == ["user", "model"] * 2
            assert second.usage.input_tokens > first.usage.input_tokens


async def test_streams_keep_to_the_quota_and_settle_it(backend: HttpBackend) -> None:
    """Each stream uses one request and its tokens once, read to the end or left early."""
    emulator = GeminiEmulator(default_quota=QuotaSpec(rpm=RPM, tpm=100_000))
    quotas = (Quota(Metric.RPM, RPM), Quota(Metric.TPM, 100_000))
    deployments = [
        Deployment(Key(f"key-{n}", Secret(f"emulated-secret-{n}")), MODEL, "light", quotas=quotas)
        for n in range(4)
    ]
    store = MemoryStore()
    with emulator.run_in_thread():
        provider = GeminiProvider(base_url=emulator.url, http_backend=backend)
        async with Router(deployments, provider=provider, store=store) as router:

            async def run(number: int) -> Chunk | Response | None:
                async with router.stream(f"prompt {number}") as stream:
                    if number % 3 == 0:
                        return await stream.read()
                    return await stream.collect()

            outcomes = await asyncio.gather(*(run(number) for number in range(90)))
        await provider.aclose()
        used = await store.snapshot(deployments)
    assert emulator.refused == 0
    assert emulator.accepted == sum(snapshot.quotas[0].used for snapshot in used) == 4 * RPM
    tokens = sum(arrival.tokens for arrival in emulator.arrivals)
    assert sum(snapshot.quotas[1].used for snapshot in used) == tokens
    answers = [outcome.answer for outcome in outcomes if isinstance(outcome, Response) and outcome.success]
    pieces = [outcome for outcome in outcomes if isinstance(outcome, Chunk)]
    assert len(answers) + len(pieces) == 4 * RPM
    assert answers
    assert pieces
    assert all(answer.startswith(f"[{MODEL}]") for answer in answers)


@pytest.mark.parametrize(
    ("fault", "pieces", "succeeds", "upstream"),
    [
        (Fault.status(503), 4, True, 2),
        (Fault.drop(), 4, True, 2),
        (Fault.stream_cut(0), 4, True, 2),
        (Fault.stream_error(429, 0), 4, True, 2),
        (Fault.stream_cut(1), 1, False, 1),
        (Fault.stream_drop(2), 2, False, 1),
        (Fault.stream_error(503, 3), 3, False, 1),
        (Fault.safety(), 1, False, 1),
    ],
    ids=lambda value: getattr(getattr(value, "kind", None), "value", None),
)
async def test_a_stream_is_tried_elsewhere_until_its_first_piece(
    fault: Fault, pieces: int, succeeds: bool, upstream: int
) -> None:
    """A failure before the first piece is retried; a later one ends the stream after the pieces so far."""
    async with GeminiEmulator() as emulator:
        emulator.inject(fault, times=1)
        async with Router(pool(keys=3), base_url=emulator.url, base_backoff=0.001) as router:
            read = 0
            async with router.stream("x") as stream:
                while await stream.read() is not None:
                    read += 1
        assert (read, stream.response.success) == (pieces, succeeds)
        assert stream.response.attempts == emulator.requests == upstream


ANSWERS: dict[str, dict[str, Any]] = {
    "no candidates": {"candidates": [], "usageMetadata": {"promptTokenCount": 3}},
    "usage alone": {"usageMetadata": {"promptTokenCount": 3}},
    "thoughts alone": {"usageMetadata": {"promptTokenCount": 3, "thoughtsTokenCount": 9}},
    "STOP": {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 3}},
    "MAX_TOKENS": {"candidates": [{"finishReason": "MAX_TOKENS"}]},
    "OTHER": {"candidates": [{"finishReason": "OTHER"}]},
    "MALFORMED_FUNCTION_CALL": {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]},
    "no parts": {"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}]},
    "empty text": {"candidates": [{"content": {"parts": [{"text": ""}]}, "finishReason": "STOP"}]},
    "prompt blocked": {"promptFeedback": {"blockReason": "SAFETY"}},
    "answer blocked": {"candidates": [{"finishReason": "SAFETY"}]},
    "text": {"candidates": [{"content": {"parts": [{"text": "Hi."}]}, "finishReason": "STOP"}]},
}


@pytest.mark.parametrize("options", [{}, {"max_output_tokens": 5}], ids=["", "limited"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_a_stream_ends_as_a_send_does(answer: dict[str, Any], options: Any) -> None:
    """The same answer is the same response, streamed or not, after one request and with no cooldown."""
    found = []
    for streamed in (False, True):
        async with GeminiEmulator() as emulator, Router(pool(keys=2), base_url=emulator.url) as router:
            body = b"data: " + json.dumps(answer).encode() + b"\r\n\r\n" if streamed else answer
            headers = {"Content-Type": "text/event-stream"} if streamed else {}
            emulator.inject(Fault.status(200, body=body, headers=headers))
            if streamed:
                async with router.stream("x", **options) as stream:
                    response = await stream.collect()
            else:
                response = await router.send("x", **options)
            statuses = await router.get_all_key_statuses()
            assert not any(status["in_cooldown"] for status in statuses)
            assert (emulator.requests, response.attempts) == (1, 1)
            reason = getattr(response.error, "reason", None)
            kind = type(response.error)
            found.append(
                (response.success, response.answer, response.finish_reason, kind, reason, response.usage)
            )
    assert found[0] == found[1]

"""A send from its arguments to its response: its attempts, and when another one is made."""

from __future__ import annotations

import asyncio
import math
import pickle
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest

from llm_router import (
    Attempt,
    Chunk,
    Cooldown,
    DeadlineExceededError,
    Demand,
    Deployment,
    ExtensionError,
    FailureKind,
    InvalidRequestError,
    LeastLoaded,
    MemoryStore,
    PassedOver,
    ProviderError,
    QuotaExhaustedError,
    Reply,
    Request,
    Response,
    RouterClosedError,
    SendError,
    StoreUnavailableError,
    Usage,
)
from llm_router.domain.clock import sleep
from llm_router.domain.methods import GENERATE
from llm_router.domain.quota import GUARD
from llm_router.engine.attempt import OpenAttempt
from llm_router.engine.estimates import TEXT
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.gate import DispatchGate
from llm_router.engine.index import DeploymentState
from llm_router.engine.judging import Judge
from llm_router.engine.lease import Lease
from llm_router.engine.pool import Pool
from llm_router.engine.reserving import Selector
from llm_router.engine.retry import RetryPolicy
from llm_router.engine.sending import UNBOUNDED_TTL, Sender
from llm_router.engine.state import SendState
from llm_router.engine.timing import Deadlines
from llm_router.engine.upstream import Preparation, Upstream
from llm_router.stores.base import Decision
from llm_router.testing import FakeProvider, ManualClock

MakeDeployment = Callable[..., Deployment]
MakeDeployments = Callable[..., list[Deployment]]
MakeSend = Callable[..., SendState]
MakeSender = Callable[..., Sender]


class Drawn(random.Random):
    """Draws the same share of every range."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


class Noting(MemoryStore):
    """A store in memory that records its reserves, and fails while ``fails`` is set."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.demands: list[Demand] = []
        self.ttls: list[float] = []
        self.fails = False

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        if self.fails:
            raise StoreUnavailableError("no answer within 2 s")
        self.demands.append(demand)
        self.ttls.append(ttl)
        return await super().reserve(reservation_id, candidates, demand, ttl)


@pytest.fixture
def store(clock: ManualClock) -> Noting:
    return Noting(clock)


@pytest.fixture
def make_sender(clock: ManualClock, provider: FakeProvider, store: Noting) -> MakeSender:
    """Make a sender on the manual clock; by default its backoffs are as long as possible."""

    def make(
        deployments: Sequence[Deployment],
        providers: Mapping[str, FakeProvider] | None = None,
        *,
        max_retries: int = 3,
        base_backoff: float = 0.0,
        drawn: float = 1.0,
    ) -> Sender:
        providers = providers or {"gemini": provider}
        pool = Pool(deployments, {name: Upstream(name, each) for name, each in providers.items()})
        deadlines = Deadlines(clock)
        selector = Selector(store, pool, LeastLoaded(), clock, deadlines, DispatchGate(clock, GUARD))
        policy = RetryPolicy(max_retries, base_backoff, Drawn(drawn))
        return Sender(
            FallbackOrders(pool, ("light", "medium", "heavy")),
            Preparation(providers.values()),
            selector,
            Judge(policy, pool, store, clock),
            policy,
            clock,
            deadlines,
            max_wait=0.0,
        )

    return make


def failure(kind: FailureKind = FailureKind.SERVER, **details: Any) -> ProviderError:
    return ProviderError("it failed", kind=kind, **details)


def state_of(sender: Sender, deployment: Deployment) -> DeploymentState:
    return sender.judge.pool.states[deployment]


async def used(store: MemoryStore, deployment: Deployment) -> list[int]:
    [snapshot] = await store.snapshot([deployment])
    return [quota.used for quota in snapshot.quotas]


async def finished(
    clock: ManualClock, send: Coroutine[Any, Any, Response], seconds: float = 1_000.0
) -> Response:
    """Run a send until ``seconds`` have passed, and return its response."""
    task: asyncio.Task[Response] = asyncio.create_task(send)
    await clock.advance(seconds)
    return task.result()


async def read(events: AsyncGenerator[Chunk | Response]) -> tuple[list[str], Response]:
    """Return the texts of a stream, and its response, which comes last."""
    *chunks, response = [event async for event in events]
    assert isinstance(response, Response)
    return [chunk.text for chunk in chunks if isinstance(chunk, Chunk)], response


# --- attempts -----------------------------------------------------------------------------------------


async def test_each_attempt_is_recorded(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """Each attempt is logged with its key, model, latency and error."""
    error = failure(code=503)
    provider = FakeProvider(clock=clock, delay=2.0)
    provider.by_key["bad"] = deque([error])
    bad, good = make_deployment("a", key_id="bad", priority=0), make_deployment("b", "heavy", key_id="good")
    response = await finished(clock, make_sender([bad, good], {"gemini": provider}).send("hello"))
    assert response.attempt_log == (Attempt("bad", "a", 2.0, error), Attempt("good", "b", 2.0, None))
    assert (response.success, response.attempts, response.error) == (True, 2, None)
    assert (response.key_id, response.model, response.workload) == ("good", "b", "heavy")
    assert (response.latency, response.waited) == (4.0, 0.0)


async def test_an_attempt_tells_why_it_went_where_it_went(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """What the store left of the quota, and who was asked before in vain, without a secret."""
    small = make_deployment(key_id="small", rpm=1, priority=0)
    large = make_deployment(key_id="large", rpm=10, rpd=40, tpm=1_000, priority=5)
    sender = make_sender([small, large], {"gemini": FakeProvider()})
    [first] = (await sender.send("hello")).attempt_log
    assert (first.key_id, first.priority, first.headroom, first.passed_over) == ("small", 0, 0.0, ())
    [second] = (await sender.send("hello")).attempt_log
    assert (second.key_id, second.priority, second.tokens) == ("large", 5, 1)
    assert [second.headroom, second.daily_headroom] == pytest.approx([9 / 10, 39 / 40])
    assert second.passed_over == (PassedOver("small", small.model, "rpm", clock.time() + 60.0 + GUARD),)
    # A secret refuses to be pickled.
    assert pickle.loads(pickle.dumps(second)).passed_over == second.passed_over
    [third] = (await sender.send("hello")).attempt_log
    assert (third.key_id, third.passed_over) == ("large", ())  # now this process knows


@pytest.mark.parametrize("max_retries", [0, 1, 4])
async def test_there_are_as_many_retries_as_allowed(
    make_sender: MakeSender, make_deployments: MakeDeployments, max_retries: int
) -> None:
    """A send makes max_retries further attempts on other deployments, and reports the last failure."""
    errors = [failure() for _ in range(9)]
    provider = FakeProvider(errors)
    sender = make_sender(make_deployments(8), {"gemini": provider}, max_retries=max_retries)
    response = await sender.send("hello")
    assert response.attempts == len(provider.calls) == len({call.key_id for call in provider.calls})
    assert response.attempts == max_retries + 1
    assert response.error is errors[max_retries]
    assert response.retry_after == errors[max_retries].retry_after == 0.0


async def test_a_wrong_request_is_not_retried(
    make_sender: MakeSender, make_deployments: MakeDeployments
) -> None:
    """A request failure ends the send after one attempt, without a retry_after."""
    error = failure(FailureKind.REQUEST, code=400)
    error.retry_after = 3.0
    provider = FakeProvider([error])
    response = await make_sender(make_deployments(3), {"gemini": provider}).send("hello")
    assert (response.attempts, response.retry_after) == (1, None)


async def test_the_error_says_when_a_deployment_is_ready_again(
    make_sender: MakeSender, make_deployment: MakeDeployment
) -> None:
    """If all deployments failed, retry_after is the time until the first one is ready."""
    provider = FakeProvider([failure()])
    sender = make_sender([make_deployment()], {"gemini": provider}, max_retries=0, base_backoff=8.0)
    response = await sender.send("hello")
    assert response.retry_after == 8.0


# --- backoffs and the timeout -------------------------------------------------------------------------


async def test_faults_of_a_deployment_need_no_backoff(
    make_sender: MakeSender, make_deployments: MakeDeployments, clock: ManualClock
) -> None:
    """After a quota, key or model failure the next attempt starts at once."""
    kinds = [FailureKind.QUOTA, FailureKind.KEY, FailureKind.MODEL]
    provider = FakeProvider([failure(kind) for kind in kinds], clock=clock)
    sender = make_sender(make_deployments(4), {"gemini": provider}, base_backoff=5.0)
    response = await sender.send("hello")
    assert (response.success, response.attempts, response.latency) == (True, 4, 0.0)


async def test_transient_failures_back_off_for_longer_each_time(
    make_sender: MakeSender, make_deployments: MakeDeployments, clock: ManualClock
) -> None:
    """The longest backoff after a server, network or timeout failure doubles with each attempt."""
    kinds = [FailureKind.SERVER, FailureKind.NETWORK, FailureKind.TIMEOUT]
    provider = FakeProvider([failure(kind) for kind in kinds], clock=clock)
    began = clock.time()
    sender = make_sender(make_deployments(4), {"gemini": provider}, base_backoff=1.0)
    assert (await finished(clock, sender.send("hello"))).success
    assert [call.at - began for call in provider.calls] == [0.0, 1.0, 3.0, 7.0]


@pytest.mark.parametrize(("timeout", "attempts"), [(4.0, 1), (4.1, 2), (12.0, 2), (12.1, 3), (None, 4)])
async def test_a_backoff_beyond_the_timeout_is_not_started(
    make_sender: MakeSender,
    make_deployments: MakeDeployments,
    clock: ManualClock,
    timeout: float | None,
    attempts: int,
) -> None:
    """If the backoff would use up the timeout, the send fails at once with the last failure."""
    provider = FakeProvider([failure()] * 4, clock=clock)
    began = clock.time()
    sender = make_sender(make_deployments(6), {"gemini": provider}, base_backoff=4.0)
    response = await finished(clock, sender.send("hello", timeout=timeout))
    assert response.attempts == attempts
    assert isinstance(response.error, ProviderError)
    assert response.latency == provider.calls[-1].at - began


async def test_the_timeout_covers_all_attempts(
    make_sender: MakeSender, make_deployments: MakeDeployments, clock: ManualClock
) -> None:
    """The second attempt gets the time that the first one left."""
    provider = FakeProvider([failure()], clock=clock, delay=3.0)
    sender = make_sender(make_deployments(3), {"gemini": provider})
    response = await finished(clock, sender.send("hello", timeout=5.0))
    assert isinstance(response.error, DeadlineExceededError)
    assert [attempt.latency for attempt in response.attempt_log] == [3.0, 2.0]
    assert (response.latency, response.retry_after) == (5.0, None)


async def test_a_deployment_that_ran_out_of_time_ranks_behind_its_equals(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """After a timeout a deployment stays ready but ranks behind its equals until it succeeds."""
    fresh, half_spent = make_deployment("fresh", rpm=1_000), make_deployment("half-spent", rpm=2)
    provider = FakeProvider(clock=clock, delay=9.0)
    sender = make_sender([fresh, half_spent], {"gemini": provider})
    state = state_of(sender, fresh)
    assert (await finished(clock, sender.send("x", model_preference="half-spent"), 9.0)).success
    response = await finished(clock, sender.send("x", timeout=5.0), 5.0)
    assert (response.model, type(response.error)) == ("fresh", DeadlineExceededError)
    assert (state.failures, state.is_parked, state.avoided_until) == (1, False, 0.0)
    assert (await finished(clock, sender.send("x"), 9.0)).model == "half-spent"
    assert (await finished(clock, sender.send("x", model_preference="fresh"), 9.0)).model == "fresh"
    assert state.failures == 0


async def test_waiting_for_capacity_does_not_count_towards_the_timeout(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """A send that waited a minute for capacity has its whole timeout left."""
    provider = FakeProvider(clock=clock, delay=4.0)
    sender = make_sender([make_deployment(rpm=1)], {"gemini": provider})
    tasks = [asyncio.create_task(sender.send("hello", timeout=5.0, max_wait=100.0)) for _ in range(2)]
    await clock.advance(70.0)
    first, second = (task.result() for task in tasks)
    assert (first.success, first.waited, first.latency) == (True, 0.0, 4.0)
    assert second.success
    assert second.waited == pytest.approx(60.3, abs=0.1)
    assert second.latency == pytest.approx(second.waited + 4.0)


async def test_max_wait_covers_all_attempts(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting, clock: ManualClock
) -> None:
    """A send that waited 8 of 10 s does not wait another 5 s after a refusal."""
    deployment = make_deployment()
    provider = FakeProvider([failure(FailureKind.QUOTA, retry_delay=5.0)], clock=clock)
    await store.cool_down(Cooldown(deployment.model_scope, clock.time() + 8.0, "maintenance"))
    sender = make_sender([deployment], {"gemini": provider})
    response = await finished(clock, sender.send("hello", max_wait=10.0))
    assert isinstance(response.error, QuotaExhaustedError)
    assert response.attempts == 1
    assert response.waited == pytest.approx(8.0, abs=0.1)
    assert response.retry_after == pytest.approx(5.0)


async def test_a_retry_may_wait_for_the_cooldown_of_its_own_failure(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """Without max_wait a retry still waits as long as its longest backoff, but no longer."""
    provider = FakeProvider([failure(), "well"], clock=clock)
    sender = make_sender([make_deployment()], {"gemini": provider}, base_backoff=2.0, drawn=0.25)
    response = await finished(clock, sender.send("hello"))
    assert (response.answer, response.attempts) == ("well", 2)
    assert response.waited == pytest.approx(1.5)
    provider = FakeProvider([failure(FailureKind.QUOTA, retry_delay=2.1)], clock=clock)
    sender = make_sender([make_deployment()], {"gemini": provider}, base_backoff=2.0)
    assert (await sender.send("hello")).attempts == 1


# --- how an attempt ends ------------------------------------------------------------------------------


async def test_an_unexpected_error_settles_the_attempt_and_judges_nothing(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting
) -> None:
    """An adapter's bug is named, the quota is settled, and the deployment is not blamed."""
    deployment = make_deployment(tpm=100)
    sender = make_sender([deployment], {"gemini": FakeProvider([RuntimeError("a bug")])})
    with pytest.raises(ExtensionError, match=r"FakeProvider\.generate.*RuntimeError"):
        await sender.send("three words long")
    assert await used(store, deployment) == [1, 3]
    state = state_of(sender, deployment)
    assert (state.failures, state.is_parked, state.group.breaker.is_clear) == (0, False, True)
    assert (await sender.send("hello")).success


async def _fail_inside(attempt: OpenAttempt, *, reads: bool) -> None:
    async with attempt:
        if reads:
            assert await attempt.read()
        raise KeyError


@pytest.mark.parametrize("reads", [False, True])
async def test_an_attempt_left_by_an_exception_concludes_nothing(
    make_sender: MakeSender,
    make_deployment: MakeDeployment,
    make_send: MakeSend,
    store: Noting,
    *,
    reads: bool,
) -> None:
    """Leaving an attempt with an exception settles its quota, but neither records nor judges it."""
    deployment = make_deployment(tpm=100)
    provider = FakeProvider(["a long answer"])
    sender = make_sender([deployment], {"gemini": provider})
    send = make_send(sender.orders[None, None, "any", frozenset(), GENERATE], tokens=20)
    lease = await sender.selector.acquire(send, 0.0)
    assert isinstance(lease, Lease)
    with pytest.raises(KeyError):
        await _fail_inside(OpenAttempt(sender, send, lease), reads=reads)
    assert await used(store, deployment) == [1, 1 if reads else 20]
    assert (send.attempts, send.response, provider.streaming) == ([], None, 0)


async def test_a_cancelled_attempt_is_settled_at_the_estimate(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting, clock: ManualClock
) -> None:
    """A cancelled attempt counts as used, and its deployment is not blamed."""
    deployment = make_deployment(tpm=100)
    sender = make_sender([deployment], {"gemini": FakeProvider(clock=clock, delay=9.0)})
    task = asyncio.create_task(sender.send("three words long"))
    await clock.advance(1.0)
    task.cancel()
    await clock.advance(0)
    assert task.cancelled()
    assert await used(store, deployment) == [1, 3]
    assert (state_of(sender, deployment).failures, state_of(sender, deployment).is_parked) == (0, False)


@pytest.mark.parametrize(("charged", "expected"), [(True, [1, 3]), (False, [0, 0])])
async def test_an_uncharged_failure_gives_its_quota_back(
    make_sender: MakeSender,
    make_deployment: MakeDeployment,
    store: Noting,
    *,
    charged: bool,
    expected: list[int],
) -> None:
    """A failure gives its quota back only if it was not charged."""
    deployment = make_deployment(tpm=100)
    provider = FakeProvider([failure(FailureKind.NETWORK, charged=charged)])
    await make_sender([deployment], {"gemini": provider}, max_retries=0).send("three words long")
    assert await used(store, deployment) == expected


async def test_a_request_that_cannot_be_built_uses_nothing(
    make_sender: MakeSender, make_deployments: MakeDeployments, store: Noting
) -> None:
    """An invalid request found by the adapter is raised, gives its quota back and is not retried."""
    deployments = make_deployments(3)
    provider = FakeProvider([InvalidRequestError("no such field")])
    sender = make_sender(deployments, {"gemini": provider})
    with pytest.raises(InvalidRequestError, match="no such field"):
        await sender.send("hello")
    assert len(provider.calls) == 1
    assert [await used(store, deployment) for deployment in deployments] == [[0]] * 3
    assert not any(state.is_parked for state in sender.judge.pool)


async def test_an_answer_settles_at_its_count_and_teaches_the_estimates(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting
) -> None:
    """An answer's count settles its quota and corrects the demand of the next request."""
    deployment = make_deployment(tpm=1_000)
    provider = FakeProvider([Reply("ok", Usage(input_tokens=30)), Reply("ok")])
    sender = make_sender([deployment], {"gemini": provider})
    await sender.send("ten " * 10)
    assert await used(store, deployment) == [1, 30]
    await sender.send("ten " * 10)
    assert await used(store, deployment) == [2, 43]
    assert store.demands == [Demand(1, 10), Demand(1, 13)]


async def test_an_answer_resets_earlier_failures(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """An answer clears the failures of its deployment and the breaker of its provider."""
    deployment = make_deployment()
    sender = make_sender([deployment])
    state = state_of(sender, deployment)
    breaker = state.group.breaker
    state.failures = 5
    for key_id in "abc":
        breaker.record_failure(key_id, clock.time() - 5.0)
    assert (await sender.send("hello")).success
    assert (state.failures, breaker.is_clear) == (0, True)


async def test_a_store_error_is_an_unsuccessful_response(
    make_sender: MakeSender, make_deployments: MakeDeployments, store: Noting
) -> None:
    """A store error before the first or the second attempt is the cause of the response's error."""
    sender = make_sender(make_deployments(2))
    store.fails = True
    response = await sender.send("hello")
    assert (response.success, response.attempts, response.key_id) == (False, 0, None)
    assert type(response.error) is SendError
    assert isinstance(response.error.__cause__, StoreUnavailableError)

    def fail(deployment: Deployment, request: Request) -> Reply:
        store.fails = True
        raise failure()

    store.fails = False
    provider = FakeProvider([fail])
    response = await make_sender(make_deployments(2), {"gemini": provider}).send("hello")
    assert (response.success, response.attempts) == (False, 1)
    assert response.key_id == provider.calls[0].key_id
    assert "no answer within 2 s" in str(response.error)


@pytest.mark.parametrize(("timeout", "ttl"), [(5.0, 65.0), (60.0, 120.0), (None, UNBOUNDED_TTL)])
async def test_a_reservation_outlives_the_timeout(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting, timeout: float | None, ttl: float
) -> None:
    """A reservation expires a minute after the timeout, or after an hour without one."""
    await make_sender([make_deployment()]).send("hello", timeout=timeout)
    assert store.ttls == [ttl]


# --- streams ------------------------------------------------------------------------------------------


async def test_a_stream_yields_the_pieces_and_then_the_response(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting
) -> None:
    """A stream yields its pieces, then the response with the whole text."""
    sender = make_sender([make_deployment()], {"gemini": FakeProvider(["one two three"])})
    texts, response = await read(sender.stream("hello", timeout=5.0))
    assert texts == ["one ", "two ", "three"]
    assert (response.text, response.finish_reason, response.attempts) == ("one two three", "STOP", 1)
    assert store.ttls == [UNBOUNDED_TTL]


@pytest.mark.parametrize("pieces", [0, 1, 2])
async def test_a_stream_is_retried_only_before_its_first_piece(
    make_sender: MakeSender, make_deployment: MakeDeployment, pieces: int
) -> None:
    """A stream that fails after any piece, even an empty one, is not tried again."""
    error = failure()
    provider = FakeProvider()
    provider.by_key["bad"] = deque([[*[Reply("")] * pieces, error]])
    bad, good = make_deployment(key_id="bad", priority=0), make_deployment(key_id="good")
    texts, response = await read(make_sender([bad, good], {"gemini": provider}).stream("hello"))
    if pieces:
        assert (texts, response.attempts, response.error) == ([""] * pieces, 1, error)
    else:
        assert (texts, response.attempts, response.key_id) == (["echo: ", "hello"], 2, "good")


async def test_a_broken_stream_cools_its_deployment_down(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """A stream that fails after its first piece is judged like any other failure."""
    deployment = make_deployment()
    provider = FakeProvider([["one ", failure()]])
    sender = make_sender([deployment], {"gemini": provider}, base_backoff=8.0)
    _, response = await read(sender.stream("hello"))
    assert state_of(sender, deployment).wakes_at == clock.time() + 8.0
    assert response.retry_after == 8.0


@pytest.mark.parametrize(
    ("usage", "expected"), [(Usage(input_tokens=40), [1, 40]), (None, [1, 3])], ids=["counted", "uncounted"]
)
async def test_a_stream_left_early_is_settled(
    make_sender: MakeSender,
    make_deployment: MakeDeployment,
    store: Noting,
    usage: Usage | None,
    expected: list[int],
) -> None:
    """A stream closed early is settled at its last count, or at the estimate, and ends the call."""
    deployment = make_deployment(tpm=100)
    provider = FakeProvider([[Reply("one ", usage), Reply("two", Usage(input_tokens=90))]])
    sender = make_sender([deployment], {"gemini": provider})
    events = sender.stream("three words long")
    assert await anext(events) == Chunk("one ")
    assert provider.streaming == 1
    await events.aclose()
    assert provider.streaming == 0
    assert await used(store, deployment) == expected
    assert (state_of(sender, deployment).failures, state_of(sender, deployment).is_parked) == (0, False)


async def test_a_stream_has_the_whole_timeout_for_each_piece(
    make_sender: MakeSender, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """A stream may take longer than the timeout if each piece comes within it."""
    provider = FakeProvider(["one two three"], clock=clock, delay=4.0)
    events = make_sender([make_deployment()], {"gemini": provider}).stream("hello", timeout=5.0)
    task = asyncio.create_task(read(events))
    await clock.advance(20.0)
    texts, response = task.result()
    assert (texts, response.success, response.latency) == (["one ", "two ", "three"], True, 12.0)


class Paced(FakeProvider):
    """A provider whose streams follow a script of pauses (in seconds), pieces and failures."""

    def __init__(self, clock: ManualClock, *scripts: list[float | Reply | ProviderError]) -> None:
        super().__init__()
        self.scripts = list(scripts)
        self._pacer = clock

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Reply]:
        self.streaming += 1
        try:
            for step in self.scripts.pop(0):
                if isinstance(step, ProviderError):
                    raise step
                if isinstance(step, Reply):
                    yield step
                else:
                    await sleep(self._pacer, step)
        finally:
            self.streaming -= 1


async def test_until_the_first_piece_the_timeout_covers_all_attempts(
    make_sender: MakeSender, make_deployments: MakeDeployments, clock: ManualClock
) -> None:
    """The first piece must come in the time that is left, each further one within the whole timeout."""
    whole = Paced(clock, [3.0, failure()], [1.9, Reply("one "), 4.9, Reply("two")])
    events = make_sender(make_deployments(2), {"gemini": whole}).stream("hello", timeout=5.0)
    task = asyncio.create_task(read(events))
    await clock.advance(20.0)
    texts, response = task.result()
    assert (texts, response.success, response.attempts) == (["one ", "two"], True, 2)
    late = Paced(clock, [3.0, failure()], [2.1, Reply("one")])
    events = make_sender(make_deployments(2), {"gemini": late}).stream("hello", timeout=5.0)
    task = asyncio.create_task(read(events))
    await clock.advance(20.0)
    texts, response = task.result()
    assert (texts, response.latency, response.attempts) == ([], 5.0, 2)
    assert isinstance(response.error, DeadlineExceededError)


async def test_a_stalled_stream_ends_at_its_timeout(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting, clock: ManualClock
) -> None:
    """A stream that stalls after a piece ends without another attempt, settled at its last count."""
    deployment = make_deployment(tpm=100)
    provider = Paced(clock, [Reply("one ", Usage(input_tokens=40)), math.inf])
    sender = make_sender([deployment, make_deployment(priority=9)], {"gemini": provider})
    task = asyncio.create_task(read(sender.stream("hello", timeout=5.0)))
    await clock.advance(4.9)
    assert not task.done()
    await clock.advance(0.1)
    texts, response = task.result()
    assert texts == ["one "]
    assert isinstance(response.error, DeadlineExceededError)
    assert (response.attempts, response.latency, provider.streaming) == (1, 5.0, 0)
    assert await used(store, deployment) == [1, 40]


# --- several providers --------------------------------------------------------------------------------


class Choosy(FakeProvider):
    """A provider that always estimates ``tokens``, and rejects requests while ``rejects`` is set."""

    def __init__(self, tokens: int = 1, rejects: str = "") -> None:
        super().__init__()
        self.tokens = tokens
        self.rejects = rejects
        self.validated: list[Request] = []
        self.estimated: list[Request] = []

    def validate(self, request: Request) -> None:
        self.validated.append(request)
        if self.rejects:
            raise InvalidRequestError(self.rejects)

    def estimate_tokens(self, request: Request) -> int:
        self.estimated.append(request)
        return self.tokens


@pytest.fixture
def near_and_far(make_deployment: MakeDeployment) -> list[Deployment]:
    """Two deployments of different providers; the near one has the better priority."""
    return [
        make_deployment("model-n", provider="near", priority=0, tpm=1_000),
        make_deployment("model-f", provider="far", priority=5, tpm=1_000),
    ]


async def test_a_request_that_the_only_provider_rejects_is_raised(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting
) -> None:
    """A request that its only provider rejects raises before any quota is taken."""
    provider = Choosy(rejects="no images")
    with pytest.raises(InvalidRequestError, match="no images"):
        await make_sender([make_deployment()], {"gemini": provider}).send("hello")
    assert (store.demands, provider.calls) == ([], [])


async def test_a_provider_that_rejects_a_request_is_left_out(
    make_sender: MakeSender, near_and_far: list[Deployment], store: Noting
) -> None:
    """If one provider rejects a request, another serves it, and the first spends no quota."""
    near, far = Choosy(rejects="no images"), Choosy()
    sender = make_sender(near_and_far, {"near": near, "far": far})
    for _ in range(2):
        response = await sender.send("hello")
        assert (response.model, response.attempts) == ("model-f", 1)
    assert await used(store, near_and_far[0]) == [0, 0]
    assert (near.calls, near.estimated) == ([], [])


async def test_a_provider_is_left_out_for_one_request_only(
    make_sender: MakeSender, near_and_far: list[Deployment]
) -> None:
    """A provider that rejected one request is asked again about the next."""
    near = Choosy(rejects="no images")
    sender = make_sender(near_and_far, {"near": near, "far": Choosy()})
    assert (await sender.send("an image")).model == "model-f"
    near.rejects = ""
    assert (await sender.send("a word")).model == "model-n"
    assert [request.contents for request in near.validated] == ["an image", "a word"]


async def test_a_request_that_every_provider_rejects_is_raised(
    make_sender: MakeSender, near_and_far: list[Deployment], store: Noting
) -> None:
    """If all providers reject a request, the error of the first is raised before any quota is taken."""
    sender = make_sender(
        near_and_far, {"near": Choosy(rejects="no images"), "far": Choosy(rejects="no sound")}
    )
    with pytest.raises(InvalidRequestError, match="no images"):
        await sender.send("hello")
    with pytest.raises(InvalidRequestError, match="no sound"):
        await sender.send("hello", model_preference="model-f")
    assert store.demands == []


async def test_each_provider_makes_its_own_estimate(
    make_sender: MakeSender, near_and_far: list[Deployment], store: Noting
) -> None:
    """The largest estimate is reserved, and each count is compared with its own provider's estimate."""
    near, far = Choosy(tokens=30), Choosy(tokens=50)
    sender = make_sender(near_and_far, {"near": near, "far": far})
    await sender.send("hello")
    assert store.demands == [Demand(1, 50)]
    assert await used(store, near_and_far[0]) == [1, 30]
    assert [state.group.corrections[TEXT].factor for state in sender.judge.pool] == [1.0, 1.0]


async def test_a_provider_that_a_request_cannot_reach_is_not_asked(
    make_sender: MakeSender, near_and_far: list[Deployment]
) -> None:
    """A provider outside the fallback order neither validates nor estimates."""
    near, far = Choosy(rejects="no images"), Choosy(tokens=50)
    sender = make_sender(near_and_far, {"near": near, "far": far})
    response = await sender.send("hello", model_preference="model-f", fallback="none")
    assert response.model == "model-f"
    assert (near.validated, near.estimated) == ([], [])


async def test_a_failure_of_one_provider_leads_to_another(
    make_sender: MakeSender, near_and_far: list[Deployment]
) -> None:
    """If one provider fails, the next attempt may go to another."""
    near = Choosy()
    near.by_key[near_and_far[0].key.key_id] = deque([failure()])
    response = await make_sender(near_and_far, {"near": near, "far": Choosy()}).send("hello")
    assert [attempt.model for attempt in response.attempt_log] == ["model-n", "model-f"]
    assert response.success


# --- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": math.nan}, "timeout must be above 0 s"),
        ({"timeout": -1.0}, "timeout must be above 0 s"),
        ({"max_wait": math.nan}, "max_wait must be 0 s or more"),
        ({"workload": ["light"]}, "workload must be a string"),
        ({"model_preference": {}}, "model_preference must be a string"),
    ],
)
async def test_wrong_arguments_are_raised_before_quota_is_taken(
    make_sender: MakeSender,
    make_deployment: MakeDeployment,
    store: Noting,
    options: dict[str, Any],
    message: str,
) -> None:
    """A send and a stream raise for a wrong argument before any quota is taken."""
    sender = make_sender([make_deployment()])
    with pytest.raises(InvalidRequestError, match=message):
        await sender.send("hello", **options)
    with pytest.raises(InvalidRequestError, match=message):
        await anext(sender.stream("hello", **options))
    assert store.demands == []


async def test_infinite_bounds_are_allowed(
    make_sender: MakeSender, make_deployment: MakeDeployment, store: Noting
) -> None:
    """An infinite timeout or wait is the same as none."""
    response = await make_sender([make_deployment()]).send("hello", timeout=math.inf, max_wait=math.inf)
    assert response.success
    assert store.ttls == [UNBOUNDED_TTL]


async def test_a_closed_sender_sends_nothing(
    make_sender: MakeSender, make_deployment: MakeDeployment, provider: FakeProvider
) -> None:
    """A closed sender raises before it looks at the request."""
    sender = make_sender([make_deployment()])
    sender.closed = True
    with pytest.raises(RouterClosedError):
        await sender.send("")
    with pytest.raises(RouterClosedError):
        await anext(sender.stream(""))
    assert provider.calls == []

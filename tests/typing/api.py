"""The public API as programs use it: mypy checks this module, and nothing runs it.

Each ``assert_type`` is a promise to users' type checkers. Each ``type: ignore`` is an option that is misspelt
or wrong: since unused ones are errors, mypy must report it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, assert_type

from llm_router import (
    Attempt,
    Cache,
    CacheSavings,
    Candidate,
    Chunk,
    Conversation,
    Cooldown,
    DayTotals,
    Demand,
    Deployment,
    Exclusion,
    ExplainedCandidate,
    ExplainedQuota,
    ExplainedTier,
    Explanation,
    FactStatus,
    FailureStatus,
    Health,
    HistoryStore,
    Key,
    KeyManager,
    KeyStatus,
    LimitStatus,
    MemoryStore,
    Metric,
    ProviderError,
    Quota,
    RateLimitStore,
    Refill,
    Reply,
    Request,
    Response,
    Router,
    RouterOptions,
    Secret,
    SendError,
    SendOptions,
    Stream,
    Usage,
    get_key_manager,
    get_request_router,
    open_store,
)
from llm_router.conversations import Turn
from llm_router.observe import AttemptEnded, Event, PrometheusObserver
from llm_router.records import MemoryRecords
from llm_router.stores import Decision, DeploymentSnapshot, Taking
from llm_router.testing import Call, FakeProvider, ManualClock


class MyStore:
    """A store of a user: a class with the seven methods, without a base class."""

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        return Decision(candidates[0])

    async def settle(self, reservation_id: str, used: Demand) -> None: ...

    async def release(self, reservation_id: str) -> None: ...

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),
        since: float = 0.0,
    ) -> float:
        return 0.0

    async def cool_down(self, cooldown: Cooldown) -> None: ...

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        return []

    async def aclose(self) -> None: ...


class MyStrategy:
    """A strategy of a user."""

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        return sorted(candidates, key=lambda candidate: candidate.load)


class MyObserver:
    """An observer of a user."""

    def observe(self, event: Event) -> None:
        if isinstance(event, AttemptEnded):
            assert_type(event.deployment, Deployment)
            assert_type(event.tenant, str | None)


class MyProvider:
    """A provider of a user, which cannot stream."""

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        dispatched()
        assert_type(deployment.key.secret, Secret)
        return Reply(f"{deployment.key.secret.reveal()} {request.contents}", usage=Usage(input_tokens=1))

    def validate(self, request: Request) -> None: ...

    def estimate_tokens(self, request: Request) -> int:
        return 1

    async def aclose(self) -> None: ...


class MyStreamingProvider(MyProvider):
    """A provider of a user, which can stream."""

    async def stream(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        dispatched()
        yield Reply("a piece")


class MyHistories:
    """A history store of a user."""

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        return ()

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None: ...

    async def delete(self, conversation_id: str) -> None: ...


def deployments() -> list[Deployment]:
    """Make deployments by hand."""
    quotas = (Quota(Metric.RPM, 15), Quota(Metric.RPD, 500, Refill.DAILY))
    return [Deployment(Key("first", Secret("not-a-key")), "gemini-flash-latest", "light", quotas=quotas)]


def make_routers() -> None:
    """Make routers in every way."""
    store: RateLimitStore = MyStore()
    histories: HistoryStore = MyHistories()
    assert_type(Router(deployments()), Router)
    router = Router(
        deployments(),
        store=store,
        strategy=MyStrategy(),
        provider={"gemini": MyProvider(), "mine": MyStreamingProvider()},
        clock=ManualClock(),
        histories=histories,
        history_tokens={"light": 4_000},
        on_store_failure="closed",
    )
    assert_type(router.keys, KeyManager)
    assert_type(open_store("redis://localhost"), RateLimitStore)
    Router(deployments(), store="sqlite:///state.db", provider=FakeProvider())
    Router(deployments(), histories="redis://localhost", records=MemoryRecords(), cache=Cache("memory://"))
    Router(deployments(), cache=5)  # type: ignore[arg-type]
    Router(deployments(), store=MemoryStore(), max_retrys=1)  # type: ignore[call-arg]
    Router(deployments(), on_store_failure="close")  # type: ignore[arg-type]
    Router(deployments(), store=MyStrategy())  # type: ignore[arg-type]

    options: RouterOptions = {"max_retries": 5, "max_wait": 2.0}
    Router(deployments(), observers=[MyObserver()])
    Router(deployments(), observers=[MyStrategy()])  # type: ignore[list-item]
    assert_type(Router.from_config(), Router)
    assert_type(Router.from_config(Path("keys.json"), env={"API_KEY_first": "x"}, **options), Router)
    Router.from_config("keys.json", env_file=None, store=store, strategy=MyStrategy(), local_share=0.5)
    Router.from_config("keys.json", max_retrys=5)  # type: ignore[call-arg]
    Router.from_config("keys.json", max_wait="long")  # type: ignore[arg-type]
    assert_type(get_request_router(), Router)
    assert_type(get_key_manager(), KeyManager)


async def send(router: Router) -> None:
    """Send prompts, and read all fields of a response."""
    options: SendOptions = {"workload": "heavy", "fallback": "model", "timeout": None}
    async with router as entered:
        assert_type(entered, Router)
    response = await router.send("Hello", **options)
    assert_type(response, Response)
    assert_type(await router.send(Request(contents="Hello"), max_wait=5.0, temperature=0.2), Response)
    assert_type(await router.send("Hello", metadata={"tenant": "acme"}), Response)
    assert_type(await router.send("Hello", urgency="batch", tenant="acme"), Response)
    await router.send("Hello", urgency="soon")  # type: ignore[arg-type]
    assert_type(await PrometheusObserver().refresh(router.keys), None)
    await router.send("Hello", metadata={"tenant": 1})  # type: ignore[dict-item]
    await router.send("Hello", workloads="heavy")  # type: ignore[call-arg]
    await router.send("Hello", fallback="perhaps")  # type: ignore[arg-type]

    await router.send("Hello", cache="always")
    await router.send("Hello", cache="never")  # type: ignore[arg-type]

    assert_type(response.success, bool)
    assert_type(response.cached, bool)
    assert_type(await router.cache_savings(), CacheSavings)
    assert_type(response.text, str)
    assert_type(response.answer, str)
    assert_type(response.model, str | None)
    assert_type(response.key_id, str | None)
    assert_type(response.workload, str | None)
    assert_type(response.usage, Usage)
    assert_type(response.usage.total_tokens, int)
    assert_type(response.finish_reason, str | None)
    assert_type(response.attempts, int)
    assert_type(response.attempt_log, tuple[Attempt, ...])
    assert_type(response.latency, float)
    assert_type(response.waited, float)
    assert_type(response.error, SendError | None)
    assert_type(response.retry_after, float | None)
    assert_type(response.raw, Any)
    assert_type(response.content, Any)
    assert_type(response.raise_for_error(), Response)


async def stream(router: Router) -> None:
    """Read an answer while it comes."""
    async with router.stream("Hello", workload="light") as chunks:
        assert_type(chunks, Stream)
        async for chunk in chunks:
            assert_type(chunk, Chunk)
            assert_type(chunk.text, str)
        assert_type(await chunks.read(), Chunk | None)
        assert_type(await chunks.collect(), Response)
        assert_type(chunks.response, Response)
    router.stream("Hello", time_out=3)  # type: ignore[call-arg]


async def converse(router: Router) -> None:
    """Hold a conversation."""
    conversation = router.conversation("an id", workload="light", system_instruction="Be brief.")
    assert_type(conversation, Conversation)
    assert_type(conversation.id, str)
    assert_type(await conversation.send("Hello", temperature=1.0), Response)
    assert_type(conversation.stream("Hello"), Stream)
    assert_type(await conversation.history(), tuple[Any, ...])
    await conversation.clear()
    router.conversation("an id", system="Be brief.")  # type: ignore[call-arg]
    await conversation.send("Hello", system="Be brief.")  # type: ignore[call-arg]


async def look(router: Router) -> None:
    """Read the status of the keys and the health of the router."""
    assert_type(await router.health_check(), Health)
    statuses = await router.get_all_key_statuses()
    assert_type(statuses, list[KeyStatus])
    assert_type(await router.get_all_key_statuses(days=7), list[KeyStatus])
    assert_type((await router.keys.report(days=2)).keys, list[KeyStatus])
    assert_type(statuses[0]["limits"]["rpm"], LimitStatus)
    assert_type(statuses[0]["days"], list[DayTotals])
    assert_type(statuses[0]["failures"], list[FailureStatus])
    assert_type(statuses[0]["facts"], list[FactStatus])
    assert_type(statuses[0]["cooldown_remaining"], float | None)
    statuses[0]["rpm"]  # type: ignore[typeddict-item]
    assert_type(router.closed, bool)


async def explain(router: Router) -> None:
    """Ask where a send would go."""
    options: SendOptions = {"workload": "light", "fallback": "none"}
    explanation = await router.explain("Hello", **options)
    assert_type(explanation, Explanation)
    assert_type(explanation.tiers, tuple[ExplainedTier, ...])
    assert_type(explanation.taken, ExplainedCandidate | None)
    assert_type(explanation.retry_after, float | None)
    for candidate in explanation.candidates:
        assert_type(candidate.rank, int | None)
        assert_type(candidate.exclusion, Exclusion | None)
        assert_type(candidate.usable_in, float | None)
        assert_type(candidate.quotas, tuple[ExplainedQuota, ...])
        assert_type(candidate.quotas[0].remaining, float)
        assert_type(candidate.quotas[0].status["limit"], int | None)
    await router.explain("Hello", workloads="light")  # type: ignore[call-arg]


def script(provider: FakeProvider) -> None:
    """Script what a fake provider answers."""
    provider.script("an answer", Reply("another"), ProviderError("refused", kind="quota", code=429), times=2)
    provider.script(RuntimeError("a bug"), key_id="first")
    assert_type(provider.calls, list[Call])
    assert_type(provider.calls[0].key_id, str)
    provider.script(429)  # type: ignore[arg-type]
    provider.script("an answer", time=2)  # type: ignore[call-arg]

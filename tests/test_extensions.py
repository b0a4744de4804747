"""Providers, strategies and stores of the user that fail: a typed error names the method, nothing leaks."""

# What these tests pass is what the types forbid.
# mypy: disable-error-code="arg-type, override, operator"

from __future__ import annotations

import asyncio
import math
import re
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import (
    Candidate,
    ConfigError,
    Deployment,
    ExtensionError,
    InvalidRequestError,
    LLMRouterError,
    MemoryStore,
    Metric,
    ProviderError,
    Reply,
    Request,
    Router,
    Usage,
)
from llm_router.engine.index import FallbackOrder
from llm_router.observe import Event, SendEnded
from llm_router.stores import Decision
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


SECRET = "AIza-secret-of-key-1"


class OwnError(Exception):
    """An error of the user's own code."""


async def check_nothing_leaked(router: Router, used: Any) -> None:
    """Check that no reservation, no permit and no waiting request is left, and how much quota was used."""
    assert "0 reservations" in repr(router.keys.store)
    assert router._sender.selector._gate.busy == 0
    assert (await router.health_check())["waiting"] == 0
    assert (await router.get_all_key_statuses())[0]["rpm_usage"] == f"{used}/15"


async def fail(router: Router, *, streamed: bool = False) -> ExtensionError:
    """Send, and return the error, after checking that neither it nor its traceback shows a key."""

    async def stream() -> None:
        async with router.stream("x") as stream:
            await stream.collect()

    with pytest.raises(ExtensionError) as caught:
        await (stream() if streamed else router.send("x"))
    error = caught.value
    assert isinstance(error, LLMRouterError)
    assert isinstance(error, RuntimeError)
    dump = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert SECRET not in dump
    return error


# --- stores -------------------------------------------------------------------------------------------


class BrokenStore(MemoryStore):
    """A store one of whose methods raises, or returns something."""

    def __init__(self, method: str, outcome: object) -> None:
        super().__init__()
        self.method = method
        self.outcome = outcome

    def __getattribute__(self, name: str) -> Any:
        if name not in ("reserve", "settle", "release", "cool_down", "snapshot") or name != self.method:
            return super().__getattribute__(name)

        async def call(*_: object) -> object:
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

        return call


@pytest.mark.parametrize(
    ("outcome", "message", "behind"),
    [
        (
            OwnError(SECRET),
            r"\.reserve\(\) raised OwnError \(line \d+ of .*test_extensions\): ",
            False,
        ),
        (
            OwnError(SECRET),
            r"\.reserve\(\) raised OwnError \(line \d+ of .*test_extensions\): ",
            True,
        ),
        (None, r"\.reserve\(\) must return a Decision, not None", False),
        (42, r"\.reserve\(\) must return a Decision, not 42", False),
    ],
)
async def test_a_store_that_decides_nothing(
    pools: Pools, outcome: object, message: str, behind: bool
) -> None:
    """A typed error that names the class and the method, also of the store behind a failover store."""
    broken = BrokenStore("reserve", outcome)
    provider = FakeProvider()
    store = FailoverStore(broken) if behind else broken
    async with Router([pools.one()], store=store, provider=provider) as router:
        error = await fail(router)
        assert re.search(f"^BrokenStore{message}", str(error))
        assert router._sender.selector._gate.busy == 0
        assert provider.calls == []


@pytest.mark.parametrize("method", ["settle", "release", "cool_down", "snapshot"])
async def test_a_store_that_fails_after_an_answer_does_not_cost_it(
    pools: Pools, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Whatever it raises: the caller has the answer, and the log names the class and the method."""
    store = BrokenStore("nothing yet", OwnError(SECRET))
    provider = FakeProvider(
        [
            ProviderError("slow down", kind="quota", code=429, charged=False),
            ProviderError("overloaded", kind="server", code=503),
        ]
    )
    pool = [pools.one() for _ in range(4)]
    async with Router(pool, store=store, provider=provider, base_backoff=0.001) as router:
        store.method = method
        response = await router.send("hello")
    assert response.success
    assert f"BrokenStore.{method}() raised OwnError" in caplog.text or method == "snapshot"
    assert SECRET not in caplog.text


class NonsensicalStore(MemoryStore):
    """A store whose answers are changed before the router has them."""

    def __init__(self, method: str, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.method: str | None = method
        self.change = change

    async def reserve(self, *args: Any) -> Any:
        decision = await super().reserve(*args)
        return self.change(decision) if self.method == "reserve" else decision

    async def snapshot(self, *args: Any) -> Any:
        found = await super().snapshot(*args)
        return self.change(found) if self.method == "snapshot" else found


def refusal_with(**fields: Any) -> Callable[[Decision], Decision]:
    """Return what changes the first refusal of a decision."""

    def change(decision: Decision) -> Decision:
        refusals = tuple(attrs.evolve(each, **fields) for each in decision.refusals)
        return attrs.evolve(decision, refusals=refusals)

    return change


NONSENSE: list[tuple[Callable[[Any], Any], str]] = [
    (lambda each: attrs.evolve(each, refusals=None), "whose refusals are a tuple of Refusals, not None"),
    (lambda each: attrs.evolve(each, refusals=7), "whose refusals are a tuple of Refusals, not 7"),
    (
        lambda each: attrs.evolve(each, refusals=("no",)),
        "whose refusals are a tuple of Refusals, not a tuple",
    ),
    (lambda each: attrs.evolve(each, probes=[None]), "whose probes are a tuple of Cooldowns, not a list"),
    (lambda each: attrs.evolve(each, lifts=None), "whose lifts is a number, not None"),
    (lambda each: attrs.evolve(each, headroom="all"), "whose headroom is a number, not a str"),
    (lambda each: attrs.evolve(each, deployment="a"), "on a deployment that it was given, not a str"),
    (refusal_with(retry_at=None), "of deployments that it was given, with times, not a Refusal"),
    (refusal_with(wake_at=math.nan), "of deployments that it was given, with times, not a Refusal"),
    (refusal_with(deployment=None), "of deployments that it was given, with times, not a Refusal"),
    (refusal_with(cooldown="soon"), "of deployments that it was given, with times, not a Refusal"),
    (refusal_with(reason=None), "of deployments that it was given, with times, not a Refusal"),
]


@pytest.mark.parametrize(("change", "message"), NONSENSE, ids=[message for _, message in NONSENSE])
async def test_a_store_that_decides_nonsense(
    pools: Pools, change: Callable[[Any], Any], message: str
) -> None:
    """On a refusal as on a grant: an error that names class and method, and nothing is left reserved."""
    store = NonsensicalStore("reserve", change)
    async with Router([pools.one(rpm=0)], store=store, provider=FakeProvider()) as router:
        error = await fail(router)
        assert str(error).startswith("NonsensicalStore.reserve() must return a Decision ")
        assert message in str(error)
        assert "0 reservations" in repr(store)
        store.method = None
        assert not (await router.send("x")).success


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda _: None, "None"),
        (lambda _: 3, "3"),
        (lambda _: [], "a list"),
        (lambda found: [None, *found[1:]], "None"),
        (lambda found: [attrs.evolve(found[0], quotas=None), *found[1:]], "a DeploymentSnapshot"),
        (lambda found: [attrs.evolve(found[0], quotas=(1,)), *found[1:]], "a DeploymentSnapshot"),
        (lambda found: [attrs.evolve(found[0], cooldown="x"), *found[1:]], "a DeploymentSnapshot"),
        (lambda found: [attrs.evolve(found[0], deployment=None), *found[1:]], "a DeploymentSnapshot"),
    ],
)
async def test_a_store_that_shows_nonsense(pools: Pools, change: Callable[[Any], Any], found: str) -> None:
    """Whoever asks for a snapshot gets an error that names class and method; a health check tells of it."""
    deployment = pools.one(key_id="a")
    store = NonsensicalStore("snapshot", change)
    async with Router([deployment], store=store, provider=FakeProvider()) as router:
        keys = router.keys
        for ask in (
            keys.get_all_key_statuses,
            keys.snapshots,
            lambda: keys.statuses_of("a"),
            lambda: keys.lift("a"),
            lambda: keys.disable("a"),
            lambda: keys.enable("a"),
            lambda: keys.forget_limits("a"),
            lambda: router.explain("x"),
        ):
            with pytest.raises(ExtensionError) as caught:
                await ask()
            promise = "return a DeploymentSnapshot of each deployment"
            assert str(caught.value) == f"NonsensicalStore.snapshot() must {promise}, not {found}"
        health = await router.health_check()
        assert not health["store_ok"]
        assert "NonsensicalStore.snapshot() must" in health["problems"][0]
        assert (await router.send("x")).success


@pytest.mark.parametrize("method", ["snapshot", "cool_down"])
async def test_a_store_that_raises_when_keys_are_changed(pools: Pools, method: str) -> None:
    """Instead of its own error, whose text may hold a key, there is one that names class and method."""
    store = BrokenStore(method, OwnError(SECRET))
    async with Router([pools.one(key_id="a")], store=store, provider=FakeProvider()) as router:
        with pytest.raises(ExtensionError, match=rf"^BrokenStore\.{method}\(\) raised OwnError") as caught:
            await router.keys.disable("a")
        assert SECRET not in "".join(traceback.format_exception(caught.value))


# --- observers ----------------------------------------------------------------------------------------


class Wanting:
    """An observer that is asked what it wants."""

    def __init__(self, wants: Callable[[], Any]) -> None:
        self._wants = wants
        self.seen: list[Event] = []

    @property
    def wants(self) -> Any:
        return self._wants()

    def observe(self, event: Event) -> None:
        self.seen.append(event)


def refusing(error: BaseException) -> Callable[[], Any]:
    """Return what raises an error."""

    def wants() -> Any:
        raise error

    return wants


async def test_an_observer_that_cannot_say_what_it_wants(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """The router is not made; what the observer raised does not go further."""
    with pytest.raises(
        ConfigError, match=r"^observers: Wanting\.wants\(\) raised OwnError \(line "
    ) as caught:
        make_router([pools.one()], observers=[Wanting(refusing(OwnError(SECRET)))])
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_what_an_observer_wants_is_asked_once(make_router: Callable[..., Router], pools: Pools) -> None:
    """When the router is made: what it raises later can fail no request."""
    answers: list[Any] = [[SendEnded]]
    observer = Wanting(answers.pop)
    async with make_router([pools.one()], observers=[observer]) as router:
        assert (await router.send("x")).success
    assert [type(event) for event in observer.seen] == [SendEnded]


# --- providers ----------------------------------------------------------------------------------------


class Broken(FakeProvider):
    """A provider one of whose methods raises, with a key in its message, or returns something."""

    def __init__(self, method: Any, outcome: Any) -> None:
        super().__init__()
        self.method = method
        self.outcome = outcome

    def _fail(self, method: Any, otherwise: Any) -> Any:
        if method != self.method:
            return otherwise
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def validate(self, request: Request) -> None:
        self._fail("validate", None)

    def estimate_tokens(self, request: Request) -> Any:
        return self._fail("estimate_tokens", 1)

    async def prepare(self) -> None:
        self._fail("prepare", None)

    async def generate(self, deployment: Deployment, request: Request, dispatched: Callable[[], None]) -> Any:
        secret = deployment.key.secret.reveal()
        if self.method == "after dispatch":
            dispatched()
            raise OwnError(f"no answer for {secret}")
        return self._fail("generate", Reply("ok"))

    async def stream(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> AsyncIterator[Any]:
        secret = deployment.key.secret.reveal()
        if self.method == "later":
            yield Reply("a piece")
            raise OwnError(f"broke off for {secret}")
        yield self._fail("stream", Reply("ok"))


@pytest.mark.parametrize(
    ("method", "streamed", "used"),
    [
        ("validate", False, 0),
        ("validate", True, 0),
        ("estimate_tokens", False, 0),
        ("estimate_tokens", True, 0),
        ("prepare", False, 0),
        ("prepare", True, 0),
        ("generate", False, 1),
        ("stream", True, 1),
    ],
)
async def test_a_method_that_raises(
    make_router: Callable[..., Router], pools: Pools, method: str, streamed: bool, used: int
) -> None:
    """An error of a method's own becomes one that names class, method, type and line, and not its text."""
    provider = Broken(method, OwnError(f"no luck with {SECRET}"))
    async with make_router([pools.one(key_id="key-1")], provider=provider) as router:
        error = await fail(router, streamed=streamed)
        assert str(error).startswith(f"Broken.{method}() raised OwnError (line ")
        assert "test_extensions): it must not raise errors of its own" in str(error)
        assert error.__cause__ is error.__context__ is None
        await check_nothing_leaked(router, used)
        provider.method = None
        assert (await router.send("x")).success


@pytest.mark.parametrize(("method", "streamed"), [("after dispatch", False), ("later", True)])
async def test_a_call_that_fails_under_way(
    make_router: Callable[..., Router], pools: Pools, method: str, streamed: bool
) -> None:
    """After the request was dispatched, or a piece was read, the error is the same and the quota is used."""
    provider = Broken(method, None)
    async with make_router([pools.one(key_id="key-1")], provider=provider) as router:
        error = await fail(router, streamed=streamed)
        assert str(error).startswith(f"Broken.{'stream' if streamed else 'generate'}() raised OwnError")
        await check_nothing_leaked(router, 1)


async def test_a_provider_that_cannot_stream_is_blamed_for_what_it_was_asked(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """Where a stream falls back on generate(), generate() is named."""

    class Whole:
        def __init__(self, outcome: Any) -> None:
            self.outcome = outcome

        def validate(self, request: Request) -> None:
            pass

        def estimate_tokens(self, request: Request) -> int:
            return 1

        async def generate(
            self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
        ) -> Any:
            if self.outcome is OwnError:
                raise OwnError
            return self.outcome

        async def aclose(self) -> None:
            pass

    for outcome, words in ((OwnError, "raised OwnError"), (None, "must return a Reply, not None")):
        async with make_router([pools.one()], provider=Whole(outcome)) as router:
            assert f"Whole.generate() {words}" in str(await fail(router, streamed=True))
            await check_nothing_leaked(router, 1)


@pytest.mark.parametrize(
    ("outcome", "found"),
    [(None, "None"), ("text", "a str"), ({"text": "x"}, "a dict"), (0, "0"), (Usage(), "a Usage")],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_is_not_a_reply(
    make_router: Callable[..., Router], pools: Pools, outcome: Any, found: str, streamed: bool
) -> None:
    """None, or anything that is not a Reply, is an error and not a timeout or an empty answer."""
    method = "stream" if streamed else "generate"
    async with make_router([pools.one()], provider=Broken(method, outcome)) as router:
        error = await fail(router, streamed=streamed)
        verb = "yield" if streamed else "return"
        assert str(error) == f"Broken.{method}() must {verb} a Reply, not {found}"
        await check_nothing_leaked(router, 1)


@pytest.mark.parametrize("outcome", [None, "5", float("nan"), float("inf"), -1, True, 10**400, [1]])
async def test_an_estimate_that_is_not_a_number_of_tokens(
    make_router: Callable[..., Router], pools: Pools, outcome: Any
) -> None:
    """An estimate that cannot be reserved is an error, before anything is."""
    async with make_router([pools.one()], provider=Broken("estimate_tokens", outcome)) as router:
        error = await fail(router)
        assert "Broken.estimate_tokens() must return a number of tokens, at least 1, not" in str(error)
        await check_nothing_leaked(router, 0)


@pytest.mark.parametrize(("outcome", "tokens"), [(0, 1), (0.2, 1), (6.2, 7), (7, 7)])
async def test_an_estimate_is_rounded_up(
    make_router: Callable[..., Router], pools: Pools, outcome: float, tokens: int
) -> None:
    """An estimate below one token counts as one."""
    async with make_router([pools.one(tpm=100)], provider=Broken("estimate_tokens", outcome)) as router:
        assert (await router.send("x")).success
        assert (await router.get_all_key_statuses())[0]["tpm_usage"] == f"{tokens}/100"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "odd", [math.nan, math.inf, 1e305, 10**400, -3, True, Decimal(7), "7", None, 0.5, 7.0], ids=str
)
async def test_counts_that_are_no_number_of_tokens_count_as_not_given(
    make_router: Callable[..., Router], pools: Pools, odd: Any, *, streamed: bool
) -> None:
    """The answer is paid for: it is kept, its estimate counts, and so does everything else of that day."""
    deployment = pools.one(tpm=1_000)
    provider = FakeProvider([Reply("ok", usage=Usage(odd, odd, odd, odd, odd)), Reply("ok", usage=odd)])
    async with make_router([deployment], provider=provider) as router:
        used = []
        for _ in range(2):
            if streamed:
                async with router.stream("x") as stream:
                    response = await stream.collect()
            else:
                response = await router.send("x")
            assert response.text == "ok"
            used.append((await router.keys.snapshots())[0].quotas)
        [status] = await router.get_all_key_statuses()
    read = 7 if odd == 7.0 and isinstance(odd, float) else 0
    assert [quota.used for quota in used[0] if quota.metric is Metric.TPM] == [read or 1]
    today = status["today"]
    assert today is not None
    assert (today["requests"], today["input_tokens"], today["output_tokens"]) == (2, read, 2 * read)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reply_without_a_text(
    make_router: Callable[..., Router], pools: Pools, *, streamed: bool
) -> None:
    """A text that is none is a mistake of the provider."""
    async with make_router(
        [pools.one()], provider=Broken("stream" if streamed else "generate", Reply(None))
    ) as router:
        error = await fail(router, streamed=streamed)
    assert re.search(r"^Broken\.\w+\(\) must give a reply whose text is a str, not None", str(error))


@pytest.mark.parametrize("kind", ["coroutine", "list", "raises"])
async def test_a_stream_that_is_not_a_generator(
    make_router: Callable[..., Router], pools: Pools, kind: str
) -> None:
    """A stream() that returns something else than an async generator is named."""

    class Wrong(FakeProvider):
        def stream(
            self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
        ) -> Coroutine[Any, Any, Any] | list[Any]:
            if kind == "raises":
                raise OwnError
            return self._later() if kind == "coroutine" else [Reply("x")]

        async def _later(self) -> list[Any]:
            return [Reply("x")]

    async with make_router([pools.one()], provider=Wrong()) as router:
        error = str(await fail(router, streamed=True))
        if kind == "raises":
            assert error.startswith("Wrong.stream() raised OwnError")
        else:
            assert error == f"Wrong.stream() must be an async generator, not a {kind}"
        await check_nothing_leaked(router, 1)


async def test_a_stream_that_fails_when_it_is_closed(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """An error raised while a stream is left early is translated as well, and the quota is settled."""

    class Unclosable(FakeProvider):
        async def stream(
            self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
        ) -> AsyncIterator[Reply]:
            try:
                yield Reply("a", usage=Usage(input_tokens=3))
                yield Reply("b")
            finally:
                raise OwnError

    async with make_router([pools.one(tpm=100)], provider=Unclosable()) as router:
        with pytest.raises(ExtensionError, match=r"Unclosable\.stream\(\) raised OwnError"):
            async with router.stream("x") as stream:
                await stream.read()
        await check_nothing_leaked(router, 1)
        assert (await router.get_all_key_statuses())[0]["tpm_usage"] == "3/100"


async def test_an_unhashable_provider(make_router: Callable[..., Router], pools: Pools) -> None:
    """A provider that compares by value, and so cannot be hashed, is as good as any."""

    @attrs.define
    class Plain:
        calls: int = 0

        def validate(self, request: Request) -> None:
            pass

        def estimate_tokens(self, request: Request) -> int:
            return 1

        async def prepare(self) -> None:
            pass

        async def generate(
            self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
        ) -> Reply:
            self.calls += 1
            return Reply("ok")

        async def aclose(self) -> None:
            pass

    provider = Plain()
    assert Plain.__hash__ is None
    async with make_router([pools.one(), pools.one(provider="p")], provider=provider) as router:
        assert (await router.send("x")).success
        async with router.stream("x") as stream:
            assert (await stream.collect()).success
        assert (await router.health_check())["healthy"]
    assert provider.calls == 2


async def test_errors_of_the_tree_pass_as_they_are(make_router: Callable[..., Router], pools: Pools) -> None:
    """A provider may raise the errors that its protocol names; they are passed on."""
    for method in ("validate", "generate"):
        async with make_router(
            [pools.one()], provider=Broken(method, InvalidRequestError("too odd"))
        ) as router:
            with pytest.raises(InvalidRequestError, match="too odd"):
                await router.send("x")
            await check_nothing_leaked(router, 0)
    provider = Broken("generate", ProviderError("no", kind="request"))
    async with make_router([pools.one()], provider=provider) as router:
        response = await router.send("x")
        assert isinstance(response.error, ProviderError)


async def test_one_provider_that_fails_does_not_speak_for_another(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """Where a send may go to two providers, a bug in either is reported, and nothing is sent."""
    fine = FakeProvider()
    providers = {"good": fine, "bad": Broken("validate", OwnError())}
    deployments = [pools.one(provider="good"), pools.one(provider="bad")]
    async with make_router(deployments, provider=providers) as router:
        assert "Broken.validate() raised OwnError" in str(await fail(router))
        await check_nothing_leaked(router, 0)
    assert fine.calls == []


async def test_many_failing_calls_at_once_free_their_permits(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """The dispatch gate is not blocked by calls that fail before they dispatch."""
    provider = Broken("generate", OwnError())
    async with make_router([pools.one(rpm=1000)], provider=provider) as router:
        outcomes = await asyncio.gather(*(router.send("x") for _ in range(100)), return_exceptions=True)
        assert all(isinstance(outcome, ExtensionError) for outcome in outcomes)
        assert router._sender.selector._gate.busy == 0
        provider.method = None
        assert all(r.success for r in await asyncio.gather(*(router.send("x") for _ in range(100))))


# --- strategies ---------------------------------------------------------------------------------------


class Odd:
    """A strategy that does with the candidates what a function says."""

    def __init__(self, order: FallbackOrder) -> None:
        self._order = order

    def order(self, candidates: Sequence[Deployment]) -> Any:
        return self._order(candidates)


def raising(_candidates: Any) -> None:
    raise OwnError("cannot decide")


async def coroutine(candidates: Sequence[Deployment]) -> Sequence[Deployment]:
    return candidates


STRANGER = Candidate(None, 0, 1.0, 0)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("order", "found"),
    [
        (lambda _: None, "None"),
        (lambda candidates: candidates.sort(key=id), "None"),
        (lambda candidates: candidates[0], "a DeploymentState"),
        (lambda _: 5, "5"),
        (lambda candidates: [each.deployment for each in candidates], "a Deployment"),
        (lambda candidates: [*candidates, STRANGER], "a Candidate"),
        (lambda candidates: [*candidates, candidates[0]], "a DeploymentState"),
        (lambda candidates: list(range(len(candidates))), "0"),
        (lambda candidates: [None], "None"),
    ],
)
async def test_a_strategy_that_returns_what_it_must_not(
    make_router: Callable[..., Router],
    provider: FakeProvider,
    pools: Pools,
    order: Callable[..., Any],
    found: str,
    streamed: bool,
) -> None:
    """Nothing, or something that was not given, is an error that names the method, and nothing is sent."""
    async with make_router(pools.many(3), strategy=Odd(order)) as router:
        error = await fail(router, streamed=streamed)
        assert str(error) == (
            f"Odd.order() must return candidates that it was given, each once at most, not {found}"
        )
        await check_nothing_leaked(router, 0)
    assert provider.calls == []


async def test_a_strategy_that_raises(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """An error of a strategy is translated, and kept as the cause: a strategy is not given any secret."""
    async with make_router(pools.many(3), strategy=Odd(raising)) as router:
        error = await fail(router)
        assert str(error).startswith("Odd.order() raised OwnError (line ")
        assert isinstance(error.__cause__, OwnError)
        await check_nothing_leaked(router, 0)


async def test_a_strategy_that_is_a_coroutine(make_router: Callable[..., Router], pools: Pools) -> None:
    """An async order() is named, and not awaited."""
    async with make_router(pools.many(3), strategy=Odd(coroutine)) as router:
        assert "Odd.order() must return candidates" in str(await fail(router))
        await check_nothing_leaked(router, 0)


async def test_a_strategy_that_fails_beyond_the_shortlist(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """An error after a refusal, when further deployments are looked at, leaks nothing either."""
    calls = []

    def order(candidates: Sequence[Deployment]) -> Sequence[Deployment]:
        calls.append(len(candidates))
        if len(calls) > 2:
            raise OwnError
        return candidates

    async with make_router(pools.many(30, rpm=None, tpm=100), strategy=Odd(order)) as router:
        assert (await router.send("x")).success
        with pytest.raises(ExtensionError, match="OwnError"):
            await router.send("a " * 1_000)
        assert "0 reservations" in repr(router.keys.store)
        assert router._sender.selector._gate.busy == 0
    assert len(calls) == 3


async def test_a_strategy_that_fails_for_a_waiter(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A request that waits hears of the error; those behind it are not stuck."""
    broken = False

    def order(candidates: Sequence[Deployment]) -> Sequence[Deployment]:
        if broken:
            raise OwnError
        return candidates

    async with make_router([pools.one(rpm=1)], strategy=Odd(order)) as router:
        assert (await router.send("x")).success
        waiting = [asyncio.create_task(router.send("y", max_wait=200)) for _ in range(2)]
        await clock.advance(1)
        broken = True
        await clock.advance(61)
        assert [type(task.exception()) for task in waiting] == [ExtensionError] * 2
        broken = False
        assert (await router.send("z")).success


@pytest.mark.parametrize(
    "order",
    [
        lambda candidates: candidates,
        tuple,
        reversed,
        iter,
        lambda candidates: (each for each in candidates),
        lambda candidates: candidates[:1],
        lambda candidates: dict.fromkeys(candidates).keys(),
    ],
)
async def test_a_strategy_may_return_any_iterable(
    make_router: Callable[..., Router], pools: Pools, order: Any
) -> None:
    """A list, a tuple, an iterator of all candidates or of some is a good answer."""
    async with make_router(pools.many(3), strategy=Odd(order)) as router:
        assert (await router.send("x")).success


async def test_a_strategy_may_want_none_of_them(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """An empty order is an answer: nothing is sent, and waiting does not help."""
    async with make_router(pools.many(3), strategy=Odd(lambda _: [])) as router:
        response = await router.send("x", max_wait=100)
        assert (response.success, response.retry_after) == (False, None)
        await check_nothing_leaked(router, 0)
    assert provider.calls == []


def test_strategies_of_the_library_are_not_slowed_down(pools: Pools) -> None:
    """Only a strategy of the user is checked."""
    router = Router([pools.one()], provider=FakeProvider())
    assert type(router._sender.selector._strategy).__name__ == "LeastLoaded"

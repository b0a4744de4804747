"""What observers are given, and that they can neither break nor change a send."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import Mock

import pytest

from llm_router import (
    ConfigError,
    Demand,
    Deployment,
    ExtensionError,
    InvalidRequestError,
    Key,
    MemoryStore,
    ProviderError,
    Quota,
    QuotaExhaustedError,
    Response,
    Router,
    Secret,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llm_router.domain.quota import Metric
from llm_router.errors import QuotaViolation
from llm_router.observe import (
    AttemptBegan,
    AttemptEnded,
    CooledDown,
    Disabled,
    Event,
    Lifted,
    LimitLearnt,
    Quarantined,
    Refused,
    RequestEvent,
    ScopeEvent,
    SendBegan,
    SendEnded,
    Settled,
    StoreBack,
    StoreLost,
    Waited,
    Waiting,
)
from llm_router.stores import Decision
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]
E = TypeVar("E", bound=Event)


class Recorder:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


def minute_429(limit: int | None = None) -> ProviderError:
    violations = (QuotaViolation("rpm", limit),)
    return ProviderError(
        "spent", kind="quota", code=429, retry_delay=30, violations=violations, charged=False
    )


# --- the way of a request -----------------------------------------------------------------------------


async def test_a_plain_send_is_five_events(make_router: MakeRouter, pools: Pools, seen: Recorder) -> None:
    """They have the deployment, one request id, the wish, the metadata, the tokens and the times."""
    metadata = {"tenant": "acme", "feature": "search"}
    deployment = pools.one("model-a", "light")
    async with make_router([deployment], observers=[seen]) as router:
        response = await router.send(
            "one two three", workload="light", model_preference="models/model-a", metadata=metadata
        )
    assert seen.names == ["send_began", "attempt_began", "attempt_ended", "settled", "send_ended"]
    requests = seen.of(RequestEvent)
    assert len({event.request_id for event in requests}) == 1
    assert {event.workload for event in requests} == {"light"}
    assert {event.tenant for event in requests} == {"acme"}
    assert all(event.metadata == metadata for event in requests)
    [sent], [began] = seen.of(SendBegan), seen.of(AttemptBegan)
    assert (sent.requested_model, sent.streamed, sent.request.contents) == ("model-a", False, "one two three")
    assert (began.deployment, began.number, began.reserved) == (deployment, 1, 3)
    [ended], [settled], [done] = seen.of(AttemptEnded), seen.of(Settled), seen.of(SendEnded)
    assert (ended.error, ended.usage, ended.response_model) == (None, response.usage, "model-a")
    assert (settled.reserved, settled.used, settled.released) == (3, 3, False)
    assert (done.response, done.error, done.deployment) == (response, None, deployment)
    assert response.attempt_log[0].metadata == metadata


async def test_a_send_in_an_except_block_is_none_of_its_business(
    make_router: MakeRouter, pools: Pools, seen: Recorder
) -> None:
    """What its caller is handling when it asks, perhaps after another try, is not how the send ended."""
    async with make_router([pools.one()], observers=[seen]) as router:
        try:
            int("another provider fails")
        except ValueError:
            response = await router.send("x")
            async with router.stream("x") as stream:
                assert [chunk async for chunk in stream]
    assert [event.error for event in seen.of(SendEnded)] == [None, None]
    assert [event.response for event in seen.of(SendEnded)] == [response, stream.response]


async def test_a_probe_that_is_passed_on_cools_nothing_down(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, pools: Pools, seen: Recorder
) -> None:
    """The end of a wait is no event of its own: the next probe shows what it brings."""
    provider.script(minute_429(), ProviderError("wrong", kind="request", code=400))
    async with make_router([pools.one(rpm=None)], observers=[seen]) as router:
        assert not (await router.send("x")).success
        clock.shift(30)
        assert not (await router.send("x")).success
        assert (await router.send("x")).success
    assert [event.until - event.at for event in seen.of(CooledDown)] == [30]


async def test_a_refused_attempt_goes_elsewhere(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, seen: Recorder
) -> None:
    """A 429 releases the quota, cools the model down and shows its limit; the next attempt is the second."""
    provider.script(minute_429(limit=7))
    first, second = pools.one(priority=0), pools.one(priority=1)
    async with make_router([first, second], observers=[seen]) as router:
        assert (await router.send("x")).success
    assert seen.names == [
        *("send_began", "attempt_began", "attempt_ended", "settled", "limit_learnt", "cooled_down"),
        *("attempt_began", "attempt_ended", "settled", "send_ended"),
    ]
    assert [event.is_rate_limited for event in seen.of(AttemptEnded)] == [True, False]
    assert [event.number for event in seen.of(AttemptEnded)] == [1, 2]
    assert [event.released for event in seen.of(Settled)] == [True, False]
    [cooled], [learnt] = seen.of(CooledDown), seen.of(LimitLearnt)
    assert (cooled.deployment, cooled.scope, cooled.until - cooled.at) == (first, first.model_scope, 30)
    assert (learnt.deployment, learnt.metric, learnt.limit, learnt.source) == (first, "rpm", 7, "stated")


async def test_a_limit_is_learnt_once(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock, seen: Recorder
) -> None:
    """The same limit stated again is not reported; another one is, as is any after a lift."""
    async with make_router([pools.one(key_id="k", rpm=100)], observers=[seen], max_retries=0) as router:
        for limit in (7, 7, 8, 8):
            provider.script(minute_429(limit=limit))
            await router.send("x")
            clock.shift(31)
        await router.keys.lift("k")
        provider.script(minute_429(limit=8))
        await router.send("x")
    assert [event.limit for event in seen.of(LimitLearnt)] == [7, 8, 8]


async def test_what_is_only_counted_is_no_limit(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, seen: Recorder
) -> None:
    """A refusal names what nobody has set a limit for, and no number: no limit is known yet."""
    async with make_router([pools.one(rpm=None, tpm=100)], observers=[seen], max_retries=0) as router:
        provider.script(minute_429())
        await router.send("x")
        [status] = await router.get_all_key_statuses()
    assert (status["limits"]["rpm"]["limit"], status["limits"]["rpm"]["source"]) == (None, "unknown")
    assert seen.of(LimitLearnt) == []


async def test_waiting_in_line(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, seen: Recorder
) -> None:
    """A request that waits for quota says when it begins and how long it took, and what refused it."""
    deployment = pools.one(rpm=1)
    async with make_router([deployment], observers=[seen]) as router:
        await router.send("x")
        seen.events.clear()
        task = asyncio.create_task(router.send("y", max_wait=90))
        await clock.advance(61)
        assert (await task).success
    [began], [ended] = seen.of(Waiting), seen.of(Waited)
    assert (began.reason, ended.reason) == ("quota", "quota")
    assert ended.seconds == pytest.approx(60.3, abs=0.01)
    assert {(event.deployment, event.reason) for event in seen.of(Refused)} == {(deployment, "rpm")}
    assert seen.of(SendEnded)[0].waited == ended.seconds


async def test_nothing_has_room(make_router: MakeRouter, pools: Pools, seen: Recorder) -> None:
    """The last word on a request without room says when there will be some."""
    async with make_router([pools.one(rpm=1)], observers=[seen]) as router:
        await router.send("x")
        seen.events.clear()
        await router.send("y")
    assert seen.names == ["send_began", "refused", "refused", "send_ended"]
    last = seen.of(Refused)[-1]
    assert (last.deployment, last.reason) == (None, "nothing has room")
    assert last.retry_at - last.at == pytest.approx(60.3)
    assert isinstance(seen.of(SendEnded)[0].error, QuotaExhaustedError)


async def test_backing_off(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock, seen: Recorder
) -> None:
    """The pause after an overloaded model is a wait for another reason."""
    provider.script(ProviderError("overloaded", kind="server", code=503))
    async with make_router(pools.many(2), observers=[seen], base_backoff=2.0) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(3)
        assert (await task).success
    assert [event.reason for event in seen.of(Waited)] == ["backoff"]


async def test_an_overloaded_store_is_waited_for(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, seen: Recorder
) -> None:
    """The pause before a store is asked again is a wait, too."""

    class Slow(MemoryStore):
        slow = True

        async def reserve(self, *args: Any) -> Decision:
            if self.slow:
                self.slow = False
                raise StoreTimeoutError("no answer within 2 s")
            return await super().reserve(*args)

    async with make_router([pools.one()], store=Slow(clock=clock), observers=[seen]) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(5)
        assert (await task).success
    assert [event.reason for event in seen.of(Waited)] == ["store"]


async def test_a_stream(make_router: MakeRouter, pools: Pools, seen: Recorder) -> None:
    """A stream that is read to its end is reported like a send, before the response is read."""
    router = make_router([pools.one()], observers=[seen])
    async with router, router.stream("a b c", metadata={"tenant": "acme"}) as stream:
        await stream.collect()
        assert seen.names[-1] == "send_ended"
    assert seen.of(SendBegan)[0].streamed
    assert seen.of(SendEnded)[0].response is stream.response
    assert seen.of(AttemptEnded)[0].tenant == "acme"
    assert seen.of(AttemptEnded)[0].usage == stream.response.usage


async def test_a_stream_that_is_left_early(make_router: MakeRouter, pools: Pools, seen: Recorder) -> None:
    """The attempt and the send end with the reader, and the quota is settled."""
    async with make_router([pools.one()], observers=[seen]) as router, router.stream("a b c") as stream:
        await stream.read()
    assert seen.names == ["send_began", "attempt_began", "attempt_ended", "settled", "send_ended"]
    assert isinstance(seen.of(AttemptEnded)[0].error, GeneratorExit)
    assert isinstance(seen.of(SendEnded)[0].error, GeneratorExit)
    assert not seen.of(Settled)[0].released


async def test_a_cancelled_send(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, seen: Recorder, clock: ManualClock
) -> None:
    """Cancellation ends the attempt and the send, and the quota is settled."""
    provider.script(asyncio.Event())
    async with make_router([pools.one()], observers=[seen]) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.0)
        assert provider.calls
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen.names[-3:] == ["attempt_ended", "settled", "send_ended"]
    assert isinstance(seen.of(SendEnded)[0].error, asyncio.CancelledError)
    assert seen.of(SendEnded)[0].response is None


async def test_a_provider_with_a_bug(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, seen: Recorder
) -> None:
    """The error that the caller gets ends the attempt and the send, also that of a stream."""
    provider.script(RuntimeError("a bug"), RuntimeError("a bug"))
    async with make_router([pools.one()], observers=[seen]) as router:
        with pytest.raises(ExtensionError):
            await router.send("x")
        with pytest.raises(ExtensionError):
            async with router.stream("x"):
                pass
    assert [type(event.error) for event in seen.of(SendEnded)] == [ExtensionError] * 2
    assert [type(event.error) for event in seen.of(AttemptEnded)] == [ExtensionError] * 2


async def test_the_timeout(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock, seen: Recorder
) -> None:
    """An attempt that is cut off took as long as the attempt log says."""
    provider.script(asyncio.Event())
    async with make_router([pools.one()], observers=[seen]) as router:
        task = asyncio.create_task(router.send("x", timeout=5.0))
        await clock.advance(6)
        response = await task
    assert seen.of(AttemptEnded)[0].seconds == response.attempt_log[0].latency == 5.0
    assert seen.of(AttemptEnded)[0].error is response.error


# --- verdicts -----------------------------------------------------------------------------------------


async def test_a_quarantine_and_its_end(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock, seen: Recorder
) -> None:
    """A key that is called invalid is quarantined; the request that succeeds through it lifts that."""
    invalid = ProviderError("API key not valid", kind="key", code=400)
    provider.script(invalid, invalid)
    deployment = pools.one()
    async with make_router([deployment], observers=[seen], max_retries=0) as router:
        for seconds in (11, 86_401, 0):
            await router.send("x")
            clock.shift(seconds)
    assert [(event.strikes, event.until - event.at) for event in seen.of(Quarantined)] == [
        (1, 10),
        (2, 86400),
    ]
    [lifted] = seen.of(Lifted)
    assert (lifted.scope, lifted.deployment) == (deployment.key_scope, deployment)


async def test_what_is_done_by_hand(make_router: MakeRouter, pools: Pools, seen: Recorder) -> None:
    """Disabling, enabling and lifting are reported, with no deployment that was tried."""
    async with make_router([pools.one(key_id="k")], observers=[seen]) as router:
        await router.keys.disable("k", reason="rotated")
        await router.keys.enable("k")
        seen.events, by_hand = [], seen.events
        await router.keys.lift("k", "model-a")
    assert [(type(event), event.deployment) for event in by_hand if isinstance(event, Disabled | Lifted)] == [
        (Disabled, None),
        (Lifted, None),
    ]
    assert by_hand[0].fields()["reason"] == "disabled: rotated"
    assert seen.names == ["lifted"]


async def test_a_refusal_that_all_keys_get_lifts_what_it_imposed(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, seen: Recorder
) -> None:
    """Where several keys are forbidden at once, the quarantines of the first are ended again."""
    provider.script(*[ProviderError("forbidden", kind="key", code=403) for _ in range(3)])
    async with make_router(pools.many(3), observers=[seen], max_retries=2, base_backoff=0.0) as router:
        await router.send("x")
    assert len(seen.of(Quarantined)) == len(seen.of(Lifted)) == 2
    assert {event.scope for event in seen.of(Quarantined)} == {event.scope for event in seen.of(Lifted)}


async def test_a_replaced_secret_lifts(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, seen: Recorder
) -> None:
    """A quarantine of another credential is ended, and that is reported."""
    store = MemoryStore(clock=clock)

    def with_secret(secret: str) -> Deployment:
        return Deployment(Key("k", Secret(secret)), "model-a", quotas=(Quota(Metric.RPM, 10),))

    provider.script(ProviderError("API key not valid", kind="key", code=400))
    async with make_router([with_secret("old")], store=store, max_retries=0) as router:
        await router.send("x")
    async with make_router([with_secret("new")], store=store, observers=[seen]) as router:
        assert (await router.send("x")).success
    assert [event.deployment.key.secret.reveal() for event in seen.of(Lifted) if event.deployment] == ["new"]


# --- the store ----------------------------------------------------------------------------------------


class Flaky(MemoryStore):
    """A store that can be switched off."""

    down = False

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self._answer()
        return await super().reserve(reservation_id, candidates, demand, ttl)

    async def charge(self, *args: Any) -> float:
        self._answer()
        return await super().charge(*args)

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailableError("no answer within 2 s")


async def test_the_store_is_lost_and_back(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, seen: Recorder
) -> None:
    """Each is reported once, until the router is closed."""
    behind = Flaky(clock=clock)
    store = FailoverStore(behind, clock=clock)
    async with make_router([pools.one()], store=store, observers=[seen]) as router:
        behind.down = True
        for _ in range(3):
            await router.send("x")
        assert [event.reason for event in seen.of(StoreLost)] == ["no answer within 2 s"]
        clock.shift(10)
        behind.down = False
        async with asyncio.timeout(5):
            while store.trouble is not None:
                await router.send("x")
                await asyncio.sleep(0)
    assert [event.seconds for event in seen.of(StoreBack)] == [10]
    behind.down = True
    await store.reserve("late", [pools.one()], Demand(), 60)
    assert "on its own" in repr(store)
    assert len(seen.of(StoreLost)) == 1


async def test_a_store_may_stop_being_watched_twice(clock: ManualClock) -> None:
    """What ends a watch may be called again."""
    stop = FailoverStore(MemoryStore(clock=clock), clock=clock).watch(lambda _: None)
    stop()
    stop()


# --- observers ----------------------------------------------------------------------------------------


async def test_an_observer_cannot_break_a_send(
    make_router: MakeRouter, pools: Pools, seen: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """What it raises is logged once, without its text; the others get their events all the same."""

    class Broken:
        def observe(self, event: Event) -> None:
            raise ValueError(f"{event} AIza-text")

    class Cancelling:
        def observe(self, event: Event) -> None:
            raise asyncio.CancelledError

    class Late:
        async def observe(self, event: Event) -> None:
            await asyncio.sleep(1)

    observers: list[Any] = [Broken(), seen, Late(), Cancelling()]
    async with make_router([pools.one()], observers=observers) as router:
        for _ in range(2):
            assert (await router.send("x")).success
    assert len(seen.events) == 10
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    raised, returned, cancelled = messages
    assert "Cancelling.observe() raised CancelledError" in cancelled
    assert "Broken.observe() raised ValueError (line" in raised
    assert "AIza" not in raised
    assert "Late.observe() must return None (what it returns is not awaited), not a coroutine" in returned


class Choosy(Recorder):
    """Wants what an instance says."""

    def __init__(self, wants: Any) -> None:
        super().__init__()
        self.wants = wants


async def test_an_observer_may_want_some_events_only(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    seen: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets those, classes under them included; the others get theirs; what nobody wants is not made."""
    ends, cooled = Choosy({SendEnded}), Choosy((ScopeEvent, Settled))
    provider.script(minute_429())
    pool = [pools.one(priority=0), pools.one(priority=1)]
    async with make_router(pool, observers=[ends, seen, cooled]) as router:
        assert (await router.send("x")).success
    assert ends.events == seen.of(SendEnded)
    assert cooled.names == [each.name for each in seen.events if isinstance(each, ScopeEvent | Settled)]
    assert {"cooled_down", "settled"} <= set(cooled.names)

    async with make_router([pools.one()], observers=[ends]) as router:
        reporter = router._sender.reporter
        assert reporter is not None
        monkeypatch.setattr(reporter, "report", ends.observe)
        assert (await router.send("x")).success
    assert [type(each) for each in ends.events] == [SendEnded, SendEnded]


async def test_a_mock_is_given_every_event(make_router: MakeRouter, pools: Pools) -> None:
    """It has whatever is asked for, and yet does not say what it wants."""
    observer = Mock()
    observer.observe.return_value = None
    async with make_router([pools.one()], observers=[observer]) as router:
        await router.send("x")
    seen = [type(call.args[0]) for call in observer.observe.call_args_list]
    assert seen == [SendBegan, AttemptBegan, AttemptEnded, Settled, SendEnded]


@pytest.mark.parametrize("wants", [None, "SendEnded", [str], [None], SendEnded])
def test_what_an_observer_wants_are_classes_of_events(
    make_router: MakeRouter, pools: Pools, wants: object
) -> None:
    """Anything else is a mistake that is named."""
    with pytest.raises(ConfigError, match=r"what Choosy wants must be classes of events, such as"):
        make_router([pools.one()], observers=[Choosy(wants)])


@pytest.mark.parametrize("observer", [object(), print, Recorder], ids=["object", "function", "class"])
def test_something_that_does_not_observe_is_refused(
    make_router: MakeRouter, pools: Pools, observer: object
) -> None:
    """An object without the method, or a class instead of an object, is a mistake that is named."""
    with pytest.raises(ConfigError, match=r"an observer must have a method observe\(event\), unlike"):
        make_router([pools.one()], observers=[observer])


async def test_nothing_is_reported_to_nothing(make_router: MakeRouter, pools: Pools) -> None:
    """Without observers there is no reporter, and a request has no id."""
    async with make_router([pools.one()], observers=[]) as router:
        assert router._sender.reporter is None
        assert router.keys.reporter is None


async def test_no_event_shows_a_key_a_prompt_or_an_answer(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, seen: Recorder
) -> None:
    """Events can be printed; what contains prompt or answer has to be asked for by name."""
    provider.script(minute_429(limit=3), "the answer", ProviderError("bad: the prompt", kind="request"))
    async with make_router(pools.many(3), observers=[seen]) as router:
        for _ in range(2):
            await router.send("the prompt", system_instruction="the instruction")
        await router.keys.disable("key-1")
    fields = repr([event.fields() for event in seen.events])
    for hidden in ("AIza", "the prompt", "the answer", "the instruction"):
        assert hidden not in fields
    printed = repr([event for event in seen.events if getattr(event, "error", None) is None])
    for hidden in ("AIza", "the prompt", "the answer", "the instruction"):
        assert hidden not in printed


# --- metadata -----------------------------------------------------------------------------------------


async def test_metadata_reach_the_attempt_log_without_observers(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Each attempt has a copy of what the caller gave, and none has any if nothing was given."""
    given = {"tenant": "acme"}
    provider.script(minute_429())
    async with make_router(pools.many(2)) as router:
        response = await router.send("x", metadata=given)
        given["tenant"] = "changed"
        plain = await router.send("x")
        conversation = router.conversation("c", metadata={"feature": "chat"})
        turn: Response = await conversation.send("x")
    assert [attempt.metadata for attempt in response.attempt_log] == [{"tenant": "acme"}] * 2
    assert [attempt.metadata for attempt in plain.attempt_log] == [{}]
    assert turn.attempt_log[0].metadata == {"feature": "chat"}
    assert isinstance(hash(plain.attempt_log[0]), int)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("acme", "metadata must map names to strings, not be a str"),
        ({1: "x"}, "unlike 1"),
        ({"": "x"}, "unlike ''"),
        ({"a b": "x"}, "unlike 'a b'"),
        ({"a" * 65: "x"}, "1 to 64"),
        ({"tenant": 5}, "'tenant' must be a string of at most 256 characters, not a int"),
        ({"tenant": "x" * 257}, "not 257 characters"),
        ({f"n{n}": "x" for n in range(17)}, "16 entries at most, not 17"),
    ],
)
async def test_metadata_that_cannot_be_meant(
    make_router: MakeRouter, pools: Pools, metadata: Any, words: str
) -> None:
    """Metadata become labels: only a few short strings by plain names are taken."""
    async with make_router([pools.one()]) as router:
        with pytest.raises(InvalidRequestError, match=words):
            await router.send("x", metadata=metadata)


def test_never_is_a_time() -> None:
    """Fields of events are plain values, also those that have no end."""
    event = CooledDown(
        at=1.0,
        scope=Deployment(Key("k", Secret("s")), "m").key_scope,
        deployment=None,
        reason="",
        until=math.inf,
    )
    assert event.fields() == {
        "event": "cooled_down",
        "at": 1.0,
        "scope": "key:gemini:k",
        "reason": "",
        "until": math.inf,
    }

"""Send a request: attempt after attempt, until one is answered or no further one makes sense."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import attrs

from llm_router.domain.clock import Clock, monotonic, sleep
from llm_router.domain.deployment import plain_model
from llm_router.domain.exchange import Head
from llm_router.domain.kinds import FailureKind
from llm_router.domain.methods import GENERATE
from llm_router.domain.numbers import real
from llm_router.domain.options import SendOptions
from llm_router.domain.quota import MAX_LIMIT
from llm_router.domain.request import Fallback, Request, Urgency
from llm_router.domain.response import Attempt, Chunk, Response, Usage
from llm_router.engine.estimates import TEXT, kind_of, understood
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.index import FallbackOrder
from llm_router.engine.judging import Judge
from llm_router.engine.reporting import Reporter, waiting
from llm_router.engine.requests import (
    MAX_SECONDS,
    check_metadata,
    check_request,
    check_tenant,
    check_timeout,
    check_urgency,
    check_wait,
    has_alias,
    merge_requests,
    reject_wish,
    unalias,
    unknown_option,
)
from llm_router.engine.reserving import Lease, Selector
from llm_router.engine.resources import Resources
from llm_router.engine.retry import Next, RetryPolicy, Verdict
from llm_router.engine.search import Unsuitable
from llm_router.engine.shortage import explain_shortage, retry_after, store_failure
from llm_router.engine.state import SendState
from llm_router.engine.timing import Deadlines, finish
from llm_router.engine.totals import Totals
from llm_router.engine.upstream import Preparation, Upstream
from llm_router.engine.waiting import Shortage
from llm_router.errors import (
    BlockedError,
    DeadlineExceededError,
    EmptyAnswerError,
    ExtensionError,
    InvalidRequestError,
    LLMRouterError,
    ProviderError,
    QuotaExhaustedError,
    RouterClosedError,
    SendError,
    StoreError,
    StoreTimeoutError,
)
from llm_router.providers.base import RelayRequest, Reply
from llm_router.records.memory import MemoryRecords

__all__ = ["UNBOUNDED_TTL", "Sender", "estimate", "is_plain"]

_GRACE = 60.0
"""Seconds by which a reservation outlives the deadline of its send."""

UNBOUNDED_TTL = 3600.0
"""Seconds after which a reservation expires whose call may take any time."""

_MAX_TTL = 7 * 86_400.0
"""Longest life of a reservation in seconds, so that no store is given a time it cannot represent."""

_EVERY_PROVIDER: frozenset[str] = frozenset()
_END = Reply("")
_NO_ANSWER = Reply("", failed="NO_CANDIDATES")
_NO_USAGE = Usage()
_NO_METADATA: Mapping[str, str] = {}

_CERTAIN = 2**30 - 1
"""Tokens that a count certainly may have; every bit of the number is set."""


@attrs.define(eq=False)
class Sender:
    """Sends requests; :meth:`send`, :meth:`stream`, :meth:`relay` are three loops over the same attempts.

    Attributes:
        orders: The fallback order of each wish.
        preparation: What is to be done once, before the first request.
        selector: Grants leases.
        judge: Draws the consequences of failures.
        policy: Says how often to retry, and after how long.
        clock: Where time comes from.
        deadlines: Limits the calls.
        max_wait: Most seconds to wait for capacity, for callers that do not say.
        closed: Whether requests are no longer accepted.
        reporter: Reports to observers; None where nothing observes.
        resources: Which project the things belong to that exchanges have made.
        totals: Counts what each key does; None where nothing is counted.
        not_relaying: The names of the providers that exchanges are not relayed to.
        now: Reads the monotonic clock.
    """

    orders: FallbackOrders
    preparation: Preparation
    selector: Selector
    judge: Judge
    policy: RetryPolicy
    clock: Clock
    deadlines: Deadlines
    max_wait: float
    closed: bool = False
    reporter: Reporter | None = None
    resources: Resources = attrs.field(
        default=attrs.Factory(lambda made: Resources(MemoryRecords(clock=made.clock)), takes_self=True)
    )
    not_relaying: frozenset[str] = _EVERY_PROVIDER
    totals: Totals | None = None
    now: Callable[[], float] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.now = monotonic(self.clock)

    # --- the loops ------------------------------------------------------------------------------------

    async def send(self, prompt: Any, **options: Unpack[SendOptions]) -> Response:
        """Send until there is an answer, or no further attempt makes sense.

        Raises:
            InvalidRequestError: An argument is wrong, a provider finds that the request cannot be built, or
                a reload took away all that could serve it before an attempt was sent.
            RouterClosedError: The router is closed, or was before an attempt was sent.
            TypeError: There is no such option.
        """
        send = await self.begin("send", prompt, options)
        if self.reporter is not None:
            self.reporter.send_began(send, streamed=False)
        try:
            while send.response is None and (attempt := await self._next_attempt(send)) is not None:
                async with attempt:
                    await attempt.call()
        except BaseException as error:
            if self.reporter is not None:
                self.reporter.send_ended(send, error)
            raise
        if self.reporter is not None:
            self.reporter.send_ended(send)
        assert send.response is not None  # noqa: S101 - whatever ends the loop has given it one
        return send.response

    async def stream(self, prompt: Any, **options: Unpack[SendOptions]) -> AsyncGenerator[Chunk | Response]:
        """Yield the pieces of an answer as they come, and last of all the response.

        Another deployment is tried as long as no piece was yielded. Closing the generator aborts the call
        that is open, and settles what is known to be used.

        Raises:
            InvalidRequestError: As for :meth:`send`.
            RouterClosedError: As for :meth:`send`.
            TypeError: As for :meth:`send`.
        """
        send = await self.begin("stream", prompt, options)
        send.ttl = max(send.ttl, UNBOUNDED_TTL)
        send.task = None  # each piece may be read by another one
        if self.reporter is not None:
            self.reporter.send_began(send, streamed=True)
        try:
            while send.response is None and (attempt := await self._next_attempt(send)) is not None:
                async with attempt:
                    while (piece := await attempt.read()) is not None:
                        yield Chunk(piece.text, piece.source)
        except BaseException as error:
            if self.reporter is not None:
                self.reporter.send_ended(send, error)
            raise
        if self.reporter is not None:
            self.reporter.send_ended(send)
        assert send.response is not None  # noqa: S101 - as above
        yield send.response

    async def relay(self, send: SendState) -> AsyncGenerator[Head | bytes | Response]:
        """Yield the head and the bytes of the answer to an exchange, and last of all the response.

        Another deployment is tried as long as the head was not yielded. Closing the generator aborts the call
        that is open, and settles what is known to be used.
        """
        if self.reporter is not None:
            self.reporter.send_began(send, streamed=True)
        try:
            while send.response is None and (attempt := await self._next_attempt(send)) is not None:
                async with attempt:
                    while (piece := await attempt.read()) is not None:
                        found = piece.source
                        if isinstance(found, Head) and (found.created or found.deleted or found.further):
                            await self._note_resources(send, found)
                        yield found
                        if isinstance(found, Head) and found.body is not None:
                            yield found.body
                            attempt.end()
                            break
        except BaseException as error:
            if self.reporter is not None:
                self.reporter.send_ended(send, error)
            raise
        if self.reporter is not None:
            self.reporter.send_ended(send)
        assert send.response is not None  # noqa: S101 - as above
        yield send.response

    # --- before the first attempt ---------------------------------------------------------------------

    def begin(self, method: str, prompt: Any, options: SendOptions) -> Awaitable[SendState]:
        """Check what is asked of ``method``, and return its state before the first attempt.

        Raises:
            InvalidRequestError: As for :meth:`send`.
            RouterClosedError: As for :meth:`send`.
            TypeError: As for :meth:`send`.
        """
        try:
            return self._start(prompt, **options)  # type: ignore[misc] # other names do not bind: see below
        except TypeError:  # in binding the arguments: nothing of it has run yet
            if "cache" in options:  # which is the business of a cache, and there is none
                options = {**options}
                del options["cache"]
                return self.begin(method, prompt, options)
            if not has_alias(options):
                raise unknown_option(method, options) from None
            return self.begin(method, *unalias(prompt, options))

    async def begin_relay(
        self,
        relayed: RelayRequest,
        *,
        workload: str | None = None,
        model_preference: str | None = None,
        fallback: Fallback | None = None,
        timeout: float | None = 60.0,
        max_wait: float | None = None,
        metadata: Mapping[str, str] | None = None,
        urgency: Urgency = "interactive",
        tenant: str | None = None,
    ) -> SendState:
        """Return the state of an exchange before the first attempt.

        Raises:
            InvalidRequestError: As for :meth:`send`.
            RouterClosedError: As for :meth:`send`.
        """
        model = model_preference or relayed.model or None
        if isinstance(model, str):
            model = plain_model(model) or None
        if fallback is None:
            fallback = "model" if model is not None else "any"
        if not relayed.is_portable and fallback == "any":
            fallback = "model"
        self._enter()
        if self.preparation.is_due:
            await self.preparation.run()
        limit = math.inf if timeout is None else check_timeout(timeout)
        wait = self.max_wait if max_wait is None else check_wait(max_wait)
        words = _NO_METADATA if metadata is None else check_metadata(metadata)
        order = self._relaying_order(workload or relayed.workload, model, fallback, relayed.method)
        tokens = dict.fromkeys(order.upstreams, 1)
        if relayed.requests:
            tokens = {each: estimate(each, relayed.request, validate=False) for each in order.upstreams}
        ttl = min(limit + _GRACE, _MAX_TTL) if limit < math.inf else UNBOUNDED_TTL
        ttl = max(ttl, UNBOUNDED_TTL) if relayed.streams else ttl
        projects = await self.resources.projects(relayed.resources) if relayed.resources else frozenset()
        began = self.now()
        send = SendState(relayed.request, order, tokens, limit, wait, ttl, began, None, model, words)
        send.relayed, send.requests, send.projects = relayed, relayed.requests, projects
        send.kind = kind_of(relayed.request.contents)
        if self.judge.pool.features_until:
            self._heed_features(send)
        if urgency != "interactive" or tenant is not None:
            send.urgency, send.tenant = check_urgency(urgency), check_tenant(tenant)
        return send

    async def _note_resources(self, send: SendState, head: Head) -> None:
        """Remember whose what the answer has made is, before the client can ask for it."""
        assert send.last is not None  # noqa: S101 - it is what answers
        for name in filter(None, (head.created, *head.further)):
            await self.resources.remember(name, send.last.deployment.key.project)
        if head.deleted:
            await self.resources.forget(head.deleted)

    def check_wish(self, workload: str | None, model: str | None, method: str) -> None:
        """Check that there is what an exchange is to name, before it is made; and that one may begin now.

        Raises:
            InvalidRequestError: As for :meth:`send`, or no deployment can do ``method``.
            RouterClosedError: The router is closed.
            RouterLoopError: The router works on another event loop.
        """
        self._enter()
        self._relaying_order(workload, model, "any", method)

    def _relaying_order(
        self, workload: str | None, model: str | None, fallback: Fallback, method: str
    ) -> FallbackOrder:
        try:
            return self.orders[workload, model, fallback, self.not_relaying, method]
        except TypeError:  # as in _start
            reject_wish(workload, model, fallback)

    def check_open(self) -> None:
        """Check that requests are still accepted.

        Raises:
            RouterClosedError: They are not.
        """
        if self.closed:
            raise RouterClosedError("this router is closed: make a new one")

    def enter(self) -> None:
        """Begin something other than a request on the running loop.

        Raises:
            RouterClosedError: The router is closed.
            RouterLoopError: The router works on another event loop.
        """
        self.check_open()
        self.deadlines.enter_loop()

    def _enter(self) -> asyncio.Task[Any] | None:
        """Begin a request on the running loop; return the task that makes it, if there is one."""
        if self.closed:
            self.check_open()
        task = asyncio.current_task()
        loop = asyncio.get_running_loop() if task is None else task.get_loop()
        if loop is not self.deadlines.loop:
            self.deadlines.adopt(loop)
        return task

    async def _start(
        self,
        prompt: Any,
        *,
        workload: str | None = None,
        model_preference: str | None = None,
        max_output_tokens: int | None = None,
        system_instruction: Any = None,
        temperature: float | None = None,
        config: Any = None,
        safety_settings: Mapping[str, str] | None = None,
        fallback: Fallback = "any",
        timeout: float | None = 60.0,
        max_wait: float | None = None,
        metadata: Mapping[str, str] | None = None,
        urgency: Urgency = "interactive",
        tenant: str | None = None,
    ) -> SendState:
        """Check what is asked for, and find out where to look for a deployment."""
        task = self._enter()
        if self.preparation.is_due:
            await self.preparation.run()
        request = Request(
            contents=prompt,
            max_output_tokens=max_output_tokens,
            system_instruction=system_instruction,
            temperature=temperature,
            config=config,
            safety_settings=safety_settings,
        )
        if isinstance(prompt, Request):
            request = merge_requests(prompt, request)
            check_request(request)
        elif not prompt or not (max_output_tokens is temperature is config is safety_settings is None):
            check_request(request)
        if timeout.__class__ is float and 0 < timeout <= MAX_SECONDS:
            limit = timeout
        else:
            limit = math.inf if timeout is None else check_timeout(timeout)
        wait = self.max_wait if max_wait is None else check_wait(max_wait)
        words = _NO_METADATA if metadata is None else check_metadata(metadata)
        if model_preference is not None and isinstance(model_preference, str):
            model_preference = plain_model(model_preference)
        try:
            order = self.orders[workload, model_preference, fallback, _EVERY_PROVIDER, GENERATE]
        except TypeError:  # what was given is not hashable
            reject_wish(workload, model_preference, fallback)
        if len(order.upstreams) == 1:
            upstream = order.upstreams[0]
            tokens = {upstream: estimate(upstream, request)}
        else:
            tokens = _estimates(order.upstreams, request)
            rejecting = frozenset(each.name for each in order.upstreams if each not in tokens)
            order = self.orders[workload, model_preference, fallback, rejecting, GENERATE]
        ttl = min(limit + _GRACE, _MAX_TTL) if limit < math.inf else UNBOUNDED_TTL
        send = SendState(request, order, tokens, limit, wait, ttl, self.now(), task, model_preference, words)
        send.kind = TEXT if prompt.__class__ is str else kind_of(request.contents)
        if self.judge.pool.features_until:
            self._heed_features(send)
        if urgency != "interactive" or tenant is not None:
            send.urgency, send.tenant = check_urgency(urgency), check_tenant(tenant)
        return send

    def _heed_features(self, send: SendState) -> None:
        """Look which features a request uses, if some project has no quota for one now."""
        pool = self.judge.pool
        if pool.features_until <= self.clock.time():
            pool.features_until = 0.0
            return
        send.features = frozenset().union(*(each.features(send.request) for each in send.order.upstreams))
        feature = "" if send.relayed is None else send.relayed.feature
        # Where all of them lack it, the provider is to say what is wrong.
        if feature and not _all_lack(send, frozenset({feature}), self.clock.time()):
            send.features |= {feature}

    # --- between attempts -----------------------------------------------------------------------------

    async def _next_attempt(self, send: SendState) -> OpenAttempt | None:
        """Return an attempt with a lease; or None, having given the send its response, if there is none."""
        if send.backoff > 0:
            with waiting(self.reporter, send, "backoff"):
                await sleep(self.clock, send.backoff)
        asked = self.now()
        max_wait = send.max_wait - send.waited
        if send.attempts:
            # A retry may sit out the short cooldown that its own failure caused.
            backoff = self.policy.ceiling(len(send.attempts))
            max_wait = max(max_wait, min(backoff, _time_left(send, asked)))
        try:
            outcome = await self._acquire(send, max_wait)
        except StoreError as error:
            _fail(send, store_failure(error), self.now())
            return None
        except QuotaExhaustedError as error:
            _fail(send, error.with_traceback(None), self.now())
            return None
        now = self.now()
        send.waited += now - asked
        if isinstance(outcome, Lease):
            return OpenAttempt(self, send, outcome)
        if not send.order.groups and await self._reroute(send):
            return await self._next_attempt(send)
        at = self.clock.time()
        if self.reporter is not None:
            self.reporter.nothing_has_room(send, outcome.retry_at, at)
        _fail(send, explain_shortage(send.order, send.error, outcome, at), now)
        return None

    async def _reroute(self, send: SendState) -> bool:
        """Find another order for a request whose own a reload has emptied; return whether there is one.

        Raises:
            InvalidRequestError: There is none, and no failure of the request says more.
        """
        if self.preparation.is_due:
            await self.preparation.run()
        try:
            order = self.orders.again(send.order)
            rejections = self._estimate_on(order, send)
            if len(rejections) == len(order.upstreams):
                raise next(iter(rejections.values()))
            if rejections:
                order = self.orders.again(order, frozenset(rejections))
        except InvalidRequestError:
            if send.error is None:
                raise
            return False
        send.order, send.backoff = order, 0.0
        return True

    def _estimate_on(self, order: FallbackOrder, send: SendState) -> dict[str, InvalidRequestError]:
        """Estimate the tokens on providers that a request was not made for; return who rejects it, why."""
        rejections: dict[str, InvalidRequestError] = {}
        for upstream in order.upstreams:
            if upstream not in send.tokens:
                try:
                    send.tokens[upstream] = estimate(upstream, send.request, validate=send.relayed is None)
                except InvalidRequestError as error:
                    rejections[upstream.name] = error
        return rejections

    async def _acquire(self, send: SendState, max_wait: float) -> Lease | Shortage:
        """Acquire a lease, and try again a little later where the store is overloaded.

        Raises:
            StoreError: The store failed, or stays overloaded.
            QuotaExhaustedError: The throttle does not let the request pass in time.
        """
        for tries in itertools.count(1):
            try:
                return await self.selector.acquire(send, max_wait)
            except StoreTimeoutError:
                backoff = self.policy.backoff(tries)
                if tries > self.policy.max_retries or backoff >= _time_left(send, self.now()):
                    raise
            with waiting(self.reporter, send, "store"):
                await sleep(self.clock, backoff)
        raise AssertionError("count() has no end")


class OpenAttempt:
    """One call to a provider under way: holds the lease, makes the call, settles, records, judges.

    It is an asynchronous context manager; inside it either :meth:`call` or :meth:`read` is used. However it
    is left, its quota is settled or released. Left without an exception, its outcome is recorded and judged:
    either the send then has its response, or another attempt is to be made.

    Args:
        sender: The sender.
        send: The request.
        lease: The quota taken for this attempt.
    """

    __slots__ = ("_began", "_latency", "_lease", "_outcome", "_replies", "_send", "_sender", "_texts")

    def __init__(self, sender: Sender, send: SendState, lease: Lease) -> None:
        self._sender = sender
        self._send = send
        self._lease = lease
        self._outcome: Reply | SendError = _END
        self._texts: list[str] = []
        self._replies: AsyncGenerator[Reply] | None = None
        self._latency = 0.0

    async def __aenter__(self) -> Self:
        send, lease = self._send, self._lease
        send.last = lease.state
        send.tried.add(lease.state)
        lease.mark_sent()
        self._began = self._sender.now()
        if (reporter := self._sender.reporter) is not None:
            reporter.attempt_began(send, lease.state.deployment, lease.demand)
        return self

    async def call(self) -> None:
        """Make the call, and wait for the whole answer."""
        send, lease = self._send, self._lease
        provider = lease.state.group.upstream.provider
        answer = provider.generate(lease.state.deployment, send.request, lease.mark_dispatched)
        self._finish(await self._bound(answer, _time_left(send, self._began)))

    async def read(self) -> Reply | None:
        """Return the next piece of the answer, or None after the last one or a failure."""
        send, lease = self._send, self._lease
        if self._replies is None:
            upstream, deployment = lease.state.group.upstream, lease.state.deployment
            if send.relayed is None:
                self._replies = upstream.stream(deployment, send.request, lease.mark_dispatched)
            else:
                self._replies = upstream.relay(deployment, send.relayed, lease.mark_dispatched)
        seconds = send.timeout if self._texts else _time_left(send, self._began)
        outcome = await self._bound(anext(self._replies, _END), seconds)
        if outcome is _END or isinstance(outcome, SendError):
            self._finish(self._whole_answer() if outcome is _END else outcome)
            return None
        if not isinstance(outcome, Reply):
            raise lease.state.group.upstream.no_reply(outcome, streamed=True)
        lease.mark_dispatched()
        self._outcome = outcome
        self._texts.append(outcome.text)
        self._count(outcome)  # in case the caller reads no further
        return outcome

    def end(self) -> None:
        """Take what was read for the whole answer."""
        self._finish(self._whole_answer())

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._replies is None:
                await self._settle(exc)
            else:
                await self._end_stream(self._replies, exc)
            if exc_type is None:
                self._record()
                if isinstance(self._outcome, ProviderError):
                    await self._judge(self._outcome)
                elif self._lease.probes or self._lease.is_last or self._lease.state.group.overload.failed:
                    await self._acquit()
        except asyncio.CancelledError:
            await self._break_off()
            raise
        if exc_type is not None:
            await self._break_off()

    def _settle(self, raised: BaseException | None) -> Awaitable[None]:
        """Count the request; return what settles or releases its quota."""
        lease, outcome = self._lease, self._outcome
        if not lease.is_dispatched:
            self._notice_unsent(raised)
        totals = self._sender.totals
        # Unless nothing was sent, or it is of a kind that is not counted.
        if totals is not None and self._send.requests and (outcome is not _END or lease.used.requests):
            totals.count(lease.state.deployment, outcome)
        if (reporter := self._sender.reporter) is None:
            return lease.close()
        return self._close_reported(reporter, raised)

    async def _end_stream(self, replies: AsyncGenerator[Reply], raised: BaseException | None) -> None:
        """Close the stream, and settle or release the quota."""
        try:
            await self._lease.state.group.upstream.close(replies)
        finally:
            await self._settle(raised)

    # --- the call -------------------------------------------------------------------------------------

    async def _bound(self, answer: Awaitable[Reply], seconds: float) -> Reply | SendError:
        """Wait at most ``seconds`` for an answer, and return it or its failure.

        Raises:
            InvalidRequestError: The provider finds that the request cannot be built.
            ExtensionError: The provider raised an error of its own, or gave None.
        """
        outcome: Reply | SendError | None = None
        failure: ExtensionError | None = None
        with self._sender.deadlines.limit(seconds, self._send.task) as limit:
            try:
                outcome = await answer
            except ProviderError as error:
                outcome = error.with_traceback(None)
                if not error.charged:
                    self._mark_unsent()
            except InvalidRequestError:
                self._mark_unsent()
                raise
            except LLMRouterError:
                raise
            except Exception as error:  # noqa: BLE001 - a bug in the provider, after which quota is settled
                upstream = self._lease.state.group.upstream
                failure = upstream.own_error(error, streamed=self._replies is not None)
        if failure is not None:
            raise failure  # from here, so that it does not refer to the other one
        if outcome is None:
            if not limit.expired:
                raise self._lease.state.group.upstream.no_reply(None, streamed=self._replies is not None)
            self._lease.state.failures += 1
            outcome = DeadlineExceededError(
                f"no answer within timeout={self._send.timeout:g} s: allow more, or ask for a shorter answer"
            )
            sender = self._sender
            sender.judge.failures.note(self._lease.state.deployment, outcome, sender.clock.time())
        if is_plain(outcome) or not isinstance(outcome, Reply):
            return outcome
        return self._checked(outcome)

    def _checked(self, reply: Reply) -> Reply:
        text: object = reply.text
        if not isinstance(text, str):
            raise self._lease.state.group.upstream.no_text(text, streamed=self._replies is not None)
        return understood(reply)

    def _notice_unsent(self, raised: BaseException | None) -> None:
        """Give the quota back of an attempt that was given up before it left, if that is certain."""
        is_over = raised is None and not isinstance(self._outcome, DeadlineExceededError)
        # After a bug of the provider nothing is certain.
        if is_over or isinstance(raised, Exception) or self._texts:
            return
        if self._lease.state.group.upstream.reports_dispatch:
            self._lease.mark_unsent()

    def _mark_unsent(self) -> None:
        if not self._texts:  # a piece that came shows that the request arrived, whatever the failure says
            self._lease.mark_unsent()

    def _whole_answer(self) -> Reply:
        outcome = self._outcome
        assert isinstance(outcome, Reply)  # noqa: S101 - a failure ends the reading
        if not self._texts:  # a stream that yields nothing is not an answer
            return _NO_ANSWER
        text = "".join(self._texts)
        return outcome if text == outcome.text else attrs.evolve(outcome, text=text)

    def _finish(self, outcome: Reply | SendError) -> None:
        """Note what came of the call, and learn from an answer."""
        self._outcome = outcome
        self._latency = self._sender.now() - self._began
        if isinstance(outcome, Reply):
            state = self._lease.state
            group = state.group
            if self._send.requests or state.deployment not in group.overload.failed:
                state.failures = 0
            if not group.breaker.is_clear:
                group.breaker.record_success()
            counted, estimate = self._count(outcome), self._send.tokens[group.upstream]
            correction = group.corrections[self._send.kind]
            if counted and self._send.requests and counted != estimate * correction.factor:
                correction.learn(estimate, counted)
        elif not isinstance(outcome, SendError):
            raise self._lease.state.group.upstream.no_reply(outcome, streamed=False)

    def _count(self, reply: Reply) -> int:
        """Have the lease settled with the input tokens that ``reply`` reports; return them, 0 if none."""
        tokens = 0 if reply.usage is None else reply.usage.input_tokens
        if tokens <= 0:
            return 0
        if self._send.requests:
            self._lease.settle_at(tokens)
        return tokens

    # --- after the call -------------------------------------------------------------------------------

    async def _close_reported(self, reporter: Reporter, raised: BaseException | None) -> None:
        """Settle or release the quota, and report that the attempt ended, perhaps by ``raised``."""
        lease, deployment = self._lease, self._lease.state.deployment
        seconds = self._latency or self._sender.now() - self._began
        reporter.attempt_ended(self._send, deployment, seconds, self._outcome, raised)
        try:
            await lease.close()
        finally:
            reporter.settled(self._send, deployment, lease.demand, lease.used)

    def _record(self) -> None:
        """Record the attempt; give the send its response, unless a failure is still to be judged."""
        send, outcome, lease = self._send, self._outcome, self._lease
        error = outcome if isinstance(outcome, SendError) else None
        deployment = lease.state.deployment
        send.attempts.append(
            Attempt(
                deployment.key.key_id,
                deployment.model,
                self._latency,
                error,
                send.metadata,
                deployment.priority,
                lease.demand.tokens,
                lease.headroom,
                lease.daily_headroom,
                lease.passed_over,
            )
        )
        if isinstance(outcome, Reply):
            blocked = outcome.blocked
            if blocked is not None:
                error = BlockedError(f"the provider blocked this: {blocked}", reason=blocked)
            elif outcome.failed is not None:
                error = EmptyAnswerError(
                    f"the answer is not usable: {outcome.failed}", reason=outcome.failed, text=outcome.text
                )
            send.response = _respond(send, outcome, error, self._sender.now())
        elif not isinstance(outcome, ProviderError):
            _fail(send, outcome, self._sender.now())

    async def _acquit(self) -> None:
        """Draw the consequences of an answer: what it shows to be usable, or to admit more."""
        lease, judge = self._lease, self._sender.judge
        if not isinstance(self._outcome, Reply):
            await judge.pass_on(lease.probes, lease.state, self._began)
            return
        await self._clear()
        if lease.is_last and self._sender.clock.time() >= lease.state.limits_due:
            await judge.learner.grow(lease.state, ends_day=not lease.daily_headroom)

    async def _break_off(self) -> None:
        """Draw the consequences of an attempt that was given up, perhaps during or after its answer."""
        lease = self._lease
        if not lease.probes and not lease.state.group.overload.failed:
            return
        if self._texts or (self._outcome is not _END and isinstance(self._outcome, Reply)):
            await finish(self._clear())
        else:
            await finish(self._sender.judge.pass_on(lease.probes, lease.state, self._began))

    async def _clear(self) -> None:
        """Lift what an answer disproves."""
        lease, judge = self._lease, self._sender.judge
        state, probes = lease.state, lease.probes
        if not self._send.requests:
            # Whatever takes no quota says nothing of quotas, nor of how busy the model is.
            probes = tuple(each for each in probes if each.scope == state.deployment.key_scope)
            await judge.pass_on([each for each in lease.probes if each not in probes], state, self._began)
        if probes:
            await judge.acquit(state, probes)
        if self._send.requests and state.group.overload.failed:
            await judge.end_outage(state)

    async def _judge(self, error: ProviderError) -> None:
        """Draw the consequences of a failure; fail the send unless there is time for another attempt."""
        send, sender = self._send, self._sender
        send.error = error
        lease = self._lease
        tokens = lease.demand.tokens
        verdict = await sender.judge.judge(error, lease.state, lease.probes, self._began, tokens)
        now = sender.now()
        self._leave_out(verdict, error)
        is_hopeless = bool(send.order.groups) and send.unfit.issuperset(send.order.groups)
        if error.kind is FailureKind.MODEL and verdict.feature_until is not None:
            is_hopeless = is_hopeless or _all_lack(send, send.features, sender.clock.time())
        if verdict.next is Next.GIVE_UP or is_hopeless:
            error.retry_after = None
            _fail(send, error, now)
            return
        made = len(send.attempts)
        send.backoff = sender.policy.backoff(made) if verdict.next is Next.BACK_OFF else 0.0
        if error.kind is FailureKind.QUOTA and send.waited < send.max_wait:
            send.refused += 1  # who would have waited for quota has not used up an attempt
        made -= send.refused
        # What was passed on cannot be taken back: after the first piece there is no other attempt.
        if self._texts or made > sender.policy.max_retries or _time_left(send, now) <= send.backoff:
            error.retry_after = retry_after(send.order, sender.clock.time())
            _fail(send, error, now)

    def _leave_out(self, verdict: Verdict, error: ProviderError) -> None:
        """Note what the request is to leave out, or to try only as a last resort."""
        send, group = self._send, self._lease.state.group
        if verdict.unfit:
            send.unfit |= {other for other in send.order.groups if other.model == group.model}
        if verdict.overloaded:
            send.overloaded = {**send.overloaded, group: send.overloaded.get(group, 0) + 1}
        if verdict.feature_until is not None and error.feature is not None:
            send.features |= {error.feature}


def estimate(upstream: Upstream, request: Request, *, validate: bool = True) -> int:
    """Have a provider check a request, and return its estimate of the input tokens, at least 1.

    Raises:
        InvalidRequestError: The request is wrong.
        ExtensionError: The provider raised an error of its own, or estimated no number.
    """
    failure: ExtensionError
    method, provider = "validate", upstream.provider
    try:
        if validate:
            provider.validate(request)
        method = "estimate_tokens"
        tokens = provider.estimate_tokens(request)
    except LLMRouterError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises
        failure = upstream.failed(method, error)
    else:
        if tokens.__class__ is int and 0 < tokens <= MAX_LIMIT:
            return tokens
        if 0 <= real(tokens) <= MAX_LIMIT:
            return math.ceil(tokens) or 1
        failure = upstream.no_estimate(tokens)
    raise failure  # from here, so that it does not refer to the other one


def _estimates(upstreams: tuple[Upstream, ...], request: Request) -> dict[Upstream, int]:
    """Return the estimated input tokens of a request on each provider that can serve it.

    Raises:
        InvalidRequestError: None of them can.
    """
    estimates: dict[Upstream, int] = {}
    rejections: list[InvalidRequestError] = []
    for upstream in upstreams:
        try:
            estimates[upstream] = estimate(upstream, request)
        except InvalidRequestError as error:
            rejections.append(error)
    if not estimates:
        raise rejections[0]
    return estimates


def is_plain(reply: Any) -> bool:
    """Whether this is certainly a reply whose text is a text and whose counts make sense.

    It runs for every answer. Of what it does not recognise at a glance, :func:`understood` says more.
    """
    if reply.__class__ is not Reply or reply.text.__class__ is not str:
        return False
    usage = reply.usage
    if usage.__class__ is not Usage:
        return usage is None
    read, written, thought = usage.input_tokens, usage.output_tokens, usage.thinking_tokens
    # Of whole numbers together, no bit is set beyond those that each may have, and not the sign.
    return read.__class__ is written.__class__ is thought.__class__ is int and (
        0 <= read | written | thought <= _CERTAIN
    )


def _time_left(send: SendState, now: float) -> float:
    """Return the seconds left for attempts and backoffs, where ``now`` is on the monotonic clock.

    What a retry waits beyond ``max_wait``, for a cooldown that its own failure caused, is part of them.
    """
    waited = send.waited if send.waited < send.max_wait else send.max_wait  # noqa: FURB136 - thrice as fast
    return send.timeout - (now - send.started - waited)


def _all_lack(send: SendState, features: frozenset[str], now: float) -> bool:
    """Return whether every deployment that a request may use lacks a feature of it."""
    unsuitable = Unsuitable(send, now, features)
    return all(state in unsuitable for group in send.order.groups for state in group.states)


def _fail(send: SendState, error: SendError, now: float) -> None:
    """Give the send its unsuccessful response."""
    send.response = _respond(send, _END, error, now)


def _respond(send: SendState, reply: Reply, error: SendError | None, now: float) -> Response:
    deployment = send.last.deployment if send.last is not None else None
    return Response(
        success=error is None,
        model=reply.model or (deployment.model if deployment else None),
        key_id=deployment.key.key_id if deployment else None,
        workload=deployment.workload if deployment else send.order.workload,
        usage=reply.usage or _NO_USAGE,
        finish_reason=reply.finish_reason,
        attempts=len(send.attempts),
        attempt_log=tuple(send.attempts),
        latency=now - send.started,
        waited=send.waited,
        error=error,
        retry_after=None if error is None else error.retry_after,
        raw=reply.source,
        answer="" if error else reply.text,
        content=None if error else reply.content,
        parsed=None if error else reply.parsed,
    )

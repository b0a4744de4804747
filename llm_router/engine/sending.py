"""Send a request: attempt after attempt, until one is answered or no further one makes sense."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Unpack

import attrs

from llm_router.domain.clock import Clock, monotonic, sleep
from llm_router.domain.deployment import plain_model
from llm_router.domain.exchange import Head
from llm_router.domain.methods import GENERATE
from llm_router.domain.numbers import real
from llm_router.domain.options import SendOptions
from llm_router.domain.quota import MAX_LIMIT
from llm_router.domain.request import Fallback, Request, Urgency
from llm_router.domain.response import Chunk, Response
from llm_router.engine.attempt import OpenAttempt, all_lack, fail, time_left
from llm_router.engine.estimates import TEXT, kind_of
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.index import FallbackOrder
from llm_router.engine.judging import Judge
from llm_router.engine.lease import Lease
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
from llm_router.engine.reserving import Selector
from llm_router.engine.resources import Resources
from llm_router.engine.retry import RetryPolicy
from llm_router.engine.shortage import explain_shortage, store_failure
from llm_router.engine.state import SendState
from llm_router.engine.timing import Deadlines
from llm_router.engine.totals import Totals
from llm_router.engine.upstream import Preparation, Upstream
from llm_router.engine.waiting import Shortage
from llm_router.errors import (
    ExtensionError,
    InvalidRequestError,
    LLMRouterError,
    QuotaExhaustedError,
    RouterClosedError,
    StoreError,
    StoreTimeoutError,
)
from llm_router.providers.base import RelayRequest
from llm_router.records.memory import MemoryRecords

__all__ = ["UNBOUNDED_TTL", "Sender", "estimate"]

_GRACE = 60.0
"""Seconds by which a reservation outlives the deadline of its send."""

UNBOUNDED_TTL = 3600.0
"""Seconds after which a reservation expires whose call may take any time."""

_MAX_TTL = 7 * 86_400.0
"""Longest life of a reservation in seconds, so that no store is given a time it cannot represent."""

_EVERY_PROVIDER: frozenset[str] = frozenset()
_NO_METADATA: Mapping[str, str] = {}


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
        if feature and not all_lack(send, frozenset({feature}), self.clock.time()):
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
            max_wait = max(max_wait, min(backoff, time_left(send, asked)))
        try:
            outcome = await self._acquire(send, max_wait)
        except StoreError as error:
            fail(send, store_failure(error), self.now())
            return None
        except QuotaExhaustedError as error:
            fail(send, error.with_traceback(None), self.now())
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
        fail(send, explain_shortage(send.order, send.error, outcome, at), now)
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
                if tries > self.policy.max_retries or backoff >= time_left(send, self.now()):
                    raise
            with waiting(self.reporter, send, "store"):
                await sleep(self.clock, backoff)
        raise AssertionError("count() has no end")


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

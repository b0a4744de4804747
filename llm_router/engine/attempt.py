"""One attempt of a request, on quota that is taken for it: make the call, and draw the consequences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.kinds import FailureKind
from llm_router.domain.response import Attempt, Response, Usage
from llm_router.engine.estimates import understood
from llm_router.engine.judging import Judge
from llm_router.engine.lease import Lease
from llm_router.engine.reporting import Reporter
from llm_router.engine.retry import Next, RetryPolicy, Verdict
from llm_router.engine.search import Unsuitable
from llm_router.engine.shortage import retry_after
from llm_router.engine.state import SendState
from llm_router.engine.timing import Deadlines, finish
from llm_router.engine.totals import Totals
from llm_router.errors import (
    BlockedError,
    DeadlineExceededError,
    EmptyAnswerError,
    ExtensionError,
    InvalidRequestError,
    LLMRouterError,
    ProviderError,
    SendError,
)
from llm_router.providers.base import Reply

__all__ = ["Attempting", "OpenAttempt", "all_lack", "fail", "is_plain", "time_left"]

_END = Reply("")
_NO_ANSWER = Reply("", failed="NO_CANDIDATES")
_NO_USAGE = Usage()

_CERTAIN = 2**30 - 1
"""Tokens that a count certainly may have; every bit of the number is set."""


class Attempting(Protocol):
    """What makes attempts; the attributes are those of :class:`~llm_router.engine.sending.Sender`."""

    judge: Judge
    policy: RetryPolicy
    clock: Clock
    deadlines: Deadlines
    reporter: Reporter | None
    totals: Totals | None
    now: Callable[[], float]


class OpenAttempt:
    """One call to a provider under way: holds the lease, makes the call, settles, records, judges.

    It is an asynchronous context manager; inside it either :meth:`call` or :meth:`read` is used. However it
    is left, its quota is settled or released. Left without an exception, its outcome is recorded and judged:
    either the send then has its response, or another attempt is to be made.

    Args:
        sender: What makes it.
        send: The request.
        lease: The quota taken for this attempt.
    """

    __slots__ = ("_began", "_latency", "_lease", "_outcome", "_replies", "_send", "_sender", "_texts")

    def __init__(self, sender: Attempting, send: SendState, lease: Lease) -> None:
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
        self._finish(await self._bound(answer, time_left(send, self._began)))

    async def read(self) -> Reply | None:
        """Return the next piece of the answer, or None after the last one or a failure."""
        send, lease = self._send, self._lease
        if self._replies is None:
            upstream, deployment = lease.state.group.upstream, lease.state.deployment
            if send.relayed is None:
                self._replies = upstream.stream(deployment, send.request, lease.mark_dispatched)
            else:
                self._replies = upstream.relay(deployment, send.relayed, lease.mark_dispatched)
        seconds = send.timeout if self._texts else time_left(send, self._began)
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
            fail(send, outcome, self._sender.now())

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
            is_hopeless = is_hopeless or all_lack(send, send.features, sender.clock.time())
        if verdict.next is Next.GIVE_UP or is_hopeless:
            error.retry_after = None
            fail(send, error, now)
            return
        made = len(send.attempts)
        send.backoff = sender.policy.backoff(made) if verdict.next is Next.BACK_OFF else 0.0
        if error.kind is FailureKind.QUOTA and send.waited < send.max_wait:
            send.refused += 1  # who would have waited for quota has not used up an attempt
        made -= send.refused
        # What was passed on cannot be taken back: after the first piece there is no other attempt.
        if self._texts or made > sender.policy.max_retries or time_left(send, now) <= send.backoff:
            error.retry_after = retry_after(send.order, sender.clock.time())
            fail(send, error, now)

    def _leave_out(self, verdict: Verdict, error: ProviderError) -> None:
        """Note what the request is to leave out, or to try only as a last resort."""
        send, group = self._send, self._lease.state.group
        if verdict.unfit:
            send.unfit |= {other for other in send.order.groups if other.model == group.model}
        if verdict.overloaded:
            send.overloaded = {**send.overloaded, group: send.overloaded.get(group, 0) + 1}
        if verdict.feature_until is not None and error.feature is not None:
            send.features |= {error.feature}


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


def time_left(send: SendState, now: float) -> float:
    """Return the seconds left for attempts and backoffs, where ``now`` is on the monotonic clock.

    What a retry waits beyond ``max_wait``, for a cooldown that its own failure caused, is part of them.
    """
    waited = send.waited if send.waited < send.max_wait else send.max_wait  # noqa: FURB136 - thrice as fast
    return send.timeout - (now - send.started - waited)


def all_lack(send: SendState, features: frozenset[str], now: float) -> bool:
    """Return whether every deployment that a request may use lacks a feature of it."""
    unsuitable = Unsuitable(send, now, features)
    return all(state in unsuitable for group in send.order.groups for state in group.states)


def fail(send: SendState, error: SendError, now: float) -> None:
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

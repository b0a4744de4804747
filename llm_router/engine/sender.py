"""One send from start to end: lease, call, judge, and again."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Mapping

import attrs

from llm_router.domain.clock import Clock, sleep
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.request import Request
from llm_router.domain.response import Attempt, Response, Usage
from llm_router.engine.lease import Lease
from llm_router.engine.outage import Outage
from llm_router.engine.plan import Plan
from llm_router.engine.pool import Pool, Slot
from llm_router.engine.retry import Next, RetryPolicy, Verdict
from llm_router.engine.selector import Need, Selector, Shortage
from llm_router.engine.timing import Deadlines
from llm_router.errors import (
    BlockedError,
    DeadlineExceededError,
    InvalidRequestError,
    ProviderError,
    QuotaExhaustedError,
    RefusedCandidate,
    SendError,
    StoreError,
)
from llm_router.providers.base import FailureKind, Provider, Reply
from llm_router.stores.base import RateLimitStore

__all__ = ["MOST_CANDIDATES", "Job", "Sender"]

_log = logging.getLogger("llm_router")

MOST_CANDIDATES = 64
"""Candidates that one refusal names: all of them up to here, those that wake first beyond."""

_GRACE = 60.0
"""Seconds by which a reservation outlives the deadline of its send."""

_UNBOUNDED_TTL = 3600.0
_PATH_FAILURES = (FailureKind.NETWORK, FailureKind.TIMEOUT)
_TRANSIENT = (FailureKind.SERVER, *_PATH_FAILURES)
_NO_REPLY = Reply("")
_NO_USAGE = Usage()


@attrs.define
class Job:
    """What one send has to do; made once in every send, hence not frozen, which costs more.

    Attributes:
        request: What to send.
        plan: Through which deployments.
        tokens: Estimated input tokens.
        timeout: Seconds for all attempts and backoffs together, waiting for capacity not counted.
        max_wait: Seconds to wait for capacity at most, over all attempts.
    """

    request: Request
    plan: Plan
    tokens: int
    timeout: float
    max_wait: float


@attrs.define
class _Run:
    """How far a job has come."""

    job: Job
    started: float
    waited: float = 0.0
    attempts: list[Attempt] = attrs.field(factory=list)
    tried: set[Slot] = attrs.field(factory=set)
    last: Slot | None = None
    error: ProviderError | None = None

    def time_left(self, now: float) -> float:
        """Return the seconds left for attempts and backoffs."""
        return self.job.timeout - (now - self.started - self.waited)


class Sender:
    """Carries out jobs.

    Args:
        providers: Adapter by name.
        store: Told of cooldowns.
        selector: Grants leases.
        pool: Told who is put aside.
        policy: Judges failures.
        clock: Where time comes from.
        outage: Told of every call that did or did not get through.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        store: RateLimitStore,
        selector: Selector,
        pool: Pool,
        policy: RetryPolicy,
        clock: Clock,
        outage: Outage,
    ) -> None:
        self._providers = providers
        self._store = store
        self._selector = selector
        self._pool = pool
        self._policy = policy
        self._clock = clock
        self._outage = outage
        self._deadlines = Deadlines(clock)

    async def send(self, job: Job) -> Response:
        """Send until there is an answer or no sense in going on.

        Raises:
            InvalidRequestError: The provider says that the request cannot even be built.
        """
        run = _Run(job, self._clock.time())
        try:
            return await self._send(run)
        except StoreError as error:
            failure = SendError(f"the state store failed, so no quota could be reserved: {error}")
            failure.__cause__ = error
            return self._failed(run, failure, None)

    async def _send(self, run: _Run) -> Response:
        while True:
            lease = await self._acquire(run)
            if isinstance(lease, Shortage):
                return self._exhausted(run, lease)
            outcome = await self._attempt(run, lease)
            if isinstance(outcome, Reply):
                return self._answered(run, outcome)
            if not isinstance(outcome, ProviderError):
                return self._failed(run, outcome, outcome.retry_after)
            verdict = await self._judge(run, outcome)
            if verdict.next is Next.GIVE_UP:
                return self._failed(run, outcome, None)
            if len(run.attempts) > self._policy.max_retries or not await self._may_go_on(run, verdict):
                return self._failed(run, outcome, self._retry_after(run))

    async def _acquire(self, run: _Run) -> Lease | Shortage:
        job, asked = run.job, self._clock.time()
        patience = job.max_wait - run.waited
        if run.attempts:
            # A retry may sit out the short cooldown that its own failure caused.
            backoff = self._policy.ceiling(len(run.attempts))
            patience = max(patience, min(backoff, run.time_left(asked)))
        ttl = job.timeout + _GRACE if job.timeout < math.inf else _UNBOUNDED_TTL
        outcome = await self._selector.acquire(Need(job.plan, job.tokens, ttl), patience, run.tried)
        run.waited += self._clock.time() - asked
        return outcome

    async def _attempt(self, run: _Run, lease: Lease) -> Reply | SendError:
        """Make one call; whatever comes of it, the lease is closed behind it."""
        slot, began = lease.slot, self._clock.time()
        run.last = slot
        run.tried.add(slot)
        async with lease:
            lease.sending()
            outcome = await self._call(run, lease, began)
        error = outcome if isinstance(outcome, SendError) else None
        deployment = slot.deployment
        latency = self._clock.time() - began
        run.attempts.append(Attempt(deployment.key.key_id, deployment.model, latency, error))
        return outcome

    async def _call(self, run: _Run, lease: Lease, began: float) -> Reply | SendError:
        deployment = lease.slot.deployment
        provider = self._providers[deployment.key.provider]
        outcome: Reply | SendError | None = None
        with self._deadlines.limit(run.time_left(began)):
            try:
                outcome = await provider.generate(deployment, run.job.request, lease.launched)
            except ProviderError as error:
                outcome = error.with_traceback(None)
                if not error.charged:
                    lease.not_sent()
            except InvalidRequestError:
                lease.not_sent()
                raise
        if isinstance(outcome, Reply):
            self._learn(lease, run, outcome)
        elif outcome is None:
            lease.slot.failures += 1
            outcome = DeadlineExceededError(
                f"no answer within timeout={run.job.timeout:g} s: allow more, or ask for a shorter answer"
            )
        return outcome

    def _learn(self, lease: Lease, run: _Run, reply: Reply) -> None:
        slot = lease.slot
        slot.failures = slot.day_strikes = 0
        self._outage.succeeded()
        if reply.usage is not None and reply.usage.input_tokens > 0:
            lease.used(reply.usage.input_tokens)
            model = slot.deployment.model
            self._selector.estimates.learn(model, run.job.tokens, reply.usage.input_tokens)

    async def _judge(self, run: _Run, error: ProviderError) -> Verdict:
        slot, now = run.last, self._clock.time()
        assert slot is not None  # noqa: S101 - an attempt was made
        run.error = error
        verdict = self._policy.judge(error, slot, now)
        key_id = slot.deployment.key.key_id
        if error.kind in _PATH_FAILURES:
            self._outage.failed(key_id, now)
        else:
            self._outage.succeeded()
        if verdict.hold_until is not None:
            self._pool.hold(slot, verdict.hold_until, str(error))
        cooldown = verdict.cooldown
        if cooldown is not None:
            if cooldown.is_quarantine:
                _log.warning("%s is put aside until reload: %s", slot.deployment.id, cooldown.reason)
            await self._cool_down(cooldown)
        return verdict

    async def _cool_down(self, cooldown: Cooldown) -> None:
        self._pool.park(cooldown.scope, cooldown.until, cooldown.reason)
        try:
            await self._store.cool_down(cooldown)
        except StoreError as error:  # this process keeps to it all the same
            _log.debug("a cooldown could not be shared: %s", error)

    async def _may_go_on(self, run: _Run, verdict: Verdict) -> bool:
        """Back off where the verdict asks for it; tell whether there is time for another attempt."""
        delay = self._policy.backoff(len(run.attempts)) if verdict.next is Next.BACK_OFF else 0.0
        if run.time_left(self._clock.time()) <= delay:
            return False
        if delay > 0:
            await sleep(self._clock, delay)
        return True

    # --- responses ------------------------------------------------------------------------------------

    def _answered(self, run: _Run, reply: Reply) -> Response:
        error = None
        if reply.blocked is not None:
            error = BlockedError(f"the provider blocked this: {reply.blocked}", reason=reply.blocked)
        return self._respond(run, reply, error)

    def _failed(self, run: _Run, error: SendError, retry_after: float | None) -> Response:
        error.retry_after = retry_after
        return self._respond(run, _NO_REPLY, error, retry_after)

    def _exhausted(self, run: _Run, shortage: Shortage) -> Response:
        now = self._clock.time()
        retry_after = _seconds_until(shortage.retry_at, now)
        if run.error is not None and run.error.kind in _TRANSIENT:
            return self._failed(run, run.error, retry_after)
        candidates = self._candidates(run.job.plan, shortage, now)
        when = "waiting does not help" if retry_after is None else f"retry in {retry_after:.1f} s"
        error = QuotaExhaustedError(
            f"none of {run.job.plan.size} deployments has room: {_summary(candidates)}; {when}",
            candidates=candidates,
        )
        return self._failed(run, error, retry_after)

    def _candidates(self, plan: Plan, shortage: Shortage, now: float) -> tuple[RefusedCandidate, ...]:
        asked = {refusal.deployment: refusal for refusal in shortage.refusals}
        known = [*asked.values()]
        known += [
            slot.refusal
            for slot in plan.soonest(MOST_CANDIDATES)
            if slot.refusal is not None and slot.deployment not in asked
        ]
        soonest = heapq.nsmallest(MOST_CANDIDATES, known, key=lambda refusal: refusal.retry_at)
        return tuple(
            RefusedCandidate(
                refusal.deployment.key.key_id,
                refusal.deployment.model,
                refusal.reason,
                _seconds_until(refusal.retry_at, now),
            )
            for refusal in soonest
        )

    def _retry_after(self, run: _Run) -> float | None:
        """Return when another send may find a deployment, after the attempts of this one were used up."""
        now = self._clock.time()
        plan = run.job.plan
        if self._outage.until > now:
            return self._outage.until - now
        if any(cell.has_ready for cell in plan.cells):
            return 0.0
        return _seconds_until(plan.soonest(1)[0].wake, now)

    def _respond(
        self, run: _Run, reply: Reply, error: SendError | None, retry_after: float | None = None
    ) -> Response:
        deployment = run.last.deployment if run.last is not None else None
        return Response(
            success=error is None,
            model=reply.model or (deployment.model if deployment else None),
            key_id=deployment.key.key_id if deployment else None,
            workload=deployment.workload if deployment else run.job.plan.workload,
            usage=reply.usage or _NO_USAGE,
            finish_reason=reply.finish_reason,
            attempts=len(run.attempts),
            attempt_log=tuple(run.attempts),
            latency=self._clock.time() - run.started,
            waited=run.waited,
            error=error,
            retry_after=retry_after,
            raw=reply.raw,
            answer="" if error else reply.text,
            content=None if error else reply.content,
        )


def _seconds_until(moment: float, now: float) -> float | None:
    return None if moment == math.inf else max(moment - now, 0.0)


def _summary(candidates: tuple[RefusedCandidate, ...]) -> str:
    """Say in a few words what most candidates lack."""
    counts: dict[str, int] = {}
    for candidate in candidates:
        counts[candidate.reason] = counts.get(candidate.reason, 0) + 1
    most = heapq.nlargest(3, counts.items(), key=lambda item: item[1])
    return ", ".join(f"{reason} ({count})" for reason, count in most) or "nothing is ready"

"""One send from start to end: lease, call, judge, and again."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Mapping

from llm_router.domain.clock import Clock, sleep
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.response import Attempt, Response
from llm_router.engine.lease import Lease
from llm_router.engine.outage import PATH_FAILURES, Outage
from llm_router.engine.pool import Pool
from llm_router.engine.responder import Responder
from llm_router.engine.retry import Next, RetryPolicy, Verdict
from llm_router.engine.run import Job, Run
from llm_router.engine.selector import Need, Selector
from llm_router.engine.timing import Deadlines
from llm_router.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ProviderError,
    SendError,
    StoreError,
)
from llm_router.providers.base import Provider, Reply
from llm_router.stores.base import RateLimitStore

__all__ = ["UNBOUNDED_TTL", "Sender"]

_log = logging.getLogger("llm_router")

_GRACE = 60.0
"""Seconds by which a reservation outlives the deadline of its send."""

UNBOUNDED_TTL = 3600.0
"""Seconds after which a reservation expires where nobody knows how long its call takes."""


class Sender:
    """Carries out jobs; a :class:`~llm_router.engine.streaming.Streamer` goes by the same steps.

    Args:
        providers: Adapter by name.
        store: Told of cooldowns.
        selector: Grants leases.
        pool: Told who is put aside.
        policy: Judges failures.
        clock: Where time comes from.
        outage: Told of every call that did or did not get through.

    Attributes:
        responder: Makes the responses.
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
        self.responder = Responder(clock, outage)
        self._deadlines = Deadlines(clock)

    async def send(self, job: Job) -> Response:
        """Send until there is an answer or no sense in going on.

        Raises:
            InvalidRequestError: The provider says that the request cannot even be built.
        """
        run = self.start(job)
        ttl = job.timeout + _GRACE if job.timeout < math.inf else UNBOUNDED_TTL
        while True:
            lease = await self.acquire(run, ttl)
            if isinstance(lease, Response):
                return lease
            outcome = await self._attempt(run, lease)
            if isinstance(outcome, Reply):
                return self.responder.answered(run, outcome)
            response = await self.conclude(run, outcome)
            if response is not None:
                return response

    def start(self, job: Job) -> Run:
        """Return a run of ``job`` that begins now."""
        return Run(job, self._clock.time())

    async def acquire(self, run: Run, ttl: float) -> Lease | Response:
        """Return a lease, or the response that tells why there is none.

        Args:
            run: For whom.
            ttl: Seconds after which the reservation expires if this process dies.
        """
        job, asked = run.job, self._clock.time()
        patience = job.max_wait - run.waited
        if run.attempts:
            # A retry may sit out the short cooldown that its own failure caused.
            backoff = self._policy.ceiling(len(run.attempts))
            patience = max(patience, min(backoff, run.time_left(asked)))
        try:
            outcome = await self._selector.acquire(Need(job.plan, job.tokens, ttl), patience, run.tried)
        except StoreError as error:
            return self.responder.unstored(run, error)
        run.waited += self._clock.time() - asked
        return outcome if isinstance(outcome, Lease) else self.responder.exhausted(run, outcome)

    async def conclude(self, run: Run, error: SendError, *, again: bool = True) -> Response | None:
        """Draw the consequences of a failed attempt; return the response unless another is to be made.

        Args:
            run: Whose attempt.
            error: What came of it.
            again: Whether another may be made at all.
        """
        if not isinstance(error, ProviderError):
            return self.responder.failed(run, error, error.retry_after)
        verdict = await self._judge(run, error)
        if verdict.next is Next.GIVE_UP:
            return self.responder.failed(run, error, None)
        again = again and len(run.attempts) <= self._policy.max_retries
        if not again or not await self._may_go_on(run, verdict):
            return self.responder.failed(run, error, self.responder.retry_after(run))
        return None

    async def _attempt(self, run: Run, lease: Lease) -> Reply | SendError:
        """Make one call; whatever comes of it, the lease is closed behind it."""
        provider = self.provider(lease)
        began = self.begin(run, lease)
        async with lease:
            answer = provider.generate(lease.slot.deployment, run.job.request, lease.launched)
            outcome = await self.bound(run, lease, answer, run.time_left(began))
            if isinstance(outcome, Reply):
                self.learn(run, lease, outcome)
        self.record(run, began, outcome)
        return outcome

    def provider(self, lease: Lease) -> Provider:
        """Return the adapter for the deployment of ``lease``."""
        return self._providers[lease.slot.deployment.key.provider]

    def begin(self, run: Run, lease: Lease) -> float:
        """Note that an attempt begins; return when, in seconds since the epoch."""
        run.last = lease.slot
        run.tried.add(lease.slot)
        lease.sending()
        return self._clock.time()

    async def bound(
        self, run: Run, lease: Lease, answer: Awaitable[Reply], seconds: float
    ) -> Reply | SendError:
        """Wait for what a provider has to say, be it an error, and no longer than so many seconds.

        Raises:
            InvalidRequestError: The provider says that the request cannot even be built.
        """
        outcome: Reply | SendError | None = None
        with self._deadlines.limit(seconds):
            try:
                outcome = await answer
            except ProviderError as error:
                outcome = error.with_traceback(None)
                if not error.charged:
                    lease.not_sent()
            except InvalidRequestError:
                lease.not_sent()
                raise
        if outcome is None:
            lease.slot.failures += 1
            outcome = DeadlineExceededError(
                f"no answer within timeout={run.job.timeout:g} s: allow more, or ask for a shorter answer"
            )
        return outcome

    def learn(self, run: Run, lease: Lease, reply: Reply) -> None:
        """Note that a deployment answered, and how many tokens it counted."""
        slot = lease.slot
        slot.failures = slot.day_strikes = 0
        self._outage.succeeded()
        tokens = self.count(lease, reply)
        if tokens > 0:
            self._selector.estimates.learn(slot.deployment.model, run.job.tokens, tokens)

    @staticmethod
    def count(lease: Lease, reply: Reply) -> int:
        """Have ``lease`` settled with the input tokens that ``reply`` tells; return them, 0 if none."""
        tokens = 0 if reply.usage is None else reply.usage.input_tokens
        if tokens > 0:
            lease.used(tokens)
        return tokens

    def record(self, run: Run, began: float, outcome: Reply | SendError) -> None:
        """Note what came of the attempt that began then."""
        assert run.last is not None  # noqa: S101 - it began
        key, model = run.last.deployment.key, run.last.deployment.model
        error = outcome if isinstance(outcome, SendError) else None
        run.attempts.append(Attempt(key.key_id, model, self._clock.time() - began, error))

    async def _judge(self, run: Run, error: ProviderError) -> Verdict:
        slot, now = run.last, self._clock.time()
        assert slot is not None  # noqa: S101 - an attempt was made
        run.error = error
        verdict = self._policy.judge(error, slot, now)
        key_id = slot.deployment.key.key_id
        if error.kind in PATH_FAILURES:
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

    async def _may_go_on(self, run: Run, verdict: Verdict) -> bool:
        """Back off where the verdict asks for it; tell whether there is time for another attempt."""
        delay = self._policy.backoff(len(run.attempts)) if verdict.next is Next.BACK_OFF else 0.0
        if run.time_left(self._clock.time()) <= delay:
            return False
        if delay > 0:
            await sleep(self._clock, delay)
        return True

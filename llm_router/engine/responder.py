"""What a caller is told in the end: the response of a run."""

from __future__ import annotations

import heapq
import math

from llm_router.domain.clock import Clock
from llm_router.domain.response import Response, Usage
from llm_router.engine.outage import PATH_FAILURES, Outage
from llm_router.engine.plan import Plan
from llm_router.engine.run import Run
from llm_router.engine.selector import Shortage
from llm_router.errors import BlockedError, QuotaExhaustedError, RefusedCandidate, SendError, StoreError
from llm_router.providers.base import FailureKind, Reply

__all__ = ["MOST_CANDIDATES", "Responder"]

MOST_CANDIDATES = 64
"""Candidates that one refusal names: all of them up to here, those that wake first beyond."""

_TRANSIENT = (FailureKind.SERVER, *PATH_FAILURES)
_NO_REPLY = Reply("")
_NO_USAGE = Usage()


class Responder:
    """Makes responses.

    Args:
        clock: Where time comes from.
        outage: Whether the provider can be reached at all.
    """

    def __init__(self, clock: Clock, outage: Outage) -> None:
        self._clock = clock
        self._outage = outage

    def answered(self, run: Run, reply: Reply) -> Response:
        """Tell of an answer; one that the provider blocked is no success."""
        error = None
        if reply.blocked is not None:
            error = BlockedError(f"the provider blocked this: {reply.blocked}", reason=reply.blocked)
        return self._respond(run, reply, error)

    def failed(self, run: Run, error: SendError, retry_after: float | None) -> Response:
        """Tell of a failure, and in how many seconds another try may succeed."""
        error.retry_after = retry_after
        return self._respond(run, _NO_REPLY, error, retry_after)

    def unstored(self, run: Run, error: StoreError) -> Response:
        """Tell that no quota could be reserved, since the store failed."""
        failure = SendError(f"the state store failed, so no quota could be reserved: {error}")
        failure.__cause__ = error
        return self.failed(run, failure, None)

    def exhausted(self, run: Run, shortage: Shortage) -> Response:
        """Tell that nobody has room: why not, candidate by candidate, and from when."""
        now = self._clock.time()
        retry_after = _seconds_until(shortage.retry_at, now)
        if run.error is not None and run.error.kind in _TRANSIENT:
            return self.failed(run, run.error, retry_after)
        candidates = self._candidates(run.job.plan, shortage, now)
        when = "waiting does not help" if retry_after is None else f"retry in {retry_after:.1f} s"
        error = QuotaExhaustedError(
            f"none of {run.job.plan.size} deployments has room: {_summary(candidates)}; {when}",
            candidates=candidates,
        )
        return self.failed(run, error, retry_after)

    def retry_after(self, run: Run) -> float | None:
        """Return when another send may find a deployment, after the attempts of this one were used up."""
        now = self._clock.time()
        plan = run.job.plan
        if self._outage.until > now:
            return self._outage.until - now
        if any(cell.has_ready for cell in plan.cells):
            return 0.0
        return _seconds_until(plan.soonest(1)[0].wake, now)

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

    def _respond(
        self, run: Run, reply: Reply, error: SendError | None, retry_after: float | None = None
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

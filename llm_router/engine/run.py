"""One send: what it has to do, and how far it has come."""

from __future__ import annotations

import attrs

from llm_router.domain.request import Request
from llm_router.domain.response import Attempt
from llm_router.engine.plan import Plan
from llm_router.engine.pool import Slot
from llm_router.errors import ProviderError

__all__ = ["Job", "Run"]


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
class Run:
    """How far a job has come.

    Attributes:
        job: The job.
        started: Seconds since the epoch.
        waited: Seconds spent waiting for capacity.
        attempts: Those that were made.
        tried: Where.
        last: Where the last one was made.
        error: What came of the last one that failed.
    """

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

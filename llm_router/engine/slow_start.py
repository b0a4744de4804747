"""Start slowly where a limit is configured that nothing has proven yet: it may be too high.

Half of it may go at once, and what follows is spaced, so that few requests are on their way when the first of
them is refused. That takes two seconds, once: what was not refused a second later is proven.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from llm_router.domain.clock import Clock, Timer, monotonic
from llm_router.domain.deployment import Deployment
from llm_router.domain.kinds import Metric
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import MAX_LIMIT, Demand, Refill
from llm_router.engine.extensions import note_failure
from llm_router.engine.index import PROVEN, DeploymentState
from llm_router.stores.base import RateLimitStore

__all__ = ["LONGEST_SPACE", "SlowStart", "unproven_below"]

_AT_ONCE = 15
"""Requests that may always go at once."""

_SHARE = 0.5
"""The share of a limit that may go at once."""

_SECONDS = 4.0
"""Seconds that a whole limit takes in the pace of what follows."""

LONGEST_SPACE = 2.0
"""Most seconds that a request waits: by then all of the limit was tried. One that may not goes at once."""

_REFUSED_WITHIN = 1.0
"""Seconds within which a request is refused, if it is."""


def unproven_below(deployment: Deployment) -> float:
    """Return the share of a limit below which what remains of it is unproven at first.

    None of it is if there are few requests in it, or if it is to be learnt: then it starts low by itself.
    """
    for quota in deployment.quotas:
        if quota.metric is Metric.RPM and quota.refill is Refill.ROLLING and not quota.adaptive:
            at_once = max(_AT_ONCE, quota.limit * _SHARE)
            return 1.0 - at_once / quota.limit if at_once < quota.limit < MAX_LIMIT else PROVEN
    return PROVEN


class SlowStart:
    """Spaces the requests that deployments get beyond what is proven of their limits.

    An answer proves what was granted before it, as does a second without a refusal.

    Args:
        store: Knows which limits were learnt.
        clock: Where time comes from.

    Attributes:
        ends: When the last request that is spaced so far may go, on the monotonic clock; 0 if none is.
    """

    def __init__(self, store: RateLimitStore, clock: Clock) -> None:
        self.ends = 0.0
        self._store = store
        self._clock = clock
        self._now = monotonic(clock)
        self._waiting: deque[tuple[float, list[DeploymentState], asyncio.Future[DeploymentState]]] = deque()
        self._timer: Timer | None = None

    def note(self, state: DeploymentState, headroom: float, demand: Demand) -> bool:
        """Note a grant after which less remains than is proven; return whether its answer will prove it.

        Args:
            state: The deployment.
            headroom: The share of its tightest quota that remains.
            demand: What was granted.
        """
        limit, tokens = _limit(state, Metric.RPM), _limit(state, Metric.TPM)
        if not demand.requests or demand.tokens * limit > tokens:
            return False  # tokens are scarcer than requests
        now = self._now()
        lowest, since = state.tried or (1.0, now)
        if now - since >= _REFUSED_WITHIN:
            state.unproven, lowest, since = min(state.unproven, lowest), 1.0, now
        state.tried = min(lowest, headroom), since
        if headroom < state.unproven:
            self._space(state, now)
        return True

    def prove(self, state: DeploymentState, headroom: float) -> None:
        """Note an answer to what was granted when so much remained."""
        if headroom < state.unproven:
            state.unproven = headroom if headroom * _limit(state, Metric.RPM) >= 1.0 else PROVEN
            state.spaced_until = 0.0
            self.look_again()

    def free(self, candidates: list[DeploymentState]) -> list[DeploymentState]:
        """Return those of the candidates that may be used now."""
        now = self._now()
        if self.ends <= now:
            self.ends = 0.0
            return candidates
        return [state for state in candidates if _is_free(state, now)]

    async def turn(self, candidates: list[DeploymentState]) -> DeploymentState:
        """Wait until one of the candidates may be used, none of which may now, and return it."""
        for state in candidates:
            if not state.is_looked_up:
                state.is_looked_up = True
                if await self._is_known(state):
                    state.unproven = PROVEN
                    return state
        turn: asyncio.Future[DeploymentState] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._now() + LONGEST_SPACE, candidates, turn))
        self.look_again()
        return await turn

    def look_again(self) -> None:
        """Let those that wait go on, first come, first served, as far as there is reason to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._now()
        while self._waiting:
            latest, candidates, turn = self._waiting[0]
            free = [state for state in candidates if _is_free(state, now)]
            if not free and latest > now and not turn.done():
                first = min(state.spaced_until for state in candidates)
                self._timer = self._clock.call_later(min(first, latest) - now, self.look_again)
                break
            self._waiting.popleft()
            if not turn.done():  # else it was cancelled
                state = (free or candidates)[0]
                self._space(state, now)
                turn.set_result(state)

    def _space(self, state: DeploymentState, now: float) -> None:
        state.spaced_until = now + _SECONDS / _limit(state, Metric.RPM)
        self.ends = max(self.ends, state.spaced_until)

    async def _is_known(self, state: DeploymentState) -> bool:
        """Return whether the limit of requests was stated, or found by a refusal."""
        try:
            [snapshot] = await self._store.snapshot([state.deployment])
        except Exception as error:  # noqa: BLE001 - of a user's store; then the limit counts as unproven
            note_failure(self._store, "snapshot", error)
            return False
        records = (quota.learnt for quota in snapshot.quotas if quota.metric is Metric.RPM)
        return any(record is not None and record.source is not LimitSource.UNKNOWN for record in records)


def _is_free(state: DeploymentState, now: float) -> bool:
    return state.unproven <= PROVEN or state.spaced_until <= now


def _limit(state: DeploymentState, metric: Metric) -> float:
    limits = (quota.limit for quota in state.deployment.quotas if quota.metric is metric)
    return next(limits, math.inf)

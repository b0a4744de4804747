"""Keep the time short between taking quota for a request and dispatching it."""

from __future__ import annotations

import asyncio
from collections import deque

from llm_router.domain.clock import Clock, Timer, monotonic

__all__ = ["PERMITS", "DispatchGate"]

PERMITS = 4
"""Most requests that may hold quota without being on the wire yet, once one has shown the way."""

_BEAT = 0.005
"""Most seconds by which the timers of an event loop that keeps up are late."""

_FADE = 0.9
"""How much of the event loop's lateness is remembered from one beat to the next."""


class DispatchGate:
    """Keeps the time short between taking quota and dispatching the request: lets a few through at a time.

    Quota that was taken now comes back a window (and the guard) from now; the provider counts from the moment
    the request arrives. The guard covers the network. It does not cover hundreds of requests that are granted
    in one tick of the event loop and then wait for each other, each building its request and its connection:
    so only a few may be between the two at a time, in order of arrival.

    The first goes alone: it finds everything cold, and those that came along would wait for it with their
    quota taken. Each that leaves adds a permit, up to :data:`PERMITS`.

    A request that waited longer than the grace is let through anyway: a few per beat where the path is slow,
    or the provider does not report dispatches. Where the event loop does not keep up it is one at a time, and
    only when nothing else moves: more requests under way would only make each of them slower.

    Args:
        clock: Where time comes from.
        grace: Seconds. The guard of the quotas is a good measure: beyond it the delay shows anyway.

    Attributes:
        busy: How many requests are between reservation and network.
        grace: As above.
    """

    def __init__(self, clock: Clock, grace: float) -> None:
        self.busy = 0
        self._clock = clock
        self._time = monotonic(clock)
        self.grace = grace
        self._permits = 1
        self._queue: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: Timer | None = None
        self._due = 0.0  # when the timer should go off
        self._lag = 0.0  # by how many seconds such timers have been late recently
        self._moved = False  # whether a request left since the last beat
        self._quiet_since = 0.0  # since when none left or was let through

    def try_enter(self) -> bool:
        """Enter if there is a permit and no request waits for it; return whether that was so."""
        if self.busy < self._permits and not self._queue:
            self.busy += 1
            return True
        return False

    async def enter(self) -> None:
        """Wait for a permit, or until the grace has passed; each entry must be left again."""
        if not self.try_enter():
            await self._wait()

    def leave(self) -> None:
        """Pass the permit on to the next in line."""
        self.busy -= 1
        self._moved = True
        if self._permits < PERMITS:
            self._permits += 1
        while self._queue and self.busy < self._permits:
            self._admit()

    def _admit(self) -> None:
        _, turn = self._queue.popleft()
        if not turn.done():  # else it was cancelled, and its task has not heard of it yet
            # Counted here and not when its task runs: no other request may slip in between.
            self.busy += 1
            turn.set_result(None)

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self._time() + self.grace, turn
        self._queue.append(entry)
        if self._timer is None:
            self._moved = True
            self._set_timer()
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
            elif not turn.cancelled():
                self.leave()
            raise
        finally:
            if not self._queue and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _set_timer(self) -> None:
        self._due = self._time() + _BEAT
        self._timer = self._clock.call_later(_BEAT, self._beat)

    def _beat(self) -> None:
        """Let requests through whose grace has passed, as many as does no harm."""
        now = self._time()
        self._lag = max(now - self._due, self._lag * _FADE)
        if self._moved:
            self._moved, self._quiet_since = False, now
        for _ in range(self._how_many(now)):
            if self._queue and self._queue[0][0] <= now:
                self._admit()
                self._quiet_since = now
        self._timer = None
        if self._queue:
            self._set_timer()

    def _how_many(self, now: float) -> int:
        if self._lag <= _BEAT:
            return PERMITS
        return 1 if now - self._quiet_since >= self.grace else 0

"""Keeping the time short between taking quota and the request's being on its way.

A quota that was taken now comes back a window (and the guard) from now; the provider counts from the moment
the request arrives. The guard covers the network. It does not cover hundreds of requests that are granted in
one tick of the event loop and then wait for each other, each building its request and its connection: so
only a few may be between the two at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque

from llm_router.domain.clock import Clock, Timer

__all__ = ["PLACES", "LaunchPad"]

PLACES = 4
"""Requests that may be between their reservation and the network at a time, once one has shown the way."""

_BEAT = 0.005
"""Seconds by which the timers of an event loop that keeps up are late at most."""

_FADE = 0.9
"""What is left, after a beat, of how late the event loop was before."""


class LaunchPad:
    """Lets requests through in order of arrival, a few at a time.

    The first goes alone: it finds everything cold, and those that came along would wait for it with their
    quota taken. Each that leaves opens another place, up to :data:`PLACES`.

    Those whose patience has ended go ahead all the same, a few every beat, where it is the path that is slow,
    or the provider that does not tell. Where it is the event loop that does not keep up they go ahead one
    by one, when nobody else moves: more requests under way would only make each of them slower.

    Args:
        clock: Where time comes from.
        patience: Seconds. The guard of the quotas is a good measure: beyond it the delay shows anyway.
    """

    def __init__(self, clock: Clock, patience: float) -> None:
        self._clock = clock
        self._patience = patience
        self._places = 1
        self._busy = 0
        self._queue: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: Timer | None = None
        self._due = 0.0  # when the timer should go off
        self._lag = 0.0  # by how many seconds such timers have been late lately
        self._moved = False  # whether anybody left since the last beat
        self._quiet_since = 0.0  # since when nobody left or went ahead

    def try_enter(self) -> bool:
        """Enter if there is a place and nobody waits for it; tell whether that was so."""
        if self._busy < self._places and not self._queue:
            self._busy += 1
            return True
        return False

    async def enter(self) -> None:
        """Wait for a place, or until patience is at an end; each entry must be left again."""
        if not self.try_enter():
            await self._wait()

    def leave(self) -> None:
        """Give the place to the next in line."""
        self._busy -= 1
        self._moved = True
        if self._places < PLACES:
            self._places += 1
        while self._queue and self._busy < self._places:
            self._admit()

    def _admit(self) -> None:
        _, turn = self._queue.popleft()
        if not turn.done():  # else it was cancelled, and its task has not heard of it yet
            # Counted here and not when its task runs: nobody may slip in between.
            self._busy += 1
            turn.set_result(None)

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self._clock.time() + self._patience, turn
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

    # --- when patience ends ---------------------------------------------------------------------------

    def _set_timer(self) -> None:
        self._due = self._clock.time() + _BEAT
        self._timer = self._clock.call_later(_BEAT, self._beat)

    def _beat(self) -> None:
        """Let those whose patience has ended go ahead, as many as does no harm."""
        now = self._clock.time()
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
            return PLACES
        return 1 if now - self._quiet_since >= self._patience else 0

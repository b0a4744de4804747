"""Keeping the time short between taking quota and the request's being on its way.

A quota that was taken now comes back a window (and the guard) from now; the provider counts from the moment
the request arrives. The guard covers the network. It does not cover hundreds of requests that are granted in
one tick of the event loop and then wait for each other, each building its request and its connection: so
only a few may be between the two at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque

from llm_router.domain.clock import Clock

__all__ = ["PLACES", "LaunchPad"]

PLACES = 16
"""Requests that may be between their reservation and the network at a time."""


class LaunchPad:
    """Lets requests through in order of arrival, a few at a time.

    Args:
        clock: Where time comes from.
        patience: Seconds after which a request goes ahead all the same: some path is slow, or a provider
            does not tell. The guard of the quotas is a good measure: beyond it the delay shows anyway.
    """

    def __init__(self, clock: Clock, patience: float) -> None:
        self._clock = clock
        self._patience = patience
        self._busy = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    def try_enter(self) -> bool:
        """Enter if there is a place and nobody waits for it; tell whether that was so."""
        if self._busy < PLACES and not self._queue:
            self._busy += 1
            return True
        return False

    async def enter(self) -> None:
        """Wait for a place, for as long as its patience lasts; each entry must be left again."""
        if not self.try_enter():
            await self._wait()

    def leave(self) -> None:
        """Give the place to the next in line."""
        self._busy -= 1
        if self._queue and self._busy < PLACES:
            self._admit(self._queue[0])

    def _admit(self, turn: asyncio.Future[None]) -> None:
        self._queue.remove(turn)
        # Counted here and not when its task runs: nobody may slip in between.
        self._busy += 1
        turn.set_result(None)

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)

        def go_ahead() -> None:
            if turn in self._queue:
                self._admit(turn)

        timer = self._clock.call_later(self._patience, go_ahead)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._queue:
                self._queue.remove(turn)
            else:
                self.leave()
            raise
        finally:
            timer.cancel()

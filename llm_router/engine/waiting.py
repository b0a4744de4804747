"""Wait in line for quota: one line per choice of deployments, of which one request at a time asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import attrs

from llm_router.domain.clock import Clock, monotonic
from llm_router.engine.fair_queue import FairQueue, Ticket
from llm_router.engine.forecast import Forecast
from llm_router.engine.timing import Deadlines
from llm_router.engine.turns import Turns
from llm_router.stores.base import Refusal

__all__ = ["Shortage", "WaitingLine"]

_T = TypeVar("_T")

_EQUAL: Mapping[str, float] = {}

_LEAVING = 10
"""One of how many that wait may leave, in what a line promises."""

_FEW = 2
"""How many of them may, however few there are."""

_LONGEST_SLEEP = 120.0
"""Most seconds for which the head of a line does not ask: what comes back early in another process is told to
nobody here."""

_SHORTEST_REST = 0.001
"""Seconds below which a rest is not worth a timer; the next one is longer by as much."""


@attrs.frozen
class Shortage:
    """The news that no deployment of a fallback order has room.

    Attributes:
        retry_at: Seconds since the epoch at which the first of them will; ``math.inf`` for never.
        refusals: The refusals of those that were asked for this very request.
        ahead: How many requests wait that would be served before it, if that is why.
    """

    retry_at: float
    refusals: tuple[Refusal, ...] = ()
    ahead: int = 0


class WaitingLine:
    """The requests that wait for the same deployments, in the order of a :class:`FairQueue`; its head asks.

    A request that cannot be served before its deadline is told so at once, and when it could be: if there is
    no room before (by what the store says to the head, or to the request itself), or if those ahead of it in
    its own tenant's line will take all that can come back until then, by the limits of the deployments. The
    second is told only where these limits are certain: requests per window, as configured, which are not
    learnt. It is wrong only if more than a tenth of those ahead (and more than two) leave without being
    served, or as much quota comes back early.

    An empty line is kept: its turns among the lines of other processes, and what its tenants were served, go
    on.

    Args:
        shortage: Why they wait.
        clock: Where time comes from.
        deadlines: Limits the waits.
        weights: Of the tenants that are to get more or less than others, whose weight is 1.
        forecast: See the attribute.

    Attributes:
        forecast: Says when there can be room at the earliest; None if that is not certain.
        members: How many requests wait.
        shortage: What the last try found.
    """

    def __init__(
        self,
        shortage: Shortage,
        clock: Clock,
        deadlines: Deadlines,
        weights: Mapping[str, float] = _EQUAL,
        forecast: Forecast | None = None,
    ) -> None:
        self.members = 0
        self.shortage = shortage
        self._clock = clock
        self._monotonic = monotonic(clock)
        self._deadlines = deadlines
        self._queue = FairQueue(weights)
        self.forecast = forecast
        self._uncounted = 0  # how many members take no quota
        self._alarm: asyncio.Event | None = None
        self._turns = Turns()

    def notify(self) -> None:
        """Wake the head of the line: quota came back early."""
        if self.forecast is not None:
            self.forecast.forget()
        self._ring()

    def _ring(self) -> None:
        if self._alarm is not None:
            self._alarm.set()

    def charge(self, ticket: Ticket, tokens: float) -> None:
        """Count tokens that the tenant of a request was served; below 0 those charged and not used."""
        self._queue.charge(ticket, tokens)

    async def wait(
        self, deadline: float, attempt: Callable[[], Awaitable[_T | Shortage]], ticket: Ticket | None = None
    ) -> _T | Shortage:
        """Wait until ``attempt`` finds room, or cannot do so before the deadline.

        Args:
            deadline: On the monotonic clock.
            attempt: Tries once; called only while this request is the head of the line.
            ticket: Its tenant and urgency; by default an interactive request of no tenant.
        """
        ticket = ticket or Ticket()
        if (late := self._too_late(ticket, deadline)) is not None:
            return late
        self.members += 1
        self._uncounted += not ticket.counts
        try:
            with self._deadlines.limit(deadline - self._monotonic()) as limit:
                outcome = await self._in_turn(ticket, deadline, attempt)
            return self.shortage if limit.expired else outcome
        finally:
            self.members -= 1
            self._uncounted -= not ticket.counts

    def _too_late(self, ticket: Ticket, deadline: float) -> Shortage | None:
        """Return a shortage if those ahead will take all that can come back before the deadline."""
        ahead = self._queue.ahead(ticket)
        if self.forecast is None or ahead <= _FEW or self._uncounted or not ticket.counts:
            return None
        now = self._monotonic()
        first = now + (self.shortage.retry_at - self._clock.time())
        leaving = max(ahead // _LEAVING, _FEW)
        if self.forecast.earliest(ahead - leaving, now, first) <= deadline:
            return None
        at = self.forecast.earliest(ahead, now, first)
        return Shortage(self._clock.time() + (at - now), self.shortage.refusals, ahead)

    async def _in_turn(
        self, ticket: Ticket, deadline: float, attempt: Callable[[], Awaitable[_T | Shortage]]
    ) -> _T | Shortage:
        """Become the head, and be it until there is an outcome."""
        if self._queue.goes_before_head(ticket):
            self._ring()  # so that the head gives way, once this request is in line
        await self._queue.enter(ticket)
        served = False
        try:
            outcome = await self._head(ticket, deadline, attempt)
            served = not isinstance(outcome, Shortage)
            return outcome
        finally:
            self._queue.leave(ticket, served=served)

    async def _head(
        self, ticket: Ticket, deadline: float, attempt: Callable[[], Awaitable[_T | Shortage]]
    ) -> _T | Shortage:
        """Rest, try, and sleep until it makes sense to try again."""
        await self._rest(deadline)
        is_due = False  # whether this try is made because a deployment should have room by now
        while True:
            while self._queue.must_give_way(ticket):
                is_due = False
                await self._queue.give_way(ticket)
                await self._rest(deadline)
            # Made before asking: what comes back while the store is being asked must not be missed.
            alarm = self._alarm = asyncio.Event()
            asked = self._monotonic()
            outcome = await attempt()
            if not isinstance(outcome, Shortage):
                if self.forecast is not None and ticket.counts:
                    self.forecast.note(asked)
                self._turns.granted(self._clock.time(), is_due=is_due)
                return outcome
            self.shortage = outcome
            now = self._clock.time()
            ends = now + (deadline - self._monotonic())  # on the clock as it is set now
            if outcome.retry_at > ends:
                return outcome
            seconds = self._turns.refused(now, outcome.retry_at, ends, is_due=is_due) - now
            is_due = await self._sleep(min(seconds, _LONGEST_SLEEP), alarm) and seconds <= _LONGEST_SLEEP

    async def _rest(self, deadline: float) -> None:
        """Let other processes have their turn after a grant, unless quota comes back early."""
        now = self._clock.time()
        ends = now + (deadline - self._monotonic())
        seconds = self._turns.next(now, ends) - now
        if seconds > _SHORTEST_REST:
            self._alarm = asyncio.Event()
            await self._sleep(seconds, self._alarm)

    async def _sleep(self, seconds: float, alarm: asyncio.Event) -> bool:
        """Sleep for ``seconds`` or until the alarm; return whether it was the full time."""
        woken_by_timer = False

        def wake() -> None:
            nonlocal woken_by_timer
            woken_by_timer = not alarm.is_set()
            alarm.set()

        timer = self._clock.call_later(seconds, wake)
        try:
            await alarm.wait()
        finally:
            timer.cancel()
        return woken_by_timer

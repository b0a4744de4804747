"""Approach limits that have not been reached yet in small steps: the provider may allow less than configured.

Of 500 requests at once each is granted as long as the configuration allows, and nothing tells that it allows
too much before the first refusals are back. So from the middle of such a limit on only a few requests go at a
time, and each that is answered lets another one go, as a TCP sender's window has it (RFC 5681).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import attrs

from llm_router.domain.clock import Clock, monotonic
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import MAX_LIMIT, requests_per_window

__all__ = ["PATIENCE", "SLOW_START", "SlowStart", "SlowStarts", "slow_start_for"]

SLOW_START = "slow start"
"""The reason of a refusal because a limit is approached in small steps."""

PATIENCE = 1.0
"""Seconds after which a request that has no answer yet was not refused: a refusal takes no thinking. Who does
not want to wait for longer is not held up."""

_FEWEST = 8
"""Requests per minute; of a lower limit too few can be too many for this to matter."""

_NEAR = 0.5
"""The share of a limit that is granted without further ado."""

_AT_ONCE = 4
"""Beyond it one part of the limit of this many may be on its way at a time: a quarter."""


@attrs.define(eq=False)
class SlowStart:
    """The approach of one limit; one object for all deployments that share it.

    Attributes:
        most: How many requests of this process may be on their way while less than half of the limit is left.
        is_near: Whether that was so at the last grant, whatever process has used the quota.
        is_over: Whether the limit was reached: without a refusal, or it was found by one.
    """

    most: int
    is_near: bool = False
    is_over: bool = False
    _sent: deque[float] = attrs.field(factory=deque, init=False)  # on the monotonic clock, oldest first

    def note_grant(self, headroom: float, now: float) -> None:
        """Note that a request goes out, and the share of the limit that remains."""
        self.is_near = headroom < _NEAR
        self._forget(now)
        self._sent.append(now)

    def note_answer(self) -> None:
        """Note that one of the requests on their way was answered."""
        if self._sent:
            self._sent.popleft()

    def until(self, now: float) -> float:
        """Return when the next request may go, unless an answer comes before; the past for at once."""
        self._forget(now)
        if self.is_over or not self.is_near or len(self._sent) < self.most:
            return -math.inf
        return self._sent[-self.most] + PATIENCE

    def _forget(self, now: float) -> None:
        while self._sent and self._sent[0] + PATIENCE <= now:
            self._sent.popleft()


class SlowStarts:
    """Holds up requests that would go too fast towards limits that have not been reached yet.

    Args:
        clock: Where time comes from.
        on_room: Called when a request that was held up may go.

    Attributes:
        held: The limits towards which none may go at present, and some towards which one may again.
    """

    def __init__(self, clock: Clock, on_room: Callable[[], None]) -> None:
        self._time = monotonic(clock)
        self._on_room = on_room
        self.held: set[SlowStart] = set()

    def granted(self, start: SlowStart, headroom: float) -> None:
        """Note a grant, and the share of the limit that remains."""
        if start.is_over:
            return
        now = self._time()
        start.note_grant(headroom, now)
        if start.until(now) > now:
            self.held.add(start)

    def answered(self, start: SlowStart, *, is_last: bool) -> None:
        """Note an answer; ``is_last`` if the request took the last of a quota."""
        start.note_answer()
        start.is_over = start.is_over or is_last
        if start in self.held:  # the next grant holds it again
            self.held.discard(start)
            self._on_room()

    def until(self, start: SlowStart | None, now: float) -> float:
        """Return until when a limit is to be left alone (seconds since the epoch, as ``now`` is)."""
        if start is None or start not in self.held:
            return -math.inf
        time = self._time()
        until = start.until(time)
        if until <= time:
            self.held.discard(start)
        return now + (until - time)


def slow_start_for(deployment: Deployment) -> SlowStart | None:
    """Return the approach of the limit of a deployment; None if it is to be learnt anyway, or is low."""
    quota = requests_per_window(deployment.quotas)
    if quota is None or not _FEWEST <= quota.limit < MAX_LIMIT:
        return None
    return SlowStart(quota.limit // _AT_ONCE)

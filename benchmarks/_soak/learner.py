"""The plain learner: limits per (project, model), learnt from refusals in as few lines as it takes.

It shows what little code achieves. It works in one process, keeps nothing, and ignores what is configured.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

from _soak.provider import Client
from _soak.subjects import Line, Outcome
from _soak.windows import MINUTE, PacificDay, next_midnight
from _soak.world import Prompt, World
from llm_router import Clock, Deployment, FailureKind, ProviderError, Request

__all__ = ["Learner"]

_WINDOW = MINUTE + 0.3
_PROBE, _LONGEST_PROBE = 300.0, 1800.0
_LONGEST_CLOSED = 900.0


@attrs.define(eq=False)
class _Lane:
    """What is believed of one deployment."""

    deployment: Deployment
    limit: float = math.inf
    day_limit: float = math.inf
    day: PacificDay = attrs.field(factory=PacificDay)
    taken: deque[float] = attrs.field(factory=deque)
    in_flight: int = 0
    slots: int = 2
    closed_at: float = -math.inf
    closed_until: float = -math.inf
    probe_at: float = math.inf
    probe_wait: float = _PROBE
    probe: float | None = None  # when the probe was sent that is under way
    step: int = 1
    strikes: int = 0

    def free_at(self, now: float) -> float:
        """Return when it may take one more; infinity for when one in flight has come back."""
        if now < self.closed_until:
            return self.closed_until
        while self.taken and self.taken[0] + _WINDOW <= now:
            self.taken.popleft()
        if self.day.used(now) >= self.day_limit:
            return next_midnight(now)
        if self.in_flight >= self.slots:
            return math.inf
        if len(self.taken) < self.limit or (now >= self.probe_at and self.probe is None):
            return now
        return min(self.taken[0] + _WINDOW, self.probe_at if self.probe is None else math.inf)

    def take(self, now: float) -> None:
        if len(self.taken) >= self.limit:
            self.probe = now
        self.taken.append(now)
        self.day.take(now, 1)
        self.in_flight += 1

    def succeeded(self, sent: float, now: float) -> None:
        self.in_flight -= 1
        self.slots = min(self.slots + 1, 64)
        self.strikes = 0
        if self.probe == sent:
            self.limit += self.step
            self.step = min(2 * self.step, max(1, int(self.limit / 4)))
            self.probe, self.probe_wait, self.probe_at = None, _PROBE, now + MINUTE

    def refused(self, sent: float, now: float, error: ProviderError) -> None:
        self.in_flight -= 1
        if sent in self.taken:
            self.taken.remove(sent)
        self.day.take(now, -1)
        if self.probe == sent:
            self.probe, self.step, self.probe_wait = None, 1, min(2 * self.probe_wait, _LONGEST_PROBE)
            self.limit, self.probe_at = max(1, min(self.limit, len(self.taken))), now + self.probe_wait
            return
        is_new = sent >= self.closed_at
        if is_new:
            self.closed_at, self.slots, self.strikes = now, 1, self.strikes + 1
        if any(each.metric is not None and each.metric.is_daily for each in error.violations):
            if is_new:
                self.closed_until = now + (error.retry_delay or MINUTE)
            if self.strikes > 1:
                self.day_limit = self.day.used(now)
        else:
            self.limit, self.probe_at = max(1, len(self.taken)), now + self.probe_wait
            wait = min(MINUTE * 2.0 ** (self.strikes - 1), _LONGEST_CLOSED)
            self.closed_until = self.taken[0] + _WINDOW if self.taken else now + wait

    def failed(self, now: float, error: ProviderError) -> None:
        self.in_flight -= 1
        if now >= self.closed_until:
            self.slots, self.strikes = 1, self.strikes + 1
        server = error.kind is FailureKind.SERVER
        self.closed_until = now + (min(2.0**self.strikes, 16.0) if server else 86_400.0)


class Learner(Line):
    """Sends in one line, as fast as it believes each deployment to allow.

    Args:
        world: Whose deployments it uses; it does not see the limits.
        client: What it sends with.
        clock: Where time comes from.
    """

    def __init__(self, world: World, client: Client, clock: Clock) -> None:
        super().__init__(clock)
        self._client = client
        self._lanes = {each: _Lane(each) for each in world.deployments()}

    async def send(self, prompt: Prompt, caller: int, max_wait: float) -> Outcome:  # noqa: ARG002
        """Send until it is answered."""
        deployment = await self.turn(prompt)
        while True:
            lane, sent = self._lanes[deployment], self.clock.time()
            try:
                await self._client.generate(deployment, Request(contents=prompt.text()), _ignore)
            except ProviderError as error:
                if error.kind is FailureKind.QUOTA:
                    lane.refused(sent, self.clock.time(), error)
                else:
                    lane.failed(self.clock.time(), error)
                deployment = await self.turn(prompt, first=True)
                continue
            lane.succeeded(sent, self.clock.time())
            self.notify()
            return Outcome(success=True)

    def pick(self, prompt: Prompt) -> Deployment | float:  # noqa: ARG002
        """Return the deployment with the most room, or when one will have some."""
        now, soonest, best, least = self.clock.time(), math.inf, None, math.inf
        for lane in self._lanes.values():
            free_at = lane.free_at(now)
            soonest = min(soonest, free_at)
            if free_at <= now and len(lane.taken) < least:
                best, least = lane, len(lane.taken)
        if best is None:
            return soonest
        best.take(now)
        return best.deployment


def _ignore() -> None:
    pass

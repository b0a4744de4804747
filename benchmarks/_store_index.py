"""An index that a store could keep for all processes, to see what it would save; no store has it.

Simulated is the best that such an index could do: all processes have the same keys, which are in it from the
start, and asking it takes no round trip of its own.
"""

from __future__ import annotations

import heapq
import itertools
import random

from llm_router import Deployment
from llm_router.stores.base import Decision

__all__ = ["StoreIndex"]


class StoreIndex:
    """Which deployments may have room, by what the store has refused to whomever.

    Args:
        deployments: All of them.
        seed: Of the draws.
    """

    def __init__(self, deployments: list[Deployment], seed: int) -> None:
        self._awake = list(deployments)
        self._places = {deployment: place for place, deployment in enumerate(deployments)}
        self._asleep: dict[Deployment, float] = {}
        self._alarms: list[tuple[float, int, Deployment]] = []
        self._numbers = itertools.count()
        self._random = random.Random(seed)

    def note(self, decision: Decision) -> None:
        """Note until when no request has room on the deployments that were refused."""
        for refusal in decision.refusals:
            deployment = refusal.deployment
            place = self._places.pop(deployment, None)
            if place is not None:  # the last one moves into the gap
                last = self._awake.pop()
                if last is not deployment:
                    self._awake[place], self._places[last] = last, place
            if self._asleep.get(deployment) != refusal.wake_at:
                self._asleep[deployment] = refusal.wake_at
                heapq.heappush(self._alarms, (refusal.wake_at, next(self._numbers), deployment))

    def draw(self, now: float, count: int) -> list[Deployment]:
        """Return up to ``count`` deployments that may have room at ``now``; fewer if there are no more."""
        while self._alarms and self._alarms[0][0] <= now:
            wakes_at, _, deployment = heapq.heappop(self._alarms)
            if self._asleep.get(deployment) == wakes_at:
                del self._asleep[deployment]
                self._places[deployment] = len(self._awake)
                self._awake.append(deployment)
        size = len(self._awake)
        start = self._random.randrange(size or 1)
        return [self._awake[(start + further) % size] for further in range(min(count, size))]

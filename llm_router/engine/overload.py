"""Tell an outage of a model from a deployment of it that is overloaded now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from llm_router.domain.deployment import Deployment

__all__ = ["Overload"]

_DEPLOYMENTS = 3
_BETWEEN = 14.0
"""Seconds between two requests that look whether an outage is over: so long may its end go unnoticed."""


@attrs.define(eq=False)
class Overload:
    """Which deployments of a model were overloaded, one after the other.

    Three different ones without an answer between them are an outage of the model. From then on its
    deployments try again in turn, one every 14 s at the latest however many there are, rather than each by
    itself; the first answer ends it for all. Processes that share a store take these turns together, as far
    as they see each other's.

    Attributes:
        failed: The deployments that were overloaded since the model last answered.
    """

    failed: set[Deployment] = attrs.field(factory=set)
    _turns: dict[Deployment, float] = attrs.field(factory=dict)
    _taken: int = 0

    def record(self, deployment: Deployment) -> bool:
        """Note that a deployment was overloaded; return whether that is an outage of its model."""
        self.failed.add(deployment)
        return len(self.failed) >= _DEPLOYMENTS

    def take_turns(
        self,
        deployment: Deployment,
        start: float,
        others: Iterable[float],
        count: int,
        backoff: Callable[[int], float],
    ) -> dict[Deployment, float]:
        """Return when it is the turn of a deployment, and of those that failed before it and had none yet.

        Args:
            deployment: The deployment.
            start: From when on they may try, in seconds since the epoch.
            others: When cooldowns of the model end that may be turns which other processes have taken.
            count: How many deployments the model has.
            backoff: Returns the seconds from one turn to the next, as far as they are fewer than 14.
        """
        self.failed.add(deployment)  # while others were asked for, an answer may have ended the outage
        self._turns.pop(deployment, None)
        furthest = start + _BETWEEN * count
        last = max([start, *(turn for turn in (*self._turns.values(), *others) if turn <= furthest)])
        waiting = [each for each in self.failed if each not in self._turns and each != deployment]
        taken = {}
        for each in (*waiting, deployment):
            self._taken += 1
            taken[each] = last = last + min(backoff(self._taken), _BETWEEN)
        self._turns |= taken
        return taken

    def end(self) -> list[Deployment]:
        """Note that the model answers again; return the deployments that wait for their turn."""
        waiting, self._taken = list(self._turns), 0
        self.failed.clear()
        self._turns.clear()
        return waiting

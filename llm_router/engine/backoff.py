"""How long the head of a waiting line sleeps between two tries."""

from __future__ import annotations

import math
import random

__all__ = ["LONGEST_SLEEP", "SHORTEST_SLEEP", "ProbeBackoff"]

SHORTEST_SLEEP = 0.01
"""Shortest pause between two tries in seconds, so that clock skew cannot make us hammer the store."""

LONGEST_SLEEP = 1.0
"""Longest mean sleep, in seconds, beyond the moment at which a deployment should have room."""


class ProbeBackoff:
    """A sleep that grows where other processes take the quota waited for, and shrinks where it is granted.

    When quota is short, every process knows when the next bit of it comes back, and one of them gets it. If
    all of them asked at that moment, the store would be asked once per process for a single grant. So a try
    that fails halves the number of tries per second, and one that succeeds adds one to it: the rule by which
    many share a line evenly without exchanging a word (Chiu and Jain, 1989).
    """

    __slots__ = ("_per_second",)

    def __init__(self) -> None:
        self._per_second = 1 / SHORTEST_SLEEP

    def until(self, now: float, retry_at: float, deadline: float = math.inf) -> float:
        """Return when to try again after a try that found no room before ``retry_at``.

        That is not before ``retry_at``, and otherwise often enough that the deadline does not pass unused.
        """
        seconds = random.uniform(0.5, 1.5) / self._per_second  # noqa: S311 - keeps processes out of step
        return max(retry_at, now + min(seconds, max((deadline - now) / 2, SHORTEST_SLEEP)))

    def failed(self) -> None:
        """Note that a try found no room at a moment at which there should have been some."""
        self._per_second = max(self._per_second / 2, 1 / LONGEST_SLEEP)

    def succeeded(self) -> None:
        """Note that a try found room."""
        self._per_second = min(self._per_second + 1, 1 / SHORTEST_SLEEP)

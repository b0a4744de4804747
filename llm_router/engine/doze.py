"""How long the head of a waiting line sleeps between two tries."""

from __future__ import annotations

import math
import random

__all__ = ["LONGEST", "SHORTEST", "Doze"]

SHORTEST = 0.01
"""Seconds between two tries at least, lest a store whose clock differs be hammered."""

LONGEST = 1.0
"""Seconds that a head sleeps, in the mean, beyond the moment at which somebody should have room, at most."""


class Doze:
    """A sleep that grows where others take what one has waited for, and shrinks where one gets it.

    When quota is short every process knows when the next bit of it comes back, and one of them gets it. If
    all of them asked at that moment the store would be asked as many times as there are processes, for one
    grant. So a try that fails halves the number of tries a second, and one that succeeds adds one to it: the
    rule by which many share a line without a word between them, and evenly (Chiu and Jain, 1989).
    """

    __slots__ = ("_per_second",)

    def __init__(self) -> None:
        self._per_second = 1 / SHORTEST

    def until(self, now: float, retry_at: float, deadline: float = math.inf) -> float:
        """Return when to try again, after a try that found no room before ``retry_at``.

        Not before that, and otherwise often enough before the deadline that it does not pass unused.
        """
        seconds = random.uniform(0.5, 1.5) / self._per_second  # noqa: S311 - keeps processes out of step
        return max(retry_at, now + min(seconds, max((deadline - now) / 2, SHORTEST)))

    def failed(self) -> None:
        """Note that a try found no room at the moment at which there should have been some."""
        self._per_second = max(self._per_second / 2, 1 / LONGEST)

    def succeeded(self) -> None:
        """Note that a try found room."""
        self._per_second = min(self._per_second + 1, 1 / SHORTEST)

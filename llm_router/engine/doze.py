"""How long the head of a waiting line sleeps between two tries."""

from __future__ import annotations

import math
import random

__all__ = ["LONGEST", "SHORTEST", "Doze"]

SHORTEST = 0.01
"""Seconds between two tries at least, lest a store whose clock differs be hammered."""

LONGEST = 1.0
"""Seconds that a head sleeps at most beyond the moment at which somebody should have room."""


class Doze:
    """A sleep that grows where others take what one has waited for, and shrinks where one gets it.

    When quota is short every process knows when the next bit of it comes back, and one of them gets it. If
    all of them asked at that moment the store would be asked as many times as there are processes, for one
    grant. So a try that fails doubles the time to the next one, and a try that succeeds halves it: about
    every other try succeeds then, however many processes there are. It matters only to those whose quota
    others use, and only by a fraction of what they wait anyway.
    """

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds = SHORTEST

    def until(self, now: float, retry_at: float, deadline: float = math.inf) -> float:
        """Return when to try again, after a try that found no room before ``retry_at``.

        Not before that, and otherwise often enough before the deadline that it does not pass unused.
        """
        seconds = self._seconds * random.uniform(0.5, 1.5)  # noqa: S311 - keeps processes from going in step
        self._seconds = min(2 * self._seconds, LONGEST)
        return max(retry_at, now + min(seconds, max((deadline - now) / 2, SHORTEST)))

    def succeeded(self) -> None:
        """Note that a try found room."""
        self._seconds = max(self._seconds / 2, SHORTEST)

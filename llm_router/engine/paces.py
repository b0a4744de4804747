"""Remember what was counted of each day's quota at each look, to see how fast it is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from llm_router.domain.deployment import Scope
from llm_router.domain.forecast import LATELY, SHORTEST, Sample
from llm_router.domain.kinds import Metric

__all__ = ["Paces"]

_KEPT = int(LATELY / SHORTEST) + 1
_MOST = 100_000
"""Quotas of which it is remembered; beyond it, all of that begins anew."""


class Paces:
    """What statuses showed in the last quarter of an hour, about a minute apart."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Scope, Metric], deque[Sample]] = {}

    def note(self, scope: Scope, metric: Metric, used: int, now: float) -> Sequence[Sample]:
        """Note what is counted now; return what was before, oldest first."""
        if len(self._seen) > _MOST:
            self._seen.clear()
        seen = self._seen.setdefault((scope, metric), deque(maxlen=_KEPT))
        while seen and (seen[-1].used > used or seen[-1].at > now):
            seen.pop()  # something was given back, another day began, or the clock was set back
        if not seen or now - seen[-1].at >= SHORTEST:
            seen.append(Sample(now, used))
        return seen

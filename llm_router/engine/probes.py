"""Know which half-open cooldowns a request probes now, since its answer may end them at any moment."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Scope
from llm_router.stores.base import Refusal

__all__ = ["ANSWERED_IN", "Probes"]

ANSWERED_IN = 1.0
"""Seconds after which to ask again what has become of another request's probe."""

_REMEMBERED = 4096
"""Most scopes whose cooldown is remembered."""


@attrs.frozen
class _Met:
    """A cooldown that was met: which one it is, and when it ends (seconds since the epoch)."""

    strikes: int
    since: float
    until: float

    def is_of(self, cooldown: Cooldown) -> bool:
        return (self.strikes, self.since) == (cooldown.strikes, cooldown.since)


class Probes:
    """The half-open cooldowns that this process has met.

    A store refuses a scope that is being probed for ``PROBE_TIME``, since it may be the last that is heard of
    the probe. It looks like any other cooldown. But one that has ended, and has its end ahead again without
    another strike, is being probed; so is one whose probe this process was granted.
    """

    def __init__(self) -> None:
        self._met: dict[Scope, _Met] = {}

    def granted(self, probes: Iterable[Cooldown]) -> None:
        """Note the cooldowns that a granted request probes."""
        for cooldown in probes:
            self._note(cooldown, -math.inf)

    def hasten(self, refusal: Refusal, now: float) -> Refusal:
        """Return a refusal with the time at which to ask again, if it is for the sake of a probe.

        Args:
            refusal: The refusal.
            now: Seconds since the epoch.
        """
        cooldown = refusal.cooldown
        if cooldown is None or not cooldown.half_open or not cooldown.since:
            return refusal
        met = self._met.get(cooldown.scope)
        if met is None or not met.is_of(cooldown) or met.until > now:
            self._note(cooldown, cooldown.until)
            return refusal
        soon = now + ANSWERED_IN
        return attrs.evolve(refusal, retry_at=min(refusal.retry_at, soon), wake_at=min(refusal.wake_at, soon))

    def _note(self, cooldown: Cooldown, until: float) -> None:
        if len(self._met) >= _REMEMBERED and cooldown.scope not in self._met:
            del self._met[next(iter(self._met))]
        self._met[cooldown.scope] = _Met(cooldown.strikes, cooldown.since, until)

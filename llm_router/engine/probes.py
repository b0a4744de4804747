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

_ROUNDING = 0.001
"""Seconds by which two times may differ that are the same."""

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
        cooldown, hastened = refusal.cooldown, self.hastened(refusal, now)
        if hastened is refusal and cooldown is not None and _is_counted(cooldown):
            self._note(cooldown, cooldown.until)
        return hastened

    def hastened(self, refusal: Refusal, now: float) -> Refusal:
        """Return what :meth:`hasten` does, and note nothing."""
        cooldown = refusal.cooldown
        if cooldown is None or not _is_counted(cooldown):
            return refusal
        met = self._met.get(cooldown.scope)
        if met is None or not met.is_of(cooldown) or met.until > now:
            return refusal
        soon, ends = now + ANSWERED_IN, cooldown.until + _ROUNDING
        # What ends later than the cooldown ends with a quota, whatever becomes of the probe.
        retry_at, wake_at = (
            min(moment, soon) if moment <= ends else moment for moment in (refusal.retry_at, refusal.wake_at)
        )
        return attrs.evolve(refusal, retry_at=retry_at, wake_at=wake_at)

    def _note(self, cooldown: Cooldown, until: float) -> None:
        if len(self._met) >= _REMEMBERED and cooldown.scope not in self._met:
            del self._met[next(iter(self._met))]
        self._met[cooldown.scope] = _Met(cooldown.strikes, cooldown.since, until)


def _is_counted(cooldown: Cooldown) -> bool:
    """Return whether it ends with a probe, and can be told from another one of its scope."""
    return cooldown.half_open and bool(cooldown.since)

"""What a process knows of one shard of the store that it stands in front of."""

from __future__ import annotations

import asyncio
import math

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.stores.failover.alone import Alone

__all__ = ["Shard"]

_FIRST_PROBE, _LAST_PROBE = 1.0, 30.0


@attrs.define(eq=False)
class Shard:
    """One shard: whether this process does without it, and whether its count can be trusted.

    Times are steady ones, in seconds (see :class:`~llm_router.stores.failover.times.Times`), but for one.

    Attributes:
        number: Its number.
        sample: A deployment that lies in it, by which it is probed.
        trouble: Why this process does without it, or None while it answers.
        alone: The quotas of this process, while it does without the shard or cannot trust its count.
        reset_at: When the shard last lost something, as it says, by the time of day; 0 if it never did.
        lost_at: The same, as a steady time.
        probe: The probe under way.
        check: The check under way whether it answers other calls.
    """

    number: int
    sample: Deployment
    trouble: str | None = None
    alone: Alone | None = None
    reset_at: float = 0.0
    lost_at: float = -math.inf
    probe: asyncio.Task[None] | None = None
    check: asyncio.Task[bool] | None = None
    _delay: float = _FIRST_PROBE
    _probe_at: float = 0.0
    _cautious_since: float = -math.inf
    _widest: float = 0.0  # the longest window asked for since then

    @property
    def is_plain(self) -> bool:
        """Whether it answers, and its count can be trusted."""
        return self.trouble is None and self._cautious_since == -math.inf

    def be_cautious(self, since: float, now: float, window: float) -> None:
        """Do not trust the count: others may not have told the shard yet what they took.

        Args:
            since: When it lost something or answered again.
            now: The time; clocks differ, so ``since`` may be later.
            window: Seconds of the longest window of what this process took.
        """
        self._cautious_since = max(self._cautious_since, min(since, now))
        self._widest = max(self._widest, window)

    def is_cautious(self, now: float, window: float) -> bool:
        """Return whether the count is not to be trusted for ``window`` seconds yet; forget it if for none."""
        self._widest = max(self._widest, window)
        elapsed = now - self._cautious_since
        if 0.0 <= elapsed < window:
            return True
        if not 0.0 <= elapsed < self._widest:
            self._cautious_since, self._widest = -math.inf, 0.0
            if self.trouble is None:
                self.alone = None
        return False

    def do_without(self, trouble: str, now: float) -> None:
        """Do without it from now on."""
        self.trouble, self.alone = trouble, None
        self._delay = _FIRST_PROBE
        self._probe_at = now + self._delay

    def probe_is_due(self, now: float) -> bool:
        """Return whether it is time to look whether it answers again, and nothing does so already."""
        # A time further ahead than the delay was set before the clock was set back.
        if self.trouble is None or self._probe_at - self._delay <= now < self._probe_at:
            return False
        return self.probe is None or self.probe.done() or self.probe.get_loop().is_closed()

    def probe_later(self, now: float) -> None:
        """Wait twice as long until the next probe."""
        self._delay = min(self._delay * 2, _LAST_PROBE)
        self._probe_at = now + self._delay

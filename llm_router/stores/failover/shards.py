"""The shards of a store: whether this process does without them, and whether it can trust their counts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.stores.base import RateLimitStore, Sharded
from llm_router.stores.failover.alone import Alone
from llm_router.stores.failover.records import Record
from llm_router.stores.failover.takings import OwnTakings

__all__ = ["Shard", "Shards"]

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


class Shards:
    """The shards of a store of which this process has used something.

    Args:
        store: The store; one that is not :class:`Sharded` is a single shard.

    Attributes:
        careful: Whether any of them is in trouble, or not to be trusted yet; perhaps no longer.
    """

    def __init__(self, store: RateLimitStore) -> None:
        self.careful = False
        self._sharded = store if isinstance(store, Sharded) else None
        self._used: dict[int, Shard] = {}
        self._watchers: list[Callable[[str | None], None]] = []

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._used.values())

    @property
    def count(self) -> int:
        """How many shards the store has."""
        return 1 if self._sharded is None else self._sharded.shards

    def number_of(self, deployment: Deployment) -> int:
        """Return the number of the shard of a deployment."""
        return 0 if self._sharded is None else self._sharded.shard_of(deployment)

    def numbered(self, number: int | None) -> Shard | None:
        """Return the shard of a number, if this process has used it."""
        return None if number is None else self._used.get(number)

    def of(self, deployment: Deployment) -> Shard:
        """Return the shard of a deployment."""
        number = self.number_of(deployment)
        shard = self._used.get(number)
        if shard is None:
            shard = self._used[number] = Shard(number, deployment)
        return shard

    def runs(self, deployments: Iterable[Deployment]) -> Iterator[tuple[Shard, list[Deployment]]]:
        """Yield each run of deployments in the same shard, and the shard."""
        for _, run in groupby(deployments, self.number_of):
            together = list(run)
            yield self.of(together[0]), together

    def records_in(self, shard: Shard, own: OwnTakings) -> Iterator[Record]:
        """Yield the records of what this process took from a shard."""
        return (record for record in own if self.number_of(record.deployment) == shard.number)

    def trust_no_more(self, shard: Shard, since: float, now: float, window: float) -> None:
        """Be cautious with a shard; see :meth:`Shard.be_cautious`."""
        shard.be_cautious(since, now, window)
        self.careful = True

    @property
    def trouble(self) -> str | None:
        """Why this process is on its own, at least in part; None while the store answers."""
        troubled = [shard for shard in self if shard.trouble is not None]
        if not troubled:
            return None
        trouble = troubled[0].trouble
        return trouble if self.count == 1 else f"{trouble} ({len(troubled)} of {self.count} shards)"

    def watch(self, watcher: Callable[[str | None], None]) -> Callable[[], None]:
        """Have ``watcher`` called by :meth:`notify`; return what ends that, which may be called twice."""
        self._watchers.append(watcher)

        def stop() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return stop

    def notify(self, trouble: str | None) -> None:
        """Tell all that watch why this process is on its own from now on, or None if it is no more."""
        for watcher in list(self._watchers):
            watcher(trouble)

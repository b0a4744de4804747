"""The local index of deployments: which are ready, which are parked and until when.

It is cheap and possibly stale: the store decides. A selection looks at a handful of deployments, however
many there are: a ready one is found by its place in an array, a parked one by its place in a heap.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator

import attrs

from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.quota import MINUTE, TOKEN_METRICS
from llm_router.stores.base import Decision, Refusal, Sharded
from llm_router.strategies.base import Candidate

__all__ = ["Cell", "Pool", "Slot"]

_FRESH = 0.1
"""Seconds for which a refusal that would be anybody's is believed without asking again. Quota that another
process gives back before its time may be noticed so much later."""


@attrs.define(eq=False)
class Slot(Candidate):
    """A deployment with what this process knows of it.

    Attributes:
        cell: Where it belongs.
        shard: Where the store keeps it, if that has several shards.
        place: Its index in the array of ready slots of its priority (and shard), or -1 while it is parked.
        wake: Seconds since the epoch until which it is parked (meaningful while it is).
        held: Seconds since the epoch until which this process avoids it for reasons of its own, of which
            the store knows nothing.
        refusal: Why it was parked, or refused last.
        refused: Seconds since the epoch at which the store said so; -inf where it was not the store.
        day_strikes: Refusals in a row that named a daily quota which our own ledger thinks open.
        daily_headroom: Share (0 to 1) that remained of its tightest daily quota when it was granted last.
        minute_headroom: The same of its other quotas, less the time of that in minutes: they are taken to
            come back evenly over a minute, so that this plus the present time estimates what remains.
    """

    cell: Cell = attrs.field(kw_only=True, repr=False)
    shard: int = attrs.field(default=0, kw_only=True)
    place: int = attrs.field(default=-1, kw_only=True)
    wake: float = attrs.field(default=0.0, kw_only=True)
    held: float = attrs.field(default=0.0, kw_only=True)
    refusal: Refusal | None = attrs.field(default=None, kw_only=True, repr=False)
    refused: float = attrs.field(default=-math.inf, kw_only=True)
    day_strikes: int = attrs.field(default=0, kw_only=True)
    daily_headroom: float = attrs.field(default=1.0, init=False)
    minute_headroom: float = attrs.field(default=1.0, init=False)

    def observe(self, decision: Decision, now: float) -> None:
        """Note what the store said of its quotas."""
        self.daily_headroom = decision.daily_headroom
        self.minute_headroom = decision.headroom - now / MINUTE

    def note(self, refusal: Refusal, at: float = -math.inf) -> None:
        """Note why it is of no use, and when the store said so; by default it is not the store that does."""
        self.refusal, self.refused = refusal, at

    def refusal_for_all(self, now: float) -> Refusal | None:
        """Return what the store said a moment ago, if it would say the same to any request; else None."""
        refusal = self.refusal
        if refusal is None or now - self.refused >= _FRESH or refusal.reason in TOKEN_METRICS:
            return None
        return refusal


class _Rank:
    """The ready slots of one priority: an array with a cursor that moves on with every draw."""

    __slots__ = ("cursor", "slots")

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.cursor = random.randrange(1 << 30)  # noqa: S311 - keeps processes from starting alike

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slot: Slot) -> None:
        """Take in a slot that is ready."""
        slot.place = len(self.slots)
        self.slots.append(slot)

    def take_out(self, slot: Slot) -> None:
        """Let go of a slot; the array stays dense, for the last one moves into the gap."""
        last = self.slots.pop()
        if last is not slot:
            self.slots[slot.place] = last
            last.place = slot.place
        slot.place = -1

    def draw(self, count: int) -> list[Slot]:
        """Return up to ``count`` slots, starting one further than the last time."""
        slots = self.slots
        size = len(slots)
        start = self.cursor = (self.cursor + 1) % size
        if start + count <= size:
            return slots[start : start + count]
        return slots[start:] + slots[: min(start, start + count - size)]

    def draw_further(self, count: int, passed_over: Container[Slot]) -> list[Slot]:
        """Return up to ``count`` slots that are not in ``passed_over``; the next draw starts behind them."""
        found = [slot for slot in self.draw(count) if slot not in passed_over]
        self.cursor += count - 1
        if len(found) < count < len(self.slots):  # some that refused stand here, and others there
            found = [slot for slot in self.slots if slot not in passed_over]
        return found[:count]


class _Shards:
    """The ready slots of one priority where the store has several shards: a rank for each.

    A draw stays inside one shard as long as that has enough, so that a reserve is one round trip. Which one
    is drawn by lot, each with as many lots as it has slots ready, which is what capacity remains there.
    """

    __slots__ = ("_ranks", "_size")

    def __init__(self) -> None:
        self._ranks: defaultdict[int, _Rank] = defaultdict(_Rank)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, slot: Slot) -> None:
        """Take in a slot that is ready."""
        self._ranks[slot.shard].add(slot)
        self._size += 1

    def take_out(self, slot: Slot) -> None:
        """Let go of a slot."""
        self._ranks[slot.shard].take_out(slot)
        self._size -= 1

    def draw(self, count: int) -> list[Slot]:
        """Return up to ``count`` slots, those of one shard before those of the next."""
        return self._gather(count, lambda rank, missing: rank.draw(missing))

    def draw_further(self, count: int, passed_over: Container[Slot]) -> list[Slot]:
        """Do the same without those in ``passed_over``."""
        return self._gather(count, lambda rank, missing: rank.draw_further(missing, passed_over))

    def _gather(self, count: int, draw: Callable[[_Rank, int], list[Slot]]) -> list[Slot]:
        ranks = [rank for rank in self._ranks.values() if rank.slots]
        found: list[Slot] = []
        while ranks and len(found) < count:
            [rank] = random.choices(ranks, weights=[len(rank) for rank in ranks])  # noqa: S311 - spreads the load
            ranks.remove(rank)
            found += draw(rank, count - len(found))
        return found


class Cell:
    """The deployments of one (workload, model).

    Args:
        workload: The workload.
        model: The model.
        sharded: Whether the store keeps deployments in several shards.
    """

    __slots__ = (
        "_make_rank",
        "_parked",
        "_priorities",
        "_ranks",
        "_sequence",
        "held_until",
        "model",
        "slots",
        "workload",
    )

    def __init__(self, workload: str, model: str, *, sharded: bool = False) -> None:
        self.workload = workload
        self.model = model
        self.slots: list[Slot] = []
        self.held_until = 0.0  # when the last is no longer avoided that this process avoids by itself
        self._make_rank: type[_Rank | _Shards] = _Shards if sharded else _Rank
        self._ranks: dict[int, _Rank | _Shards] = {}
        self._priorities: list[int] = []  # those with a ready slot, ascending
        self._parked: list[tuple[float, int, Slot]] = []
        self._sequence = itertools.count()

    @property
    def has_ready(self) -> bool:
        """Whether any deployment is ready."""
        return bool(self._priorities)

    def add(self, deployment: Deployment, shard: int = 0) -> Slot:
        """Take in a deployment, ready."""
        slot = Slot(deployment, 0, 1.0, 0, cell=self, shard=shard)
        self.slots.append(slot)
        self._make_ready(slot)
        return slot

    def draw(self, count: int) -> Iterator[tuple[int, list[Slot]]]:
        """Yield (priority, ready slots), best priority first, at most ``count`` slots of each."""
        for priority in self._priorities:
            yield priority, self._ranks[priority].draw(count)

    def draw_further(self, count: int, passed_over: Container[Slot]) -> Iterator[tuple[int, list[Slot]]]:
        """Yield the same without those in ``passed_over``."""
        for priority in self._priorities:
            yield priority, self._ranks[priority].draw_further(count, passed_over)

    def park(self, slot: Slot, until: float) -> None:
        """Set ``slot`` aside until ``until``, or longer if it is set aside for longer already."""
        if slot.place >= 0:
            self._take_out(slot)
        elif until <= slot.wake:
            return
        slot.wake = until
        heapq.heappush(self._parked, (until, next(self._sequence), slot))

    def rouse(self, slot: Slot) -> None:
        """Make a parked slot ready before its time."""
        if slot.place < 0:
            self._make_ready(slot)

    def wake(self, now: float) -> None:
        """Make every slot ready whose time has come."""
        parked = self._parked
        while parked and (parked[0][0] <= now or self._is_stale(parked[0])):
            entry = heapq.heappop(parked)
            if not self._is_stale(entry):
                self._make_ready(entry[2])

    def parked(self) -> Iterator[Slot]:
        """Yield the parked slots, first to wake first; nothing may be parked or made ready meanwhile."""
        # A heap need not be sorted for that: the k smallest lie among few of its nodes.
        parked, seen = self._parked, set[Slot]()
        frontier = [(parked[0], 0)] if parked else []
        while frontier:
            entry, node = heapq.heappop(frontier)
            slot = entry[2]
            if not self._is_stale(entry) and slot not in seen:
                seen.add(slot)
                yield slot
            for child in (2 * node + 1, 2 * node + 2):
                if child < len(parked):
                    heapq.heappush(frontier, (parked[child], child))

    @staticmethod
    def _is_stale(entry: tuple[float, int, Slot]) -> bool:
        until, _, slot = entry
        return slot.place >= 0 or slot.wake != until

    def _make_ready(self, slot: Slot) -> None:
        priority = slot.deployment.priority
        rank = self._ranks.get(priority)
        if rank is None:
            rank = self._ranks[priority] = self._make_rank()
        if not rank:
            insort(self._priorities, priority)
        rank.add(slot)

    def _take_out(self, slot: Slot) -> None:
        priority = slot.deployment.priority
        rank = self._ranks[priority]
        rank.take_out(slot)
        if not rank:
            del self._priorities[bisect_left(self._priorities, priority)]


class Pool:
    """Every deployment of a router, by (workload, model).

    Args:
        deployments: The active ones.
        shards: The store that will be asked, if it keeps its deployments in shards.
    """

    def __init__(self, deployments: Iterable[Deployment], shards: Sharded | None = None) -> None:
        shard_of = shards.shard_of if shards is not None and shards.shards > 1 else None
        self.sharded = shard_of is not None
        self.cells: dict[tuple[str, str], Cell] = {}
        self._by_scope: defaultdict[Scope, list[Slot]] = defaultdict(list)
        self._slots: dict[Deployment, Slot] = {}
        for deployment in deployments:
            where = (deployment.workload, deployment.model)
            cell = self.cells.get(where)
            if cell is None:
                cell = self.cells[where] = Cell(*where, sharded=self.sharded)
            shard = 0 if shard_of is None else shard_of(deployment)
            slot = self._slots[deployment] = cell.add(deployment, shard)
            for scope in deployment.scopes:
                self._by_scope[scope].append(slot)

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def slot(self, deployment: Deployment) -> Slot:
        """Return the slot of ``deployment``."""
        return self._slots[deployment]

    def learn(self, refusal: Refusal, now: float) -> None:
        """Note a store's refusal; park the slot if it is of no use to anybody for a while."""
        slot = self._slots[refusal.deployment]
        slot.note(refusal, now)
        if refusal.wake_at > now:
            slot.cell.park(slot, refusal.wake_at)

    def park(self, scope: Scope, until: float, reason: str) -> None:
        """Set every deployment of ``scope`` aside until ``until`` (seconds since the epoch)."""
        for slot in self._by_scope.get(scope, ()):
            slot.note(Refusal(slot.deployment, reason, until, until))
            slot.cell.park(slot, until)

    def hold(self, slot: Slot, until: float, reason: str) -> None:
        """Avoid ``slot`` until ``until`` in this process only."""
        slot.held = max(slot.held, until)
        slot.cell.held_until = max(slot.cell.held_until, until)
        slot.note(Refusal(slot.deployment, reason, slot.held, slot.held))
        slot.cell.park(slot, slot.held)

    def rouse(self, scope: Scope, now: float) -> None:
        """Make the deployments of ``scope`` ready: some of their quota came back before its time."""
        for slot in self._by_scope.get(scope, ()):
            if slot.held <= now:
                slot.cell.rouse(slot)

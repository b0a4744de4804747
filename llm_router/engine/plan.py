"""The fallback order: in which tiers a request looks for a deployment."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from operator import attrgetter, itemgetter

import attrs

from llm_router.domain.quota import MINUTE
from llm_router.domain.request import Fallback
from llm_router.engine.pool import Cell, Pool, Slot
from llm_router.errors import InvalidRequestError, UnknownModelError, UnknownWorkloadError
from llm_router.stores.base import Refusal
from llm_router.strategies.base import SelectionStrategy

__all__ = ["LONGEST", "SHORTLIST", "Band", "Plan", "Planner"]

SHORTLIST = 8
"""Deployments that the first reserve of a request chooses from."""

LONGEST = 128
"""Deployments that any reserve chooses from at most."""

_GROWTH = 3
"""How many more are asked next for each that has refused: 8, 32, 128. A round trip costs as much as many of
them."""

_FALLBACKS = ("any", "model", "none")

_Drawn = tuple[int, list[Slot]]
"""Slots of one priority, with that."""


@attrs.frozen(eq=False)
class Band:
    """The cells of a tier whose workloads are equally far from the one asked for."""

    distance: int
    cells: tuple[Cell, ...]

    def draw(self, count: int, now: float) -> list[Slot]:
        """Return ready slots, lower priority numbers first, until there are ``count`` or no more."""
        if len(self.cells) == 1:
            return self._estimated(self.cells[0].draw(count), count, now)
        return self._estimated(_merged(cell.draw(count) for cell in self.cells), count, now)

    def draw_further(self, count: int, now: float, passed_over: Container[Slot]) -> list[Slot]:
        """Do the same without those in ``passed_over``."""
        ranks = _merged(cell.draw_further(count, passed_over) for cell in self.cells)
        return self._estimated(ranks, count, now)

    def _estimated(self, ranks: Iterable[_Drawn], count: int, now: float) -> list[Slot]:
        drawn: list[Slot] = []
        minutes, distance = now / MINUTE, self.distance
        for _, slots in ranks:
            for slot in slots:
                headroom, daily = slot.minute_headroom + minutes, slot.daily_headroom
                if headroom > daily:  # noqa: PLR1730 - a third of the time of min(), eight times in every send
                    headroom = daily
                slot.headroom, slot.load, slot.distance = headroom, slot.failures - headroom, distance
            drawn += slots
            if len(drawn) >= count:
                break
        return drawn


_Tier = tuple[Band, ...]


def _merged(cells: Iterable[Iterator[_Drawn]]) -> Iterator[_Drawn]:
    return heapq.merge(*cells, key=itemgetter(0))


@attrs.frozen(eq=False)
class Plan:
    """The tiers of one (workload, model, fallback), best first. No cell is in two of them."""

    workload: str | None
    tiers: tuple[_Tier, ...]
    cells: tuple[Cell, ...]
    models: frozenset[str]
    sharded: bool

    def shortlist(self, strategy: SelectionStrategy, now: float) -> list[Slot]:
        """Return up to 8 ready slots, best first."""

        def draw(tier: _Tier, _missing: int) -> list[Slot]:
            drawn: list[Slot] = []
            for band in tier:
                drawn += band.draw(SHORTLIST, now)
                if len(drawn) >= SHORTLIST:
                    break
            return drawn

        slots = self._best(strategy, now, SHORTLIST, draw)
        return _by_shard(slots) if self.sharded else slots

    def _best(
        self, strategy: SelectionStrategy, now: float, count: int, draw: Callable[[_Tier, int], list[Slot]]
    ) -> list[Slot]:
        """Return up to ``count`` ready slots, best first.

        ``draw`` is told a tier and how many are missing, and returns some of the tier's that are ready.
        """
        for cell in self.cells:
            cell.wake(now)
        chosen: list[Slot] = []
        for tier in self.tiers:
            drawn = draw(tier, count - len(chosen))
            if drawn:
                chosen += strategy.order(drawn)  # type: ignore[arg-type]  # slots in, slots out
                if len(chosen) >= count:
                    return chosen[:count]
        return chosen

    def further(
        self, strategy: SelectionStrategy, time: Callable[[], float], refused: dict[Slot, Refusal]
    ) -> Iterator[list[Slot]]:
        """Yield whom to ask next, list after list, for a request that nobody on its shortlist took.

        First the ready ones, best first, ever more at a time. Where they do not fill a list, parked ones do:
        somebody may have given quota back meanwhile, and only the store can say when *this* request fits, for
        a slot wakes when the smallest one does. It ends when nobody is left that may have room before those
        who said when they will.

        Args:
            strategy: How it ranks.
            time: Where time comes from.
            refused: What those said that were asked; the caller adds to it after each list, and so does
                this, what is known of others without asking.
        """
        parked: list[Slot] = []
        while True:
            now = time()
            wanted = SHORTLIST + _GROWTH * len(refused)
            slots = self._ready(strategy, now, min(wanted, LONGEST), refused)
            missing = min(wanted, LONGEST) - len(slots)
            if missing > 0:
                parked = [slot for slot in parked if slot.place < 0 and slot not in refused]
                parked = parked or self._overlooked(now, wanted, refused)
                slots += parked[:missing]
            if not slots:
                return
            yield _by_shard(slots) if self.sharded else slots

    def _ready(
        self, strategy: SelectionStrategy, now: float, count: int, refused: Container[Slot]
    ) -> list[Slot]:
        """Return up to ``count`` ready slots, best first, without those in ``refused``."""

        def draw(tier: _Tier, missing: int) -> list[Slot]:
            drawn: list[Slot] = []
            for band in tier:
                drawn += band.draw_further(missing - len(drawn), now, refused)
                if len(drawn) >= missing:
                    break
            return drawn

        return self._best(strategy, now, count, draw)

    def _overlooked(self, now: float, count: int, refused: dict[Slot, Refusal]) -> list[Slot]:
        """Return up to ``count`` parked slots, first to wake first, that have not been asked.

        One that wakes after somebody in ``refused`` has room is of no interest. One that refused somebody
        else a moment ago, for a reason that holds for every request, is not asked again but added to
        ``refused``: where many are refused at once, each would ask everybody.
        """
        overlooked: list[Slot] = []
        before = self.retry_at(now, refused)
        for slot in self._parked():
            if slot.wake >= before or len(overlooked) >= count:
                break
            if slot in refused:
                continue
            known = slot.refusal_for_all(now)
            if known is None:
                overlooked.append(slot)
            else:
                refused[slot] = known
                before = min(before, known.retry_at)
        return overlooked

    def retry_at(self, now: float, refused: Mapping[Slot, Refusal]) -> float:
        """Return when the first has room (seconds since the epoch), if those in ``refused`` are right."""
        retry_at = min((refusal.retry_at for refusal in refused.values()), default=math.inf)
        if not any(cell.held_until > now for cell in self.cells):
            return retry_at
        for slot in self._parked():
            if slot.wake >= retry_at:
                break
            if slot.held > now:
                return slot.held
        return retry_at

    def soonest(self, count: int) -> list[Slot]:
        """Return up to ``count`` parked slots, those that wake first, in that order."""
        return list(itertools.islice(self._parked(), count))

    def _parked(self) -> Iterator[Slot]:
        """Yield the parked slots as they wake; nothing may be parked or made ready meanwhile."""
        if len(self.cells) == 1:
            return self.cells[0].parked()
        return heapq.merge(*(cell.parked() for cell in self.cells), key=attrgetter("wake"))

    @property
    def size(self) -> int:
        """How many deployments it covers."""
        return sum(len(cell.slots) for cell in self.cells)


def _by_shard(slots: list[Slot]) -> list[Slot]:
    """Put those of one shard together where nothing but the remaining share ranks them.

    A reserve takes a round trip for each run of candidates of one shard.
    """
    together: list[Slot] = []
    for _, equals in itertools.groupby(slots, lambda slot: (slot.distance, slot.deployment.priority)):
        shards: dict[int, list[Slot]] = {}
        for slot in equals:
            shards.setdefault(slot.shard, []).append(slot)
        together += itertools.chain.from_iterable(shards.values())
    return together


class Planner:
    """Makes plans and keeps them: there are only so many (workload, model, fallback).

    Args:
        pool: Where the cells come from.
        workloads: The configured workloads, from lightest to heaviest: what «nearest» means.
    """

    def __init__(self, pool: Pool, workloads: tuple[str, ...]) -> None:
        self._pool = pool
        self._workloads = {workload: place for place, workload in enumerate(workloads)}
        self._models = {model for _, model in pool.cells}
        self._plans: dict[tuple[str | None, str | None, Fallback], Plan] = {}

    def plan(self, workload: str | None, model: str | None, fallback: Fallback) -> Plan:
        """Return the plan for a wish.

        Raises:
            UnknownWorkloadError: The workload is not configured.
            UnknownModelError: No deployment serves the model.
            InvalidRequestError: The fallback is none of ``any``, ``model``, ``none``, or leaves nothing.
        """
        wish = (workload, model, fallback)
        return self._plans.get(wish) or self._make(*wish)

    def _make(self, workload: str | None, model: str | None, fallback: Fallback) -> Plan:
        self._check(workload, model, fallback)
        tiers: list[_Tier] = []
        covered: set[Cell] = set()
        for wanted in self._tiers(workload, model, fallback):
            cells = [
                cell for where, cell in self._pool.cells.items() if wanted(*where) and cell not in covered
            ]
            covered.update(cells)
            if cells:
                tiers.append(self._bands(cells, workload))
        if not covered:
            raise InvalidRequestError(
                f"no deployment serves model {model!r} for workload {workload!r}, and fallback={fallback!r} "
                "allows no other: use fallback='model' or fallback='any'"
            )
        cells_in_order = tuple(cell for tier in tiers for band in tier for cell in band.cells)
        models = frozenset(cell.model for cell in cells_in_order)
        made = Plan(workload, tuple(tiers), cells_in_order, models, self._pool.sharded)
        self._plans[workload, model, fallback] = made
        return made

    def _check(self, workload: str | None, model: str | None, fallback: Fallback) -> None:
        if workload is not None and workload not in self._workloads:
            raise UnknownWorkloadError(
                f"unknown workload {workload!r}: use one of {', '.join(map(repr, self._workloads))}"
            )
        if model is not None and model not in self._models:
            raise UnknownModelError(
                f"no active deployment serves model {model!r}: use one of "
                f"{', '.join(map(repr, sorted(self._models)))}, or add it to a key in keys.json"
            )
        if fallback not in _FALLBACKS:
            raise InvalidRequestError(f"unknown fallback {fallback!r}: use one of {', '.join(_FALLBACKS)}")

    @staticmethod
    def _tiers(
        workload: str | None, model: str | None, fallback: Fallback
    ) -> list[Callable[[str, str], bool]]:
        steps: list[Callable[[str, str], bool]] = []
        if workload is not None and model is not None:
            steps.append(lambda w, m: w == workload and m == model)
            if fallback != "none":
                steps.append(lambda _, m: m == model)
        elif workload is not None:
            steps.append(lambda w, _: w == workload)
        elif model is not None:
            steps.append(lambda _, m: m == model)
        if fallback == "any" or not steps:
            steps.append(lambda _, __: True)
        return steps

    def _bands(self, cells: list[Cell], workload: str | None) -> tuple[Band, ...]:
        by_distance: dict[int, list[Cell]] = {}
        for cell in cells:
            by_distance.setdefault(self._distance(cell.workload, workload), []).append(cell)
        return tuple(Band(distance, tuple(by_distance[distance])) for distance in sorted(by_distance))

    def _distance(self, workload: str, wanted: str | None) -> int:
        return 0 if wanted is None else abs(self._workloads[workload] - self._workloads[wanted])

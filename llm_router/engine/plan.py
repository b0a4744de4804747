"""The fallback order: in which tiers a request looks for a deployment."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter

import attrs

from llm_router.domain.quota import MINUTE
from llm_router.domain.request import Fallback
from llm_router.engine.pool import Cell, Pool, Slot
from llm_router.errors import InvalidRequestError, UnknownModelError, UnknownWorkloadError
from llm_router.strategies.base import SelectionStrategy

__all__ = ["SHORTLIST", "Band", "Plan", "Planner"]

SHORTLIST = 8
"""Deployments that one reserve may choose from."""

_FALLBACKS = ("any", "model", "none")


@attrs.frozen(eq=False)
class Band:
    """The cells of a tier whose workloads are equally far from the one asked for."""

    distance: int
    cells: tuple[Cell, ...]

    def draw(self, count: int, now: float) -> list[Slot]:
        """Return ready slots, lower priority numbers first, until there are ``count`` or no more."""
        drawn: list[Slot] = []
        minutes = now / MINUTE
        for _, slots in self._ranks(count):
            for slot in slots:
                slot.distance = self.distance
                recovered = slot.minute_headroom + minutes
                # min() costs three times as much, and this runs eight times in every send.
                slot.headroom = recovered if recovered < slot.daily_headroom else slot.daily_headroom  # noqa: FURB136
            drawn += slots
            if len(drawn) >= count:
                break
        return drawn

    def _ranks(self, count: int) -> Iterable[tuple[int, list[Slot]]]:
        if len(self.cells) == 1:
            return self.cells[0].draw(count)
        return heapq.merge(*(cell.draw(count) for cell in self.cells), key=itemgetter(0))


@attrs.frozen(eq=False)
class Plan:
    """The tiers of one (workload, model, fallback), best first. No cell is in two of them."""

    workload: str | None
    tiers: tuple[tuple[Band, ...], ...]
    cells: tuple[Cell, ...]
    models: frozenset[str]

    def shortlist(
        self, strategy: SelectionStrategy, now: float, passed_over: Collection[Slot] = ()
    ) -> list[Slot]:
        """Return up to 8 ready slots, best first, without those in ``passed_over``."""
        for cell in self.cells:
            cell.wake(now)
        chosen: list[Slot] = []
        for tier in self.tiers:
            drawn = self._draw(tier, now, passed_over)
            if drawn:
                chosen += strategy.order(drawn)  # type: ignore[arg-type]  # slots in, slots out
                if len(chosen) >= SHORTLIST:
                    return chosen[:SHORTLIST]
        return chosen

    @staticmethod
    def _draw(tier: tuple[Band, ...], now: float, passed_over: Collection[Slot]) -> list[Slot]:
        drawn: list[Slot] = []
        for band in tier:
            if passed_over:  # enough to find some that have not refused this request already
                window = band.draw(SHORTLIST + len(passed_over), now)
                drawn += [slot for slot in window if slot not in passed_over]
            else:
                drawn += band.draw(SHORTLIST, now)
            if len(drawn) >= SHORTLIST:
                break
        return drawn

    def soonest(self, count: int) -> list[Slot]:
        """Return up to ``count`` parked slots, those that wake first, in that order."""
        found = [slot for cell in self.cells for slot in cell.soonest(count)]
        return sorted(found, key=lambda slot: slot.wake)[:count]

    @property
    def size(self) -> int:
        """How many deployments it covers."""
        return sum(len(cell.slots) for cell in self.cells)


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
        tiers: list[tuple[Band, ...]] = []
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
        made = self._plans[workload, model, fallback] = Plan(workload, tuple(tiers), cells_in_order, models)
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

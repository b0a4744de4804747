"""The fallback order: the tiers in which a request looks for a deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

from llm_router.domain.methods import ANY_METHOD, serves_any
from llm_router.domain.request import Fallback
from llm_router.engine.index import FallbackOrder, Group, Step
from llm_router.engine.pool import Pool
from llm_router.engine.sharding import ShardedFallbackOrder
from llm_router.engine.upstream import Upstream
from llm_router.errors import (
    InvalidRequestError,
    LLMRouterError,
    UnknownModelError,
    UnknownWorkloadError,
)

__all__ = ["FallbackOrders", "Wish"]

Wish = tuple[str | None, str | None, Fallback, frozenset[str], str]
"""The workload and the model asked for, how far from them a request may go, providers to leave out, and the
method that the model must have."""

_FALLBACKS = ("any", "model", "none")


class FallbackOrders(dict[Wish, FallbackOrder]):
    """The fallback order of every wish, made at the first look-up: there are only so many of them.

    Looking one up raises UnknownWorkloadError if the workload is not configured, UnknownModelError if no
    deployment serves the model, and InvalidRequestError if the fallback is not one of ``any``, ``model``,
    ``none``, or leaves no deployment, or none that can do what is asked.

    A model that answers with pictures or sound is only in the tiers that name it.

    Args:
        pool: Where the groups come from.
        workloads: The configured workloads, from lightest to heaviest; this defines which one is nearest.
    """

    def __init__(self, pool: Pool, workloads: Sequence[str]) -> None:
        super().__init__()
        self._pool = pool
        self._wishes: WeakKeyDictionary[FallbackOrder, Wish] = WeakKeyDictionary()
        self._arrange(workloads)

    def _arrange(self, workloads: Sequence[str]) -> None:
        self._positions = {workload: position for position, workload in enumerate(workloads)}
        self._models = sorted({group.model for group in self._pool.groups.values()})

    def __missing__(self, wish: Wish) -> FallbackOrder:
        tiers = self._find(wish)
        problem = self._problem(wish, tiers)
        if problem is not None:
            raise problem
        order = self[wish] = self._make(wish, tiers)
        return order

    def refresh(self, workloads: Sequence[str]) -> None:
        """Go by what the pool holds now, for requests on their way as well.

        Those go on as far as their fallback allows, even if what they wished for is gone. An order that needs
        a provider that its requests were not made for is emptied, and :meth:`again` has another one. Later
        requests get another one, too, wherever it would not be the same.
        """
        self._arrange(workloads)
        for order, wish in list(self._wishes.items()):
            tiers = self._find(wish)
            known, found = set(order.upstreams), set(_upstreams_in(tiers))
            is_same = found == known and self._problem(wish, tiers) is None
            if not is_same and self.get(wish) is order:
                del self[wish]
            order.tiers = tiers if found <= known else ()
            order.groups = _groups_in(order.tiers)

    def again(self, order: FallbackOrder, excluded: frozenset[str] = frozenset()) -> FallbackOrder:
        """Return the order of a request whose own a reload has emptied, without some more providers.

        Raises:
            InvalidRequestError: Nothing can serve it any more: what a request with its wish is told now.
        """
        workload, model, fallback, before, method = self._wishes[order]
        wish = workload, model, fallback, before | excluded, method
        tiers = self._find(wish)
        problem = self._problem(wish, tiers)
        if problem is None:
            return self[wish]
        if not tiers:
            raise problem
        others = (other for other, its_wish in self._wishes.items() if its_wish == wish and other.groups)
        return next(others, None) or self._make(wish, tiers)

    def _make(self, wish: Wish, tiers: tuple[tuple[Step, ...], ...]) -> FallbackOrder:
        kind = ShardedFallbackOrder if self._pool.sharded else FallbackOrder
        order = kind(wish[0], tiers, _groups_in(tiers), _upstreams_in(tiers))
        self._wishes[order] = wish
        return order

    def _find(self, wish: Wish) -> tuple[tuple[Step, ...], ...]:
        """Return the tiers of a wish."""
        workload, model, fallback, excluded, method = wish
        tiers: list[tuple[Step, ...]] = []
        left = [
            group
            for group in self._pool.groups.values()
            if group.upstream.name not in excluded and _can_serve(group, method, model)
        ]
        for accepts in _tiers(workload, model, fallback):
            accepted = [group for group in left if accepts(group)]
            left = [group for group in left if not accepts(group)]
            if accepted:
                tiers.append(self._steps(accepted, workload))
        return tuple(tiers)

    def _problem(self, wish: Wish, tiers: tuple[tuple[Step, ...], ...]) -> LLMRouterError | None:
        """Return why a wish cannot be asked for, or None."""
        workload, model, fallback, excluded, method = wish
        problem = self._misfit(workload, model, fallback)
        if problem is not None:
            return problem
        able = [group for group in self._pool.groups.values() if _can_serve(group, method, model)]
        left = [group for group in able if group.upstream.name not in excluded]
        if able and not left:
            return InvalidRequestError(
                "none of the providers that can serve this request has a deployment for it"
            )
        if not left or (model is not None and all(group.model != model for group in left)):
            return InvalidRequestError(_no_method(method, model))
        if not tiers and model is None:
            return InvalidRequestError(
                f"no deployment has workload {workload!r}, and fallback={fallback!r} allows no other: "
                "use fallback='any'"
            )
        if not tiers:
            return InvalidRequestError(
                f"no deployment serves model {model!r} for workload {workload!r}, and fallback={fallback!r} "
                "allows no other: use fallback='model' or fallback='any'"
            )
        return None

    def _misfit(self, workload: str | None, model: str | None, fallback: Fallback) -> LLMRouterError | None:
        if workload is not None and workload not in self._positions:
            return UnknownWorkloadError(
                f"unknown workload {workload!r}: use one of {', '.join(map(repr, self._positions))}"
            )
        if model is not None and model not in self._models:
            return UnknownModelError(
                f"no active deployment serves model {model!r}: add it to a key in keys.json, or use one of "
                f"{', '.join(map(repr, self._models))}"
            )
        if fallback not in _FALLBACKS:
            return InvalidRequestError(f"unknown fallback {fallback!r}: use one of {', '.join(_FALLBACKS)}")
        return None

    def _steps(self, groups: list[Group], workload: str | None) -> tuple[Step, ...]:
        by_distance: dict[int, list[Group]] = {}
        for group in groups:
            by_distance.setdefault(self._distance(group.workload, workload), []).append(group)
        return tuple(Step(distance, tuple(by_distance[distance])) for distance in sorted(by_distance))

    def _distance(self, workload: str, wanted: str | None) -> int:
        place = self._positions.get(wanted or "")  # one that a reload has taken away is as far from all
        return 0 if place is None else abs(self._positions[workload] - place)


def _groups_in(tiers: Iterable[tuple[Step, ...]]) -> tuple[Group, ...]:
    return tuple(group for tier in tiers for step in tier for group in step.groups)


def _upstreams_in(tiers: Iterable[tuple[Step, ...]]) -> tuple[Upstream, ...]:
    return tuple(dict.fromkeys(group.upstream for group in _groups_in(tiers)))


def _tiers(workload: str | None, model: str | None, fallback: Fallback) -> list[Callable[[Group], bool]]:
    """Return what each tier accepts, best first."""
    tiers: list[Callable[[Group], bool]] = []
    if workload is not None and model is not None:
        tiers.append(lambda group: group.workload == workload and group.model == model)
        if fallback != "none":
            tiers.append(lambda group: group.model == model)
    elif workload is not None:
        tiers.append(lambda group: group.workload == workload)
    elif model is not None:
        tiers.append(lambda group: group.model == model)
    if fallback == "any" or not tiers:
        tiers.append(lambda _: True)
    return tiers


def _can_serve(group: Group, method: str, model: str | None) -> bool:
    if method == ANY_METHOD or group.model == model:
        return method in group.methods or method == ANY_METHOD
    return serves_any(group.methods, method)


def _no_method(method: str, model: str | None) -> str:
    if model is None:
        return f"no deployment has a model for {method}: add one to keys.json, or state its methods there"
    return (
        f"model {model!r} cannot do {method}, as far as its name says: use another model, "
        f'or state "methods": ["{method}"] for it in keys.json'
    )

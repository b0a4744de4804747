"""The fallback order: the tiers in which a request looks for a deployment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_router.domain.methods import ANY_METHOD, IMAGES, SPEECH
from llm_router.domain.request import Fallback
from llm_router.engine.index import FallbackOrder, Group, Step
from llm_router.engine.pool import Pool
from llm_router.engine.sharding import ShardedFallbackOrder
from llm_router.errors import InvalidRequestError, UnknownModelError, UnknownWorkloadError

__all__ = ["FallbackOrders", "Wish"]

Wish = tuple[str | None, str | None, Fallback, frozenset[str], str]
"""The workload and the model asked for, how far from them a request may go, providers to leave out, and the
method that the model must have."""

_OTHER_OUTPUTS = frozenset({IMAGES, SPEECH})

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
        self._positions = {workload: position for position, workload in enumerate(workloads)}
        self._models = sorted({group.model for group in pool.groups.values()})

    def __missing__(self, wish: Wish) -> FallbackOrder:
        workload, model, fallback, excluded, method = wish
        self._check(workload, model, fallback)
        tiers: list[tuple[Step, ...]] = []
        left = [
            group
            for group in self._pool.groups.values()
            if group.upstream.name not in excluded and _can_serve(group, method, model)
        ]
        if not left or (model is not None and all(group.model != model for group in left)):
            raise InvalidRequestError(_no_method(method, model))
        for accepts in _tiers(workload, model, fallback):
            accepted = [group for group in left if accepts(group)]
            left = [group for group in left if not accepts(group)]
            if accepted:
                tiers.append(self._steps(accepted, workload))
        if not tiers:
            raise InvalidRequestError(
                f"no deployment serves model {model!r} for workload {workload!r}, and fallback={fallback!r} "
                "allows no other: use fallback='model' or fallback='any'"
            )
        groups = tuple(group for tier in tiers for step in tier for group in step.groups)
        kind = ShardedFallbackOrder if self._pool.sharded else FallbackOrder
        upstreams = tuple(dict.fromkeys(group.upstream for group in groups))
        order = self[wish] = kind(workload, tuple(tiers), groups, upstreams)
        return order

    def _check(self, workload: str | None, model: str | None, fallback: Fallback) -> None:
        if workload is not None and workload not in self._positions:
            raise UnknownWorkloadError(
                f"unknown workload {workload!r}: use one of {', '.join(map(repr, self._positions))}"
            )
        if model is not None and model not in self._models:
            raise UnknownModelError(
                f"no active deployment serves model {model!r}: use one of "
                f"{', '.join(map(repr, self._models))}, or add it to a key in keys.json"
            )
        if fallback not in _FALLBACKS:
            raise InvalidRequestError(f"unknown fallback {fallback!r}: use one of {', '.join(_FALLBACKS)}")

    def _steps(self, groups: list[Group], workload: str | None) -> tuple[Step, ...]:
        by_distance: dict[int, list[Group]] = {}
        for group in groups:
            by_distance.setdefault(self._distance(group.workload, workload), []).append(group)
        return tuple(Step(distance, tuple(by_distance[distance])) for distance in sorted(by_distance))

    def _distance(self, workload: str, wanted: str | None) -> int:
        return 0 if wanted is None else abs(self._positions[workload] - self._positions[wanted])


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
    return method in group.methods and _OTHER_OUTPUTS.isdisjoint(group.methods)


def _no_method(method: str, model: str | None) -> str:
    if model is None:
        return f"no deployment has a model for {method}: add one to keys.json, or state its methods there"
    return (
        f"model {model!r} cannot do {method}, as far as its name says: use another model, "
        f'or state "methods": ["{method}"] for it in keys.json'
    )

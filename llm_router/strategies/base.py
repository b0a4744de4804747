"""The port between the engine and a ranking of deployments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from llm_router.domain.deployment import Deployment

__all__ = ["Candidate", "SelectionStrategy"]


@attrs.define(eq=False)
class Candidate:
    """A deployment as the local index knows it: cheap to read, possibly stale.

    Attributes:
        deployment: The deployment.
        distance: Steps between its workload and the one asked for; 0 if none was asked for.
        headroom: Estimated share (0 to 1) that remains of its tightest quota.
        failures: Transient failures in a row.
        load: The failures minus the headroom; by default, equals are ranked by it, lowest first.
    """

    deployment: Deployment
    distance: int
    headroom: float
    failures: int
    load: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.load = self.failures - self.headroom


class SelectionStrategy(Protocol):
    """Orders the deployments inside one tier; implement it to set your own preference.

    In a tier with up to 8 ready deployments, :meth:`order` gets all of them. In a larger one it gets a
    sample of each (workload distance, priority), the nearest first; the sample moves on with every call, so
    that each deployment takes its turn. It runs on every send: keep it to microseconds, and do no I/O.
    """

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return ``candidates`` (or some of them), best first."""
        ...

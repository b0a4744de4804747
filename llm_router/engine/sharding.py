"""The local index where the store keeps its deployments in several shards."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar

import attrs

from llm_router.engine.index import DeploymentState, FallbackOrder, ReadyRing

__all__ = ["ShardedFallbackOrder", "ShardedRing"]


class ShardedRing:
    """The ready deployments of one group and priority, in a ring per shard.

    A draw stays inside one shard as long as that shard has enough, so that a reserve is one round trip. The
    shard is drawn at random, weighted by how many of its deployments are ready: that is the capacity left.
    """

    __slots__ = ("_rings", "_size")

    def __init__(self) -> None:
        self._rings: defaultdict[int, ReadyRing] = defaultdict(ReadyRing)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, state: DeploymentState) -> None:
        """Add a deployment that is ready."""
        self._rings[state.shard].add(state)
        self._size += 1

    def remove(self, state: DeploymentState) -> None:
        """Remove a deployment that is in the ring."""
        self._rings[state.shard].remove(state)
        self._size -= 1

    def draw(self, count: int, skip: Container[DeploymentState] = ()) -> list[DeploymentState]:
        """Return up to ``count`` deployments not in ``skip``, those of one shard before those of the next."""
        rings = [ring for ring in self._rings.values() if ring.states]
        drawn: list[DeploymentState] = []
        while rings and len(drawn) < count:
            [ring] = random.choices(rings, weights=[len(ring) for ring in rings])  # noqa: S311 - spreads the load
            rings.remove(ring)
            drawn += ring.draw(count - len(drawn), skip)
        return drawn

    def copy(self, twins: Mapping[DeploymentState, DeploymentState]) -> ShardedRing:
        """Return a ring of the twins of its deployments; the shard of its next draw is drawn anew."""
        ring = ShardedRing()
        for shard, inner in self._rings.items():
            ring._rings[shard] = inner.copy(twins)
        ring._size = self._size
        return ring


@attrs.define(eq=False)
class ShardedFallbackOrder(FallbackOrder):
    """A fallback order that keeps the deployments of one shard together."""

    is_sharded: ClassVar[bool] = True

    def arrange(self, states: Sequence[DeploymentState]) -> Sequence[DeploymentState]:
        """Put those of one shard together where only the remaining share ranks them.

        A reserve takes a round trip for each run of candidates of one shard.
        """
        together: list[DeploymentState] = []
        for _, equals in itertools.groupby(states, lambda state: (state.distance, state.deployment.priority)):
            shards: dict[int, list[DeploymentState]] = {}
            for state in equals:
                shards.setdefault(state.shard, []).append(state)
            together += itertools.chain.from_iterable(shards.values())
        return together

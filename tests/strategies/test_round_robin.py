"""Giving every deployment its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from llm_router import Candidate, RoundRobin, Router

if TYPE_CHECKING:
    from tests.conftest import Pools


def test_candidates_stay_as_they_are(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """The order is the index's own, whatever the load and the weights."""
    candidates = [
        make_candidate("a", headroom=0.1, failures=3),
        make_candidate("b", headroom=0.9, weight=9.0),
        make_candidate("c"),
    ]
    assert key_ids(RoundRobin().order(candidates)) == ["a", "b", "c"]


async def test_a_router_uses_each_deployment_in_turn(
    pools: Pools, make_router: Callable[..., Router]
) -> None:
    """Through a router, equal deployments get the same number of requests, one after another."""
    async with make_router(pools.many(3), strategy=RoundRobin()) as router:
        used = [(await router.send("Hello?")).key_id for _ in range(12)]
    assert set(Counter(used).values()) == {4}
    assert all(len(set(used[start : start + 3])) == 3 for start in range(0, 12, 3))


def test_repr() -> None:
    """The repr is the name."""
    assert repr(RoundRobin()) == "RoundRobin()"

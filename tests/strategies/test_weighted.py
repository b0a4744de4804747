"""Spreading requests by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Candidate, Router, Weighted

if TYPE_CHECKING:
    from tests.conftest import Pools


DRAWS = 4_000


@pytest.fixture
def weighted_three(make_candidate: Callable[..., Candidate]) -> list[Candidate]:
    return [make_candidate(f"w{weight}", weight=weight) for weight in (1.0, 3.0, 6.0)]


def test_first_places_are_in_proportion_to_the_weights(
    weighted_three: list[Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """Over many draws, each deployment comes first as often as its weight says."""
    strategy = Weighted(seed=1)
    firsts = Counter(key_ids(strategy.order(weighted_three))[0] for _ in range(DRAWS))
    assert firsts["w1.0"] / DRAWS == pytest.approx(0.1, abs=0.02)
    assert firsts["w3.0"] / DRAWS == pytest.approx(0.3, abs=0.02)
    assert firsts["w6.0"] / DRAWS == pytest.approx(0.6, abs=0.02)


def test_second_places_are_in_proportion_too(
    weighted_three: list[Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """Behind a given first, the others are drawn by their own weights."""
    strategy = Weighted(seed=2)
    orders = [key_ids(strategy.order(weighted_three)) for _ in range(DRAWS)]
    behind = Counter(second for first, second, _ in orders if first == "w6.0")
    assert behind["w3.0"] / behind.total() == pytest.approx(0.75, abs=0.03)


def test_every_order_has_all_candidates(weighted_three: list[Candidate]) -> None:
    """An order leaves none out and repeats none."""
    strategy = Weighted(seed=3)
    for _ in range(100):
        order = strategy.order(weighted_three)
        assert len(order) == 3
        assert {id(candidate) for candidate in order} == {id(candidate) for candidate in weighted_three}


def test_weight_zero_is_last(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """A deployment with weight 0 comes last among its equals, however light they are."""
    candidates = [make_candidate("none", weight=0.0), make_candidate("little", weight=1e-9)]
    strategy = Weighted(seed=4)
    assert all(key_ids(strategy.order(candidates)) == ["little", "none"] for _ in range(200))


def test_weight_zero_is_before_a_worse_step(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """Weights decide among equals only: weight 0 still precedes a higher priority number."""
    candidates = [make_candidate("later", priority=2, weight=9.0), make_candidate("none", weight=0.0)]
    assert key_ids(Weighted(seed=5).order(candidates)) == ["none", "later"]


def test_distance_and_priority_come_before_the_weight(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """The nearest workload is first, then the lower priority number, whatever the weights."""
    candidates = [
        make_candidate("far", distance=1, priority=0, weight=100.0),
        make_candidate("late", distance=0, priority=2, weight=10.0),
        make_candidate("first", distance=0, priority=1, weight=0.1),
    ]
    strategy = Weighted(seed=6)
    assert all(key_ids(strategy.order(candidates)) == ["first", "late", "far"] for _ in range(200))


def test_load_does_not_matter(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """Headroom and failures do not change the draw."""
    calm = [make_candidate("a", weight=1.0), make_candidate("b", weight=1.0)]
    busy = [
        make_candidate("a", weight=1.0, headroom=0.0, failures=5),
        make_candidate("b", weight=1.0),
    ]
    strategies = Weighted(seed=7), Weighted(seed=7)
    for _ in range(50):
        assert key_ids(strategies[0].order(calm)) == key_ids(strategies[1].order(busy))


def test_a_seed_makes_draws_repeatable(
    weighted_three: list[Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """Two strategies with one seed draw alike; with another seed they do not."""

    def draw(seed: int) -> list[Any]:
        strategy = Weighted(seed)
        return [key_ids(strategy.order(weighted_three)) for _ in range(100)]

    assert draw(8) == draw(8)
    assert draw(8) != draw(9)


def test_no_candidates() -> None:
    """An empty tier has an empty order."""
    assert list(Weighted(seed=1).order([])) == []


async def test_a_router_spreads_by_weight(pools: Pools, make_router: Callable[..., Router]) -> None:
    """Through a router, two keys of weights 1 and 4 take a fifth and four fifths of the requests."""
    deployments = [
        pools.one(key_id="light", weight=1.0, rpm=None),
        pools.one(key_id="heavy", weight=4.0, rpm=None),
    ]
    async with make_router(deployments, strategy=Weighted(seed=10)) as router:
        used = Counter([(await router.send("Hello?")).key_id for _ in range(500)])
    assert used["heavy"] / used.total() == pytest.approx(0.8, abs=0.05)


def test_repr() -> None:
    """The repr is the name: the seed is not kept."""
    assert repr(Weighted(seed=1)) == "Weighted()"

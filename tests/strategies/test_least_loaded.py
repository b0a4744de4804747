"""Preferring the largest share of quota left."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llm_router import Candidate, LeastLoaded


def test_the_larger_share_comes_first(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """Among equals, the deployment with more of its quota left is first."""
    candidates = [make_candidate(f"{share}", headroom=share) for share in (0.5, 0.1, 0.9)]
    assert key_ids(LeastLoaded().order(candidates)) == ["0.9", "0.5", "0.1"]


def test_a_failed_deployment_ranks_behind_its_equals(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """One transient failure outweighs any share of quota."""
    candidates = [make_candidate("failed", headroom=1.0, failures=1), make_candidate("empty", headroom=0.1)]
    assert key_ids(LeastLoaded().order(candidates)) == ["empty", "failed"]


def test_distance_and_priority_come_before_the_load(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """The nearest workload is first, then the lower priority number, then the larger share."""
    candidates = [
        make_candidate("full", priority=1, headroom=0.2),
        make_candidate("free", priority=1, headroom=0.8),
        make_candidate("late", priority=2, headroom=1.0),
        make_candidate("far", distance=1, priority=0, headroom=1.0),
    ]
    assert key_ids(LeastLoaded().order(candidates)) == ["free", "full", "late", "far"]


def test_equals_keep_their_order(
    make_candidate: Callable[..., Candidate], key_ids: Callable[[Iterable[Candidate]], list[str]]
) -> None:
    """Deployments with the same load stay in the order in which the index draws them."""
    candidates = [make_candidate(name) for name in "cab"]
    assert key_ids(LeastLoaded().order(candidates)) == ["c", "a", "b"]


def test_no_candidates() -> None:
    """An empty tier has an empty order."""
    assert list(LeastLoaded().order([])) == []


def test_repr() -> None:
    """The repr is the name."""
    assert repr(LeastLoaded()) == "LeastLoaded()"

"""What the tests of strategies share: candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.strategies import Candidate

if TYPE_CHECKING:
    from tests.conftest import Pools


@pytest.fixture
def make_candidate(pools: Pools) -> Callable[..., Candidate]:
    """Make a candidate with a deployment of its own; unknown fields are the deployment's."""

    def make(
        key_id: str = "", *, distance: int = 0, headroom: float = 1.0, failures: int = 0, **fields: Any
    ) -> Candidate:
        return Candidate(pools.one(key_id=key_id, **fields), distance, headroom, failures)

    return make


@pytest.fixture
def key_ids() -> Callable[[Iterable[Candidate]], list[str]]:
    """Return the keys of candidates, in order."""
    return lambda candidates: [candidate.deployment.key.key_id for candidate in candidates]

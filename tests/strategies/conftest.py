"""What the tests of strategies share: candidates."""

from __future__ import annotations

import pytest

from llm_router.strategies import Candidate


@pytest.fixture
def make_candidate(pools):
    """Make a candidate with a deployment of its own; unknown fields are the deployment's."""

    def make(key_id="", *, distance=0, headroom=1.0, failures=0, **fields):
        return Candidate(pools.one(key_id=key_id, **fields), distance, headroom, failures)

    return make


@pytest.fixture
def key_ids():
    """Return the keys of candidates, in order."""
    return lambda candidates: [candidate.deployment.key.key_id for candidate in candidates]

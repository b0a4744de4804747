"""The error tree."""

from __future__ import annotations

import pickle

import pytest

from llm_router import errors
from llm_router.errors import (
    BlockedError,
    InvalidRequestError,
    LLMRouterError,
    ProviderError,
    QuotaExhaustedError,
    QuotaViolation,
    RefusedCandidate,
    SendError,
)


def test_one_tree():
    """Whatever is raised on purpose is caught by its root."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    raised = [kind for kind in kinds if issubclass(kind, BaseException)]
    assert len(raised) >= 14
    assert all(issubclass(kind, LLMRouterError) for kind in raised)
    assert issubclass(InvalidRequestError, ValueError)


@pytest.mark.parametrize(
    "error",
    [
        ProviderError("busy", kind="quota", code=429, violations=(QuotaViolation("rpm", 15),), charged=False),
        SendError("no", retry_after=3.0),
        QuotaExhaustedError("spent", retry_after=1.0, candidates=(RefusedCandidate("k", "m", "rpm", 1.0),)),
        BlockedError("blocked", reason="SAFETY"),
    ],
)
def test_errors_survive_a_pickle(error):
    """An error can be sent from a worker process to its parent, whole."""
    error.retry_after = 7.5
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)

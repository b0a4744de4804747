"""The error tree."""

from __future__ import annotations

import pickle

import pytest

import llm_router
from llm_router import errors, providers
from llm_router.domain import kinds, quota
from llm_router.domain.kinds import FailureKind, FaultScope, Metric
from llm_router.errors import (
    BlockedError,
    EmptyAnswerError,
    InvalidRequestError,
    LLMRouterError,
    ProviderError,
    QuotaExhaustedError,
    QuotaViolation,
    RefusedCandidate,
    SendError,
)


def test_one_tree():
    """The root of the tree catches every error that is raised on purpose."""
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
        EmptyAnswerError("empty", reason="OTHER"),
    ],
)
def test_errors_survive_a_pickle(error):
    """An error reaches the parent of a worker process whole."""
    error.retry_after = 7.5
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", FailureKind)
def test_a_kind_may_be_a_plain_string(kind):
    """A provider may name the kind of a failure by its value; the error has the member."""
    assert ProviderError("failed", kind=kind.value).kind is kind
    assert ProviderError("failed", kind=kind).kind is kind


@pytest.mark.parametrize("metric", [*Metric, None])
def test_a_metric_may_be_a_plain_string(metric):
    """A provider may name the metric of a violation by its value, or name none."""
    assert QuotaViolation(metric and metric.value, 15).metric is metric
    assert QuotaViolation(metric, 15) == QuotaViolation(metric and metric.value, 15)


def test_an_unknown_kind_is_refused():
    """A kind that does not exist is a ValueError that names those that do."""
    known = "request, key, model, quota, server, network, timeout"
    with pytest.raises(ValueError, match=f"unknown failure kind 'quotas': use one of {known}"):
        ProviderError("failed", kind="quotas")


def test_an_unknown_metric_is_refused():
    """A metric that does not exist is a ValueError that names those that do."""
    with pytest.raises(ValueError, match="unknown metric 'rps': use one of rpm, tpm, rpd, tpd"):
        QuotaViolation("rps", 15)


def test_kinds_have_their_public_names():
    """The enumerations are found where users import them from."""
    assert llm_router.FailureKind is providers.FailureKind is kinds.FailureKind
    assert llm_router.FaultScope is providers.FaultScope is kinds.FaultScope
    assert llm_router.Metric is quota.Metric is kinds.Metric


SCOPES = {
    "request": "request",
    "key": "key",
    "model": "deployment",
    "quota": "deployment",
    "server": "deployment",
    "network": "path",
    "timeout": "path",
}


@pytest.mark.parametrize("kind", FailureKind)
def test_a_scope_that_is_not_given_is_that_of_the_kind(kind):
    """A provider that gives no scope gets the usual one of its kind, and no feature."""
    error = ProviderError("failed", kind=kind)
    assert error.scope is FaultScope(SCOPES[kind.value])
    assert error.feature is None


@pytest.mark.parametrize("scope", FaultScope)
def test_a_scope_may_be_a_plain_string(scope):
    """A provider may name the scope of a failure by its value; the error has the member."""
    assert ProviderError("failed", kind="quota", scope=scope.value).scope is scope
    assert ProviderError("failed", kind="quota", scope=scope).scope is scope


def test_a_scope_that_does_not_exist_is_refused():
    """A scope that does not exist is a ValueError that names those that do."""
    known = "request, feature, deployment, project, key, model, path, provider"
    with pytest.raises(ValueError, match=f"unknown fault scope 'everyone': use one of {known}"):
        ProviderError("failed", kind="quota", scope="everyone")


def test_scope_and_feature_survive_a_pickle():
    """An error that is about a feature still says so in another process."""
    error = ProviderError("spent", kind="quota", scope="feature", feature="google_search")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.scope, copy.feature) == (FaultScope.FEATURE, "google_search")

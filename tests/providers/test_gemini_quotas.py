"""Reading which quotas a refusal names, and whose they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_router.domain.kinds import FaultScope
from llm_router.errors import QuotaViolation
from llm_router.providers._gemini_quotas import (
    SpentQuota,
    quotas_of_details,
    quotas_of_ids,
    quotas_of_message,
    widest,
)

OF_MODEL = SpentQuota(QuotaViolation("rpm", 15))
OF_PROJECT = SpentQuota(QuotaViolation("rpd", 100), FaultScope.PROJECT)
OF_TOOL = SpentQuota(QuotaViolation("rpd", 500), FaultScope.FEATURE, "google_search")


def named(quota_id, **fields):
    return [{"violations": [{"quotaId": quota_id, **fields}]}]


@pytest.mark.parametrize(
    ("quotas", "wide"),
    [
        ((OF_TOOL, OF_MODEL, OF_PROJECT), (OF_PROJECT,)),
        ((OF_TOOL, OF_MODEL, OF_MODEL), (OF_MODEL, OF_MODEL)),
        ((OF_TOOL,), (OF_TOOL,)),
        ((), ()),
    ],
)
def test_the_widest(quotas, wide):
    """The project's come before the model's, and those before a tool's."""
    assert widest(quotas) == wide


@pytest.mark.parametrize(
    ("dimensions", "scope"),
    [
        ({}, "project"),
        ({"location": "global"}, "project"),
        ({"model": ""}, "project"),
        (None, "project"),
        ("model", "project"),
        ({"location": "global", "model": "gemini-x"}, "deployment"),
    ],
)
def test_a_dimension_decides_whose_a_quota_is(dimensions, scope):
    """A quota per project is of one model if its dimensions name one."""
    details = named("GenerateRequestsPerDayPerProject", quotaDimensions=dimensions)
    [quota] = quotas_of_details(details, "")
    assert quota.scope == scope


@pytest.mark.parametrize(
    ("location", "limit"), [("global", 0), ("", 0), (None, 0), ("us-west4", None), (7, None)]
)
def test_no_quota_in_a_region_is_no_limit(location, limit):
    """A limit of 0 counts only if it holds everywhere; another limit always does."""
    for stated, expected in (("0", limit), ("15", 15)):
        details = named(
            "GenerateRequestsPerMinute", quotaValue=stated, quotaDimensions={"location": location}
        )
        assert quotas_of_details(details, "")[0].violation.limit == expected


def test_the_metadata_of_a_reason():
    """The older form of a refusal has its quota in the metadata of its reason; violations come first."""
    metadata = {
        "quota_limit": "GenerateRequestsPerMinutePerProject",
        "quota_limit_value": "60",
        "quota_metric": "generativelanguage.googleapis.com/requests",
    }
    details = [{"metadata": {"service": "x"}}, {"metadata": "none"}, {"metadata": metadata}]
    [quota] = quotas_of_details(details, "")
    assert quota == SpentQuota(QuotaViolation("rpm", 60), FaultScope.PROJECT)
    assert quotas_of_details([*details, *named("GenerateRequestsPerDayPerModel")], "") == (
        SpentQuota(QuotaViolation("rpd", None)),
    )


def test_the_metadata_may_name_a_model():
    """A quota per project in the metadata is of the model that the metadata names."""
    metadata = {"quota_limit": "RequestsPerDayPerProject", "model": "gemini-x", "quota_limit_value": None}
    assert quotas_of_details([{"metadata": metadata}], "") == (SpentQuota(QuotaViolation("rpd", None)),)


def test_ids_alone():
    """The ids of a body that was cut short say whose the quotas are, unless a model is named."""
    ids = ["GenerateRequestsPerDayPerProject", "GroundingRequestsPerDay"]
    assert [quota.scope for quota in quotas_of_ids(ids, with_models=False)] == ["project", "feature"]
    assert [quota.scope for quota in quotas_of_ids(ids, with_models=True)] == ["deployment", "feature"]


def test_words_alone():
    """A message without details names limits, and may name a tool."""
    message = (
        "exceeded for metric: x/generate_requests, limit: 15\nexceeded for metric: x/grounding, limit: 0"
    )
    assert quotas_of_message(message) == (
        SpentQuota(QuotaViolation(None, 15)),
        SpentQuota(QuotaViolation(None, 0), FaultScope.FEATURE, "google_search"),
    )


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["quotaId", "quotaMetric", "quotaValue", "quotaDimensions", "model", "location"]),
            inner,
        )
    ),
)


@given(st.lists(st.fixed_dictionaries({"violations": _json, "metadata": _json})), st.text())
@pytest.mark.slow
def test_never_fails(details, message):
    """Details of any form are read without an error."""
    for quota in widest(quotas_of_details(details, message)):
        assert (quota.tool is None) == (quota.scope is not FaultScope.FEATURE)

from __future__ import annotations

import pytest

from llm_router.domain.quota import Metric
from llm_router.gemini_http.quota_names import (
    exceeded_line,
    is_project_wide,
    metric_of,
    quota_id,
    quota_metric,
    stated_limits,
    tool_of,
)


@pytest.mark.parametrize("metric", list(Metric))
def test_ids_are_written_and_read(metric):
    """The id of a quota names its metric."""
    assert metric_of(quota_id(metric)) == metric


@pytest.mark.parametrize(
    "name",
    ["", "GenerateImagesPerMinute", "GenerateRequestsPerHour", "GenerateContentOutputTokensPerModelPerDay"],
)
def test_other_ids_name_no_metric(name):
    """A quota that this library does not count is None."""
    assert metric_of(name) is None


@pytest.mark.parametrize("metric", list(Metric))
def test_stated_limits_are_written_and_read(metric):
    """Each line of a message states one limit, 0 included."""
    lines = [exceeded_line(metric, 15, "gemini-x"), exceeded_line(metric, 0, "gemini-x")]
    assert stated_limits("\n".join(lines)) == [(quota_metric(metric), 15), (quota_metric(metric), 0)]


@pytest.mark.parametrize("metric", list(Metric))
def test_quotas_of_a_model_are_no_others(metric):
    """The quotas of a model are neither a tool's nor shared by the models of a project."""
    for name in (quota_id(metric), quota_metric(metric)):
        assert tool_of(name) is None
        assert not is_project_wide(name)


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("SearchGroundingRequestsPerDayPerProject-FreeTier", "google_search"),
        ("generativelanguage.googleapis.com/search_grounding_requests_free_tier", "google_search"),
        ("GroundedPromptsPerDay", "google_search"),
        ("GoogleSearchRequestsPerDay", "google_search"),
        ("GroundingWithGoogleMapsRequestsPerDay", "google_maps"),
        ("generativelanguage.googleapis.com/google_maps_requests", "google_maps"),
        ("MapsGroundingRequestsPerDay", "google_maps"),
        ("UrlContextRequestsPerDay", "url_context"),
        ("url_context_requests", "url_context"),
        ("generativelanguage.googleapis.com/generate_content_requests", None),
        ("GenerateContentBackgroundRequestsPerDay", None),
        ("", None),
    ],
)
def test_quotas_of_tools(name, tool):
    """The id or the metric of a quota may name a tool, in either spelling."""
    assert tool_of(name) == tool


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("GenerateRequestsPerDayPerProject-FreeTier", True),
        ("GenerateContentRequestsPerMinutePerProjectPerRegion", True),
        ("generate_requests_per_project_per_day", True),
        ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", False),
        ("generate_requests_per_project_per_base_model", False),
        ("GenerateContentInputTokensPerModelPerMinute", False),
        ("GenerateRequestsPerDay", False),
        ("", False),
    ],
)
def test_quotas_of_a_project(name, shared):
    """A quota per project, and not per model, is shared by all models."""
    assert is_project_wide(name) == shared

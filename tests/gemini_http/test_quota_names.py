from __future__ import annotations

import pytest

from llm_router.domain.quota import Metric
from llm_router.gemini_http.quota_names import (
    exceeded_line,
    metric_of,
    quota_id,
    quota_metric,
    stated_limits,
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

"""The names the API gives its quotas, and the line in which a refusal states a limit: written and read."""

from __future__ import annotations

import re

from llm_router.domain.kinds import Metric

__all__ = [
    "SERVICE",
    "exceeded_line",
    "is_project_wide",
    "metric_of",
    "quota_id",
    "quota_metric",
    "stated_limits",
    "tool_of",
]

SERVICE = "generativelanguage.googleapis.com"
"""The name of the API's service, with which its metrics begin."""

_IDS = {
    Metric.RPM: "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
    Metric.TPM: "GenerateContentInputTokensPerModelPerMinute-FreeTier",
    Metric.RPD: "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
    Metric.TPD: "GenerateContentInputTokensPerModelPerDay-FreeTier",
}
_REQUESTS = f"{SERVICE}/generate_content_free_tier_requests"
_TOKENS = f"{SERVICE}/generate_content_free_tier_input_token_count"
_TOOLS = {
    "url_context": re.compile("urlcontext"),
    "google_maps": re.compile("googlemaps|mapsground|groundingwith.*maps"),
    "google_search": re.compile("googlesearch|ground(?:ing|ed)"),
}
_STATED_LIMIT = re.compile(r"exceeded for metric: ([\w./-]+), limit: (\d{1,18})\b")


def quota_id(metric: Metric) -> str:
    """Return the id of the free tier's quota of ``metric``."""
    return _IDS[metric]


def quota_metric(metric: Metric) -> str:
    """Return what the API calls the thing counted; it does not name the period."""
    return _TOKENS if metric.counts_tokens else _REQUESTS


def metric_of(name: str) -> Metric | None:
    """Return the metric that the quota id ``name`` stands for, whatever else the id says; None if unknown.

    ``GenerateContentInputTokensPerModelPerMinute-FreeTier`` is ``tpm``. The size of a limit never decides.
    """
    words = _words(name)
    period = "d" if "perday" in words else "m" if "perminute" in words else None
    counted = "tp" if "token" in words and "output" not in words else "rp" if "request" in words else None
    return Metric(counted + period) if counted and period else None


def tool_of(name: str) -> str | None:
    """Return the tool whose uses the quota ``name`` counts, such as ``google_search``; None if of no tool.

    There is no published list of these names; those that users have reported name the grounding.
    """
    words = _words(name)
    return next((tool for tool, pattern in _TOOLS.items() if pattern.search(words)), None)


def is_project_wide(name: str) -> bool:
    """Return whether all models of a project share the quota ``name``, as far as its name says.

    ``GenerateRequestsPerDayPerProject`` is shared, ``GenerateRequestsPerDayPerProjectPerModel`` is not.
    """
    words = _words(name)
    return "perproject" in words and "model" not in words


def _words(name: str) -> str:
    """Return ``name`` without the name of the service, in lower case and without separators."""
    return name.rpartition("/")[2].lower().replace("_", "").replace("-", "")


def exceeded_line(metric: Metric, limit: int | None, model: str) -> str:
    """Return the line of a message that names an exceeded quota, with its limit unless that is None."""
    stated = "" if limit is None else f", limit: {limit}"
    return f"* Quota exceeded for metric: {quota_metric(metric)}{stated}, model: {model}"


def stated_limits(message: str) -> list[tuple[str, int]]:
    """Return the limits that ``message`` states, in order, each with the API's name of its metric."""
    return [(metric, int(limit)) for metric, limit in _STATED_LIMIT.findall(message)]

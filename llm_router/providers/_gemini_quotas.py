"""Reading which quotas a refusal names, and whose: of a model for a project, of a project, or of a tool."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs

from llm_router.domain.kinds import FaultScope
from llm_router.errors import QuotaViolation
from llm_router.gemini_http.quota_names import is_project_wide, metric_of, stated_limits, tool_of

__all__ = ["SpentQuota", "quotas_of_details", "quotas_of_ids", "quotas_of_message", "widest"]

_EVERYWHERE = (None, "", "global")
_WIDEST_FIRST = (FaultScope.PROJECT, FaultScope.DEPLOYMENT, FaultScope.FEATURE)


@attrs.frozen
class SpentQuota:
    """One quota that a refusal names.

    Attributes:
        violation: What it counts, and its limit.
        scope: DEPLOYMENT, or PROJECT if all models share it, or FEATURE if it counts the uses of a tool.
        tool: That tool, such as ``google_search``; otherwise None.
    """

    violation: QuotaViolation
    scope: FaultScope = FaultScope.DEPLOYMENT
    tool: str | None = None


def widest(quotas: Iterable[SpentQuota]) -> tuple[SpentQuota, ...]:
    """Return those of the widest scope.

    A request without the tool, or for another model, does not get around them; and the limit of a quota of
    another scope is not a limit of this one.
    """
    by_scope: dict[FaultScope, list[SpentQuota]] = {}
    for quota in quotas:
        by_scope.setdefault(quota.scope, []).append(quota)
    return next((tuple(by_scope[scope]) for scope in _WIDEST_FIRST if scope in by_scope), ())


def quotas_of_details(details: list[dict[str, Any]], message: str) -> tuple[SpentQuota, ...]:
    """Return the quotas that the details name, with the limits that the details or the message state."""
    stated: dict[str, list[int]] = {}
    for metric, limit in stated_limits(message):
        stated.setdefault(metric, []).append(limit)
    named = [violation for detail in details for violation in _dicts(detail.get("violations"))]
    if not named:
        metadata = _dicts([detail.get("metadata") for detail in details])
        named = [violation for violation in map(_from_metadata, metadata) if violation]
    return tuple(_of_violation(violation, stated) for violation in named) or quotas_of_message(message)


def quotas_of_ids(ids: Iterable[str], *, with_models: bool) -> tuple[SpentQuota, ...]:
    """Return the quotas with these ids; ``with_models`` says whether their dimensions name models."""
    return tuple(_spent(name, QuotaViolation(metric_of(name), None), with_model=with_models) for name in ids)


def quotas_of_message(message: str) -> tuple[SpentQuota, ...]:
    """Return the limits in a message without details; it does not say whether per minute or per day."""
    stated = stated_limits(message)
    return tuple(_spent(name, QuotaViolation(None, limit), with_model=True) for name, limit in stated)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _from_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the violation in the metadata of an ``ErrorInfo``, an older form; empty if there is none."""
    if not _string(metadata.get("quota_limit")):
        return {}
    return {
        "quotaId": metadata["quota_limit"],
        "quotaMetric": metadata.get("quota_metric"),
        "quotaValue": metadata.get("quota_limit_value"),
        "quotaDimensions": {"location": metadata.get("quota_location"), "model": metadata.get("model")},
    }


def _of_violation(violation: dict[str, Any], stated: dict[str, list[int]]) -> SpentQuota:
    metric_name = _string(violation.get("quotaMetric"))
    # The message lists its limits in the order of the violations.
    in_words = stated[metric_name].pop(0) if stated.get(metric_name) else None
    limit = _whole(violation.get("quotaValue"))
    limit = in_words if limit is None else limit
    [dimensions] = _dicts([violation.get("quotaDimensions")]) or [{}]
    if limit == 0 and dimensions.get("location") not in _EVERYWHERE:
        limit = None  # there is none in that region, to which the next request need not go
    name = _string(violation.get("quotaId")) or metric_name
    return _spent(
        name,
        QuotaViolation(metric_of(name), limit),
        with_model=bool(dimensions.get("model")),
        tool=tool_of(metric_name),
    )


def _spent(name: str, violation: QuotaViolation, *, with_model: bool, tool: str | None = None) -> SpentQuota:
    tool = tool_of(name) or tool
    if tool is not None:
        return SpentQuota(violation, FaultScope.FEATURE, tool)
    shared = is_project_wide(name) and not with_model
    return SpentQuota(violation, FaultScope.PROJECT if shared else FaultScope.DEPLOYMENT)


def _whole(value: Any) -> int | None:
    """Read a protobuf int64, which is a string in JSON."""
    return int(value) if re.fullmatch(r"\d{1,18}", str(value)) else None

"""What suggests or proves that keys share a project, and where the keys file says otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from llm_router.cli.keys_limits import LimitRecord, limit_records
from llm_router.cli.probing import Projects, Trial
from llm_router.cli.reasons import reason_of
from llm_router.domain.kinds import FailureKind
from llm_router.domain.status import KeyStatus
from llm_router.errors import ProviderError

__all__ = ["coincidences", "project_lines"]

_TOGETHER = 5.0
"""Seconds within which limits that were stated to two projects may come from refusals of one."""


def coincidences(trials: Iterable[Trial], statuses: Iterable[KeyStatus]) -> list[str]:
    """Return which keys of different projects were refused together, so that they may be of one."""
    refused: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for trial in trials:
        error, key = trial.response.error, trial.deployment.key
        if isinstance(error, ProviderError) and error.kind is FailureKind.QUOTA:
            refused[trial.deployment.model].setdefault(key.project, key.key_id)
    found = {model: ", ".join(keys.values()) for model, keys in refused.items() if len(keys) > 1}
    stated: defaultdict[tuple[str, str], list[LimitRecord]] = defaultdict(list)
    for limit in limit_records(statuses):
        if limit["source"] == "stated" and limit["model"] not in found:
            stated[limit["model"], limit["metric"]].append(limit)
    lines = [f"{keys} were refused {model} just now: {_PERHAPS}" for model, keys in found.items()]
    for (model, metric), limits in stated.items():
        lines += [
            f"{keys} were told their {metric} of {model} together: {_PERHAPS}" for keys in _close(limits)
        ]
    return lines


_PERHAPS = "perhaps they are of one project, which --projects proves"


def _close(limits: list[LimitRecord]) -> list[str]:
    """Return the keys, by commas, of each group of projects whose limits were stated at about one time."""
    groups: list[dict[str, str]] = []
    last = 0.0
    for limit in sorted(limits, key=_ago):
        if not groups or _ago(limit) - last >= _TOGETHER:
            groups.append({})
        groups[-1].setdefault(limit["project"], limit["key_id"])
        last = _ago(limit)
    return [", ".join(group.values()) for group in groups if len(group) > 1]


def _ago(limit: LimitRecord) -> float:
    return limit["learnt_ago_seconds"] or 0.0


def project_lines(proven: Projects, named: Mapping[str, str]) -> list[str]:
    """Say what was proven, and where the keys file says otherwise.

    Args:
        proven: Which keys belong to one project.
        named: The project of each key, as the keys file has it.
    """
    alone = [group[0] for group in proven.groups if len(group) == 1]
    lines = [f"a project of its own: {', '.join(alone)}"] if alone else []
    places: defaultdict[str, set[int]] = defaultdict(set)
    for place, group in enumerate(proven.groups):
        if len(group) > 1:
            lines.append(f"one project: {', '.join(group)}")
            if len({named[key] for key in group}) > 1:
                lines[-1] += '; its quota is counted several times: give them one "project" in keys.json'
        for key in group:
            places[named[key]].add(place)
    lines += [
        f"project {project!r} of keys.json is {len(found)} projects: give each a name of its own"
        for project, found in places.items()
        if len(found) > 1
    ]
    lines += [
        f"{key}: its project could not be found out: {reason_of(error)}"
        for key, error in proven.failed.items()
    ]
    return lines

"""What a check advises besides errors and warnings: what works, and may still not be what was meant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from llm_router.config.environment import Environment, secret_name
from llm_router.config.findings import Report
from llm_router.config.keyfile import Entry, KeyFile
from llm_router.config.modelnames import meant_instead
from llm_router.domain.deployment import Deployment

__all__ = ["advise"]

_NAMED = 3


def advise(
    report: Report, file: KeyFile, environment: Environment, deployments: Iterable[Deployment]
) -> None:
    """Advise on a configuration.

    Args:
        report: Where the advice goes.
        file: The keys file.
        environment: The environment and ``.env``.
        deployments: Those made of the entries of the file.
    """
    active = [entry for entry in file.entries if entry.active]
    _on_names(report, active)
    _on_limits(report, active, {made.id: made for made in deployments})
    _on_projects(report, active)
    _on_variables(report, file.entries, environment)


def _on_names(report: Report, entries: list[Entry]) -> None:
    """Advise on names of models that may be misspelt, once for each name."""
    keys = Counter(entry.model for entry in entries if entry.provider == "gemini")
    seen: set[str] = set()
    for entry in entries:
        if entry.model not in keys or entry.model in seen:
            continue
        seen.add(entry.model)
        # A name that more entries have is the better one, whether or not this version has heard of it.
        others = {other for other, count in keys.items() if count > keys[entry.model]}
        meant = meant_instead(entry.model, others)
        if meant is not None:
            report.advise(entry.where, f"model {entry.model!r} is not a known one: did you mean {meant!r}?")


def _on_limits(report: Report, entries: list[Entry], made: Mapping[str, Deployment]) -> None:
    for entry in entries:
        deployment = made.get(f"{entry.key_id}/{entry.model}")
        none = [quota.metric.value for quota in deployment.quotas if quota.limit == 0] if deployment else []
        if none:
            report.advise(
                f"{entry.where}: {none[0]}",
                f"is 0, so nothing is ever sent to {entry.model!r} with this key: raise it, "
                'write "learn", or set "active": false',
            )


def _on_projects(report: Report, entries: list[Entry]) -> None:
    """Advise on keys that count as projects of their own, and may not be."""
    alone: defaultdict[tuple[str, str], dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        if not entry.states_project:
            alone[entry.provider, entry.model].setdefault(entry.key_id, entry)
    most = max(alone.values(), key=len, default={})
    keys = {key_id: entry for group in alone.values() if len(group) > 1 for key_id, entry in group.items()}
    if not keys:
        return
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    named = ", ".join(list(keys)[:_NAMED]) + more
    report.advise(
        f"{next(iter(keys.values())).file}: keys",
        f"{len(keys)} keys name no project ({named}), so each counts as a project of its own; if they share "
        f'one, {len(most)} times its real quota is counted: give each a "project", the same to those that '
        "share one",
    )


def _on_variables(report: Report, entries: Iterable[Entry], environment: Environment) -> None:
    """Advise on secrets in ``.env`` that belong to no entry."""
    names = {secret_name(entry.key_id) for entry in entries}
    for name in environment.strays(names):
        # The prefix, and what is neither letter nor digit, may be what is wrong with it.
        plain = {known.casefold(): known for known in names}.get(secret_name(name[8:]).casefold())
        remedy = f"call it {plain}, or remove it" if plain else "add an entry for the key, or remove it"
        report.advise(f"{name} in {environment.file}", f"belongs to no entry of the keys file: {remedy}")

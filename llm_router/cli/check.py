"""``llm-router check``: the problems of a configuration, and what it allows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated

import typer

from llm_router.cli.online import ask_online, online_lines
from llm_router.cli.options import KEYS, AsJson, Keys
from llm_router.cli.output import FAILED, WRONG, count, print_json, printable, say
from llm_router.config import Environ, Finding, Settings
from llm_router.config.allowances import Allowance, allowances, named_allowances
from llm_router.config.environment import read_environment
from llm_router.config.findings import Report
from llm_router.config.settings import examine
from llm_router.domain.quota import Metric
from llm_router.errors import ConfigError, StoreError
from llm_router.stores.base import ExternalStore
from llm_router.stores.urls import default_store_url, open_store, sqlite_path

__all__ = ["check", "summary"]

_SUMMED = {Metric.RPM: "requests a minute", Metric.RPD: "a day"}
"""The metrics that are summed up, and their units."""


def check(
    path: Annotated[Path | None, typer.Argument(help="The keys file, in place of --keys.")] = None,
    *,
    online: Annotated[
        bool,
        typer.Option("--online", help="Ask the provider which keys are alive, and which models they serve."),
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds for each key, with --online.")
    ] = 30.0,
    as_json: AsJson = False,
    keys: Keys = KEYS,
) -> None:
    """Check the keys file, .env and the environment; sum up what they allow.

    Every problem is listed with the remedy. Nothing is sent to a provider, unless --online asks it for its
    models, which generates nothing and uses no quota. In the sum a number is a cap, which refusals can only
    lower; what is to be learnt starts low (at the number of the model, where the entry says "learn" in place
    of it) and follows refusals up and down. A Redis server that the environment names is asked
    whether it may evict what it counts; if it does not answer, nothing is said.
    """
    path = path or keys
    default, homeless = None, ""
    try:
        default = default_store_url()
    except ConfigError as error:
        homeless = str(error)
    settings, report = examine(path, default_store=default)
    if homeless and settings is not None and settings.store_url is None:
        report.warning("LLM_ROUTER_STORE", f"is not set, and there is no default: {homeless}")
    findings = [*report.findings, *report.advice]
    errors = len(report.errors)
    if not errors:
        findings += [Finding("warning", "store", advice) for advice in asyncio.run(_advice(path))]
    usable = None if errors else settings
    asked = asyncio.run(ask_online(usable, timeout)) if online and usable is not None else []
    if as_json:
        print_json(_record(findings, usable) | ({"online": asked} if online else {}))
    else:
        _show(path, findings, usable)
        for line in online_lines(asked):
            say(printable(line))
    if errors:
        raise typer.Exit(WRONG)
    if any(not each["alive"] or each["missing"] for each in asked):
        raise typer.Exit(FAILED)


def _show(path: Path, findings: list[Finding], settings: Settings | None) -> None:
    for finding in findings:
        say(f"{finding.level}: {finding}")
    errors = sum(finding.level == "error" for finding in findings)
    found = f"{count(errors, 'error')}, {count(len(findings) - errors, 'warning')}"
    say(f"{path}: {found if findings else 'no problems found'}")
    if settings is not None:
        say(printable(summary(settings)))


async def _advice(path: Path) -> list[str]:
    """Return what in the setup of the store endangers the count, as a health check does."""
    environment = read_environment(Environ(os.environ), ".env", path.parent, Report())
    url = environment.switches(store_needed=True).store_url
    if url is None or sqlite_path(url) is not None:  # a file needs none, and asking would create it
        return []
    async with aclosing(open_store(url)) as store:
        with suppress(StoreError):
            await store.snapshot([])  # does it answer?
            if isinstance(store, ExternalStore):
                return await store.advice()
    return []


def summary(settings: Settings) -> str:
    """Return in one sentence how many keys there are, and what each workload or other model allows."""
    keys = {each.key.key_id for each in settings.deployments}
    projects = {(each.key.provider, each.key.project) for each in settings.deployments}
    idle = {each.key.key_id for each in settings.inactive} - keys
    parts = [f"{count(len(keys), 'key')} in {count(len(projects), 'project')}"]
    parts[0] += f", {count(len(idle), 'key')} not in use" if idle else ""
    found = [
        *allowances(settings.deployments, settings.workloads),
        *named_allowances(settings.deployments),
    ]
    parts += [f"{each.name} {_allowed(each)}" for each in found]
    unknown = dict.fromkeys(model for each in found for model in each.unknown)
    if unknown:
        parts.append(f"limits to be learnt for {', '.join(unknown)}")
    if any(each.unlimited & _SUMMED.keys() for each in found):
        parts.append("unlimited is what is null, or left out beside other limits, until a refusal names it")
    return "; ".join(parts)


def _allowed(allowance: Allowance) -> str:
    """Say what a workload or model allows."""
    words = []
    for metric, unit in _SUMMED.items():
        limit = allowance.limits.get(metric)
        if metric in allowance.unlimited:
            words.append(f"unlimited {unit}")
        elif limit is not None:
            more = "at least " if allowance.unknown else ""
            words.append(f"{more}{limit:,} {unit}")
    return ", ".join(words) or "to be learnt"


def _record(findings: list[Finding], settings: Settings | None) -> dict[str, object]:
    record: dict[str, object] = {
        "findings": [
            {"level": finding.level, "where": finding.where, "message": finding.message}
            for finding in findings
        ],
        "summary": None,
    }
    if settings is not None:
        active = settings.deployments
        record["summary"] = {
            "keys": len({each.key.key_id for each in active}),
            "projects": len({(each.key.provider, each.key.project) for each in active}),
            "workloads": _by_name(allowances(active, settings.workloads)),
            "other_models": _by_name(named_allowances(active)),
        }
    return record


def _by_name(found: Iterable[Allowance]) -> dict[str, object]:
    return {
        each.name: {
            "limits": {metric.value: limit for metric, limit in each.limits.items()},
            "unlimited": sorted(metric.value for metric in each.unlimited),
            "limits_unknown_for": list(each.unknown),
        }
        for each in found
    }

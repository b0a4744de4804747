"""``llm-router check``: the problems of a configuration."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated

import typer

from llm_router.cli.options import KEYS, AsJson
from llm_router.cli.output import WRONG, print_json, say
from llm_router.config import Environ, Finding, check_settings
from llm_router.config.environment import read_environment
from llm_router.config.findings import Report
from llm_router.errors import StoreError
from llm_router.stores.base import ExternalStore
from llm_router.stores.urls import default_store_url, open_store, sqlite_path

__all__ = ["check"]


def check(
    path: Annotated[Path, typer.Argument(envvar="LLM_ROUTER_KEYS", help="The keys file.")] = KEYS,
    *,
    as_json: AsJson = False,
) -> None:
    """Check the keys file, .env and the environment.

    Every problem is listed with the remedy. Nothing is sent to a provider. A Redis server that the
    environment names is asked whether it may evict what it counts; if it does not answer, nothing is said.
    """
    findings = list(check_settings(path, default_store=default_store_url()))
    errors = sum(finding.level == "error" for finding in findings)
    if not errors:
        findings += [Finding("warning", "store", advice) for advice in asyncio.run(_advice(path))]
    if as_json:
        print_json([_record(finding) for finding in findings])
    else:
        for finding in findings:
            say(f"{finding.level}: {finding}")
        say(
            f"{path}: {errors} errors, {len(findings) - errors} warnings"
            if findings
            else f"{path}: no problems found"
        )
    if errors:
        raise typer.Exit(WRONG)


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


def _record(finding: Finding) -> dict[str, str]:
    return {"level": finding.level, "where": finding.where, "message": finding.message}

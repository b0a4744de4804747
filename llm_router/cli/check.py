"""``llm-router check``: the problems of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_router.cli.options import KEYS, AsJson
from llm_router.cli.output import WRONG, print_json, say
from llm_router.config import Finding, check_settings
from llm_router.stores.urls import default_store_url

__all__ = ["check"]


def check(
    path: Annotated[Path, typer.Argument(envvar="LLM_ROUTER_KEYS", help="The keys file.")] = KEYS,
    *,
    as_json: AsJson = False,
) -> None:
    """Check the keys file, .env and the environment.

    Every problem is listed with the remedy. Nothing is sent.
    """
    findings = check_settings(path, default_store=default_store_url())
    errors = sum(finding.level == "error" for finding in findings)
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


def _record(finding: Finding) -> dict[str, str]:
    return {"level": finding.level, "where": finding.where, "message": finding.message}

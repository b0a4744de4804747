"""``llm-router keys list``: the keys of the keys file, and where their secrets are."""

from __future__ import annotations

import os
from typing import TypedDict

from llm_router.cli.options import KEYS, AsJson, Keys
from llm_router.cli.output import complain, print_json, printable, show_table
from llm_router.config import Environ
from llm_router.config.environment import read_environment, secret_name
from llm_router.config.findings import Report
from llm_router.config.settings import examine
from llm_router.domain.deployment import Deployment

__all__ = ["show"]


class _Row(TypedDict):
    """One key."""

    key_id: str
    project: str
    models: dict[str, str]
    """The workload of each model."""
    active: bool
    secret_set: bool
    secret_problem: str | None


_COLUMNS = ("key", "project", "models", "active", "secret")


def show(*, as_json: AsJson = False, keys: Keys = KEYS) -> None:
    """List the keys: their projects, models and workloads, and whether their secrets are there.

    Nothing is sent, and no store is asked: `llm-router status` shows how they are.
    """
    settings, report = examine(keys, secrets_required=False, store_needed=False)
    report.raise_errors()
    environment = read_environment(Environ(os.environ), ".env", keys.parent, Report())
    used = settings.deployments if settings is not None else ()
    by_key: dict[str, list[Deployment]] = {}
    for each in (*used, *(settings.inactive if settings is not None else ())):
        by_key.setdefault(each.key.key_id, []).append(each)
    active = {each.key.key_id for each in used}
    rows: list[_Row] = []
    for key_id, deployments in by_key.items():
        problem = environment.secret(secret_name(key_id))[1]
        rows.append(
            {
                "key_id": key_id,
                "project": deployments[0].key.project,
                "models": {each.model: each.workload for each in deployments},
                "active": key_id in active,
                "secret_set": problem is None,
                "secret_problem": problem,
            }
        )
    if as_json:
        print_json(rows)
        return
    show_table(_COLUMNS, [tuple(map(printable, _cells(row))) for row in rows])
    for row in rows:
        if row["secret_problem"] is not None:
            complain(row["secret_problem"])


def _cells(row: _Row) -> tuple[str, ...]:
    models = ", ".join(f"{model} ({workload})" for model, workload in row["models"].items())
    active, secret = ("yes" if found else "no" for found in (row["active"], row["secret_set"]))
    return row["key_id"], row["project"], models, active, secret

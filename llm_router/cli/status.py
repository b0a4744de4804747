"""``llm-router status``: the state of every key, and the health of the pool."""

from __future__ import annotations

import asyncio

import typer

from llm_router.cli.options import KEYS, AsJson, Keys, Store
from llm_router.cli.output import FAILED, complain, print_json, printable, say, show_table
from llm_router.cli.routers import open_router
from llm_router.config import load_settings
from llm_router.domain.status import Health, KeyStatus, LimitStatus
from llm_router.errors import StoreError

__all__ = ["state_of", "status"]

_MINUTE, _HOUR = 60.0, 3600.0

_SOURCES = {
    "stated": "stated by the provider",
    "inferred": "inferred from its refusals",
    "unknown": "not refused so far; grew",
}

_COLUMNS = ("key", "model", "project", "workload", "priority", "state", "rpm", "tpm", "rpd", "tpd")


def status(*, as_json: AsJson = False, keys: Keys = KEYS, store: Store = None) -> None:
    """Show the state and the quotas of every key.

    The last line says whether a send can succeed now; if none can, the exit code is 1.
    """
    settings = load_settings(keys, store_needed=store is None)

    async def ask() -> tuple[Health, list[KeyStatus]]:
        async with open_router(settings, store) as router:
            health = await router.health_check()
            try:
                return health, await router.get_all_key_statuses()
            except StoreError:  # which the health reports
                return health, []

    health, statuses = asyncio.run(ask())
    if as_json:
        print_json({"health": health, "keys": statuses})
    else:
        _show(health, statuses)
    if not health["healthy"]:
        raise typer.Exit(FAILED)


def _show(health: Health, statuses: list[KeyStatus]) -> None:
    if statuses:
        show_table(_COLUMNS, [_row(row) for row in statuses])
        for row in statuses:
            for metric, limit in row["limits"].items():
                if limit["learnt_ago"] is not None:
                    say(printable(f"{row['key_id']} {row['model']}: {_learnt(metric, limit)}"))
    say(
        f"{'healthy' if health['healthy'] else 'not healthy'}: "
        f"{health['active_keys']} of {health['total_keys']} keys active, "
        f"{health['in_cooldown']} in cooldown, {health['quarantined']} quarantined, "
        f"{health['disabled']} disabled, {health['spent']} spent; "
        f"{health['store']} {'answers' if health['store_ok'] else 'does not answer'}"
    )
    for problem in health["problems"]:
        complain(printable(problem))


def _row(row: KeyStatus) -> tuple[str, ...]:
    return (
        row["key_id"],
        row["model"],
        row["project"],
        row["workload"],
        str(row["priority"]),
        printable(state_of(row)),
        row["rpm_usage"],
        row["tpm_usage"],
        row["rpd_usage"],
        row["tpd_usage"],
    )


def _learnt(metric: str, limit: LimitStatus) -> str:
    """Say in words what was learnt of a limit, when, and from what."""
    words = f"{metric} {limit['limit']}"
    if limit["configured"] is not None:
        words += f" instead of {limit['configured']}"
    words += f", {_SOURCES[limit['source']]} {_ago(limit['learnt_ago'] or 0.0)} ago"
    if limit["raised_in"]:
        words += f"; more is tried in {_ago(limit['raised_in'])}"
    return words


def _ago(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"


def state_of(row: KeyStatus) -> str:
    """Say in words whether a deployment can be used, and if not, why and until when."""
    if not row["active"] and not row["disabled"]:
        return "inactive"
    if row["disabled"]:
        return str(row["reason"])
    if row["quarantined"]:
        return f"quarantined: {row['reason']}"
    if row["in_cooldown"]:
        return f"cooling down for {row['cooldown_remaining']:.0f} s: {row['reason']}"
    if row["spent"]:
        when = "for good" if row["room_in"] is None else f"room in {row['room_in']:.0f} s"
        return f"{', '.join(row['spent'])} spent: {when}"
    return "ready"

"""``llm-router keys test``: which keys are alive, by one request each, and which of them share a project."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypedDict

import typer

from llm_router.cli.keys_limits import LimitRecord, how_known, limit_records
from llm_router.cli.options import KEYS, AsJson, Keys, Store
from llm_router.cli.output import FAILED, complain, print_json, printable, say, show_table
from llm_router.cli.probing import Projects, Trial, prove_projects, try_keys
from llm_router.cli.project_signs import coincidences, project_lines
from llm_router.cli.reasons import reason_of
from llm_router.cli.routers import choose_store
from llm_router.config import Settings, load_settings
from llm_router.domain.deployment import Deployment, plain_model
from llm_router.domain.kinds import FailureKind
from llm_router.domain.methods import GENERATE
from llm_router.domain.status import KeyStatus
from llm_router.errors import (
    BlockedError,
    EmptyAnswerError,
    ProviderError,
    QuotaExhaustedError,
    SendError,
    UnknownKeyError,
    UnknownModelError,
)

__all__ = ["try_out"]

State = Literal["alive", "spent", "dead", "unknown", "not tried"]


class KeyRecord(TypedDict):
    """What became of one key, in the form of JSON."""

    key_id: str
    project: str
    model: str
    state: State
    reason: str | None
    latency_seconds: float
    learnt: list[LimitRecord]


def try_out(
    key: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="The key_ids; all of them by default.")
    ] = None,
    *,
    model: Annotated[str | None, typer.Option("--model", help="Test with this model.")] = None,
    projects: Annotated[
        bool,
        typer.Option(
            "--projects", help="Prove which keys share a project: upload a file with each, and remove it."
        ),
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for each key.")] = 30.0,
    as_json: AsJson = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Send one cheap request with each key, which counts, and say which keys are alive.

    A key is tried with its lightest model that has room. The exit code is 1 unless all are alive.
    """
    settings = load_settings(keys, store_needed=store is None)
    url = choose_store(settings, store)
    wanted = _wanted(settings.deployments, key or (), model)

    async def run() -> tuple[list[Trial], list[KeyStatus], Projects | None]:
        trials, statuses = await try_keys(settings, url, lambda now: _choose(wanted, now, settings), timeout)
        if not projects:
            return trials, statuses, None
        asked = list(dict.fromkeys(trial.deployment.key for trial in trials))
        return trials, statuses, await prove_projects(asked, settings.base_url, timeout)

    trials, statuses, proven = asyncio.run(run())
    records = [_record(trial, statuses) for trial in trials]
    hints = coincidences(trials, statuses)
    named = {each.key.key_id: each.key.project for each in settings.deployments}
    advice = [] if proven is None else project_lines(proven, named)
    if as_json:
        print_json({"keys": records, "coincidences": hints, "projects": _proof(proven)})
    else:
        _show(records, [*hints, *advice])
    if any(record["state"] not in ("alive", "spent") for record in records) or (proven and proven.failed):
        raise typer.Exit(FAILED)


def _wanted(known: Sequence[Deployment], keys: Sequence[str], model: str | None) -> list[Deployment]:
    """Return the deployments that may be tried.

    Raises:
        UnknownKeyError: A key is not in use.
        UnknownModelError: A key does not serve the model.
    """
    ids = list(dict.fromkeys(each.key.key_id for each in known))
    for key in keys:
        if key not in ids:
            raise UnknownKeyError(f"no key in use has the id {key!r}: use one of {', '.join(map(repr, ids))}")
    found = [
        each
        for each in known
        if (not keys or each.key.key_id in keys)
        and (GENERATE in each.methods if model is None else each.model == plain_model(model))
    ]
    missing = set(keys) - {each.key.key_id for each in found}
    if missing or not found:
        what = "a model that answers prompts" if model is None else f"the model {model!r}"
        who = f"not every key ({', '.join(sorted(missing))})" if missing else "no key"
        remedy = "`llm-router check --online` asks for models of any kind"
        raise UnknownModelError(f"{who} serves {what}: {remedy}")
    return found


def _choose(
    wanted: Sequence[Deployment], statuses: Iterable[KeyStatus], settings: Settings
) -> list[Deployment]:
    """Return one deployment for each key: of those that can be used now, the lightest."""
    now = {(row["key_id"], row["model"]): row for row in statuses}

    def rank(deployment: Deployment) -> tuple[bool, bool, bool, int]:
        row = now[deployment.key.key_id, deployment.model]
        spent, weight = bool(row["spent"]), settings.workloads.index(deployment.workload)
        return row["disabled"], row["in_cooldown"], spent, weight

    best: dict[str, Deployment] = {}
    for deployment in sorted(wanted, key=rank):
        best.setdefault(deployment.key.key_id, deployment)
    return [best[key_id] for key_id in dict.fromkeys(each.key.key_id for each in wanted)]


def _record(trial: Trial, statuses: Iterable[KeyStatus]) -> KeyRecord:
    key, model, response = trial.deployment.key, trial.deployment.model, trial.response
    state, reason = _verdict(response.error, sent=response.attempts > 0)
    mine = [row for row in statuses if row["project"] == key.project and row["key_id"] == key.key_id]
    return KeyRecord(
        key_id=key.key_id,
        project=key.project,
        model=model,
        state=state,
        reason=reason,
        latency_seconds=round(response.latency, 3),
        learnt=[limit for limit in limit_records(mine) if limit["source"] in ("stated", "inferred")],
    )


def _verdict(error: SendError | None, *, sent: bool) -> tuple[State, str | None]:
    """Return how a key is, and why, in plain words."""
    if error is None or isinstance(error, BlockedError | EmptyAnswerError):
        return "alive", None
    if isinstance(error, QuotaExhaustedError) and not sent:
        why = error.candidates[0].reason if error.candidates else str(error)
        return "not tried", f"by our own count or verdict it is not to be used: {why}"
    if not isinstance(error, ProviderError):
        return "unknown", str(error)
    if error.kind is FailureKind.QUOTA:
        return "spent", reason_of(error)
    if error.kind in (FailureKind.KEY, FailureKind.MODEL, FailureKind.REQUEST):
        return "dead", reason_of(error)
    return "unknown", reason_of(error)


def _proof(proven: Projects | None) -> dict[str, object] | None:
    if proven is None:
        return None
    failed = {key: reason_of(error) for key, error in proven.failed.items()}
    return {"groups": [list(group) for group in proven.groups], "failed": failed}


def _show(records: Sequence[KeyRecord], remarks: Iterable[str]) -> None:
    show_table(
        ("key", "project", "model", "state"),
        [(each["key_id"], each["project"], each["model"], each["state"]) for each in records],
    )
    for each in records:
        if each["reason"] is not None:
            complain(printable(f"{each['key_id']}: {each['reason']}"))
        for limit in each["learnt"]:
            amount = f"{limit['metric']} {limit['limit']}"
            say(printable(f"{each['key_id']} {limit['model']}: {amount}, {how_known(limit)}"))
    for line in remarks:
        say(printable(line))
    alive = sum(each["state"] in ("alive", "spent") for each in records)
    say(f"{alive} of {len(records)} keys alive")

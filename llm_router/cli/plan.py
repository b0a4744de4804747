"""``llm-router plan``: what traffic would meet on the keys of a file."""

from __future__ import annotations

import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import attrs
import typer

from llm_router.cli.options import KEYS, AsJson, Keys
from llm_router.cli.output import FAILED, complain, print_json, printable, say
from llm_router.config import load_settings
from llm_router.domain.quota import PROVIDER_TIMEZONE
from llm_router.domain.request import Fallback
from llm_router.errors import InvalidRequestError
from llm_router.planning import (
    Arrival,
    Growth,
    Plan,
    Setting,
    can_draw,
    draw,
    make_plan,
    make_traffic,
    projects_needed,
    read_traffic,
    simulate,
)

__all__ = ["plan"]

_SHOWN = 6
"""Most lines of one kind."""


def plan(
    traffic: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRAFFIC",
            help='A file with a request a line, such as {"at": 0.5, "tokens": 900, "workload": "heavy"}: '
            "at is a time or seconds since the beginning, the other fields (and model) may be left out.",
        ),
    ] = None,
    *,
    rpm: Annotated[
        float | None, typer.Option("--rpm", help="Without a file: requests a minute, on average.")
    ] = None,
    hours: Annotated[float, typer.Option("--hours", help="Without a file: how long.")] = 24.0,
    tokens: Annotated[int, typer.Option("--tokens", help="Without a file: input tokens of each.")] = 500,
    workload: Annotated[
        str | None,
        typer.Option("--workload", help="Without a file: the shares, such as medium=0.7,heavy=0.3."),
    ] = None,
    fallback: Annotated[
        str, typer.Option("--fallback", help="How far from their wish requests may go: any, model or none.")
    ] = "any",
    max_wait: Annotated[
        float, typer.Option("--max-wait", min=0, help="Longest wait of a request for quota, in seconds.")
    ] = 600.0,
    seconds: Annotated[float, typer.Option("--seconds", help="How long an answer takes.")] = 2.0,
    target_p95: Annotated[
        float | None,
        typer.Option(
            "--target-p95",
            min=0,
            help="Also find how many more projects it takes so that 95 % of the requests wait no longer than "
            "so many seconds.",
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Also draw a picture (extra plot).")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of made-up traffic.")] = 1,
    as_json: AsJson = False,
    keys: Keys = KEYS,
) -> None:
    """Show what traffic would meet: waits, which quotas bind, when the day's quota ends.

    The router itself runs, on virtual time and full quotas, against a provider that is made up: no key is
    needed, and no request is sent. If not all requests are answered, the exit code is 1.
    """
    if png is not None and not can_draw():
        raise InvalidRequestError("--png needs matplotlib: pip install 'llm-quota-router[plot]'")
    settings = load_settings(keys, env={}, env_file=None, secrets_required=False, store_needed=False)
    within: Fallback = fallback  # type: ignore[assignment]  # the simulation refuses what it does not know
    setting = Setting(
        deployments=settings.deployments,
        workloads=settings.workloads,
        max_wait=max_wait,
        fallback=within,
        answering=seconds,
    )
    arrivals = _arrivals(traffic, rpm, hours, tokens, workload, seed)
    if sys.stderr.isatty():  # a day of a hundred thousand requests takes half a minute
        complain(f"simulating {len(arrivals):,} requests …")
    outcome = simulate(arrivals, setting)
    found = make_plan(arrivals, setting, outcome)
    growth = None if target_p95 is None else projects_needed(arrivals, setting, target_p95)
    if png is not None:
        draw(png, arrivals, outcome, found)
    if as_json:
        print_json(_as_json(found, growth))
    else:
        _show(found, growth, max_wait)
    if found.answered < found.requests:
        raise typer.Exit(FAILED)


def _arrivals(
    traffic: Path | None, rpm: float | None, hours: float, tokens: int, workload: str | None, seed: int
) -> list[Arrival]:
    if (traffic is None) == (rpm is None):
        raise InvalidRequestError("give a file with the traffic, or --rpm to make some up: one of the two")
    if traffic is not None:
        return read_traffic(traffic)
    assert rpm is not None  # noqa: S101 - one of the two is given
    return make_traffic(rpm, hours=hours, tokens=tokens, workloads=_shares(workload), seed=seed)


def _shares(text: str | None) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share) if share else 1.0
        except ValueError:
            raise InvalidRequestError(
                f"--workload takes shares such as medium=0.7,heavy=0.3, not {part!r}"
            ) from None
    return shares


def _as_json(plan: Plan, growth: Growth | None) -> dict[str, Any]:
    return {
        "requests": plan.requests,
        "answered": plan.answered,
        "hours": round((plan.ends - plan.begins) / 3600, 3),
        "projects": plan.projects,
        "deployments": plan.deployments,
        "wait_seconds": {name: _number(getattr(plan, name)) for name in ("p50", "p95", "p99", "longest")},
        "answered_by_model": dict(plan.by_model),
        "binds": [attrs.asdict(each) for each in plan.binds],
        "day_spent": [
            {
                "model": model,
                "at": _moment(at).isoformat(),
                "after_hours": round((at - plan.begins) / 3600, 3),
            }
            for model, at in plan.spent_at.items()
        ],
        "limits_unknown": list(plan.unknown),
        "growth": None
        if growth is None
        else {"target_p95_seconds": growth.target, "more_projects": growth.more, "like_key": growth.like},
    }


def _number(seconds: float) -> float | None:
    """Return seconds for JSON; None stands for requests that are not answered."""
    return round(seconds, 3) if seconds < math.inf else None


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(round(at), ZoneInfo(PROVIDER_TIMEZONE))


def _show(plan: Plan, growth: Growth | None, max_wait: float) -> None:
    lost = plan.requests - plan.answered
    verdict = "all are answered" if not lost else f"{lost:,} have no answer within {max_wait:g} s of waiting"
    say(f"{plan.requests:,} requests in {_duration(plan.ends - plan.begins)} on {_pool(plan)}: {verdict}")
    say(f"wait: p50 {_wait(plan.p50)}, p95 {_wait(plan.p95)}, p99 {_wait(plan.p99)}")
    for model, count in list(plan.by_model.items())[:_SHOWN]:
        say(printable(f"answered by {model}: {count:,} ({count / plan.requests:.0%})"))
    for each in plan.binds[:_SHOWN]:
        say(
            printable(f"binds: {each.metric.value} of {each.model}, full on {each.share:.0%} of its projects")
        )
    if not plan.binds:
        say("binds: nothing")
    for model, at in list(plan.spent_at.items())[:_SHOWN]:
        after = _duration(at - plan.begins)
        say(
            printable(f"the day's quota of {model} ends after {after}, at {_moment(at):%H:%M} in Los Angeles")
        )
    if growth is not None:
        _show_growth(growth)
    if plan.unknown:
        learnt = f"{', '.join(plan.unknown)}: limits are to be learnt, and nothing refuses here"
        complain(printable(f'{learnt}: state those that you know as "limits" in the keys file'))


def _show_growth(growth: Growth) -> None:
    aim = f"for a p95 of {growth.target:g} s"
    if growth.more is None:
        say(f"{aim}: more projects do not help")
    elif growth.more:
        say(
            printable(
                f"{aim}: {growth.more:,} more project{'s'[: growth.more > 1]} like that of {growth.like}"
            )
        )
    else:
        say(f"{aim}: the projects are enough")


def _pool(plan: Plan) -> str:
    return f"{plan.projects:,} project{'s'[: plan.projects > 1]}"


def _wait(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < math.inf else "no answer"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"

"""The rows of the table: worlds in which limits are unknown, wrong, shared or changing."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from _soak.world import (
    HOUR,
    Bursts,
    Change,
    Death,
    Limits,
    Others,
    Outage,
    Retirement,
    Steady,
    Wording,
    World,
)

__all__ = ["ROWS", "Row", "fair_world"]

_BARE, _NAMED, _STATED = Wording.BARE, Wording.NAMED, Wording.STATED
_TEN, _FIFTEEN = {"model": Limits(rpm=10)}, {"model": Limits(rpm=15)}
_DAY = 24 * HOUR
_TWO_DAYS = 47.5  # the runs begin a quarter past midnight


@attrs.frozen
class Row:
    """One row.

    Attributes:
        name: Its name on the command line.
        what: What is simulated, in a few words.
        world: Makes its world from a seed.
    """

    name: str
    what: str
    world: Callable[[int], World]


def _fixed(name: str, what: str, world: World) -> Row:
    return Row(name, what, lambda _: world)


def _others(wording: Wording) -> World:
    others = Others("key-0", 4.0), Others("key-1", 4.0)
    return World(hidden=_TEN, configured=_TEN, wording=wording, events=others)


def _changing(wording: Wording) -> World:
    changes = Change(HOUR, 0.5), Change(2 * HOUR, 1.0)
    return World(hidden=_TEN, configured=_TEN, wording=wording, events=changes)


def _daily(wording: Wording) -> World:
    return World(hidden={"model": Limits(rpd=250)}, wording=wording, hours=_TWO_DAYS)


def _siblings(wording: Wording) -> World:
    return World(hidden=_TEN, configured=_TEN, wording=wording, projects=2, siblings=("key-1",))


def _of_project(wording: Wording) -> World:
    models = {"model": Limits(), "other": Limits()}
    return World(hidden=models, of_project=Limits(rpm=10), wording=wording)


def _spending() -> World:
    models = {"model": Limits(), "other": Limits()}
    return World(hidden=models, spending=30_000, spread=(0.5, 2.0), traffic=Steady(max_wait=900.0))


def _outage(seed: int) -> World:
    drawn = random.Random(seed)
    outage = Outage(drawn.uniform(600.0, 1_800.0), drawn.uniform(300.0, 900.0))
    return World(hidden=_TEN, configured=_TEN, events=(outage,))


def _tokens(seed: int) -> World:  # noqa: ARG001
    limits = {"model": Limits(tpm=10_000)}
    return World(hidden=limits, configured=limits, wording=_NAMED, sizes=(200, 1_000), spread=(0.8, 2.4))


def _losses(seed: int) -> World:
    drawn = random.Random(seed)
    limits = {"new": Limits(rpm=10), "old": Limits(rpm=5)}
    events = Death(drawn.uniform(1, 2) * HOUR, "key-3"), Retirement(drawn.uniform(3, 4) * HOUR, "old")
    return World(hidden=limits, configured=limits, wording=_NAMED, events=events, traffic=Steady(75))


def _week(seed: int) -> World:
    drawn = random.Random(seed)
    outages = [Outage((day + drawn.random()) * _DAY, drawn.uniform(300.0, 900.0)) for day in (0, 3, 6)]
    return World(
        hidden={
            "flash": Limits(rpm=10, tpm=3_000, rpd=400),
            "lite": Limits(rpm=2),
            "old": Limits(rpm=1),
        },
        configured={"flash": Limits(rpm=15, tpm=3_000), "old": Limits(rpm=1)},
        wording={"flash": _STATED, "lite": _BARE, "old": _NAMED},
        siblings=("key-5",),
        events=(
            *outages,
            Others("key-1", 0.5, 1 * _DAY, 2 * _DAY),
            Change(2.0 * _DAY, 0.5),
            Change(2.5 * _DAY, 1.0),
            Death(3.5 * _DAY, "key-4"),
            Retirement(4.5 * _DAY, "old"),
            Change(5.0 * _DAY, 2.0),
        ),
        traffic=Steady(30),
        hours=7 * 24,
        sizes=(100, 400),
        spread=(0.8, 2.4),
    )


def fair_world(routers: int, waiters: int, hours: float) -> World:
    """Return a world with right limits and as many waiters for each router."""
    return World(hidden=_TEN, configured=_TEN, traffic=Steady(routers * waiters), hours=hours)


ROWS = {
    row.name: row
    for row in (
        _fixed("unknown-bare", "nothing configured, bare", World(hidden=_TEN)),
        _fixed("unknown-named", "nothing configured, rpm named", World(hidden=_TEN, wording=_NAMED)),
        _fixed(
            "high-named",
            "15 configured, 10 real, rpm named",
            World(hidden=_TEN, configured=_FIFTEEN, wording=_NAMED),
        ),
        _fixed("high-bare", "15 configured, 10 real, bare", World(hidden=_TEN, configured=_FIFTEEN)),
        _fixed("others-stated", "10 right, others use 4/min of two projects, stated", _others(_STATED)),
        _fixed("others-bare", "10 right, others use 4/min of two projects, bare", _others(_BARE)),
        _fixed("change-stated", "halved after 1 h, doubled after 2 h, stated", _changing(_STATED)),
        _fixed("change-named", "halved after 1 h, doubled after 2 h, named", _changing(_NAMED)),
        _fixed("change-bare", "halved after 1 h, doubled after 2 h, bare", _changing(_BARE)),
        _fixed("day-named", "250 a day, unknown, two days, PerDay and 36 s", _daily(_NAMED)),
        _fixed("day-bare", "250 a day, unknown, two days, bare", _daily(_BARE)),
        _fixed("siblings-stated", "two keys that are one project, stated", _siblings(_STATED)),
        _fixed("siblings-bare", "two keys that are one project, bare", _siblings(_BARE)),
        _fixed("project-named", "10 for both models of a project, unknown, rpm named", _of_project(_NAMED)),
        _fixed("project-stated", "10 for both models of a project, unknown, stated", _of_project(_STATED)),
        _fixed("spending", "spend limit: about 240 requests in ten minutes, for both models", _spending()),
        _fixed(
            "burst-unknown",
            "500 at once on an idle pool, nothing configured, rpm named",
            World(hidden=_TEN, wording=_NAMED, traffic=Bursts()),
        ),
        _fixed(
            "burst-high",
            "500 at once on an idle pool, 60 configured, 42 real, bare",
            World(
                hidden={"model": Limits(rpm=42)},
                configured={"model": Limits(rpm=60)},
                traffic=Bursts(max_wait=90.0),
            ),
        ),
        Row("outage", "503s for 5 to 15 min", _outage),
        Row("losses", "a key dies, and one of two models is retired", _losses),
        Row("tokens", "10,000 tokens/min right, 0.8 to 2.4 times the estimate", _tokens),
        Row("week", "a week of everything at once", _week),
    )
}

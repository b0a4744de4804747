"""Tables of what the runs show."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import attrs
from _harness import Measure, Row, Table

from _soak.rows import ROWS, fair_world
from _soak.runs import LEARNER, ORACLE, ROUTER, Outcome, Setup, simulate
from _soak.stores import NoVirtualTimeError, fresh
from _soak.world import Outage, World

__all__ = ["Options", "fairness", "soak"]

_SOAK = (
    "429s: as a share of the requests sent; used: answers, as a share of those of the oracle",
    "failed: sends that ended with an error; with room: while the provider would have admitted the prompt",
    "longest wait: from a caller's first send of a prompt to its answer, errors in between included",
    "in outage: requests sent per ten minutes of it; back after: from its end to the next request admitted",
)
_FAIRNESS = (
    "right limits, six projects with 10 requests per minute each",
    "least and most: answers of a router, as a share of the mean; reserves/grant: reserves asked per answer",
)
_WAITERS = 16

Progress = Callable[[str], None]


@attrs.frozen
class Options:
    """How the table is made.

    Attributes:
        store: The kind of store.
        routers: How many routers share it.
        seeds: One run for each.
        hours: Simulated hours; None for those of the row.
        say: Called with what has been done.
    """

    store: str = "memory"
    routers: int = 1
    seeds: Sequence[int] = (1,)
    hours: float | None = None
    say: Progress = lambda _: None


def soak(names: Iterable[str], options: Options) -> Table:
    """Run rows of the soak table with all subjects."""
    shared = "" if options.routers == 1 else f", {options.routers} routers on it"
    table = Table.about(f"hidden limits (virtual time; {options.store} store{shared})", *_SOAK)
    for name in names:
        row = ROWS[name]
        worlds = {seed: _shortened(row.world(seed), options.hours) for seed in options.seeds}
        oracle = {seed: simulate(world, Setup(ORACLE, seed=seed)) for seed, world in worlds.items()}
        for subject in (ROUTER, LEARNER, ORACLE):
            case = f"{row.name}: {row.what}"
            table.add(_row(case, subject, worlds, oracle, options))
            options.say(f"{case}, {subject}")
    return table


def _shortened(world: World, hours: float | None) -> World:
    return world if hours is None else attrs.evolve(world, hours=hours)


def _row(
    case: str, subject: str, worlds: dict[int, World], oracle: dict[int, Outcome], options: Options
) -> Row:
    samples: dict[str, list[float]] = {}
    try:
        for seed, world in worlds.items():
            outcome = oracle[seed] if subject == ORACLE else _outcome(world, subject, seed, options)
            for name, value in _figures(world, outcome, oracle[seed]).items():
                samples.setdefault(name, []).append(value)
    except NoVirtualTimeError as error:
        return Row(case, subject, note=str(error))
    return Row(case, subject, {name: Measure(tuple(each), _UNITS[name]) for name, each in samples.items()})


def _outcome(world: World, subject: str, seed: int, options: Options) -> Outcome:
    with fresh(options.store if subject == ROUTER else "memory") as url:
        return simulate(world, Setup(subject, url, options.routers, seed))


_UNITS = {
    "429s": "%",
    "used": "%",
    "failed": "",
    "with room": "",
    "longest wait": "s",
    "429s, first day": "%",
    "429s, later": "%",
    "in outage": "",
    "back after": "s",
}


def _figures(world: World, outcome: Outcome, oracle: Outcome) -> dict[str, float]:
    counts, fates = outcome.counts, outcome.fates
    figures = {
        "429s": 100 * outcome.refused,
        "used": 100 * fates.answered / max(oracle.fates.answered, 1),
        "failed": float(fates.failed),
        "with room": float(fates.failed_with_room),
        "longest wait": fates.longest,
    }
    if world.hours > 24:
        first = counts.refused - counts.refused_later, counts.sent - counts.sent_later
        figures["429s, first day"] = 100 * first[0] / max(first[1], 1)
        figures["429s, later"] = 100 * counts.refused_later / max(counts.sent_later, 1)
    lost = sum(event.seconds for event in world.events if isinstance(event, Outage))
    if lost and counts.back is not None:
        figures["in outage"] = counts.in_outage * 600.0 / lost
        figures["back after"] = counts.back
    return figures


def fairness(sizes: Iterable[int], options: Options, grants: int = 1_000) -> Table:
    """Let several routers share one store, each with as many waiters, until each has had its grants."""
    table = Table.about(f"fairness (virtual time; {options.store} store)", *_FAIRNESS)
    for routers in sizes:
        hours = options.hours or routers * grants / 60.0 / 60.0
        world = fair_world(routers, _WAITERS, hours)
        case = f"{routers} routers × {_WAITERS} waiters, {hours * 3600:.0f} s"
        samples: dict[str, list[float]] = {}
        note = ""
        try:
            for seed in options.seeds:
                outcome = _outcome(world, ROUTER, seed, attrs.evolve(options, routers=routers))
                for name, value in _shares(outcome, routers).items():
                    samples.setdefault(name, []).append(value)
        except NoVirtualTimeError as error:
            note = str(error)
        measures = {name: Measure(tuple(each), "") for name, each in samples.items()}
        table.add(Row(case, ROUTER, measures, note=note))
        options.say(case)
    return table


def _shares(outcome: Outcome, routers: int) -> dict[str, float]:
    grants = [0] * routers
    for caller, answers in outcome.fates.by_caller.items():
        grants[caller % routers] += answers
    mean = statistics.fmean(grants) or 1.0
    return {
        "grants/router": mean,
        "least": min(grants) / mean,
        "most": max(grants) / mean,
        "failed": float(outcome.fates.failed),
        "reserves/grant": outcome.asked / max(sum(grants), 1),
    }

"""What happens to a store while processes spend a quota: the acceptance tests' events, at full length."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from _harness import Measure, Row, Table
from _subjects import scratch

__all__ = ["measure_events"]

_TESTS = Path(__file__).parents[1] / "tests"
_LIMIT, _MINUTE = 30, 60.0


async def measure_events() -> Table:
    """Let every event happen at the same time, and count what reached the provider."""
    events = _load("acceptance/events.py")
    length = events.Length(
        limit=_LIMIT,
        window=_MINUTE,
        guard=0.3,
        outage=43.0,
        timeout=2.0,
        warm_up=95.0,
        after=150.0,
        eager=5.0,
    )
    with scratch() as folder:
        outcomes = await events.play(events.EVENTS, length, _load("stores/servers.py"), folder)
    table = Table.about(
        f"events: a limit of {_LIMIT} a minute, and a store that fails or forgets",
        f"each process tries {length.eager:.0f} times a second; after {length.warm_up:.0f} s all events "
        f"happen at once, each to a store of its own; an outage takes {length.outage:.0f} s",
        "allowed: the limit, and a share for each process that is cut off while others may reach the store",
        f"again: seconds after the end of the event until another {_LIMIT} requests had been sent",
    )
    for event in events.EVENTS:
        table.add(*(_row(events, event, group, outcomes[event.name][group.name]) for group in events.GROUPS))
    return table


def _row(events: ModuleType, event: Any, group: Any, outcome: Any) -> Row:
    again = outcome.again_after(_LIMIT)
    measures = {
        "most in any 60 s": Measure((outcome.most_in(_MINUTE),), ""),
        "allowed": Measure((events.most_allowed(event, group, _LIMIT),), ""),
    }
    if again is not None:
        measures["again"] = Measure((again,), "s")
    processes = "1 process" if group.processes == 1 else f"{group.processes} processes"
    subject = processes if group.policy == "local" else f"{processes}, {group.policy}"
    return Row(event.name, f"llm_router, {subject}", measures)


def _load(name: str) -> ModuleType:
    """Import a module of the tests, which are not a package."""
    path = _TESTS / name
    spec = importlib.util.spec_from_file_location(f"llm_router_test_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for attrs
    spec.loader.exec_module(module)
    return module

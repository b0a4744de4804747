"""Whatever happens to the store: no window sees more than the limit, and what comes back is spent again.

Real servers, files and processes, with short windows. ``benchmarks/contention.py --events`` plays the same
events at full length.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

_AT_ONCE = 4
_WINDOW, _GUARD = 2.0, 1.0
_CATCHING_UP = 2.0
"""Seconds until a process notices that a store answers again. One that lost something is quiet for one."""


def _load() -> ModuleType:
    path = Path(__file__).with_name("events.py")
    spec = importlib.util.spec_from_file_location("llm_router_test_events", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for attrs
    spec.loader.exec_module(module)
    return module


events = _load()
LENGTH = events.Length(
    limit=12,
    window=_WINDOW,
    guard=_GUARD,
    outage=2.5,
    timeout=0.4,
    warm_up=1.5 * (_WINDOW + _GUARD),
    after=2 * (_WINDOW + _GUARD) + _CATCHING_UP,
    eager=8.0,
)
BATCHES = [events.EVENTS[n : n + _AT_ONCE] for n in range(0, len(events.EVENTS), _AT_ONCE)]


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: ", ".join(event.name for event in batch))
async def test_no_window_sees_more_than_the_limit(
    batch: tuple[Any, ...], servers_module: ModuleType, tmp_path: Path
) -> None:
    """With one process or four, but for the shares of those that are cut off; and it is spent again."""
    outcomes = await events.play(batch, LENGTH, servers_module, tmp_path)
    wrong = [
        f"{event.name}, {group.name}: {problem}"
        for event in batch
        for group in events.GROUPS
        for problem in _problems(event, group, outcomes[event.name][group.name])
    ]
    assert not wrong


def _problems(event: Any, group: Any, outcome: Any) -> list[str]:
    """Say what is wrong with what a group sent."""
    most, allowed = outcome.most_in(_WINDOW), events.most_allowed(event, group, LENGTH.limit)
    problems = [] if most <= allowed else [f"{most} in {_WINDOW} s, not {allowed}"]
    before = outcome.between(outcome.struck - LENGTH.warm_up, outcome.struck)
    afterwards = outcome.between(outcome.over, outcome.over + LENGTH.after)
    if min(before, afterwards) < LENGTH.limit:
        problems.append(f"only {before} were sent before, and {afterwards} afterwards")
    return problems

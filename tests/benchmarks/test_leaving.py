"""Streams that are left at random moments leave nothing behind, through gateway and drop-in client."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs
import pytest

SUITE = Path(__file__).parents[2] / "benchmarks"
MODULES = ("_child", "_harness", "_subjects", "leaving")


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the module as the suite's scripts do; forget it afterwards."""
    monkeypatch.syspath_prepend(str(SUITE))
    for name in MODULES:
        sys.modules.pop(name, None)
    yield importlib.import_module("leaving")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["gateway", "client"])
async def test_nothing_remains_of_streams_that_were_left(leaving: ModuleType, subject: str) -> None:
    """No task, call, reservation, socket or thread, and each stream is counted once at most."""
    outcome = await leaving.leave(subject, 200)
    assert outcome.remains == []
    assert 0 < outcome.accepted <= outcome.counted <= outcome.streams
    assert 0 < outcome.begun < outcome.streams


def test_what_remains_is_told(leaving: ModuleType) -> None:
    """Each thing that is left over is named."""
    nothing = leaving.Count(*[0] * 7)
    whole = leaving.Outcome("gateway", 10, 1.0, nothing, nothing, nothing, 9, 8, 7)
    assert whole.remains == []
    assert "remains: nothing" in str(whole)
    after, end = leaving.Count(1, 2, 3, 4, 5, 6, 7), leaving.Count(1, 0, 0, 0, 2, 3, 0)
    assert attrs.evolve(whole, after=after, end=end, accepted=11).remains == [
        "calls: 2",
        "holding: 3",
        "reservations: 4",
        "tasks: 1 after all was closed",
        "sockets: 2 after all was closed",
        "threads: 3 after all was closed",
        "tasks: 1 instead of 0",
        "9 are counted of 11 that arrived",
    ]

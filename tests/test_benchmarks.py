"""The benchmarks run, and their arithmetic is right; no measured time is asserted."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

SUITE = Path(__file__).parents[1] / "benchmarks"
MODULES = sorted(path.stem for path in SUITE.glob("*.py"))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Import modules of the suite as its scripts do; forget them afterwards."""
    monkeypatch.syspath_prepend(str(SUITE))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def harness(load: Callable[..., ModuleType]) -> ModuleType:
    return load("_harness")


def test_median_and_spread(harness: ModuleType) -> None:
    """The median is the middle run; the spread is the range of the runs as a share of it."""
    measure = harness.Measure((10.0, 14.0, 8.0), "µs")
    assert measure.median == 10.0
    assert measure.spread == pytest.approx(0.6)
    assert str(measure) == "10.0 µs ±30%"
    assert harness.Measure((1.0, 3.0), "").median == 2.0
    assert harness.Measure((0.0,), "").spread == 0.0


def test_a_ratio_is_to_the_baseline_of_the_same_table(harness: ModuleType) -> None:
    """The first quantity is divided by that of the baseline row; without such a row there is no ratio."""

    def row(case: Any, subject: Any, value: Any, baseline: Any) -> Any:
        return harness.Row(case, subject, {"time": harness.Measure(value, "µs")}, baseline)

    table = harness.Table("t")
    floor, ours = row("a", "floor", (2.0, 4.0, 6.0), None), row("a", "ours", (5.0, 6.0, 7.0), ("a", "floor"))
    lost = row("b", "ours", (5.0,), ("b", "floor"))
    itself = row("c", "floor", (5.0,), ("c", "floor"))
    table.add(floor, ours, lost, itself)
    assert [table.ratio(each) for each in table.rows] == [None, 1.5, None, None]


def test_a_peer_that_is_not_installed_is_noted_in_the_table(harness: ModuleType) -> None:
    """A row without measures has no ratio and shows its note."""
    table = harness.Table(
        "t", [harness.Row("a", "peer", note="not installed (peer)", baseline=("a", "floor"))]
    )
    assert table.ratio(table.rows[0]) is None
    assert "not installed (peer)" in table.text()
    assert json.loads(json.dumps(table.data()))["rows"][0]["measures"] == {}


def test_percentiles(harness: ModuleType) -> None:
    """The p-th percentile is the value that this share of the values do not exceed."""
    ordered = [float(value) for value in range(1, 101)]
    assert [harness.percentile(ordered, share) for share in (0.5, 0.99, 1.0)] == [51.0, 100.0, 100.0]


async def test_subjects_take_turns_and_the_first_round_is_not_counted(harness: ModuleType) -> None:
    """Every round runs each subject in turn; the warm-up leaves no samples."""
    calls = []

    def subject(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def run() -> dict[str, Any]:
            calls.append(name)
            return {"count": len(calls)}

        return run

    found = await harness.in_turn({"a": subject("a"), "b": subject("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert found == {"a": {"count": (3, 5)}, "b": {"count": (4, 6)}}


async def test_calls_per_second_counts_every_call(harness: ModuleType) -> None:
    """The rate times the duration is the number of calls, whatever the stride."""
    made = 0

    async def work() -> None:
        nonlocal made
        made += 1
        await asyncio.sleep(0)

    for stride in (1, 7):
        made, began = 0, asyncio.get_running_loop().time()
        rate = await harness.calls_per_second(work, 3, 0.005, stride)
        took = asyncio.get_running_loop().time() - began
        assert made % stride == 0
        assert 0 < made <= rate * took


def test_requiring_a_peer_that_is_not_installed_names_it(load: Callable[..., ModuleType]) -> None:
    """The error names the missing module."""
    peers = load("_peers")
    with pytest.raises(peers.NotInstalledError, match=r"not installed \(no_such_module_anywhere\)"):
        peers.require("no_such_module_anywhere")


def test_the_simulation_is_repeatable(load: Callable[..., ModuleType]) -> None:
    """The same world gives the same counts; with load to spare every request is granted in one round trip."""
    simulation = load("simulation")
    world = simulation.World(3, 30, 0.5, warm_up=2.0, measured=10.0)
    counts = simulation.simulate(world)
    assert counts == simulation.simulate(world)
    assert counts.requests == counts.granted == len(counts.trips) > 0
    assert set(counts.trips) == {1}


def test_the_simulation_refuses_what_does_not_fit(load: Callable[..., ModuleType]) -> None:
    """At twice the quota, no more than the quota is granted, and no request is refused falsely."""
    simulation = load("simulation")
    counts = simulation.simulate(simulation.World(1, 10, 2.0, warm_up=60.0, measured=60.3))
    assert 0 < counts.granted <= 10 * 15
    assert counts.checked > 0
    assert counts.false == 0


def test_an_index_in_the_store_costs_no_quota(load: Callable[..., ModuleType]) -> None:
    """With it, the same quota is used, hardly a request is refused falsely, and there are no more trips."""
    simulation = load("simulation")
    world = simulation.World(4, 20, 1.5, warm_up=60.0, measured=60.3)
    without, counts = simulation.simulate(world), simulation.simulate(attrs.evolve(world, indexed=True))
    assert counts == simulation.simulate(attrs.evolve(world, indexed=True))
    assert 295 <= counts.granted <= 300
    assert counts.false <= 0.02 * counts.checked  # quota that comes back while the answer is on its way
    assert sum(counts.trips) <= sum(without.trips)


@pytest.mark.slow
def test_the_simulation_lets_requests_wait(load: Callable[..., ModuleType]) -> None:
    """Requests that wait are all granted, and the quota is used up."""
    simulation = load("simulation")
    world = simulation.World(4, 20, 1.5, waits=True, warm_up=60.0, measured=60.3)
    counts = simulation.simulate(world)
    assert counts == simulation.simulate(world)
    assert counts.granted == counts.requests
    assert 295 <= counts.granted <= 300


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["stores", "selection", "overhead", "waiting"],
        ["memory", "sdk", "dropin"],
        ["gateway", "contention", "simulation"],
        ["soak"],
    ],
)
def test_the_short_mode_runs(tmp_path: Path, names: list[str]) -> None:
    """The suite runs without the peers, writes its samples and says that they mean nothing."""
    output = tmp_path / "output.json"
    # Peers are hidden even if installed: this tests the suite only, and must be short.
    hide = (
        "import sys; sys.modules.update(dict.fromkeys(['litellm', 'limits', 'throttled', 'pyrate_limiter']))"
    )
    code = f"{hide}; sys.path.insert(0, {str(SUITE)!r}); import run; sys.exit(run.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *names, "--short", "--json", str(output)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "LITELLM_PYTHON": "/nowhere/python", "GEMINI_ROUTER_PYTHON": "/nowhere/python"},
    )
    assert done.returncode == 0, done.stderr
    assert "the figures mean nothing" in done.stdout
    reports = {report["name"]: report for report in json.loads(output.read_text(encoding="utf-8"))["reports"]}
    assert list(reports) == names
    for report in reports.values():
        rows = [row for table in report["tables"] for row in table["rows"]]
        assert any(row["subject"].startswith("llm_router") and row["measures"] for row in rows)
    if "stores" in reports:
        notes = {
            row["subject"]: row["note"] for table in reports["stores"]["tables"] for row in table["rows"]
        }
        assert notes["limits"] == "not installed (limits)"
    if "gateway" in reports:
        notes = {row["subject"]: row["note"] for row in reports["gateway"]["tables"][0]["rows"]}
        assert notes["LiteLLM's proxy"] == "not installed (litellm[proxy]; LITELLM_PYTHON)"


def test_a_gateway_of_others_that_does_not_serve_is_noted(
    load: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not installed is named with its variable; of one that does not start, the last words."""
    proxies, peers = load("_proxies"), load("_peers")
    router = next(each for each in proxies.PROXIES if each.name == "gemini-router")
    monkeypatch.setenv(router.variable, str(tmp_path / "python"))
    with pytest.raises(peers.NotInstalledError, match=r"not installed \(gemini-router; GEMINI_ROUTER_PYTHON"):
        router.serving("http://emulator").__enter__()
    for name, script in {"python": "echo 1.2.3", "gemini-router": "echo no room; echo; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(peers.NotInstalledError, match=r"does not start: no room$"):
        router.serving("http://emulator").__enter__()


def test_the_targets_of_the_gateway(load: Callable[..., ModuleType], harness: ModuleType) -> None:
    """Ours are compared with the bare relay, and with LiteLLM's proxy where that was measured."""
    gateway = load("gateway")
    table = harness.Table("t")
    for case, costs in {
        "whole": {"bare relay": 100.0, "llm_router": 150.0, "LiteLLM's proxy": 3000.0},
        "streamed": {"bare relay": 100.0, "llm_router": 200.0},
    }.items():
        for subject, cost in costs.items():
            measures = {"CPU per call": harness.Measure((cost,), "µs")}
            table.add(harness.Row(case, subject, measures, (case, "bare relay")))
    found = {row.case: row.measures["reached"].median for row in gateway._targets(table).rows}
    assert found == {
        "whole: ≤ 1.8 × the bare relay": 1.5,
        "whole: ≥ 25 × less than LiteLLM's proxy": 20.0,
        "streamed: ≤ 1.8 × the bare relay": 2.0,
    }

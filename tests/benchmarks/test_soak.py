"""The soak benchmark's provider counts exactly, and its oracle is never refused."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest

from llm_router import Deployment, FailureKind, Key, Metric, ProviderError, Secret
from llm_router.testing import ManualClock
from llm_router.testing.virtual import run

SUITE = Path(__file__).parents[2] / "benchmarks"


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"_soak", "soak", "_harness"}]:
        del sys.modules[name]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import modules of the suite as its scripts do; forget them afterwards."""
    monkeypatch.syspath_prepend(str(SUITE))
    _forget()
    yield importlib.import_module
    _forget()


@pytest.fixture
def world(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("_soak.world")


@pytest.fixture
def windows(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("_soak.windows")


@pytest.fixture
def runs(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("_soak.runs")


class Desk:
    """A hidden provider on a clock that a test moves."""

    def __init__(self, load: Callable[[str], ModuleType], world: Any) -> None:
        self.clock = ManualClock()
        self.provider = load("_soak.provider").HiddenProvider(world, self.clock)
        self._prompt = load("_soak.world").Prompt
        self._model = next(iter(world.hidden))

    def ask(self, key_id: str = "key-0", *, model: str = "", counted: int = 100) -> ProviderError | None:
        prompt = self._prompt(1, 100, counted)
        refusal: ProviderError | None = self.provider.decide(self.deployment(key_id, model), prompt)
        return refusal

    def free_in(self, key_id: str = "key-0") -> float:
        at: float = self.provider.free_at(self.deployment(key_id), self._prompt(1))
        return at - self.clock.time()

    def deployment(self, key_id: str, model: str = "") -> Deployment:
        return Deployment(Key(key_id, Secret("none")), model or self._model, "light")


@pytest.fixture
def open_desk(load: Callable[[str], ModuleType], world: ModuleType) -> Callable[..., Desk]:
    """Make a provider of a world with the given fields."""

    def make(**fields: Any) -> Desk:
        fields.setdefault("hidden", {"model": world.Limits(rpm=2)})
        return Desk(load, world.World(**fields))

    return make


# --- counting -----------------------------------------------------------------------------------------


def test_a_sliding_window_counts_each_amount_for_exactly_its_length(windows: ModuleType) -> None:
    """An amount counts until its length has passed, and not a moment longer."""
    window = windows.SlidingWindow(60.0)
    window.take(100.0, 3)
    window.take(130.0, 4)
    assert [window.used(at) for at in (159.999, 160.0, 189.999, 190.0)] == [7, 4, 4, 0]


def test_a_sliding_window_knows_when_an_amount_fits(windows: ModuleType) -> None:
    """It fits when enough of the oldest amounts have left; more than the limit never does."""
    window = windows.SlidingWindow(60.0)
    window.take(100.0, 3)
    window.take(130.0, 4)
    assert [window.free_at(140.0, 10, amount) for amount in (3, 4, 6, 7, 10)] == [140, 160, 160, 190, 190]
    assert window.free_at(140.0, 10, 11) == math.inf


@pytest.mark.parametrize(("month", "day", "hours"), [(7, 4, 24), (3, 14, 23), (11, 7, 25)])
def test_a_day_lasts_from_midnight_to_midnight_in_los_angeles(
    windows: ModuleType, month: int, day: int, hours: int
) -> None:
    """Days have 23 or 25 hours when the clocks change, and what was taken counts to the end of them."""
    starts = datetime(2027, month, day, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
    ends = starts + hours * 3600.0
    assert windows.next_midnight(starts - 0.001) == starts
    assert windows.next_midnight(starts) == windows.next_midnight(ends - 0.001) == ends
    count = windows.PacificDay()
    count.take(starts, 2)
    assert count.free_at(starts, 2, 1) == ends
    assert count.free_at(starts, 2, 3) == math.inf
    assert [count.used(at) for at in (ends - 0.001, ends)] == [2, 0]


# --- the provider -------------------------------------------------------------------------------------


def test_any_sixty_seconds_hold_the_limit_and_no_more(open_desk: Callable[..., Desk]) -> None:
    """The third request is refused until exactly 60 s after the first, and refusals do not count."""
    desk = open_desk()
    assert desk.ask() is None
    desk.clock.shift(20.0)
    assert desk.ask() is None
    refused = []
    for _ in range(40):
        refused.append(desk.ask())
        assert desk.free_in() == pytest.approx(40.0 - len(refused) + 1)
        desk.clock.shift(1.0)
    assert all(error is not None and error.code == 429 for error in refused)
    assert desk.ask() is None
    assert desk.ask() is not None
    assert desk.provider.counts.admitted == 3
    assert desk.provider.counts.refused == 41


def test_what_is_on_its_way_leaves_no_room_for_others(
    load: Callable[[str], ModuleType], open_desk: Callable[..., Desk]
) -> None:
    """A prompt has room if it fits beside those that were admitted and those that have not arrived yet."""
    desk, prompt = open_desk(), load("_soak.world").Prompt(1)
    deployment = desk.deployment("key-0")
    assert desk.ask() is None
    with desk.provider.coming(deployment, prompt):
        assert desk.free_in() == 0.0
        assert not desk.provider.has_room(deployment, prompt)
    assert desk.provider.has_room(deployment, prompt)


@pytest.mark.parametrize(
    ("wording", "delay", "violations"),
    [("BARE", None, []), ("NAMED", 45.0, [("rpm", None)]), ("STATED", 45.0, [("rpm", 1)])],
)
def test_a_refusal_says_as_much_as_it_is_told_to(
    world: ModuleType, open_desk: Callable[..., Desk], wording: str, delay: float | None, violations: Any
) -> None:
    """It is bare, names the quota and the delay, or states the limit as well."""
    desk = open_desk(hidden={"model": world.Limits(rpm=1)}, wording=world.Wording[wording])
    desk.ask()
    desk.clock.shift(15.0)
    refusal = desk.ask()
    assert refusal is not None
    assert refusal.kind is FailureKind.QUOTA
    assert not refusal.charged
    assert refusal.retry_delay == delay
    assert [(each.metric, each.limit) for each in refusal.violations] == violations


def test_a_refusal_for_the_day_asks_for_a_short_delay(
    world: ModuleType, open_desk: Callable[..., Desk]
) -> None:
    """The quota named is the day's, however soon the provider asks to come back."""
    desk = open_desk(hidden={"model": world.Limits(rpd=1)}, wording=world.Wording.NAMED)
    desk.ask()
    refusal = desk.ask()
    assert refusal is not None
    assert refusal.retry_delay == 36.0
    assert [each.metric for each in refusal.violations] == [Metric.RPD]


def test_later_days_are_counted_apart(world: ModuleType, open_desk: Callable[..., Desk]) -> None:
    """What comes after the first midnight of a run counts in the whole and among the later days."""
    desk = open_desk(hidden={"model": world.Limits(rpd=1)})
    desk.ask()
    desk.ask()
    desk.clock.shift(86_400.0)
    for _ in range(3):
        desk.ask()
    counts = desk.provider.counts
    assert (counts.sent, counts.refused, counts.sent_later, counts.refused_later) == (5, 3, 3, 2)


def test_tokens_are_counted_as_they_are_and_not_as_estimated(
    world: ModuleType, open_desk: Callable[..., Desk]
) -> None:
    """A prompt fits if what is counted of it does."""
    desk = open_desk(hidden={"model": world.Limits(tpm=1_000)})
    assert desk.ask(counted=600) is None
    assert desk.ask(counted=401) is not None
    assert desk.ask(counted=400) is None


def test_siblings_share_one_quota_and_other_projects_do_not(open_desk: Callable[..., Desk]) -> None:
    """What a sibling takes is missing in the first key's project."""
    desk = open_desk(siblings=("key-1",))
    assert desk.ask("key-0") is None
    assert desk.ask("key-1") is None
    assert desk.ask("key-0") is not None
    assert desk.ask("key-1") is not None
    assert desk.ask("key-2") is None


def test_a_limit_changes_when_the_world_says_so(world: ModuleType, open_desk: Callable[..., Desk]) -> None:
    """What was taken before counts against the new limit."""
    desk = open_desk(events=(world.Change(10.0, 0.5), world.Change(20.0, 1.0)))
    assert desk.ask() is None
    desk.clock.shift(10.0)
    assert desk.ask() is not None
    desk.clock.shift(10.0)
    assert desk.ask() is None


def test_others_use_quota_at_their_rate_and_are_never_refused(
    world: ModuleType, open_desk: Callable[..., Desk]
) -> None:
    """In a long time they take about their rate, whatever the limit is."""
    desk = open_desk(
        hidden={"model": world.Limits(rpd=1_000_000)}, events=(world.Others("key-0", 4.0, 0.0, 30_000.0),)
    )
    desk.clock.shift(60_000.0)
    desk.ask()
    bucket = desk.provider._bucket(desk.deployment("key-0"), desk.clock.time())
    assert 1_800 < bucket.windows[Metric.RPD].used(desk.clock.time()) < 2_200


def test_outages_deaths_and_retirements_begin_and_end_on_time(
    world: ModuleType, open_desk: Callable[..., Desk]
) -> None:
    """Each is answered with the error that a real provider gives for it."""
    events = world.Outage(10.0, 5.0), world.Death(20.0, "key-1"), world.Retirement(30.0, "old")
    limits = world.Limits()
    desk = open_desk(hidden={"model": limits, "old": limits}, events=events)
    found = []
    for _ in range(4):
        errors = desk.ask(), desk.ask("key-1"), desk.ask(model="old")
        found.append([None if error is None else error.kind for error in errors])
        desk.clock.shift(10.0)
    server, key, model = FailureKind.SERVER, FailureKind.KEY, FailureKind.MODEL
    assert found == [[None] * 3, [server] * 3, [None, key, None], [None, key, model]]
    assert desk.provider.counts.in_outage == 3
    assert desk.provider.counts.back == 5.0


# --- runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["oracle", "plain learner"])
def test_a_run_is_repeatable(world: ModuleType, runs: ModuleType, subject: str) -> None:
    """The same world, subject and seed give the same outcome."""
    tokens = world.World(
        hidden={"model": world.Limits(rpm=10, tpm=4_000)}, hours=0.1, sizes=(100, 900), spread=(0.8, 2.4)
    )
    setup = runs.Setup(subject)
    assert runs.simulate(tokens, setup) == runs.simulate(tokens, setup)


@pytest.mark.slow
def test_the_oracle_uses_all_quota_and_is_never_refused(world: ModuleType, runs: ModuleType) -> None:
    """It has every request admitted at the first moment possible."""
    outcome = runs.simulate(
        world.World(hidden={"model": world.Limits(rpm=10)}, hours=0.5), runs.Setup("oracle")
    )
    assert outcome.counts.refused == outcome.fates.failed == 0
    assert outcome.counts.admitted == 6 * 10 * 30


@pytest.mark.slow
def test_a_router_with_right_limits_is_never_refused(world: ModuleType, runs: ModuleType) -> None:
    """It uses what the guard leaves of the quota, and fails no caller."""
    limits = {"model": world.Limits(rpm=10)}
    outcome = runs.simulate(
        world.World(hidden=limits, configured=limits, hours=0.5), runs.Setup("llm_router")
    )
    assert outcome.counts.refused == outcome.fates.failed == 0
    assert outcome.counts.admitted >= 0.97 * 6 * 10 * 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "refused"),
    [
        ("unknown-bare", 0.01),
        ("unknown-named", 0.01),
        ("high-bare", 0.015),
        ("high-named", 0.015),
        ("others-bare", 0.05),
        ("others-stated", 0.05),
        ("siblings-bare", 0.05),
        ("siblings-stated", 0.05),
    ],
)
def test_limits_that_nobody_stated_are_found_and_kept(
    load: Callable[[str], ModuleType], runs: ModuleType, row: str, refused: float
) -> None:
    """In the first hour few requests are refused, and nearly all of the quota is used."""
    hour = attrs.evolve(load("_soak.rows").ROWS[row].world(1), hours=1.0)
    outcome = runs.simulate(hour, runs.Setup("llm_router"))
    oracle = runs.simulate(hour, runs.Setup("oracle"))
    assert outcome.refused < refused
    used = outcome.fates.answered / oracle.fates.answered
    assert used > (0.85 if "others" in row else 0.97)


@pytest.mark.slow
@pytest.mark.parametrize("routers", [1, 2])
def test_an_outage_is_probed_rarely_and_its_end_is_seen(
    load: Callable[[str], ModuleType], runs: ModuleType, routers: int
) -> None:
    """Six projects send at most 60 requests in ten minutes of 503s, and one within 15 s of its end."""
    for seed in (1, 4):
        hour = attrs.evolve(load("_soak.rows").ROWS["outage"].world(seed), hours=0.75)
        counts = runs.simulate(hour, runs.Setup("llm_router", routers=routers)).counts
        assert counts.in_outage <= 60 * max(1.0, hour.events[0].seconds / 600.0)
        assert counts.back <= 15.0


@pytest.mark.slow
def test_a_limit_of_tokens_that_sinks_for_an_hour_is_found_again(world: ModuleType, runs: ModuleType) -> None:
    """By refusals that name nothing: those at far fewer tokens do not rule tokens out for a day."""
    changes = world.Change(2 * world.HOUR, 0.3), world.Change(3 * world.HOUR, 1.0)
    tokens = world.World(
        hidden={"model": world.Limits(tpm=12_000)},
        events=changes,
        projects=1,
        hours=5.0,
        sizes=(100, 2_000),
        traffic=world.Steady(callers=8),
    )
    assert runs.simulate(tokens, runs.Setup("llm_router")).refused < 0.05


@pytest.mark.slow
def test_a_daily_limit_is_known_from_the_second_day_on(
    load: Callable[[str], ModuleType], world: ModuleType, runs: ModuleType
) -> None:
    """One request a day and deployment is refused, or two that were sent together; no quota is left."""
    row = load("_soak.rows").ROWS["day-bare"].world(1)
    days = attrs.evolve(row, projects=1, hours=27.0, traffic=world.Steady(callers=20))
    outcome = runs.simulate(days, runs.Setup("llm_router"))
    oracle = runs.simulate(days, runs.Setup("oracle"))
    assert outcome.refused < 0.05
    assert outcome.fates.answered == oracle.fates.answered
    assert outcome.counts.refused_later <= 2 * days.projects


@pytest.mark.slow
def test_every_row_makes_a_world(load: Callable[[str], ModuleType]) -> None:
    """Each has a name of its own and deployments, and the oracle is not refused in its first minutes."""
    rows, runs = load("_soak.rows").ROWS, load("_soak.runs")
    for name, row in rows.items():
        made = row.world(1)
        assert name == row.name
        assert made.deployments()
        short = load("attrs").evolve(made, hours=0.05)
        assert runs.simulate(short, runs.Setup("oracle")).counts.refused == 0


@pytest.mark.slow
def test_two_routers_share_the_traffic_and_the_store(world: ModuleType, runs: ModuleType) -> None:
    """Together they keep the limits that they know."""
    limits = {"model": world.Limits(rpm=10)}
    shared = world.World(hidden=limits, configured=limits, hours=0.2)
    outcome = runs.simulate(shared, runs.Setup("llm_router", routers=2))
    assert outcome.counts.refused == 0
    assert outcome.counts.admitted >= 0.95 * 6 * 10 * 12


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_row_runs_on_a_store_outside_this_process(
    load: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    """The store keeps virtual time, and the figures are written as JSON."""
    output = tmp_path / "output.json"
    options = ["--row", "high-named", "fairness", "--hours", "0.05", "--store", store, "--routers", "2"]
    assert load("soak").main([*options, "--json", str(output)]) == 0
    assert f"{store} store, 2 routers on it" in capsys.readouterr().out
    tables = json.loads(output.read_text(encoding="utf-8"))["tables"]
    ours = [row for table in tables for row in table["rows"] if row["subject"] == "llm_router"]
    assert len(ours) == 4
    assert all(row["measures"] for row in ours)


def test_a_store_with_a_clock_of_its_own_is_named(load: Callable[[str], ModuleType]) -> None:
    """It is not simulated: the error says that it does not go by the router's clock."""
    stores = load("_soak.stores")

    async def main(loop: Any) -> None:
        frozen = ManualClock()
        async with stores.share("memory://", 1, frozen, loop):
            pass

    with pytest.raises(stores.NoVirtualTimeError, match="MemoryStore does not go by the router's clock"):
        run(main)

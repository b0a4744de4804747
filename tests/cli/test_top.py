"""``llm-router top``: the frame, the keys, and a terminal that is left as it was."""

from __future__ import annotations

import copy
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result

from llm_router import Cooldown, DayTotals, Deployment, Router
from llm_router.cli.top import _Screen, keys_in
from llm_router.cli.top_frame import Line, frame
from llm_router.cli.top_rates import Rates, rates_between
from llm_router.cli.top_view import SORTS, View, press
from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.status import Health
from llm_router.engine.overview import Report
from llm_router.errors import StoreUnavailableError
from llm_router.stores.memory import MemoryStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Show the times of a test as they are in UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


async def report_of(pools: Pools, clock: ManualClock) -> Report:
    """Return what there is to see of a pool in which some things have happened."""
    store = MemoryStore(clock=clock)
    pool: list[Deployment] = [
        pools.one("gemini-3.5-flash-lite", key_id="gemini-key-01", rpm=15, tpm=250_000, rpd=500),
        pools.one("gemini-3.8-flash", "medium", key_id="gemini-key-01", rpm=2),
        pools.one("gemini-3.8-flash", "medium", key_id="gemini-key-02", project="acme", rpm=5, rpd=20),
        pools.one("gemini-pro-latest", "heavy", key_id="gemini-key-03", rpm=5),
    ]
    router = Router(pool, store=store, provider=FakeProvider(clock=clock), clock=clock)
    async with router:
        for model, times in (("gemini-3.5-flash-lite", 9), ("gemini-3.8-flash", 6)):
            for _ in range(times):
                await router.send("hello", model=model, fallback="none")
        learnt = LearntLimit(pool[0].quotas[0].metric, 10, LimitSource.INFERRED)
        await store.cool_down(Cooldown.learn(pool[0].model_scope, learnt))
        await store.cool_down(Cooldown(pool[2].model_scope, clock.time() + 90.0, "429: \x1b[31mrpm spent"))
        await router.keys.disable("gemini-key-03", reason="to be rotated")
        clock.shift(2.0)
        return await router.keys.report()


def text_of(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


async def test_a_frame_of_80_columns(pools: Pools, clock: ManualClock) -> None:
    """A few lines for each deployment: bars, limits with their source, countdowns, tokens, the day's end."""
    report = await report_of(pools, clock)
    lines = text_of(frame(report, clock.time() + 10.0, 80))
    assert max(map(len, lines)) <= 80
    assert lines == [
        "llm-router top 12:00:12  healthy  1 of 4 ready",
        "last minute 15 requests, 9 input tokens",
        "today 15 requests, 15 → 165 tokens, 0 429s, 0 failed",
        "gemini-key-01  gemini-3.5-flash-lite  ready",
        "  rpm █████████· 9/10~      tpm ▏········· 9/250k     rpd ▏········· 9/500",
        "  today 9, 9 → 99 tokens",
        "gemini-key-01  gemini-3.8-flash  spent until 12:01:00 (48 s): rpm",
        "  rpm ██████████ 2/2",
        "  today 2, 2 → 22 tokens",
        "gemini-key-02  gemini-3.8-flash  cooling down until 12:01:30 (78 s): 429: [31mr…",
        "  rpm ████████·· 4/5        rpd ██········ 4/20",
        "  today 4, 4 → 44 tokens; day ends 04:00 (16.0 h)",
        "gemini-key-03  gemini-pro-latest  disabled: to be rotated",
        "  rpm ·········· 0/5",
        "limits: 9 configured, 9! stated by the provider, 9~ inferred, 9? unknown",
        "sort file  q quit  p pause  s sort  r reverse  / filter  ↑↓",
    ]


async def test_a_frame_of_200_columns(pools: Pools, clock: ManualClock) -> None:
    """One line for each deployment, with the bars below each other."""
    report = await report_of(pools, clock)
    lines = text_of(frame(report, clock.time(), 200, plain=True))
    assert len(lines) == 7
    assert max(map(len, lines)) <= 200
    assert lines[1] == (
        "last minute 15 requests, 9 input tokens; today 15 requests, 15 → 165 tokens, 0 429s, 0 failed"
    )
    rows = lines[2:6]
    assert len({row.index("rpm ") for row in rows if "rpm █" in row or "rpm ·" in row}) <= 2
    assert len({row.index("rpd ") for row in rows if "rpd " in row}) == 1
    assert rows[2].endswith("today 4, 4 → 44 tokens; day ends 04:00 (16.0 h)")


async def test_what_does_not_fit_is_scrolled(pools: Pools, clock: ManualClock) -> None:
    """Whole deployments only, and how many are missing."""
    report = await report_of(pools, clock)
    lines = text_of(frame(report, clock.time(), 80, 12))
    assert len(lines) <= 12
    assert lines[-3] == "… 2 more, 0 of them above"
    lines = text_of(frame(report, clock.time(), 80, 12, View(skipped=2)))
    assert "gemini-key-02" in lines[3]
    assert lines[-3] == "… 2 more, 2 of them above"
    assert text_of(frame(report, clock.time(), 20, 4, View(skipped=99)))
    report.health["line"] = {"requests": 12, "interactive": 3, "batch": 9, "tenants": {"acme\x1b": 9}}
    assert "waiting 12: 3 interactive, 9 batch, acme 9" in text_of(frame(report, 0.0, 80))
    report.health["problems"].append("store: gone \x1b[31m" + "x" * 200)
    assert max(map(len, text_of(frame(report, clock.time(), 60, 10)))) == 60


async def test_keys_change_the_view(pools: Pools, clock: ManualClock) -> None:
    """Sort, reverse, filter, pause, scroll and quit; what is typed is text until it is kept or cleared."""
    report = await report_of(pools, clock)

    def titles(view: View) -> list[str]:
        lines = text_of(frame(report, clock.time(), 80, view=view))
        return [line.split("  ")[0][-2:] for line in lines if line.startswith("gemini-key")]

    orders = {sort: titles(View(sort=sort)) for sort in SORTS}
    assert orders["use"] == ["01", "01", "02", "03"]
    assert orders["state"] == ["01", "02", "03", "01"]
    assert orders["requests"] == ["01", "02", "01", "03"]
    assert titles(View(reverse=True)) == ["03", "02", "01", "01"]
    view = View()
    for _ in SORTS:
        view = press(view, "s")
    assert view == View()
    for key in (*"/PROq", "back", "enter"):
        view = press(view, key)
    assert (view.wanted, view.typing, titles(view)) == ("PRO", False, ["03"])
    assert press(view, "escape").wanted == ""
    assert press(press(press(view, "/"), "x"), "escape") == View()
    assert press(press(View(), "up"), "r").reverse
    assert [press(View(skipped=1), key, 3).skipped for key in ("down", "up", "x", "k")] == [2, 0, 1, 0]
    assert press(View(skipped=2), "j", 3).skipped == 2
    assert press(press(View(), " "), "p") == View()
    assert press(View(), "q").left
    assert "filter: a▏" in text_of(frame(report, 0.0, 80, view=View(typing=True, wanted="a")))[-1]


async def test_rates_are_the_difference_of_two_looks(pools: Pools, clock: ManualClock) -> None:
    """What was sent since, in a minute; nothing over midnight, or where nothing is counted."""
    after = await report_of(pools, clock)
    before = copy.deepcopy(after)
    for row in before.keys:
        assert row["today"] is not None
        row["today"]["requests"] = row["today"]["input_tokens"] = row["today"]["output_tokens"] = 0
    rates = rates_between(before, after, 30.0)
    assert rates == Rates(30.0, 360.0, 0.0)
    line = text_of(frame(after, clock.time(), 200, rates=rates))[1]
    assert "now 30 requests, 360 tokens, 0 429s a minute; today" in line
    before.keys[0]["today"] = {**DayTotals(**before.keys[0]["today"]), "day": "2027-01-14"}  # type: ignore[typeddict-item]
    assert rates_between(before, after, 30.0) is None
    assert rates_between(after, after, 0.0) is None
    assert rates_between(Report(after.health, []), Report(after.health, []), 1.0) is None


def test_what_a_terminal_sends_becomes_keys() -> None:
    """Arrows have two forms; a key without a meaning is left out whole."""
    sent = "a\x1b[A\x1bOB\r\x7f\x1b[5~\x1b[1;5Cq\x1b"
    assert list(keys_in(sent)) == ["a", "up", "down", "enter", "back", "q", "escape"]


@pytest.mark.slow
def test_one_frame_is_printed_into_a_pipe(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without escape codes, and without the keys to press."""
    for options in ((), ("--once", "--filter", "heavy", "--sort", "use")):
        result = run("top", *options)
        assert result.exit_code == 0
        assert result.stdout.startswith("llm-router top ")
        assert ("key-light" in result.stdout) == (not options)
        assert "q quit" not in result.stdout
    assert run("top", "--sort", "colour").exit_code == 2

    async def snapshot(*_: Any) -> None:
        raise StoreUnavailableError("the store is away")

    monkeypatch.setattr(MemoryStore, "snapshot", snapshot)
    result = run("top", "--store", "memory://")
    assert result.exit_code == 1
    assert "not healthy: the store is lost" in result.stdout
    assert "the store is away" in result.stdout


class Looks:
    """What a screen asks: it is healthy, then the store is lost, then it breaks."""

    def __init__(self, report: Report) -> None:
        self.keys = self
        self.answers = [report, Report(Health(**{**report.health, "state": "store_lost"}), [])]

    async def report(self) -> Report:
        if not self.answers:
            raise ZeroDivisionError
        return self.answers.pop(0)


async def test_what_was_seen_last_stays_while_the_store_is_lost(
    pools: Pools, clock: ManualClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head says so; without a terminal to read from, no key is waited for."""
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    looks: Any = Looks(await report_of(pools, clock))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ZeroDivisionError):
        await _Screen(looks, View(), 0.001).run()
    shown = capsys.readouterr().out
    assert "the store is lost" in shown
    assert "gemini-key-01" in shown
    assert "0 requests, 0 tokens, 0 429s a minute" in shown


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.drawn = ""
        self.child = subprocess.Popen(
            [sys.executable, "-m", "llm_router", *args],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - as a shell would
        )

    def press(self, keys: str, until: str) -> None:
        """Press keys, and read until something is drawn that was not before."""
        os.write(self.master, keys.encode())
        seen, give_up = len(self.drawn), time.monotonic() + 20
        while until not in self.drawn[seen:]:
            assert time.monotonic() < give_up, self.drawn[-2000:]
            if select.select([self.master], [], [], 0.2)[0]:
                self.drawn += os.read(self.master, 65536).decode(errors="ignore")

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen(home: Path) -> Iterator[Any]:
    shown = Screen("top", "--interval", "0.2")
    yield shown
    shown.close()


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("q", 0), ("\x03", 130)], ids=["q", "Ctrl-C"])
def test_the_terminal_is_left_as_it_was(screen: Screen, end: str, code: int) -> None:
    """It reacts to keys; at the end the cursor, the other screen and the echo are back."""
    screen.press("", "q quit")
    screen.press("/heavy\r", "1 shown")
    screen.press("p", "PAUSED")
    screen.press(end, "\x1b[?1049l")
    assert screen.child.wait(10) == code
    assert termios.tcgetattr(screen.slave) == screen.before
    assert "\x1b[?25h" in screen.drawn[screen.drawn.rindex("\x1b[?25l") :]
    assert "AIza" not in screen.drawn

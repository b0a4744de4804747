"""``llm-router top``: every key and quota, live, as the store has them for all processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_router.cli.options import KEYS, Keys, Store
from llm_router.cli.output import FAILED, is_terminal, say
from llm_router.cli.routers import open_router
from llm_router.cli.top_frame import Line, frame
from llm_router.cli.top_rates import Rates, rates_between
from llm_router.cli.top_view import SORTS, View, press
from llm_router.config import load_settings
from llm_router.engine.overview import Report
from llm_router.errors import ConfigError
from llm_router.router import Router

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["keys_in", "top"]

_PLAIN = 200
"""Columns of a frame that no terminal shows."""

_LATELY, _SAMPLES = 60.0, 12
"""Seconds over which rates are measured, and how many reports are kept for it."""

_NAMES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "back",
    "\x08": "back",
}

Once = Annotated[bool, typer.Option("--once", help="Print one frame and end.")]
Interval = Annotated[
    float, typer.Option("--interval", min=0.2, max=3600, help="Seconds between two looks at the store.")
]
Sort = Annotated[str, typer.Option("--sort", help=f"Order of the keys: {', '.join(SORTS)}.")]
Filter = Annotated[
    str, typer.Option("--filter", help="Only what has this text in key, model, project, workload or state.")
]


def top(
    *,
    once: Once = False,
    interval: Interval = 1.0,
    sort: Sort = "file",
    wanted: Filter = "",
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Watch keys and quotas live, over all processes that share the store.

    Keys: q quit, p pause, s sort, r reverse, / filter, arrows scroll. Not on a terminal, or with --once, one
    frame is printed; the exit code is 1 if the store does not answer.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort must be one of {', '.join(SORTS)}, not {sort!r}")
    settings = load_settings(keys, store_needed=store is None)
    view = View(sort=sort, wanted=wanted)

    async def run() -> None:
        async with open_router(settings, store) as router:
            if once or not is_terminal():
                report = await router.keys.report()
                _print(report, view)
                if not report.health["store_ok"]:
                    raise typer.Exit(FAILED)
            else:
                await _Screen(router, view, interval).run()

    asyncio.run(run())


def _print(report: Report, view: View) -> None:
    width = shutil.get_terminal_size().columns if is_terminal() else _PLAIN
    for line in frame(report, time.time(), width, view=view, plain=True):
        say("".join(text for text, _ in line).rstrip())


class _Screen:
    """The whole terminal, until the user has had enough."""

    def __init__(self, router: Router, view: View, interval: float) -> None:
        self._router = router
        self._view = view
        self._interval = interval
        self._now = time.time()
        self._shown = 0
        self._seen: deque[tuple[float, Report]] = deque()

    async def run(self) -> None:
        """Show frames, and obey the keys."""
        from rich.console import Console  # noqa: PLC0415 - only for a terminal
        from rich.live import Live  # noqa: PLC0415

        console = Console()
        report = await self._look(None)
        with Live(screen=True, auto_refresh=False, console=console) as live:
            async with _pressed() as pressed:
                while not self._view.left:
                    if not self._view.paused:
                        self._now = time.time()
                    self._shown = len(report.keys)
                    live.update(self._picture(report, console.width, console.height), refresh=True)
                    if await self._obey(pressed) and not self._view.paused:
                        report = await self._look(report)

    async def _obey(self, pressed: asyncio.Queue[str]) -> bool:
        """Wait for a key; return whether the interval passed without any."""
        try:
            async with asyncio.timeout(self._interval):
                self._view = press(self._view, await pressed.get(), self._shown)
        except TimeoutError:
            return True
        while not pressed.empty():
            self._view = press(self._view, pressed.get_nowait(), self._shown)
        return False

    async def _look(self, before: Report | None) -> Report:
        """Return what the store says now; if it does not answer, that, and what it said before."""
        report = await self._router.keys.report()
        if not report.keys:
            return report if before is None else Report(report.health, before.keys)
        now = time.monotonic()
        while self._seen and now - self._seen[0][0] > _LATELY:
            self._seen.popleft()
        if not self._seen or now - self._seen[-1][0] >= _LATELY / _SAMPLES:
            self._seen.append((now, report))
        return report

    def _rates(self, report: Report) -> Rates | None:
        """Return how much was sent in a minute since the oldest report that is kept."""
        if not self._seen:
            return None
        at, before = self._seen[0]
        return rates_between(before, report, max(time.monotonic() - at, _LATELY / _SAMPLES))

    def _picture(self, report: Report, width: int, height: int) -> Group:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        def drawn(line: Line) -> Text:
            return Text.assemble(*line, no_wrap=True, overflow="ellipsis")

        lines = frame(report, self._now, width, height, self._view, self._rates(report))
        return Group(*map(drawn, lines))


@contextlib.asynccontextmanager
async def _pressed() -> AsyncIterator[asyncio.Queue[str]]:
    """Provide the keys that are pressed, as long as standard input is a terminal; restore it afterwards."""
    pressed: asyncio.Queue[str] = asyncio.Queue()
    with _cbreak() as source:
        loop = asyncio.get_running_loop()

        def read() -> None:
            data = os.read(source, 1024) if source is not None else b""
            if not data and source is not None:
                loop.remove_reader(source)
            for key in keys_in(data.decode(errors="ignore")):
                pressed.put_nowait(key)

        if source is None:
            yield pressed
            return
        loop.add_reader(source, read)
        try:
            yield pressed
        finally:
            loop.remove_reader(source)


@contextlib.contextmanager
def _cbreak() -> Iterator[int | None]:
    """Have a terminal pass each key on at once, without showing it; yield its file, or None if it is none."""
    try:
        import termios  # noqa: PLC0415 - not on Windows
        import tty  # noqa: PLC0415

        source = sys.stdin.fileno()
        before: list[Any] = termios.tcgetattr(source)
    except (ImportError, AttributeError, OSError, ValueError):
        yield None
        return
    try:
        tty.setcbreak(source)
        yield source
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)


def keys_in(text: str) -> Iterator[str]:
    """Yield the keys that a terminal sent: characters, and the names that ``press`` knows."""
    while text:
        name = next((known for known in sorted(_NAMES, key=len, reverse=True) if text.startswith(known)), "")
        if name == "\x1b" and len(text) > 1 and text[1] in "[O":
            # A key that means nothing here: its sequence ends with a letter or ~.
            end = next(
                (place for place in range(2, len(text)) if text[place].isalpha() or text[place] == "~"), 1
            )
            text = text[end + 1 :]
            continue
        yield _NAMES[name] if name else text[0]
        text = text[len(name) or 1 :]

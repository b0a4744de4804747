"""Show how a batch goes: a progress bar, now and then a line on standard error, or lines of JSON."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from llm_router.cli.batch_watch import Progress, progress_record, progress_words
from llm_router.cli.output import complain, is_terminal, say

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["View", "json_line", "shown"]

_SELDOM = 10.0
"""Seconds between two lines at least: reasons may change as fast as keys are used up."""

_AGAIN = 600.0
"""Seconds after which the same reason is said again, with a new ETA."""

_AGAIN_AS_JSON = 60.0


class View(Protocol):
    """Shows how a batch goes."""

    def advance(self) -> None:
        """Note that a line has its result."""
        ...

    def show(self, progress: Progress) -> None:
        """Show how it goes now."""
        ...


@contextlib.contextmanager
def shown(total: int, *, as_json: bool) -> Iterator[View]:
    """Show how a batch of ``total`` lines goes, inside the block."""
    if as_json:
        yield _Lines(_print, _AGAIN_AS_JSON)
    elif is_terminal():
        with _bar(total) as view:
            yield view
    else:
        yield _Lines(_complain, _AGAIN)


def json_line(value: object) -> str:
    """Return ``value`` as one line of JSON."""
    return json.dumps(value)


def _print(progress: Progress, now: float) -> bool:
    say(json_line(progress_record(progress, now)))
    return True


def _complain(progress: Progress, now: float) -> bool:
    if progress.reason is None:
        return False
    done = f"{progress.done} of {progress.done + progress.left} done"
    complain(f"{done} · {progress_words(progress, now)}")
    return True


class _Lines:
    """Tells how it goes when the reason for waiting changes, and again after a while.

    Args:
        tell: What is given how it goes, and when (seconds since the Unix epoch); it returns whether it did.
        again: Seconds after which the same is said again.
        clock: Returns the seconds since any one moment.
    """

    def __init__(
        self,
        tell: Callable[[Progress, float], bool],
        again: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._again = again
        self._clock = clock
        self._reason: str | None = None
        self._changed_at = self._told_at = -math.inf

    def advance(self) -> None:
        """Do nothing: each line has its result in the file."""

    def show(self, progress: Progress) -> None:
        """Tell how it goes, unless it was told a moment ago or goes as it did."""
        now = self._clock()
        is_new = progress.reason not in (None, self._reason) and now - self._changed_at >= _SELDOM
        if is_new or now - self._told_at >= self._again:
            if is_new:
                self._reason, self._changed_at = progress.reason, now
            if self._tell(progress, time.time()):
                self._told_at = now


@contextlib.contextmanager
def _bar(total: int) -> Iterator[View]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    class Drawn(Bars):
        """A progress bar, and beneath it why it stands still."""

        words = ""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield from super().get_renderables()
            if self.words:
                yield Text(self.words, style="dim", overflow="fold")

    class Terminal:
        def advance(self) -> None:
            bars.advance(task)

        def show(self, progress: Progress) -> None:
            bars.words = progress_words(progress, time.time())
            bars.refresh()

    columns = BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn()
    with Drawn(*columns, console=Console()) as bars:
        task = bars.add_task("prompts", total=total)
        yield Terminal()
        bars.words = ""

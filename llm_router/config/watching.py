"""Notice when the files of a configuration change, and have them read again, once for each time."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from llm_router.domain.clock import Clock, sleep
from llm_router.errors import ConfigError, RouterClosedError

__all__ = ["ConfigWatch", "check_watchfiles"]

_log = logging.getLogger("llm_router")

_QUIET_MS = 100
"""Milliseconds without a change after which a save is taken to be whole; several files may belong to it."""

_LOOK_MS = 5_000
"""Milliseconds after which the files are looked at anyway: some file systems report no changes."""

_GRACE = 1.0
"""Seconds for which a file may be missing or half written before that is worth a warning."""

_Look = tuple[tuple[int, int, int] | None, ...]
"""Of each file when it was changed, its size and its number; None if it is not there."""


def check_watchfiles() -> None:
    """Check that watchfiles is installed, without importing it.

    Raises:
        ConfigError: It is not.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("watch=True needs watchfiles: pip install 'llm-quota-router[watch]'")


class ConfigWatch:
    """Watches files on one event loop at a time, and calls back after each change.

    What is broken is logged as a warning, once for each reason; the next change is another chance.

    Args:
        files: The files; they need not exist.
        clock: Where time comes from.

    Attributes:
        find_reload: Returns what reads them again, or None once that is gone, which ends the watch: so it
            does not keep alive what it calls.
    """

    def __init__(self, files: Iterable[Path], clock: Clock) -> None:
        self.find_reload: Callable[[], Callable[[], Awaitable[object]] | None] = lambda: None
        self._files = tuple(files)
        self._clock = clock
        self._seen: _Look | None = None  # at first they are read again: they may have changed meanwhile
        self._complaint = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch on the running event loop, which ends the watch at the latest."""
        self._task = asyncio.get_running_loop().create_task(self.run())

    async def aclose(self) -> None:
        """End the watch."""
        task, self._task = self._task, None
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def run(self, ticks: AsyncIterator[object] | None = None) -> None:
        """Look at the files at every tick, by default whenever something in their folders changes."""
        async for _ in _changes(self._folders()) if ticks is None else ticks:
            try:
                while await self._follow():
                    pass
            except RouterClosedError:
                return

    async def _follow(self) -> bool:
        """Have the files read again if they have changed; return whether they have changed since.

        Raises:
            RouterClosedError: There is no router left to read them.
        """
        reload, look = self.find_reload(), self._look()
        if reload is None:
            raise RouterClosedError("the router is gone")
        if look == self._seen:
            return False
        try:
            await reload()
        except ConfigError as error:
            return await self._complain(str(error), look)
        except RouterClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - the next change is another chance
            return await self._complain(type(error).__name__, look)
        self._seen, self._complaint = look, ""
        return False

    async def _complain(self, reason: str, look: _Look) -> bool:
        """Log why the files cannot be followed, unless they change again in a moment."""
        await sleep(self._clock, _GRACE)
        if self._look() != look:
            return True
        self._seen = look
        if reason != self._complaint:
            self._complaint = reason
            _log.warning("the configuration has changed, but the router goes on as before: %s", reason)
        return False

    def _look(self) -> _Look:
        return tuple(map(_look_at, self._files))

    def _folders(self) -> list[Path]:
        """Return the folders of the files, and of what they are links to, as far as these exist."""
        folders = [folder for file in self._files for folder in (file.parent, _resolved(file).parent)]
        return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _look_at(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _resolved(file: Path) -> Path:
    try:
        return file.resolve()
    except (OSError, RuntimeError, ValueError):  # such as a link to itself
        return file


async def _changes(folders: list[Path]) -> AsyncGenerator[object]:
    """Yield whenever something in a folder has changed, and once in a while."""
    from watchfiles import awatch  # noqa: PLC0415 - an extra

    try:
        async for found in awatch(
            *folders,
            watch_filter=None,
            step=_QUIET_MS,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            recursive=False,
        ):
            yield found
    except (OSError, RuntimeError) as error:  # a folder is gone, or there are too many watches
        _log.warning(
            "the folders of the configuration cannot be watched (%s): its files are looked at every %.0f s",
            getattr(error, "strerror", None) or type(error).__name__,
            _LOOK_MS / 1000,
        )
    while True:
        yield None
        await asyncio.sleep(_LOOK_MS / 1000)

"""SIGHUP has a gateway read its configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from typing import TYPE_CHECKING

from llm_router.errors import LLMRouterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from llm_router.router import Router

__all__ = ["hangups_ignored", "means_reload", "reloading_on_hangup"]

_log = logging.getLogger("llm_router")


def means_reload() -> bool:
    """Whether SIGHUP means a reload: not to a program on a terminal, which ends with that."""
    return hasattr(signal, "SIGHUP") and not (sys.stdin is not None and sys.stdin.isatty())


@contextlib.contextmanager
def hangups_ignored() -> Iterator[None]:
    """Have neither this process nor those that it starts end by a SIGHUP that comes too early."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN) if means_reload() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGHUP, before)


@contextlib.asynccontextmanager
async def reloading_on_hangup(router: Router) -> AsyncIterator[None]:
    """Reload a router at each SIGHUP; what is wrong with its files is logged.

    It does nothing outside of the main thread.
    """
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def reload() -> None:
        task = loop.create_task(_reload(router))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        loop.add_signal_handler(signal.SIGHUP, reload)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _reload(router: Router) -> None:
    try:
        await router.reload()
    except LLMRouterError as error:
        _log.warning("the configuration was not read again, and the gateway goes on as before: %s", error)

"""The event loop that a client's router works on, for callers on every thread and every loop."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from llm_router.errors import RouterClosedError, RouterLoopError
from llm_router.router import Router

__all__ = ["Bridge", "Home", "RouterSource"]

RouterSource = Router | Callable[[], Router]
"""A router, or what makes one."""

_JOIN = 10.0
"""Most seconds to wait for the thread when a client is closed."""

_NOT_BY_ITSELF = "a synchronous call here would block the event loop that has to answer it: use client.aio"


class Home:
    """An event loop, the router that works on it, and the calls that are under way there.

    Attributes:
        loop: The loop.
        router: The router.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, router: Router) -> None:
        self.loop = loop
        self.router = router
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a call. Call it on the loop."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def under_way(self) -> int:
        """How many calls are under way."""
        return len(self._tasks)

    async def cancel(self) -> None:
        """End the calls that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Thread(threading.Thread):
    """A daemon thread with an event loop of its own, which a router works on until :meth:`stop`."""

    def __init__(self, router: Router, *, closes: bool) -> None:
        super().__init__(name="llm_router.genai", daemon=True)
        self._router = router
        self._closes = closes
        self._ready = threading.Event()
        self._stopping: asyncio.Event
        self.home: Home
        self.start()
        self._ready.wait()

    def run(self) -> None:
        # While the interpreter exits, neither executors nor threads can be had, so some of the cleaning up
        # cannot be done; what matters then is only that nothing hangs.
        with contextlib.suppress(RuntimeError), asyncio.Runner() as runner:
            runner.run(self._live())
        _threads.pop(self, None)

    async def _live(self) -> None:
        self.home = Home(asyncio.get_running_loop(), self._router)
        self._stopping = asyncio.Event()
        self._ready.set()
        await self._stopping.wait()
        await self.home.cancel()
        if self._closes:
            await self._router.aclose()

    def stop(self, process: int) -> None:
        """Let the thread end, unless this is a child of the process that has it. Any thread may call it."""
        if os.getpid() != process:
            return
        with contextlib.suppress(RuntimeError):  # it has ended
            self.home.loop.call_soon_threadsafe(self._stopping.set)

    def stop_and_wait(self, process: int) -> None:
        """End the thread, and wait for its end."""
        self.stop(process)
        if os.getpid() == process and threading.current_thread() is not self:
            self.join(_JOIN)


class Bridge:
    """Finds the loop that a router works on; begins a thread with one if there is none.

    A router that already works on an open loop stays there. The thread ends when the bridge is closed or
    collected, and when the interpreter exits.

    Args:
        source: A router, which stays the caller's; or what makes one, which the bridge closes. Only with the
            latter can a forked child go on: it makes its own.
    """

    def __init__(self, source: RouterSource) -> None:
        self._source = source
        self._closed = False
        self._forget()
        self._router: Router = self._make()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._home: Home | None = None
        self._thread: _Thread | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    def _make(self) -> Router:
        return self._source if isinstance(self._source, Router) else self._source()

    def home(self) -> Home:
        """Return the loop to go to.

        Raises:
            RouterClosedError: The client is closed.
            RouterLoopError: The router works on a loop that is open but does not run, or on one of the
                process that this one was forked from.
        """
        if os.getpid() != self._process:
            self._after_fork()
        home = self._home
        if home is not None and self._router.loop is home.loop and not home.loop.is_closed():
            return home
        with self._lock:
            return self._find_home()

    def home_of_blocking_call(self) -> Home:
        """Return the loop to go to from a thread that will wait for it.

        Raises:
            RouterClosedError: As for :meth:`home`.
            RouterLoopError: As for :meth:`home`, and if this thread is the one that runs the loop.
        """
        home = self.home()
        if asyncio._get_running_loop() is home.loop:  # noqa: SLF001 - get_running_loop() raises for most
            raise RouterLoopError(_NOT_BY_ITSELF)
        return home

    def _find_home(self) -> Home:
        if self._closed:
            raise RouterClosedError("this client is closed: make a new one")
        loop = self._router.loop
        if self._thread is not None and loop in (None, self._thread.home.loop):
            self._home = self._thread.home
        elif loop is not None and not loop.is_closed():
            if not loop.is_running():
                raise RouterLoopError("the router works on an event loop that is open but does not run")
            self._home = Home(loop, self._router)
        else:
            self._home = self._start().home
        return self._home

    def _start(self) -> _Thread:
        thread = _Thread(self._router, closes=not isinstance(self._source, Router))
        self._thread = thread
        _threads[thread] = self._process
        self._finalizer = weakref.finalize(self, thread.stop, self._process)
        self._finalizer.atexit = False
        return thread

    def _after_fork(self) -> None:
        """Leave what is the parent's alone; make a router of this process's own."""
        _inherited.append((self._thread, self._router))
        self._forget()
        if isinstance(self._source, Router) and self._router.loop is not None:
            raise RouterLoopError(
                "this client came by a fork, and its router is the parent's: make both in the child, "
                "or use Client.from_config"
            )
        self._router = self._make()

    @property
    def router(self) -> Router:
        """The router."""
        return self._router

    def close(self) -> None:
        """End the calls that are under way, and the thread; close the router if the bridge made it."""
        with self._lock:
            self._closed = True
            thread, self._thread, self._home = self._thread, None, None
        if self._finalizer is not None:
            self._finalizer.detach()
        if thread is not None:
            thread.stop_and_wait(self._process)


def _at_exit() -> None:
    """End the threads that are left before the interpreter takes away what they need for it."""
    for thread, process in list(_threads.items()):
        thread.stop_and_wait(process)


_threads: dict[_Thread, int] = {}
"""The threads that run, each with its process."""

_inherited: list[Any] = []
"""What belongs to the process that this one was forked from: collecting it would disturb its sockets."""

atexit.register(_at_exit)

"""The event loop that a router works on, for callers on every thread and every loop."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from llm_router.errors import ConfigError, RouterClosedError, RouterLoopError
from llm_router.router import Router

__all__ = ["Bridge", "Home", "RouterSource"]

RouterSource = Router | Callable[[], Router]
"""A router, or what makes one."""

_JOIN = 10.0
"""Most seconds to wait for the thread when a bridge is closed."""

_NOT_BY_ITSELF = "a synchronous call here would block the event loop that has to answer it"


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

    def cancel(self) -> None:
        """Let the calls that are under way end. Call it on the loop."""
        for task in self._tasks:
            task.cancel()

    async def end(self) -> None:
        """End the calls that are under way."""
        self.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def post(self, action: Callable[[], object]) -> None:
        """Have something done on the loop, unless that is closed. Any thread may call it, and a finaliser."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(action)


class _Thread(threading.Thread):
    """A daemon thread with an event loop of its own, which a router works on until :meth:`stop`."""

    def __init__(self, router: Router, *, closes: bool) -> None:
        super().__init__(name="llm_router", daemon=True)
        self._router = router
        self._closes = closes
        self._ready = threading.Event()
        self._stopping: asyncio.Event
        self.home: Home
        _threads.add(self)
        self.start()
        self._ready.wait()

    def run(self) -> None:
        # While the interpreter exits, neither executors nor threads can be had, so some of the cleaning up
        # cannot be done; what matters then is only that nothing hangs.
        with contextlib.suppress(RuntimeError), asyncio.Runner() as runner:
            runner.run(self._live())
        _threads.discard(self)

    async def _live(self) -> None:
        self.home = Home(asyncio.get_running_loop(), self._router)
        self._stopping = asyncio.Event()
        self._ready.set()
        await self._stopping.wait()
        await self.home.end()
        if self._closes:
            await self._router.aclose()

    def stop(self) -> None:
        """Let the thread end. Any thread may call it, and a finaliser."""
        self.home.post(self._stopping.set)

    def stop_and_wait(self) -> None:
        """End the thread."""
        self.stop()
        if threading.current_thread() is not self:
            self.join(_JOIN)


class Bridge:
    """Finds the loop that a router works on; begins a thread with one if there is none.

    A router that already works on an open loop stays there. The thread ends when the bridge is closed or
    collected, and when the interpreter exits.

    Args:
        source: A router, which stays the caller's; or what makes one, which the bridge closes. Only with the
            latter can a forked child go on: it makes its own.
        face: What the caller knows it as, for errors,
        other: and what is to be used on an event loop instead.

    Raises:
        ConfigError: The source is neither.
    """

    def __init__(self, source: RouterSource, face: str = "client", other: str = "client.aio") -> None:
        self._source = source
        self._face = face
        self._other = other
        self._owns = not isinstance(source, Router)
        self._closed = False
        self._is_child = False
        self._start_afresh()
        self._router = self._make()
        _bridges.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._home: Home | None = None
        self._thread: _Thread | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    def _make(self) -> Router:
        if isinstance(self._source, Router):
            return self._source
        made = self._source() if callable(self._source) else self._source
        if not isinstance(made, Router):
            raise ConfigError(
                f"router must be a Router, or a function that makes one, not a {type(made).__name__}: "
                "use from_config to read keys.json"
            )
        return made

    @property
    def router(self) -> Router:
        """The router."""
        return self._router

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._closed

    def home(self) -> Home:
        """Return the loop to go to.

        Raises:
            RouterClosedError: The bridge is closed.
            RouterLoopError: The router works on a loop that is open but does not run, or on one of the
                process that this one was forked from.
        """
        home = self._home
        if home is not None and self._router.loop is home.loop and not home.loop.is_closed():
            return home
        with self._lock:
            self._home = self._find_home()
            return self._home

    def home_of_blocking_call(self) -> Home:
        """Return the loop to go to from a thread that will wait for it.

        Raises:
            RouterClosedError: As for :meth:`home`.
            RouterLoopError: As for :meth:`home`, and if this thread is the one that runs the loop.
        """
        home = self.home()
        if asyncio._get_running_loop() is home.loop:  # noqa: SLF001 - get_running_loop() raises for most
            raise RouterLoopError(f"{_NOT_BY_ITSELF}: use {self._other}")
        return home

    def _find_home(self) -> Home:
        if self._closed:
            raise RouterClosedError(f"this {self._face} is closed: make a new one")
        if self._is_child:
            self._replace_router()
        loop = self._router.loop
        if self._thread is not None and loop in (None, self._thread.home.loop):
            return self._thread.home
        if loop is None or loop.is_closed():
            return self._start().home
        if not loop.is_running():
            raise RouterLoopError("the router works on an event loop that is open but does not run")
        return Home(loop, self._router)

    def _start(self) -> _Thread:
        thread = self._thread = _Thread(self._router, closes=self._owns)
        self._finalizer = weakref.finalize(self, thread.stop)
        self._finalizer.atexit = False
        return thread

    def _replace_router(self) -> None:
        """Make a router of this process's own."""
        if not self._owns and self._router.loop is not None:
            raise RouterLoopError(
                f"this {self._face} came by a fork, and its router is the parent's: make both in the child, "
                "or use from_config"
            )
        self._router = self._make()
        self._is_child = False

    def leave_to_parent(self) -> None:
        """Forget, in a child, what is the parent's, and keep it from being collected."""
        if self._finalizer is not None:
            self._finalizer.detach()
        _inherited.append((self._thread, self._router))
        self._start_afresh()
        self._is_child = True

    def close(self) -> None:
        """End the calls that are under way, and the thread; close the router if the bridge made it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._owns and not self._is_child and self._router.loop is None:
                self._start()  # a router is closed on a loop, used or not
            thread, home = self._thread, self._home
            self._thread = self._home = None
        if self._finalizer is not None:
            self._finalizer.detach()
        if home is not None and thread is None:
            home.post(home.cancel)
        if thread is not None:
            thread.stop_and_wait()


def _at_exit() -> None:
    """End the threads that are left before the interpreter takes away what they need for it."""
    for thread in list(_threads):
        thread.stop_and_wait()


def _after_fork() -> None:
    """Leave what is the parent's alone."""
    _threads.clear()
    for bridge in list(_bridges):
        bridge.leave_to_parent()


_threads: set[_Thread] = set()
_bridges: weakref.WeakSet[Bridge] = weakref.WeakSet()
_inherited: list[Any] = []
"""What belongs to the process that this one was forked from: collecting it would disturb its sockets."""

atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

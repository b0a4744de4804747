"""The only thread that writes to a database file; it puts all waiting calls into one transaction.

It buys throughput: 64 reserves in flight reach 66,800 a second, one at a time 3,800 (benchmarks/README.md,
"sqlite, 10 keys").
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from itertools import groupby
from operator import attrgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from llm_router.domain.calendar import microseconds
from llm_router.stores.sqlite.database import (
    begin,
    check_header,
    checkpoint,
    connect,
    disconnect,
    recovered,
)
from llm_router.stores.sqlite.databasefiles import DatabaseFiles
from llm_router.stores.sqlite.epoch import Loss
from llm_router.stores.sqlite.faults import explain
from llm_router.stores.sqlite.filelock import TurnLock
from llm_router.stores.sqlite.state import State
from llm_router.stores.sqlite.wal import commits_in_wal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from llm_router.domain.clock import Clock
    from llm_router.stores.sqlite.database import Synchronous
    from llm_router.stores.sqlite.databasefiles import Identities, Identity

__all__ = ["Call", "Worker"]

_log = logging.getLogger("llm_router")

_MAX_CALLS = 1024
"""The most calls in one transaction, since other processes wait for its end."""

_CHECKPOINT_EVERY = 200
"""Transactions between two checkpoints."""

_TRIES = 3
"""The most transactions for the same calls, if files are deleted in the middle of each."""

_ODD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
"""What a call with arguments that make no sense may raise; the calls beside it shall not fail with it."""

_LOST_COMMITS = (
    "SQLite store %r: its -wal is damaged or was deleted, and the last of what was spent is lost; processes "
    "that still run count theirs again, and none takes more than its share for a window"
)

_LOST_DATABASE = (
    "SQLite store %r: it is empty or was deleted, and what was spent is lost; processes that still run count "
    "theirs again, and none takes more than its share for a window"
)

_THREAD = "llm_router-sqlite"


class Call:
    """One call of a method of :class:`State`, and the future of its result.

    Attributes:
        unwanted: Called on the event loop with the answer if the caller was cancelled; None for nothing.
    """

    __slots__ = ("answer", "arguments", "error", "future", "loop", "method", "since", "unwanted")

    def __init__(
        self, method: Callable[..., Any], arguments: tuple[Any, ...], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.method = method
        self.arguments = arguments
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.since = time.monotonic()
        self.answer: Any = None
        self.error: Exception | None = None
        self.unwanted: Callable[[Any], None] | None = None


class Worker:
    """A thread with the only connection of a store.

    Calls take effect in the order of :meth:`submit`, even if their callers no longer wait for them. All calls
    that wait when a transaction starts (up to 1,024) go into it, and are answered after it is committed, when
    they are in the file. If it fails, none of them has taken effect; if that is because the arguments of one
    make no sense, each of them has a transaction of its own then.

    Args:
        path: The database file.
        clock: The source of time.
        timeout: The most seconds that a call waits for its transaction to start, from its submission.
        synchronous: SQLite's setting of that name.
        predecessor: A worker whose calls precede those of this one.
        known_since: When the last epoch of the file began that this process has seen; 0 if none.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        timeout: float,
        synchronous: Synchronous,
        predecessor: Worker | None = None,
        known_since: float = 0.0,
    ) -> None:
        self._path = path
        self._files = DatabaseFiles(path)
        self._clock = clock
        self._timeout = timeout
        self._synchronous = synchronous
        self._predecessor = predecessor
        self._calls: deque[Call | None] = deque()  # None: no more follow
        self._idle = False
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._turns = TurnLock(path)
        self._transaction = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._state: State | None = None
        self._database: Identity | None = None  # the file that the connection is to
        self._opened: Identities | None = None  # the same with its companions, once SQLite has opened them
        self._loss: Loss | None = None  # noticed since the last transaction
        self.known_since = known_since
        self._checkpoint_due = _CHECKPOINT_EVERY
        self._checkpointing: threading.Thread | None = None
        self._stopping = False
        self.forked = False
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        _workers.add(self)
        self._thread.start()

    # --- from any thread ------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Add ``call`` to the next transaction."""
        self._put(call)

    def stop(self) -> None:
        """Let the thread end after all calls submitted before."""
        self._put(None)

    def join(self) -> None:
        """Wait until the thread has ended and everything is closed."""
        if not self.forked and self._thread is not threading.current_thread():
            self._thread.join()

    def _put(self, call: Call | None) -> None:
        self._calls.append(call)
        if self._idle:  # otherwise the thread checks again before it waits
            self._idle = False
            self._bell.put(None)

    # --- in the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._predecessor is not None:
            self._predecessor.join()
            self.known_since = max(self.known_since, self._predecessor.known_since)
            self._predecessor = None
        while not self._stopping:
            self._idle = True
            if not self._calls:
                self._bell.get()
            self._idle = False
            calls = self._take([])
            if calls:
                self._serve(calls)
        self._close()

    def _serve(self, calls: list[Call]) -> None:
        try:
            self._commit(calls)
        except _ODD:
            for call in calls:  # one at a time: which of them it is about is not known
                self._serve_alone(call)
        except BaseException as error:  # noqa: BLE001  # every call must get an answer
            self._take(calls)  # the calls that have queued since fail as well: they waited for the same thing
            for call in calls:
                call.answer, call.error = None, explain(error, self._path)
        _answer(calls)
        self._checkpoint()

    def _serve_alone(self, call: Call) -> None:
        try:
            self._commit([call], may_take=False)
        except BaseException as error:  # noqa: BLE001
            call.answer, call.error = None, explain(error, self._path)

    def _checkpoint(self) -> None:
        """Start a checkpoint if it is due; the next transactions run at the same time."""
        if self._checkpoint_due > 0 or (self._checkpointing is not None and self._checkpointing.is_alive()):
            return
        self._checkpoint_due = _CHECKPOINT_EVERY
        opened = self._opened
        thread = threading.Thread(
            target=checkpoint,
            args=(self._path, self._synchronous, lambda: self._are_whole(opened)),
            name=f"{_THREAD}-checkpoint",
            daemon=True,
        )
        with self._transaction, contextlib.suppress(RuntimeError):  # the interpreter is about to end
            thread.start()
            self._checkpointing = thread

    def _await_checkpoint(self) -> None:
        if self._checkpointing is not None:
            self._checkpointing.join()

    def _close(self) -> None:
        """Close the connection in a turn of its own: closing the last one locks the file for a moment."""
        self._await_checkpoint()
        with contextlib.ExitStack() as stack:
            if self._connection is not None:
                deadline = time.monotonic() + self._timeout
                with contextlib.suppress(OSError):
                    stack.enter_context(self._turns.turn(deadline))
                    self._leave_lost_files(deadline)
            stack.enter_context(self._transaction)
            self._disconnect()
        self._turns.close()

    def _commit(self, calls: list[Call], *, may_take: bool = True) -> None:
        deadline = calls[0].since + self._timeout
        if self._connection is None:
            self._prepare_directory()
        with self._turns.turn(deadline):
            for tries_left in reversed(range(_TRIES)):
                self._leave_lost_files(deadline)
                try:
                    self._run_transaction(calls, deadline, may_take=may_take)
                except sqlite3.OperationalError:  # it has taken no effect
                    if not tries_left or self._loss is None:
                        raise
                else:
                    break

    def _run_transaction(self, calls: list[Call], deadline: float, *, may_take: bool) -> None:
        with self._transaction:
            try:
                connection, state = self._connect(deadline)
                begin(connection, deadline)
                if self._opened is None:
                    self._opened = self._files.find()
                if may_take:
                    self._take(calls)
                now = microseconds(self._clock.time())
                state.begin(now)
                for call in calls:
                    call.answer = call.method(state, now, *call.arguments)
                state.save(now)
                connection.execute("COMMIT")
                self.known_since, self._loss = state.epoch.since, None
                self._checkpoint_due -= 1
            except BaseException:
                if self._were_deleted():
                    self._loss = Loss(kept=False)
                self._disconnect()  # this rolls back, and forgets what is in memory
                raise

    def _were_deleted(self) -> bool:
        """Return whether files are missing that were there when this transaction began."""
        there = self._files.find()
        return there[0] is None if self._opened is None else there != self._opened

    def _take(self, calls: list[Call]) -> list[Call]:
        """Add the waiting calls to ``calls``, as far as there is room in the transaction."""
        waiting = self._calls
        while waiting and len(calls) < _MAX_CALLS and not self._stopping:
            call = waiting.popleft()
            if call is None:
                self._stopping = True
            else:
                calls.append(call)
        return calls

    # --- the connection -------------------------------------------------------------------------------

    def _prepare_directory(self) -> None:
        """Create the directory, unless the file is not ours: then nothing is put beside it."""
        self._await_checkpoint()
        with self._transaction, _opening:
            if not self._is_open_here():
                self._check_file()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _check_file(self) -> tuple[int, bool]:
        """Make sure that the file is ours; if another store of this process has it open, it is: do not ask.

        Return the number of the last frame that the WAL should hold (0 if that is not known), and whether a
        database was lost that was there.
        """
        with contextlib.suppress(FileNotFoundError):
            database, _, _ = self._files.find()
            check_header(self._path)
            if self._files.were_left():
                return 0, True
            return commits_in_wal(self._path) if database is not None else 0, False
        return 0, False

    def _is_open_here(self) -> bool:
        """Return whether this process has the database open."""
        database, _, _ = self._files.find()
        return any(worker.has_open(database) for worker in tuple(_workers))

    def has_open(self, database: Identity | None) -> bool:
        """Return whether this worker is connected to a database file."""
        return self._database is not None and self._database == database

    def _connect(self, deadline: float) -> tuple[sqlite3.Connection, State]:
        """Return the connection and its state."""
        if self._connection is None or self._state is None:
            with _opening:
                expected, was_lost, found = 0, False, 0

                def look(connection: sqlite3.Connection) -> None:
                    nonlocal found
                    found = recovered(connection) if expected else 0

                if not self._is_open_here():
                    expected, was_lost = self._check_file()
                    self._files.drop_stray_index()
                self._files.start_over()
                self._connection = connect(self._path, self._synchronous, deadline, look)
                self._database, _, _ = self._files.find()
            if was_lost and self._loss is None:
                self._lose(_LOST_DATABASE)
            elif found < expected:
                self._lose(_LOST_COMMITS)
            self._state = State(self._connection, self.known_since, self._loss)
        return self._connection, self._state

    def _lose(self, what: str) -> None:
        self._loss = Loss(kept=False)
        _log.warning(what, str(self._path))

    def _leave_lost_files(self, deadline: float) -> None:
        """Close the connection if its files were deleted or replaced, so that the next one is to new ones.

        Call it in a turn, so that no process writes, and outside the transaction of this worker. What another
        process is doing with them it awaits until ``deadline`` (:func:`time.monotonic`).
        """
        opened, connection, database = self._opened, self._connection, self._database
        if opened is None or connection is None:
            return
        # Of those that were deleted while they were opened, not all were found.
        is_whole = None not in opened and opened[0] == database
        if is_whole and (self._turns.undisturbed or self._files.find() == opened):
            if self._files.has_shrunk():
                # All of the one before may be in the database: it is seen when that is opened again.
                self._loss = None if self._files.has_begun_anew() else Loss(kept=False)
                self._leave(database)
            return
        if database is not None and self._files.find()[0] == database:
            self._await_checkpoint()
            self._loss = Loss(kept=self._files.rescue(opened, connection, deadline))
        else:
            self._loss = Loss(kept=False)
        self._leave(database)
        self._files.clear(opened)

    def _leave(self, database: Identity | None) -> None:
        """Close all connections of this process to a database file, which share its -shm."""
        with self._transaction:
            self._await_checkpoint()
            self._disconnect()
        for worker in tuple(_workers):
            worker.leave(database)

    def leave(self, database: Identity | None) -> None:
        """Close the connection, between two transactions, if it is to this database file."""
        with self._transaction:
            if self.has_open(database):
                self._await_checkpoint()
                self._disconnect()

    def _disconnect(self) -> None:
        connection, opened = self._connection, self._opened
        self._connection = self._state = self._database = self._opened = None
        if connection is not None:
            disconnect(connection, is_current=opened is None or self._are_whole(opened))

    def _are_whole(self, opened: Identities | None) -> bool:
        """Return whether the files are still those that were opened, and the WAL is as long as it was."""
        return self._files.find() == opened and not self._files.has_shrunk()

    # --- around a fork --------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the connection between two transactions: SQLite must not be open during a fork."""
        self._transaction.acquire()
        self._await_checkpoint()
        self._disconnect()

    def after_fork_in_parent(self) -> None:
        """Continue; the next transaction opens a new connection."""
        self._transaction.release()

    def after_fork_in_child(self) -> None:
        """Become unusable: the thread exists only in the parent."""
        self.forked = True
        self._turns.close()
        self._transaction.release()


def _answer(calls: list[Call]) -> None:
    """Deliver every answer, waking each event loop once for all of its calls."""
    for loop, its_calls in groupby(calls, attrgetter("loop")):
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits any more
            loop.call_soon_threadsafe(_deliver, list(its_calls))


def _deliver(calls: list[Call]) -> None:
    """Complete the futures, on their event loop, unless they were cancelled."""
    for call in calls:
        future = call.future
        if future.done():
            if call.unwanted is not None and call.error is None:
                call.unwanted(call.answer)
        elif call.error is None:
            future.set_result(call.answer)
        else:
            future.set_exception(call.error)


_workers: WeakSet[Worker] = WeakSet()

_opening = threading.Lock()
"""Locked while a file is checked and connected to; only inside a transaction, so never during a fork."""

_forking: list[Worker] = []


def _before_fork() -> None:
    for worker in sorted(_workers, key=id):
        worker.before_fork()
        _forking.append(worker)


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().after_fork_in_parent()


def _after_fork_in_child() -> None:
    while _forking:
        _forking.pop().after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )

"""The record store of several processes on one machine: everything is in one SQLite file."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any, TypeVar

from llm_router.domain.calendar import microseconds, seconds
from llm_router.domain.clock import Clock, SystemClock
from llm_router.records.base import Bounds, Record
from llm_router.records.entries import (
    BoundsOf,
    amounts_of,
    conflict,
    counts_in,
    limit_of,
    name_of,
    prefix_of,
    timeout_of,
    ttl_of,
    version_of,
)
from llm_router.records.sqlite_file import RecordFile

__all__ = ["SQLiteRecords"]

_T = TypeVar("_T")


class SQLiteRecords:
    """Keeps records in one file, for all processes of a machine that open it; see :class:`RecordStore`.

    The first call opens the file, on a thread of the store's own, and creates a missing directory. Calls
    happen in their order, one transaction each, also those whose callers were cancelled. What a power failure
    may lose is the last transactions. A file that was deleted or replaced is noticed, and opened anew.

    The store may be used from several event loops, and in a forked child, which opens the file for itself.
    The file must be on a local disk.

    In addition to what :class:`RecordStore` says, every method raises:

    * :class:`~llm_router.errors.StoreUnavailableError` if the file is not available within ``timeout``, or
      cannot be read or written.
    * :class:`~llm_router.errors.StoreCorruptError` if it is damaged, or does not belong to this library. It
      is left as it is.

    Args:
        path: The file.
        bounds: The bounds of each space; those of :class:`Bounds` for others.
        clock: The source of time; the machine's clock by default.
        timeout: The most seconds that a call waits for other processes.

    Raises:
        ConfigError: The bounds make no sense, or ``timeout`` is not such a number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        bounds: Mapping[str, Bounds] | None = None,
        clock: Clock | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._path = Path(path).absolute()
        self._bounds = BoundsOf(bounds)
        self._clock = clock or SystemClock()
        self._timeout = timeout_of(timeout)
        self._worker: _Worker | None = None
        self._finalizer: weakref.finalize[..., SQLiteRecords] | None = None
        self._process = os.getpid()
        self._inherited: list[object] = []

    async def get(self, space: str, name: str) -> Record | None:
        """Return a record; see :class:`RecordStore`."""
        place, name, now = self._bounds.records(space), name_of(name), self._now()
        row = await self._call(lambda file: file.get(place, name, now))
        return None if row is None else Record(row[0], row[1], seconds(row[2]))

    async def put(self, space: str, name: str, data: bytes, *, ttl: float, version: int | None = None) -> int:
        """Keep a record; see :class:`RecordStore`."""
        place, now, bounds = self._bounds.records(space), self._now(), self._bounds.of(space)
        data = self._bounds.check_size(place, name_of(name), data)
        lasts, expected = ttl_of(ttl), version_of(version)
        done, number = await self._call(
            lambda file: file.put(place, name, data, now, lasts, expected, bounds)
        )
        if not done:
            raise conflict(space, expected or 0, number)
        return number

    async def delete(self, space: str, name: str) -> None:
        """Forget a name; see :class:`RecordStore`."""
        places, name = (self._bounds.records(space), self._bounds.counts(space)), name_of(name)
        await self._call(lambda file: file.delete(places, name))

    async def names(self, space: str, prefix: str = "", *, limit: int = 100) -> list[str]:
        """Return the names of records; see :class:`RecordStore`."""
        place, start, most, now = self._bounds.records(space), prefix_of(prefix), limit_of(limit), self._now()
        return await self._call(lambda file: file.names(place, start, most, now))

    async def add(
        self, space: str, name: str, amounts: Mapping[str, int], *, ttl: float
    ) -> Mapping[str, int]:
        """Add to counts; see :class:`RecordStore`."""
        place, name, now, bounds = self._bounds.counts(space), name_of(name), self._now(), self._bounds
        adding, lasts = amounts_of(amounts), ttl_of(ttl)
        return counts_in(await self._call(lambda file: file.add(place, name, adding, now, lasts, bounds)))

    async def counts(
        self, space: str, prefix: str = "", *, limit: int = 10_000
    ) -> Mapping[str, Mapping[str, int]]:
        """Return counts; see :class:`RecordStore`."""
        place, start, most, now = self._bounds.counts(space), prefix_of(prefix), limit_of(limit), self._now()
        found = await self._call(lambda file: file.rows(place, start, most, now))
        return {name: counts_in(text) for name, text in found}

    async def aclose(self) -> None:
        """Finish the calls made before, then close the file and end the thread."""
        worker, self._worker = self._worker, None
        if worker is not None and self._process == os.getpid():
            if self._finalizer is not None:
                self._finalizer.detach()
            await asyncio.shield(asyncio.wrap_future(worker.stop()))
            worker.join()

    async def _call(self, work: Callable[[RecordFile], _T]) -> _T:
        worker = self._worker
        if worker is None or self._process != os.getpid():
            worker = self._start()
        # The call goes on although its caller may be cancelled.
        return await asyncio.shield(asyncio.wrap_future(worker.submit(work)))

    def _start(self) -> _Worker:
        if self._process != os.getpid():
            # Thread and connection are the parent's; closing the connection here would disturb it.
            self._inherited.append(self._worker)
            if self._finalizer is not None:
                self._finalizer.detach()
            self._process = os.getpid()
        worker = self._worker = _Worker(RecordFile(self._path, self._timeout))
        self._finalizer = weakref.finalize(self, _stop, worker)
        return worker

    def _now(self) -> int:
        return microseconds(self._clock.time())

    def __repr__(self) -> str:
        return f"SQLiteRecords({str(self._path)!r})"


_Job = tuple[Callable[[RecordFile], Any], "Future[Any]"]


class _Worker:
    """A thread that works on a file."""

    def __init__(self, file: RecordFile) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=_work, args=(self._jobs, file), name="llm_router-records", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[RecordFile], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        self._jobs.put((work, future))
        return future

    def stop(self) -> Future[None]:
        """Close the file after the jobs before, and end the thread."""
        closed = self.submit(RecordFile.close)
        self._jobs.put(None)
        return closed

    def join(self) -> None:
        if self._thread is not current_thread():  # which may collect a store that was dropped
            self._thread.join()


def _work(jobs: SimpleQueue[_Job | None], file: RecordFile) -> None:
    while (job := jobs.get()) is not None:
        work, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(file))
            except BaseException as error:  # noqa: BLE001 - its caller must get it
                future.set_exception(error)
        del job, work, future  # while it waits, it holds on to nothing of a caller


def _stop(worker: _Worker) -> None:
    """End the thread of a store that was dropped, or left open at exit, without being closed."""
    worker.stop()
    worker.join()

"""The store of several processes on one machine: everything is in one SQLite file."""

from __future__ import annotations

import asyncio
import math
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.numbers import real, shown
from llm_router.domain.quota import Demand
from llm_router.errors import ConfigError
from llm_router.stores.ledger import bounded
from llm_router.stores.sqlite.state import State
from llm_router.stores.sqlite.worker import Call, Worker
from llm_router.stores.unwanted import answer_of

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

    from llm_router.domain.deployment import Deployment, Scope
    from llm_router.stores.base import Decision, DeploymentSnapshot, Standing, Taking
    from llm_router.stores.sqlite.database import Synchronous

__all__ = ["SQLiteStore"]

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

_NOTHING = Demand(0, 0)


class SQLiteStore:
    """Keeps the state in one file, for all processes of a machine that open it.

    The first call opens the file, on a thread of the store's own, and creates a missing directory. All calls
    that wait at the same time share a transaction and are answered when it is committed. With
    ``synchronous="NORMAL"`` nothing is lost if a process dies at any time; a power failure may lose the last
    transactions, and leaves an intact file.

    The store may be used from several event loops one after the other, and in a forked child, which opens the
    file for itself. After :meth:`aclose` the next call opens it again. The file must be on a local disk.

    If the file is deleted or replaced while stores have it open, or SQLite's files beside it (``-wal`` and
    ``-shm``) are, each store notices it at its next call and opens what is there now; see
    :class:`ExternalStore` for what becomes of the count. With ``-wal`` or ``-shm`` nothing that was committed
    is lost, unless another process has begun to use new ones before any store noticed. It cannot notice that
    the file was deleted or replaced while no process had it open, nor that another program has written into
    it (``cp`` over an open file does), unless what it finds makes no sense.

    Where ``-wal`` is damaged when the file is opened, after a power failure or by a program, or cut short at
    any time, the last that was committed is lost, and it is treated as a loss. An empty file is a new one,
    unless there is something in the ``-wal`` beside it, which is damage.

    In addition to what :class:`RateLimitStore` says, every method raises:

    * :class:`~llm_router.errors.StoreUnavailableError` if the file is not available within ``timeout``, or
      cannot be read or written. None of the calls that failed together has taken effect.
    * :class:`~llm_router.errors.StoreCorruptError` if the file is damaged, or does not belong to this
      library. It is left as it is.

    Args:
        path: The database file. Lock files and SQLite's own files lie beside it.
        clock: The source of time; the machine's clock by default.
        timeout: The most seconds that a call waits for other processes. A file system that hangs is not
            covered. Above 0.
        synchronous: SQLite's setting of that name: what a power failure may lose.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        timeout: float = 5.0,
        synchronous: Synchronous = "NORMAL",
    ) -> None:
        self._path = Path(path).absolute()
        self._clock = clock or SystemClock()
        if not 0 < real(timeout) < math.inf:
            raise ConfigError(
                f"the timeout of the SQLite store must be a number of seconds above 0, not {shown(timeout)}: "
                "leave it out for 5 seconds"
            )
        self._timeout = float(timeout)
        self._synchronous = synchronous
        self.known: MutableMapping[Scope, float] = {}
        """See :class:`ExternalStore`."""
        self._worker: Worker | None = None
        self._retired: Worker | None = None
        self._finalizer: weakref.finalize[[Worker], SQLiteStore] | None = None

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve in the file; see :class:`RateLimitStore`."""
        arguments = reservation_id, tuple(candidates), bounded(demand), ttl, self.known
        call = Call(State.reserve, arguments, asyncio.get_running_loop())
        call.unwanted = self._pass_on
        self._open_worker().submit(call)
        future: asyncio.Future[Decision] = call.future
        try:
            return await future
        except asyncio.CancelledError:
            if (decision := answer_of(future)) is not None:
                self._pass_on(decision)
            raise

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Replace the estimate of a reservation by what was used; see :class:`RateLimitStore`."""
        await self._submit(State.settle, reservation_id, bounded(used))

    async def release(self, reservation_id: str) -> None:
        """Give back everything a reservation took; see :class:`RateLimitStore`."""
        await self._submit(State.settle, reservation_id, _NOTHING)

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),
        since: float = 0.0,
    ) -> float:
        """Count what was taken without asking, or was lost; see :class:`RateLimitStore`."""
        takings = tuple(missing), tuple(counted)
        return await self._submit(State.charge, source, sequence, deployment, *takings, since)

    async def announce(self, source: str) -> int:
        """Record that a process is alive; see :class:`ExternalStore`."""
        return (await self.standing(source)).count

    async def standing(self, source: str) -> Standing:
        """Record that a process is alive; see :class:`Ranking`."""
        return await self._submit(State.announce, source)

    async def advice(self) -> list[str]:
        """Return what endangers the count; see :class:`ExternalStore`."""
        if self._synchronous != "OFF":
            return []
        advice = (
            f"SQLite store {str(self._path)!r}: a power failure may lose counts and damage the file; "
            "use synchronous=NORMAL"
        )
        return [advice]

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool a scope down; see :class:`RateLimitStore`."""
        await self._submit(State.cool_down, cooldown)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state of ``deployments``; see :class:`RateLimitStore`."""
        return await self._submit(State.snapshot, tuple(deployments))

    async def aclose(self) -> None:
        """Finish the calls made before, then close the file and end the thread."""
        if self._worker is not None:
            if self._finalizer is not None:
                self._finalizer.detach()
            self._worker.stop()
            self._retired, self._worker = self._worker, None
        if self._retired is not None:
            await asyncio.to_thread(self._retired.join)

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._path)!r})"

    def _submit(self, method: Callable[[State, int, *_Args], _T], *arguments: *_Args) -> asyncio.Future[_T]:
        call = Call(method, arguments, asyncio.get_running_loop())
        self._open_worker().submit(call)
        return call.future

    def _pass_on(self, decision: Decision) -> None:
        """Let another request probe what was granted to a caller that is gone."""
        for probe in decision.probes:
            if self._worker is not None:  # else it was closed meanwhile
                self._submit(State.cool_down, Cooldown.retry(probe.scope)).add_done_callback(answer_of)

    def _open_worker(self) -> Worker:
        worker = self._worker
        return self._start() if worker is None or worker.forked else worker

    def _start(self) -> Worker:
        worker = self._worker = Worker(
            self._path,
            clock=self._clock,
            timeout=self._timeout,
            synchronous=self._synchronous,
            predecessor=self._retired,
            known_since=self._worker.known_since if self._worker is not None else 0.0,
        )
        self._finalizer = weakref.finalize(self, _stop, worker)
        return worker


def _stop(worker: Worker) -> None:
    """End the thread of a store that was dropped, or left open at exit, without being closed."""
    worker.stop()
    worker.join()

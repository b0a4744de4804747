"""Batching: the operations of one event loop travel together, one script call at a time.

It buys throughput: 64 reserves in flight reach 53,700 a second, while separate calls of an empty script reach
14,800 (benchmarks/README.md, "redis, 10 keys, 64 in flight").
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from llm_router.domain.calendar import seconds
from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.errors import StoreCorruptError, StoreError, StoreUnavailableError
from llm_router.stores.base import Decision
from llm_router.stores.redis.deadline import Deadline
from llm_router.stores.redis.errors import explain, is_timeout
from llm_router.stores.redis.reply import decode
from llm_router.stores.redis.scripts import Client, Script
from llm_router.stores.redis.wire import CoolDown, Encoder, Operation, Reserve, Snapshot
from llm_router.stores.unwanted import answer_of

__all__ = ["Batcher", "Server", "decide"]

_MAX_OPERATIONS = 512
"""Operations in one script call, which does as many of them as it can in a few milliseconds."""

_USUAL_CANDIDATES = 8
"""Candidates of a reserve; one with more of them counts as several operations."""

_TRIES = 3
"""How often a batch is sent if the server's clock turns out to differ from what was assumed."""

_CHECK_EVERY = 5.0
"""Seconds between two checks whether the server is the one that it was."""

_OK = (b"ok", "ok")
"""The status of a message that was done, by whatever client."""

_ABOUT_MEMORY = 'local told = redis.pcall("INFO", "memory") return type(told) == "string" and told or ""'
"""A script, so that it reaches the node of a cluster that has its key."""

_STEP = 0.1
"""Seconds by which this machine's clock may drift between two calls; by more, it was set."""


@attrs.define
class Server:
    """A server as one store knows it, shared by all event loops that talk to it.

    Attributes:
        address: What to call it in messages; without credentials.
        timeout: The most seconds that a caller waits for an answer.
        script: What to run there.
        encoder: Makes the messages.
        clock: The source of time; None for the server's own clock.
        ahead: Microseconds by which its clock is ahead of this machine's; None before its first reply.
        shard: The number of the shard, or None if the store is not divided.
        epoch: When the epoch of the shard began, in microseconds on its own clock; 0 before its first reply.
        reset_at: When the shard last lost something, in seconds on this machine's clock; 0 if it never did.
    """

    address: str
    timeout: float
    script: Script
    encoder: Encoder
    clock: Clock | None
    ahead: int | None = None
    shard: int | None = None
    epoch: int = 0
    reset_at: float = 0.0
    _reset: int = 0  # the same in microseconds on the server's clock
    _checked_at: float = -math.inf
    _looked: tuple[float, float] = attrs.field(init=False, factory=lambda: (time.time(), time.monotonic()))

    def now(self) -> tuple[int, int]:
        """Return the server's time as far as it is known, and the time to send (0: the server decides)."""
        if self.clock is not None:
            now = round(self.clock.time() * 1e6)
            return now, now
        return round(self._look() * 1e6) + (self.ahead or 0), 0

    def set_now(self, now: int, took: float) -> None:
        """Record that the server's clock showed ``now`` at some time during the last ``took`` seconds.

        As long as the clocks may agree, they are taken to agree: the duration of a reply changes nothing.
        """
        earliest = now - round(self._look() * 1e6)
        self.ahead = min(max(self.ahead or 0, earliest), earliest + round(took * 1e6))

    def set_epoch(self, epoch: int, reset: int) -> None:
        """Record what a reply says; one that another lane's reply has overtaken says nothing new."""
        if epoch > self.epoch or (epoch == self.epoch and reset > self._reset):
            self.epoch = epoch
            if reset != self._reset:
                # Once, so that the number stays the same while the difference of the clocks is measured anew.
                self._reset, self.reset_at = reset, seconds(reset - (self.ahead or 0)) if reset else 0.0

    def must_check(self) -> bool:
        """Return whether the server is to check now and then that it is the one it was."""
        return not 0.0 <= time.monotonic() - self._checked_at < _CHECK_EVERY

    def note_check(self) -> None:
        """Note that it has done so."""
        self._checked_at = time.monotonic()

    def distrust(self) -> None:
        """Let it check at the next call: it failed, so another one may answer from now on."""
        self._checked_at = -math.inf

    def _look(self) -> float:
        """Return what this machine's clock shows. If it was set since the last look, correct ``ahead``."""
        wall, steady = time.time(), time.monotonic()
        step = wall - self._looked[0] - (steady - self._looked[1])
        if self.ahead is not None and abs(step) > _STEP:
            self.ahead -= round(step * 1e6)
        self._looked = wall, steady
        return wall


class Batcher:
    """Sends the operations of the tasks of one event loop.

    Operations take effect in the order in which they were added, except that a reserve is dropped if its
    caller was cancelled before it was sent. Everything that waits while a call is under way goes into the
    next one.

    A call that got no answer in time takes no effect later: the message says how late the server may begin.

    Args:
        client: Used by this loop only, and closed with it.
        server: What the client is connected to.
        owned: Whether to close the client.
    """

    def __init__(self, client: Client, server: Server, *, owned: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._server = server
        self._owned = owned
        self._queue: deque[tuple[Operation, float]] = deque()  # with the time at which it was added
        self._since = 0.0  # the server is not to blame for what an operation waited before
        self._task: asyncio.Task[None] | None = None
        self._keeper: AsyncGenerator[None, None] | None = None

    def add(self, operation: Operation) -> None:
        """Queue ``operation``; its future gets the result, or a :class:`StoreError`."""
        self._queue.append((operation, self._loop.time()))
        if self._task is None:
            self._task = self._loop.create_task(self._send_all())

    def pass_on(self, probes: Sequence[Cooldown]) -> None:
        """Let another request probe half-open cooldowns: the one that was to do so is not sent."""
        for probe in probes:
            operation = CoolDown(self._loop.create_future(), Cooldown.retry(probe.scope))
            operation.future.add_done_callback(answer_of)
            self.add(operation)

    async def aclose(self) -> None:
        """Wait for the operations under way, and close the connections."""
        if self._task is not None:
            await asyncio.wait([self._task])
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.aclose()

    async def eviction_policy(self) -> str | None:
        """Return which keys the shard's server drops when its memory is full; None if it does not say."""
        key = self._server.encoder.names.epoch
        try:
            async with asyncio.timeout(self._server.timeout):
                await self._open()
                told = await self._client.execute_command("EVAL", _ABOUT_MEMORY, 1, key)
        except (OSError, TimeoutError, RedisError, RedisClusterException):
            return None
        found = re.search(r"^maxmemory_policy:(\S+)", _text(told), re.MULTILINE)
        return found[1] if found else None

    async def _open(self) -> None:
        if self._keeper is None and self._owned:
            self._keeper = self._keep()
            await anext(self._keeper)

    async def _keep(self) -> AsyncGenerator[None, None]:
        # An event loop closes its asynchronous generators when it shuts down. So a store that was not closed
        # releases the connections of this loop then, instead of leaving them to the garbage collector.
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(self._server.timeout):
                    await self._client.aclose()
            except (OSError, TimeoutError, RedisError):
                pass  # the connection is closed in any case

    async def _send_all(self) -> None:
        try:
            await self._open()
            self._since = self._loop.time()  # since when the loop was not blocked
            while self._queue:
                await self._send()
                # Let the callers that got their answers run first: their next operations join the next call.
                await asyncio.sleep(0)
        finally:
            self._task = None
            for operation, _ in self._queue:  # the loop is shutting down
                operation.future.cancel()
            self._queue.clear()

    def _next(self) -> tuple[list[Operation], float]:
        """Take the oldest operations from the queue; return them, and since when they have been waiting."""
        batch: list[Operation] = []
        size, since = 0, self._loop.time()
        queue = self._queue
        while queue and size < _MAX_OPERATIONS:
            operation, added = queue.popleft()
            if isinstance(operation, Reserve):
                if operation.future.cancelled():
                    continue
                size += len(operation.candidates) // _USUAL_CANDIDATES
            elif isinstance(operation, Snapshot):
                size += len(operation.deployments) - 1
            size += 1
            since = min(since, added)
            batch.append(operation)
        return batch, max(since, self._since)

    async def _send(self) -> None:
        """Send the oldest operations and hand out their results; those not done are the oldest again."""
        batch, since = self._next()
        if not batch:
            return
        deadline = Deadline(since + self._server.timeout)
        try:
            async with deadline:
                results = await self._call(batch, deadline)
        except asyncio.CancelledError:
            for operation in batch:
                operation.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - every caller must get it
            self._server.distrust()
            if is_timeout(error):  # the queue has waited as long: with one more try it would wait too long
                batch.extend(operation for operation, _ in self._queue)
                self._queue.clear()
            self._fail(batch, error)
        else:
            self._hand_out(batch, results)
            self._queue.extendleft((operation, since) for operation in reversed(batch[len(results) :]))
        finally:
            # The queue was blocked as long, and gets the same grace.
            self._since = max(self._since, deadline.when - self._server.timeout)

    def _hand_out(self, batch: list[Operation], results: list[Any]) -> None:
        for operation, result in zip(batch, results, strict=False):
            if isinstance(result, Exception):
                _set_exception(operation, result)
            elif not operation.future.done():
                operation.future.set_result(result)
            elif isinstance(operation, Reserve):  # its caller was cancelled
                self.pass_on(result.probes)

    async def _call(self, batch: list[Operation], deadline: Deadline) -> list[Any]:
        """Run the script on ``batch``; return the results of its first operations, as many as were done."""
        server = self._server
        if server.clock is None and server.ahead is None:
            await self._run([], deadline)  # times and deadlines have no meaning before its time is known
        for _ in range(_TRIES):
            status, _, text, descriptions, numbers, lifts, done, *more = await self._run(batch, deadline)
            if status in _OK:
                epoch, reset_at, failures = more
                server.set_epoch(epoch, reset_at)
                ahead = server.ahead or 0
                results = decode(batch[:done], descriptions, numbers, lifts, server.reset_at, ahead)
                for number, key, reason in zip(*(failures[part::3] for part in range(3)), strict=True):
                    results[number - 1] = self._failure(_text(key), _text(reason))
                return results
            name = _text(text)
            if status in (b"corrupt", "corrupt"):
                raise self._corrupt(name)
            if name:
                server.encoder.add_zone(name)
        raise StoreUnavailableError(
            f"the clock of the Redis server at {server.address} jumps: let it be set by NTP without steps"
        )

    async def _run(self, batch: list[Operation], deadline: Deadline) -> Any:
        """Run the script once, record the server's time, and return the reply."""
        server = self._server
        is_checked = server.must_check()
        keys, arguments = self._encode(batch, deadline.when, checked=is_checked)

        def unknown() -> Sequence[str | bytes]:  # a server that has restarted, or a replica, knows no script
            return self._encode(batch, deadline.when, checked=True)[1]

        sent = time.monotonic()
        reply = await server.script.run(self._client, keys, arguments, unknown)
        if is_checked and reply[0] in _OK and reply[7]:  # else what it found was not written
            server.note_check()
        if server.clock is None:
            server.set_now(int(reply[1]), time.monotonic() - sent)
        return reply

    def _encode(
        self, batch: list[Operation], deadline: float, *, checked: bool
    ) -> tuple[Sequence[str], Sequence[str | bytes]]:
        """Make the message of ``batch``, and drop the operations that cannot be encoded."""
        now, clock = self._server.now()
        message = self._server.encoder.start(self._server.ahead or 0)
        wrong = []
        for operation in batch:
            try:
                message.add(operation)
            except Exception as error:  # noqa: BLE001 - the mistake of one caller, which alone gets it
                wrong.append(operation)
                _set_exception(operation, error)
        for operation in wrong:
            batch.remove(operation)
        if clock or self._server.ahead is None:
            return message.finish(now, clock, 0, self._server.epoch, checked=checked)
        latest = now + round((deadline - self._loop.time()) * 1e6)
        return message.finish(now, 0, latest, self._server.epoch, checked=checked)

    def _corrupt(self, key: str) -> StoreCorruptError:
        server, names = self._server, self._server.encoder.names
        remedy = "lift its key (llm-router keys lift), use" if key.startswith(names.scopes) else "use"
        costs = {
            names.reservations: "; what is under way then counts as it was estimated",
            names.sweep: "; it holds no count",
            names.others: "; keys, projects and providers that are disabled or cool down are then used again",
            names.epoch: "; every process then charges again what it took",
        }
        return StoreCorruptError(
            f"the Redis server at {server.address} holds something else at the key {key!r}: {remedy} another "
            f"namespace, or delete it{costs.get(key, '')}",
            shard=server.shard,
        )

    def _failure(self, key: str, reason: str) -> Exception:
        """Return why one operation of a batch failed: by its key, or in the server's words."""
        return self._corrupt(key) if key else self._explain(ResponseError(reason))

    def _explain(self, error: Exception) -> Exception:
        # Without the original as its cause: the frames of a client hold a password.
        server = self._server
        failure = explain(error, server.address, server.timeout) or error
        if isinstance(failure, StoreError):
            failure.shard = server.shard
        return failure

    def _fail(self, batch: Sequence[Operation], error: Exception) -> None:
        for operation in batch:
            if isinstance(error, StoreError):
                _set_exception(operation, type(error)(*error.args, shard=self._server.shard))
            else:
                _set_exception(operation, self._explain(error))


async def decide(batcher: Batcher, reserve: Reserve) -> Decision:
    """Queue a reserve, and return the decision.

    If the caller is cancelled and the grant was to probe half-open cooldowns, another request may do so.
    """
    batcher.add(reserve)
    try:
        return await reserve.future
    except asyncio.CancelledError:
        if (decision := answer_of(reserve.future)) is not None:
            batcher.pass_on(decision.probes)
        raise


def _text(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _set_exception(operation: Operation, error: Exception) -> None:
    if not operation.future.done():
        operation.future.set_exception(error)

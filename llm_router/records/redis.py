"""The record store of several machines: everything is on a Redis or Valkey server."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import attrs
from redis.exceptions import RedisError

from llm_router.domain.calendar import microseconds, seconds
from llm_router.domain.clock import Clock
from llm_router.records.base import Bounds, Record
from llm_router.records.entries import (
    BoundsOf,
    amounts_of,
    conflict,
    counts_in,
    limit_of,
    name_of,
    pairs_of,
    prefix_of,
    timeout_of,
    ttl_of,
    version_of,
)
from llm_router.stores.redis.client import (
    Address,
    BorrowedClient,
    SharedClient,
    address_of,
    connect,
    read_url,
)
from llm_router.stores.redis.deadline import Deadline
from llm_router.stores.redis.errors import explain
from llm_router.stores.redis.scripts import Client, Script

__all__ = ["RedisRecords"]

_FORMAT = 1
"""The version of what the keys hold, and part of their names."""

_CONNECTIONS = 8
"""Most calls of one event loop at a time, each of which has a connection."""


class RedisRecords:
    """Keeps records on a server, for all processes and machines that use the namespace.

    See :class:`RecordStore`. Each call is one script and one round trip. The keys of a space lie on one node
    of a cluster. Time is the server's. A call that was cancelled or timed out may still happen.

    Usable from several event loops, one after the other or at once, and after a fork: each has its own
    connections, which are closed by :meth:`aclose` or when the loop shuts down.

    In addition to what :class:`RecordStore` says, every method raises
    :class:`~llm_router.errors.StoreUnavailableError` (no answer within ``timeout``, no connection, or the
    server refuses) and :class:`~llm_router.errors.StoreCorruptError` (the keys hold something else).

    Args:
        url_or_client: As for :class:`~llm_router.stores.redis.RedisStore`; a client, which
            must return bytes, is not closed.
        namespace: Separates several routers on one server; part of every key.
        bounds: The bounds of each space; those of :class:`Bounds` for others.
        clock: The source of time; by default the server's clock, which all processes share.
        timeout: Seconds within which every call answers or raises.

    Raises:
        ConfigError: The URL cannot be used, the bounds make no sense, or ``timeout`` is not such a number.
    """

    def __init__(
        self,
        url_or_client: str | Client,
        *,
        namespace: str = "llm_router",
        bounds: Mapping[str, Bounds] | None = None,
        clock: Clock | None = None,
        timeout: float = 2.0,
    ) -> None:
        self._target = _in_bytes(read_url(url_or_client)) if isinstance(url_or_client, str) else url_or_client
        self._address = self._target.name if isinstance(self._target, Address) else address_of(url_or_client)
        self._namespace = namespace
        self._bounds = BoundsOf(bounds)
        self._clock = clock
        self._timeout = timeout_of(timeout)
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        self._process = os.getpid()
        self._inherited: list[object] = []

    async def get(self, space: str, name: str) -> Record | None:
        """Return a record; see :class:`RecordStore`."""
        reply = await self._run(self._bounds.records(space), "get", name_of(name))
        return None if reply is None else Record(reply[0], int(reply[1]), seconds(int(reply[2])))

    async def put(self, space: str, name: str, data: bytes, *, ttl: float, version: int | None = None) -> int:
        """Keep a record; see :class:`RecordStore`."""
        place, bounds, expected = self._bounds.records(space), self._bounds.of(space), version_of(version)
        data = self._bounds.check_size(place, name_of(name), data)
        wanted = "" if expected is None else expected
        done, number = await self._run(
            place, "put", name, data, ttl_of(ttl), wanted, bounds.records, bounds.size
        )
        if not done:
            raise conflict(space, expected or 0, int(number))
        return int(number)

    async def delete(self, space: str, name: str) -> None:
        """Forget a name; see :class:`RecordStore`. Record and counts are forgotten one after the other."""
        for place in (self._bounds.records(space), self._bounds.counts(space)):
            await self._run(place, "delete", name_of(name))

    async def names(self, space: str, prefix: str = "", *, limit: int = 100) -> list[str]:
        """Return the names of records; see :class:`RecordStore`."""
        place = self._bounds.records(space)
        found = await self._run(place, "find", prefix_of(prefix), limit_of(limit), "")
        return [_text(name) for name in found]

    async def add(
        self, space: str, name: str, amounts: Mapping[str, int], *, ttl: float
    ) -> Mapping[str, int]:
        """Add to counts; see :class:`RecordStore`."""
        place, bounds = self._bounds.counts(space), self._bounds.of(space)
        pairs = [part for pair in pairs_of(amounts_of(amounts)) for part in pair]
        limits = bounds.records, bounds.size, self._bounds.largest(space)
        text = await self._run(place, "add", name_of(name), ttl_of(ttl), *limits, *pairs)
        if text is None:
            raise self._bounds.too_large(space)
        return counts_in(text)

    async def counts(
        self, space: str, prefix: str = "", *, limit: int = 10_000
    ) -> Mapping[str, Mapping[str, int]]:
        """Return counts; see :class:`RecordStore`."""
        place = self._bounds.counts(space)
        found = await self._run(place, "find", prefix_of(prefix), limit_of(limit), "data")
        return {_text(name): counts_in(text) for name, text in zip(found[::2], found[1::2], strict=True)}

    async def aclose(self) -> None:
        """Wait for the calls under way in this event loop and close its connections. May be called twice."""
        if self._process == os.getpid():
            line = self._lines.pop(asyncio.get_running_loop(), None)
            if line is not None:
                await line.aclose()

    async def _run(self, place: str, operation: str, *arguments: str | bytes | int) -> Any:
        tag = f"{{{self._namespace}:records:{_FORMAT}:{place}}}"
        keys = [f"{tag}:{part}" for part in ("data", "order", "ends", "totals")]
        now = "" if self._clock is None else microseconds(self._clock.time())
        told = [each if isinstance(each, bytes) else str(each) for each in (operation, now, *arguments)]
        failure: Exception | None = None
        try:
            return await self._line().run(keys, told)
        except Exception as error:  # noqa: BLE001 - whatever the client raised
            # Without the original as its cause: the frames of a client hold a password.
            failure = explain(error, self._address, self._timeout) or error
        raise failure

    def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None or self._process != os.getpid():
            if self._process != os.getpid():
                # The connections are the parent's. They are kept, because closing them would disturb it.
                self._inherited.append(self._lines)
                self._lines, self._process = {}, os.getpid()
            for gone in [other for other in self._lines if other.is_closed()]:
                del self._lines[gone]
            if isinstance(self._target, Address):
                line = _Line(SharedClient(connect(self._target)).share(), self._timeout, owned=True)
            else:
                line = _Line(BorrowedClient(self._target), self._timeout, owned=False)
            self._lines[loop] = line
        return line

    def __repr__(self) -> str:
        return f"RedisRecords({self._address!r}, namespace={self._namespace!r})"


class _Line:
    """The connections of one event loop."""

    def __init__(self, client: Client, timeout: float, *, owned: bool) -> None:
        self._client = client
        self._timeout = timeout
        self._owned = owned
        self._calls: set[asyncio.Task[Any]] = set()
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._keeper: AsyncGenerator[None, None] | None = None

    async def run(self, keys: list[str], arguments: list[str | bytes]) -> Any:
        """Run the script, to its end even if the caller is cancelled.

        Raises:
            Exception: Whatever the client raises, or TimeoutError.
        """
        if self._keeper is None and self._owned:
            self._keeper = self._keep()
            await anext(self._keeper)
        call = asyncio.create_task(self._run(keys, arguments))
        self._calls.add(call)
        call.add_done_callback(self._note_end)
        return await asyncio.shield(call)

    async def _run(self, keys: list[str], arguments: list[str | bytes]) -> Any:
        async with Deadline(asyncio.get_running_loop().time() + self._timeout), self._turns:
            return await _script().run(self._client, keys, arguments)

    def _note_end(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # retrieved: the caller may have been cancelled, and hears of nothing

    async def aclose(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls)
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.aclose()

    async def _keep(self) -> AsyncGenerator[None, None]:
        # An event loop closes its asynchronous generators when it shuts down, and with this one the
        # connections of a store that was not closed.
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._client.aclose()
            except (OSError, TimeoutError, RedisError):
                pass  # the connection is closed in any case


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _in_bytes(address: Address) -> Address:
    """Return an address whose client returns bytes: what is kept is not always text."""
    url, _, query = address.url.partition("?")
    options = [each for each in query.split("&") if each and not each.startswith("decode_responses=")]
    return attrs.evolve(address, url=f"{url}?{'&'.join(options)}" if options else url)


@cache
def _script() -> Script:
    source = files("llm_router.records").joinpath("redis.lua").read_text("utf-8")
    # The name that Redis gives to a script; it has nothing to do with security.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

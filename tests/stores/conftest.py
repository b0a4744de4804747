"""The stores on which every test of the contract runs.

A new store needs one entry in ``BACKENDS``: an async context manager that sets up whatever the store keeps
its state in, and yields a :class:`Backend` on it. Those that are not in ``QUICK_STORES`` are marked as slow.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from llm_router.stores import MemoryStore
from llm_router.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container
    from types import ModuleType

    from llm_router.domain.clock import Clock
    from llm_router.stores import RateLimitStore


class Backend(Protocol):
    """One place for the state of stores: a file, a server, this process."""

    name: str
    examples: int
    """How many Hypothesis examples a test may run on it: about 200 for a fast one, 25 for a slow one."""

    def open(self, clock: Clock) -> AbstractAsyncContextManager[RateLimitStore]:
        """Open a store on *empty* state at every call, since Hypothesis calls this for each example."""
        ...

    def second(self, clock: Clock) -> AbstractAsyncContextManager[RateLimitStore]:
        """Open another store on the state of the one opened last."""
        ...


class MemoryBackend:
    """The memory store; its second handle can only be the store itself."""

    name = "memory"
    examples = 200

    def __init__(self) -> None:
        self._store: MemoryStore | None = None

    @asynccontextmanager
    async def open(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        self._store = MemoryStore(clock=clock)
        yield self._store
        await self._store.aclose()

    @asynccontextmanager
    async def second(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        assert self._store is not None, "call open() first"
        yield self._store


@asynccontextmanager
async def memory_backend(tmp_path: Path) -> AsyncIterator[Backend]:
    """Provide the memory store."""
    yield MemoryBackend()


class SQLiteBackend:
    """SQLite stores; each :meth:`open` uses a new file."""

    name = "sqlite"
    examples = 40

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    @asynccontextmanager
    async def open(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        self._count += 1
        async with self.second(clock) as store:
            yield store

    @asynccontextmanager
    async def second(self, clock: Clock) -> AsyncIterator[RateLimitStore]:
        path = self._directory / f"state-{self._count}.db"
        store = SQLiteStore(path, clock=clock, synchronous="OFF")  # no test here simulates a power failure
        try:
            yield store
        finally:
            await store.aclose()


@asynccontextmanager
async def sqlite_backend(tmp_path: Path) -> AsyncIterator[Backend]:
    """Provide SQLite stores."""
    yield SQLiteBackend(tmp_path)


def _load(name: str) -> ModuleType:
    """Import a module or package that lies beside this file; the tests themselves are not a package."""
    path = Path(__file__).with_name(name)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"llm_router_tests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


redis_servers = _load("servers")
_load("store_model")  # the test modules import these by their names, such as llm_router_tests_store_model
_load("fleet")
_load("remote")

BACKENDS: dict[str, Callable[[Path], AbstractAsyncContextManager[Backend]]] = {
    "memory": memory_backend,
    "sqlite": sqlite_backend,
    **redis_servers.redis_backends(),
}


SERVERS = redis_servers.find_servers()
QUICK = {next(iter(SERVERS))}
"""The Redis of the quick lane, in which one server is enough for what concerns Redis alone."""

QUICK_STORES = {"memory", "sqlite"}
"""The stores of the quick lane: the contract runs over the others in the slow one."""


def _slow_unless_quick(name: str, value: object, quick: Container[str] = QUICK) -> object:
    return pytest.param(value, id=name, marks=() if name in quick else pytest.mark.slow)


@pytest.fixture(params=[_slow_unless_quick(name, path) for name, path in SERVERS.items()])
def redis_binary(request: pytest.FixtureRequest) -> Path:
    """Provide each installed Redis or Valkey server in turn."""
    binary: Path = request.param
    return binary


@pytest.fixture
def servers() -> ModuleType:
    """Provide the module ``servers.py``, which starts Redis servers."""
    return redis_servers


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Make a new directory; ``tmp_path`` looks at those of all other tests first, and there are hundreds."""
    parent, numbers = tmp_path_factory.mktemp("stores"), itertools.count()

    def make() -> Path:
        folder = parent / str(next(numbers))
        folder.mkdir()
        return folder

    return make


@pytest.fixture(params=[_slow_unless_quick(name, name, QUICK_STORES) for name in sorted(BACKENDS)])
async def store_backend(
    request: pytest.FixtureRequest, make_folder: Callable[[], Path]
) -> AsyncIterator[Backend]:
    """Provide each kind of store in turn."""
    async with BACKENDS[request.param](make_folder()) as backend:
        yield backend


@pytest.fixture(params=[_slow_unless_quick(name, name) for name in sorted(redis_servers.redis_backends())])
async def redis_backend(
    request: pytest.FixtureRequest, make_folder: Callable[[], Path]
) -> AsyncIterator[Backend]:
    """Provide each kind of Redis in turn."""
    async with BACKENDS[request.param](make_folder()) as backend:
        yield backend


@pytest.fixture
async def all_backends(tmp_path: Path) -> AsyncIterator[list[Backend]]:
    """Provide all kinds of stores at once, to compare them."""
    backends = []
    managers = []
    try:
        for name, manager in BACKENDS.items():
            (tmp_path / name).mkdir()
            managers.append(manager(tmp_path / name))
            backends.append(await managers[-1].__aenter__())
        yield backends
    finally:
        for opened in reversed(managers[: len(backends)]):
            await opened.__aexit__(None, None, None)

"""What tests of every area share."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import certifi
import pytest

from llm_router import Deployment, Key, Metric, Quota, Refill, Router, Secret
from llm_router.testing import FakeProvider, GeminiEmulator, ManualClock

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer

logging.getLogger("asyncio").setLevel(logging.WARNING)

# A shell without job control starts what runs in the background with SIGINT ignored, and children inherit
# that: those that tests stop by SIGINT would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


CHILDREN_TRACED = "COVERAGE_PROCESS_CONFIG"
"""The environment variable that has a Python measure coverage."""

UNTRACED = ("acceptance", "benchmarks", "engine", "stores")
"""Folders whose slow tests run the same lines for minutes, and for twice as long while coverage is measured;
their quick tests run these lines, too."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among thousands of tests: a second a worker, and again whenever a test looks."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> list[pytest.Item] | None:
    """Make nothing of a slow test for the quick lane, which would only leave it out afterwards."""
    if collector.config.option.markexpr != "not slow" or not name.lower().startswith("test"):
        return None
    marks = (*collector.iter_markers(), *getattr(obj, "pytestmark", ()))
    return [] if any(mark.name == "slow" for mark in marks) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure no coverage where it takes minutes and finds nothing more."""
    tests = Path(__file__).parent
    untraced = tuple(f"{tests / folder}{os.sep}" for folder in UNTRACED)
    for item in items:
        if item.get_closest_marker("slow") is not None and str(item.path).startswith(untraced):
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Have coverage measured once, so that it pauses when it is told to.

    In a worker of pytest-xdist pytest-cov begins to measure as if it were alone, and then anew as a worker.
    What has a child of a test measure itself would have a worker do so, too.
    """
    measuring = session.config.pluginmanager.getplugin("_cov")
    if measuring is None or measuring.cov_controller is None:
        return
    if hasattr(session.config, "workerinput"):
        measuring.cov_controller.pause()
    elif session.config.getoption("numprocesses", None):
        os.environ.pop(CHILDREN_TRACED, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure no coverage in the children of a test that is measured itself neither."""
    paused = item.get_closest_marker("no_cover") is not None
    traced = os.environ.pop(CHILDREN_TRACED, None) if paused else None
    try:
        return (yield)
    finally:
        if traced is not None:
            os.environ[CHILDREN_TRACED] = traced


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one authority instead of all: nothing here leaves the machine, and reading them takes 30 ms.

    The SDK reads them for each of its clients.
    """
    end = "-----END CERTIFICATE-----"
    first, _, _ = Path(certifi.where()).read_text(encoding="utf-8").partition(end)
    file = tmp_path_factory.mktemp("authority") / "one.pem"
    file.write_text(f"{first}{end}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session", autouse=True)
def _versions_read_once() -> Iterator[None]:
    """Read the metadata of a library once: redis-py asks for its own version at each connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.metadata.version", functools.cache(importlib.metadata.version))
        yield


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands at noon UTC, far from any midnight in Los Angeles."""
    return ManualClock(1_800_014_400.0)


@pytest.fixture
def provider(clock: ManualClock) -> FakeProvider:
    return FakeProvider(clock=clock)


class Pools:
    """Makes deployments with names and secrets of their own."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def one(
        self,
        model: str = "model-a",
        workload: str = "light",
        *,
        key_id: str = "",
        rpm: int | None = 15,
        tpm: int | None = None,
        rpd: int | None = None,
        **fields: Any,
    ) -> Deployment:
        limits = {Metric.RPM: rpm, Metric.TPM: tpm, Metric.RPD: rpd}
        quotas = tuple(
            Quota(metric, limit, Refill.DAILY if metric.is_daily else Refill.ROLLING)
            for metric, limit in limits.items()
            if limit is not None
        )
        name = key_id or f"key-{next(self._numbers)}"
        project = fields.pop("project", "")
        provider = fields.pop("provider", "gemini")
        key = Key(name, Secret(f"AIza-secret-of-{name}"), provider, project)
        return Deployment(key, model, workload, quotas=quotas, **fields)

    def many(self, count: int, *args: Any, **kwargs: Any) -> list[Deployment]:
        return [self.one(*args, **kwargs) for _ in range(count)]


@pytest.fixture
def pools() -> Pools:
    return Pools()


@pytest.fixture
def make_router(clock: ManualClock, provider: FakeProvider) -> Callable[..., Router]:
    """Make a router on the manual clock and the fake provider."""

    def make(deployments: Iterable[Deployment], **options: Any) -> Router:
        return Router(deployments, **{"provider": provider, "clock": clock, **options})

    return make


@pytest.fixture
def until_holding() -> Callable[..., Coroutine[Any, Any, None]]:
    """Wait until an emulator holds so many requests that hang."""

    async def wait(emulator: GeminiEmulator, count: int = 1) -> None:
        async with asyncio.timeout(5):
            while emulator.holding != count:  # noqa: ASYNC110 - what is waited for happens in a socket
                await asyncio.sleep(0)

    return wait


@pytest.fixture(scope="session")
def servers_module() -> ModuleType:
    """The helpers for real Redis and Valkey servers, which the tests of the stores own."""
    path = Path(__file__).parent / "stores" / "servers.py"
    spec = importlib.util.spec_from_file_location("llm_router_test_servers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def redis_server(servers_module: ModuleType) -> Iterator[RedisServer]:
    """A real server of its own; a machine without one fails the test."""
    binary = next(iter(servers_module.find_servers().values()))
    with servers_module.running(binary) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url

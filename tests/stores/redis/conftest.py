"""What the tests of the Redis store have in common."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from llm_router_tests_servers import redis_backends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager


@pytest.fixture(params=sorted(redis_backends()))
async def redis_backend(request, tmp_path) -> AsyncIterator[object]:
    """Provide each kind of Redis in turn: those of ``conftest.BACKENDS`` that are one."""
    async with redis_backends()[request.param](tmp_path) as backend:
        yield backend


@pytest.fixture
def server(servers):
    """Provide an empty server that other tests use, too."""
    server = servers.shared_server(next(iter(servers.find_servers())))
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture
def no_longer_than() -> Callable[[float], AbstractContextManager[None]]:
    """Provide what fails if its body takes longer: a bound for hanging, not a measurement."""

    @contextmanager
    def bound(seconds: float) -> Iterator[None]:
        start = time.monotonic()
        yield
        assert time.monotonic() - start < seconds

    return bound

"""Fixtures of the tests of the Redis store."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


@pytest.fixture
def server(servers):
    """Provide an empty server, which other tests use as well."""
    server = servers.shared_server(next(iter(servers.find_servers())))
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture
def no_longer_than() -> Callable[[float], AbstractContextManager[None]]:
    """Provide a context manager that fails if its body takes longer: it detects hanging, not slowness."""

    @contextmanager
    def bound(seconds: float) -> Iterator[None]:
        start = time.monotonic()
        yield
        assert time.monotonic() - start < seconds

    return bound

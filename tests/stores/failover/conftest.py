"""Fixtures of the tests of the failover store: one in front of a store that fails as it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_router.stores.failover import FailoverStore

if TYPE_CHECKING:
    from llm_router.testing import ManualClock
    from tests.stores.remote import Remote
else:
    from llm_router_tests_remote import Remote


@pytest.fixture
def remote(clock: ManualClock) -> Remote:
    return Remote(clock)


@pytest.fixture
def front(remote: Remote, clock: ManualClock) -> FailoverStore:
    return FailoverStore(remote, clock=clock, local_share=0.25)

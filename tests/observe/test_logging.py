"""The sink for logs: one line an event, at the level of its kind, with its fields as attributes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from llm_router import ProviderError, Router
from llm_router.observe import CooledDown, LoggingObserver, StoreBack, StoreLost
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]


async def test_each_event_is_one_line(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, caplog: pytest.LogCaptureFixture
) -> None:
    """A request is logged at DEBUG; what changes for others at INFO; nothing of it is secret."""
    caplog.set_level(logging.DEBUG, "llm_router.events")
    provider.script(ProviderError("no: the prompt", kind="quota", code=429, charged=False))
    pool = [pools.one(priority=0), pools.one(priority=1)]
    async with make_router(pool, observers=[LoggingObserver()]) as router:
        await router.send("the prompt", metadata={"tenant": "acme corp"})
    records = [record for record in caplog.records if record.name == "llm_router.events"]
    assert [(record.levelname, record.getMessage().split()[0]) for record in records] == [
        ("DEBUG", "send_began"),
        ("DEBUG", "attempt_began"),
        ("DEBUG", "attempt_ended"),
        ("DEBUG", "settled"),
        ("INFO", "cooled_down"),
        ("DEBUG", "attempt_began"),
        ("DEBUG", "attempt_ended"),
        ("DEBUG", "settled"),
        ("DEBUG", "send_ended"),
    ]
    failed = records[2]
    line = failed.getMessage()
    assert "metadata.tenant='acme corp' provider=gemini key_id=key-1" in line
    assert "error_type=429" in line
    fields = vars(failed)
    assert fields["router_event"] == "attempt_ended"
    assert (fields["router_key_id"], fields["router_number"], fields["router_error_type"]) == (
        "key-1",
        1,
        "429",
    )
    assert fields["router_metadata.tenant"] == "acme corp"
    ids = {vars(record).get("router_request_id") for record in records}
    assert len(ids - {None}) == 1
    said = json.dumps([vars(record) for record in records], default=repr)
    assert "the prompt" not in said
    assert "AIza" not in said


def test_a_line_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    """Line breaks in a reason do not make a second line."""
    caplog.set_level(logging.DEBUG)
    LoggingObserver().observe(StoreLost(at=0.0, reason="down\nCRITICAL all is lost"))
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == r"store_lost at=0.000 reason='down\nCRITICAL all is lost'"


def test_logger_and_levels_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    """Another logger and other levels are used if given; what is not logged is not built."""
    caplog.set_level(logging.INFO, "mine")
    observer = LoggingObserver(logging.getLogger("mine"), levels={StoreBack: logging.DEBUG})
    assert repr(observer) == "LoggingObserver('mine')"
    observer.observe(StoreBack(at=0.0, seconds=1.0))
    observer.observe(StoreLost(at=0.0, reason=""))
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("mine", "store_lost at=0.000 reason=''")
    ]
    assert CooledDown.name == "cooled_down"

"""What several processes of a gateway count and remember together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_router import Exchange
from llm_router.errors import StoreUnavailableError
from llm_router.gateway.answers import RefusedError
from llm_router.gateway.callers import Callers
from llm_router.gateway.rates import TokenRates
from llm_router.gateway.tokens import TokenFile
from llm_router.records import MemoryRecords, open_records
from llm_router.testing import ManualClock


class Failing(MemoryRecords):
    async def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailableError("no answer")

    add = get = put = delete = _fail


async def test_no_minute_holds_more_than_a_token_allows(clock: ManualClock) -> None:
    """Two processes count together, over the turn of the minute, and what was refused counts nothing."""
    records = MemoryRecords(clock=clock)
    one, two = (TokenRates(records, 2, clock, shares=True) for _ in range(2))
    taken: list[float] = []
    for _ in range(260):
        for rates in (one, two):
            wait = await rates.take("ann", 5)
            if not wait:
                taken.append(clock.time())
            assert wait <= 61
        clock.shift(0.7)
    spans = [later - sooner for sooner, later in zip(taken, taken[5:], strict=False)]
    assert min(spans) >= 60
    assert len(taken) >= 5 * 2
    assert not await one.take("bob", 5)


async def test_the_delay_is_true(clock: ManualClock) -> None:
    """After as many seconds as a refusal says there is room."""
    rates = TokenRates(MemoryRecords(clock=clock), 1, clock, shares=True)
    assert [await rates.take("ann", 2) for _ in range(2)] == [0, 0]
    wait = await rates.take("ann", 2)
    assert 60 <= wait <= 61
    clock.shift(wait)
    assert not await rates.take("ann", 2)


@pytest.mark.parametrize("records", [MemoryRecords(), Failing()])
async def test_alone_a_process_allows_its_part(records: MemoryRecords, clock: ManualClock) -> None:
    """Where the processes share nothing, or the store fails, each counts by itself."""
    rates = TokenRates(records, 2, clock, shares=isinstance(records, Failing))
    assert [bool(await rates.take("ann", 5)) for _ in range(3)] == [False, False, True]
    clock.shift(61)
    assert not await rates.take("ann", 5)


async def test_owners_that_cannot_be_kept_or_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The answer to a caller who made something is not lost; a question is refused for now."""
    file = TokenFile(tmp_path / "tokens.json")
    file.add("ann")
    callers = Callers(file, records=Failing())
    await callers.give("uploads/secret-id", "ann's")
    await callers.take("uploads/secret-id")
    with pytest.raises(RefusedError) as caught:
        await callers.owner("uploads/secret-id")
    head, body = caught.value.answer(Exchange(path="/v1beta/files"))
    assert head.status == 503
    assert b"no answer" not in body
    assert "secret-id" not in caplog.text


async def test_workers_know_each_others_resources(tmp_path: Path) -> None:
    """What one worker saw made, another, or the same after a restart, knows; no name of it is kept."""
    file = TokenFile(tmp_path / "tokens.json")
    file.add("ann")
    url = f"sqlite:///{tmp_path}/state.db"
    first, second = open_records(url), open_records(url)
    await Callers(file, workers=2, records=first).give("uploads/secret-id", "ann's")
    callers = Callers(file, workers=2, records=second)
    assert await callers.owner("uploads/secret-id") == "ann's"
    await callers.take("uploads/secret-id")
    assert await Callers(file, records=first).owner("uploads/secret-id") is None
    for store in (first, second):
        await store.aclose()
    for path in tmp_path.iterdir():
        assert b"secret-id" not in path.read_bytes()

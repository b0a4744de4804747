"""The failures of keys, shared over every kind of record store."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from llm_router import Deployment, Key, ProviderError, Secret, StoreUnavailableError
from llm_router.engine.failures import FAILURES_KEPT, FailureLog
from llm_router.engine.shared_failures import FAILURE_BOUNDS, FAILURES, SharedFailures
from llm_router.records import Bounds, MemoryRecords, RecordStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.records.conftest import Opener

SECRET = "AIza-secret-of-the-key"
BOUNDS = {FAILURES: FAILURE_BOUNDS}


def deployment(key_id: str = "k", model: str = "m") -> Deployment:
    return Deployment(Key(key_id=key_id, secret=Secret(SECRET)), model, "light")


def error(code: int = 503) -> ProviderError:
    return ProviderError(f"{SECRET} and the prompt", kind="server", code=code)


def times(failures: list[Any]) -> list[float]:
    return [failure["at"] for failure in failures]


async def test_the_failures_of_all_processes_come_together(open_store: Opener, clock: ManualClock) -> None:
    """Two that write at once lose none of the last ten; a third one that starts later knows them, too."""
    one, two, later = (SharedFailures(FailureLog(), open_store(BOUNDS), clock) for _ in range(3))
    key, now = deployment().key, clock.time()
    for number in range(8):
        one.log.note(deployment(), error(500), now + number)
        two.log.note(deployment(model="n"), error(503), now + number + 0.5)
    two.log.note(deployment("other/ö" * 100, "m" * 10_000), error(), now)
    two.log.note(deployment("other/ö" * 100, "m" * 10_000), error(), now)  # the same, twice
    await asyncio.gather(one.publish(), two.publish())
    assert [*one.log.untold, *two.log.untold] == []
    found = [await each.known([key, deployment("strange").key]) for each in (one, two, later)]
    assert list(found[2]) == [key]
    assert found[0] == found[1] == found[2]
    assert times(found[2][key]) == [now + half / 2 for half in range(15, 5, -1)]
    assert {(each["model"], each["code"]) for each in found[2][key]} == {("m", 500), ("n", 503)}
    other = deployment("other/ö" * 100).key
    assert times((await later.known([other]))[other]) == [now, now]
    for record in [await later.records.get(FAILURES, name) for name in await later.records.names(FAILURES)]:
        assert record is not None
        assert len(record.data) < 4_000
        assert SECRET.encode() not in record.data
        assert b"prompt" not in record.data
    clock.shift(36 * 86_400.0)
    later.log.note(deployment(), error(), clock.time())
    await later.publish()
    assert times((await two.known([key]))[key])[0] == clock.time()
    record = await one.records.get(FAILURES, "gemini k")
    assert record is not None
    assert len(json.loads(record.data)) == 1  # what is older than 35 days has left


class Broken(MemoryRecords):
    """Records that fail for the first few calls, or are always changed by somebody else."""

    failing = 0
    raced = hangs = False

    async def get(self, space: str, name: str) -> Any:
        if self.hangs:
            await asyncio.Event().wait()
        if self.failing:
            self.failing -= 1
            raise StoreUnavailableError("gone")
        found = await super().get(space, name)
        if self.raced:
            await super().put(space, name, b"[]", ttl=60)
        return found


async def test_what_cannot_be_told_is_told_later(clock: ManualClock) -> None:
    """Records that fail or are contended cost nothing but time; what is no failure is read as none."""
    records: RecordStore = Broken(clock=clock)
    assert isinstance(records, Broken)
    shared, key = SharedFailures(FailureLog(), records, clock), deployment().key
    for number in range(FAILURES_KEPT + 5):
        shared.log.note(deployment(), error(), clock.time() + number)
    shared.log.note(deployment("second"), error(), clock.time())
    records.failing = 1
    await shared.publish()
    assert list(shared.log.untold) == [("gemini", "second"), ("gemini", "k")]
    records.failing = 1
    assert await shared.known([key]) == {}  # nothing to read yet
    records.failing, records.raced = 0, True
    await shared.publish()
    assert [*shared.log.untold] == [("gemini", "k"), ("gemini", "second")]
    records.raced = False
    await shared.publish()
    assert [*shared.log.untold] == []
    assert len((await shared.known([key]))[key]) == FAILURES_KEPT
    for odd in (b"", b"5", b"[5]", b'[{"at": "x"}]', b'[{"at": NaN}]', b"\xff", b"[" * 5_000):
        await records.put(FAILURES, "gemini k", odd, ttl=60)
        stranger = SharedFailures(FailureLog(), records, clock)
        assert await stranger.known([key]) == {key: []}
    records.failing = 9
    assert await shared.known([key]) == {}
    records.failing = 0
    narrow = SharedFailures(
        shared.log, MemoryRecords(bounds={FAILURES: Bounds(largest=9)}, clock=clock), clock
    )
    shared.log.note(deployment(), error(), clock.time())
    await narrow.publish()
    assert [*shared.log.untold] == []  # it would never fit
    records.hangs = True
    shared.log.note(deployment(), error(), clock.time())
    told = asyncio.create_task(shared.publish())
    await asyncio.sleep(0)
    told.cancel()
    await asyncio.gather(told, return_exceptions=True)
    assert (told.cancelled(), [*shared.log.untold]) == (True, [("gemini", "k")])

"""What every record store promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llm_router.errors import (
    ConfigError,
    InvalidRequestError,
    RecordConflictError,
    RecordTooLargeError,
)
from llm_router.records import Bounds, MemoryRecords, Record, RecordStore
from llm_router.records.sqlite import SQLiteRecords
from llm_router.testing import ManualClock

Opener = Callable[..., RecordStore]
DAY = 86_400.0


async def test_a_record_is_there_until_it_expires(open_store: Opener, clock: ManualClock) -> None:
    """Any bytes come back under any name, in all stores that share them, until their time is over."""
    store, other = open_store(), open_store()
    data, name = bytes(range(256)), "ünïcode/%name {with} \n=;"
    assert await store.get("space", name) is None
    version = await store.put("space", name, data, ttl=60)
    assert await other.get("space", name) == Record(data, version, clock.time() + 60)
    assert await other.get("elsewhere", name) is None
    assert await store.put("space", name, b"", ttl=0.5) > version
    clock.shift(0.499)
    kept = await store.get("space", name)
    assert kept is not None
    assert kept.data == b""
    clock.shift(0.001)
    assert await store.get("space", name) is None
    assert await store.names("space") == []
    await store.aclose()
    await store.put("space", name, data, ttl=60)
    await store.delete("space", name)
    await store.delete("space", name)
    assert await other.get("space", name) is None


async def test_a_version_is_replaced_once(open_store: Opener, clock: ManualClock) -> None:
    """Of two writers who have read the same version one gets a conflict, also after a deletion or expiry."""
    store, other = open_store(), open_store()
    first = await store.put("space", "name", b"1", ttl=60, version=0)
    with pytest.raises(RecordConflictError, match=r"was to be new, but its version is") as caught:
        await other.put("space", "name", b"2", ttl=60, version=0)
    assert caught.value.version == first
    second = await other.put("space", "name", b"2", ttl=60, version=first)
    with pytest.raises(RecordConflictError, match=f"version {first} was to be replaced"):
        await store.put("space", "name", b"3", ttl=60, version=first)
    await store.delete("space", "name")
    with pytest.raises(RecordConflictError, match="it is not there"):
        await store.put("space", "name", b"3", ttl=60, version=second)
    third = await store.put("space", "name", b"3", ttl=60, version=0)
    assert third > second > first
    clock.shift(60)
    clock.jump(-DAY)
    await store.delete("space", "name")
    assert await store.put("space", "name", b"4", ttl=60, version=0) > third
    found = await asyncio.gather(
        *(each.put("space", "race", b"", ttl=60, version=0) for each in [store, other] * 10),
        return_exceptions=True,
    )
    assert sum(isinstance(each, int) for each in found) == 1


async def test_the_oldest_is_forgotten_first(open_store: Opener, clock: ManualClock) -> None:
    """A space that is full forgets what has expired, then what was put longest ago, by number and size."""
    store = open_store({"few": Bounds(records=3), "small": Bounds(size=100, largest=60)})
    await store.put("few", "short", b"", ttl=1)
    for name in "abc":
        await store.put("few", name, b"", ttl=60)
    assert await store.names("few") == ["c", "b", "a"]
    await store.put("few", "a", b"again", ttl=60)
    await store.put("few", "d", b"", ttl=1)
    assert await store.names("few") == ["d", "a", "c"]
    clock.shift(1)
    await store.put("few", "e", b"", ttl=60)
    assert await store.names("few") == ["e", "a", "c"]
    assert await store.names("few", "a") == ["a"]
    assert await store.names("few", limit=2) == ["e", "a"]
    await store.put("small", "a", b"x" * 49, ttl=60)
    await store.put("small", "b", b"x" * 49, ttl=60)
    assert await store.names("small") == ["b", "a"]
    await store.put("small", "c", b"", ttl=60)
    assert await store.names("small") == ["c", "b"]
    await store.put("small", "b", b"x" * 59, ttl=60)
    assert await store.names("small") == ["b", "c"]
    with pytest.raises(RecordTooLargeError, match="'small' may have 60 bytes"):
        await store.put("small", "c", b"x" * 60, ttl=60)
    with pytest.raises(RecordTooLargeError, match="60 bytes"):
        await store.add("small", "b", {"f" * 57: 1}, ttl=60)
    assert await store.names("small") == ["b", "c"]
    await store.put("few", "names", b"", ttl=60)
    assert await store.names("few", "n") == ["names"]


@pytest.mark.slow
async def test_many_expired_records_are_swept(open_store: Opener, clock: ManualClock) -> None:
    """However many records have expired, they neither show nor take the place of others for ever."""
    store = open_store({"space": Bounds(records=1_000)})
    await asyncio.gather(*(store.put("space", f"{number}", b"", ttl=1) for number in range(110)))
    assert len(await store.names("space", limit=1_000)) == 110
    clock.shift(2)
    assert await store.names("space") == []
    for name in "abc":
        await store.put("space", name, b"", ttl=60)
    assert await store.names("space") == ["c", "b", "a"]


async def test_counts_add_up(open_store: Opener, clock: ManualClock) -> None:
    """What several stores add is all there, field by field, apart from the record of the name."""
    store, other = open_store(), open_store()
    odd, most = "tokens=;%\u00fc", 2**53 - 1
    assert await store.add("use", "day/one", {"requests": 1, odd: most}, ttl=60) == {"requests": 1, odd: most}
    await asyncio.gather(
        *(each.add("use", "day/one", {"requests": 1, "refused": -1}, ttl=60) for each in [store, other] * 10)
    )
    await other.add("use", "day/two", {"requests": 0}, ttl=90)
    await other.add("use", "week", {"requests": 7}, ttl=90)
    await other.put("use", "day/one", b"a record", ttl=60)
    assert await other.add("use", "day/one", {odd: 5}, ttl=60) == {"requests": 21, odd: most, "refused": -20}
    assert await store.counts("use", "day/") == {
        "day/one": {"requests": 21, odd: most, "refused": -20},
        "day/two": {"requests": 0},
    }
    assert list(await store.counts("use", limit=2)) == ["day/one", "week"]
    clock.shift(60)
    assert await store.counts("use") == {"week": {"requests": 7}, "day/two": {"requests": 0}}
    assert await store.add("use", "day/one", {"requests": 1}, ttl=60) == {"requests": 1}
    await store.delete("use", "day/one")
    assert await store.names("use") == []
    assert "day/one" not in await store.counts("use")


WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda store: store.get("", "a"), "a space must have"),
    (lambda store: store.get("a#", "a"), "a space must have"),
    (lambda store: store.get("a", ""), "empty, too long"),
    (lambda store: store.get("a", "\ud800"), "odd characters"),
    (lambda store: store.get("a", "ü" * 257), "too long"),
    (lambda store: store.get("a", None), "a NoneType"),
    (lambda store: store.put("a", "a", "text", ttl=1), "data must be bytes, not a str"),
    (lambda store: store.put("a", "a", b"", ttl=float("nan")), "ttl must be above 0"),
    (lambda store: store.put("a", "a", b"", ttl=float("inf")), "ttl must be above 0"),
    (lambda store: store.put("a", "a", b"", ttl=0), "ttl must be above 0"),
    (lambda store: store.put("a", "a", b"", ttl=1, version=-1), "version must be one"),
    (lambda store: store.put("a", "a", b"", ttl=1, version=2**60), "version must be one"),
    (lambda store: store.names("a", 5), "an int|a int"),
    (lambda store: store.names("a", limit=0), "limit must be"),
    (lambda store: store.add("a", "a", {}, ttl=1), "amounts must be a mapping"),
    (lambda store: store.add("a", "a", {"x": 0.5}, ttl=1), "must be a whole number, not 0.5"),
    (lambda store: store.add("a", "a", {"x": 2**53}, ttl=1), "must be a whole number"),
    (lambda store: store.add("a", "a", {5: 1}, ttl=1), "a int"),
]


async def test_what_cannot_be_meant_is_refused(open_store: Opener) -> None:
    """A wrong argument is named, before anything is asked of a server or a file."""
    store = open_store()
    for call, message in WRONG:
        with pytest.raises(InvalidRequestError, match=message):
            await call(store)


def test_bounds_that_make_no_sense() -> None:
    """Bounds are of spaces, and positive."""
    assert isinstance(MemoryRecords(), RecordStore)
    wrong: list[Any] = [{"a": 5}, {"#": Bounds()}, {5: Bounds()}]
    for bounds in wrong:
        with pytest.raises(ConfigError, match="bounds must map spaces to Bounds"):
            MemoryRecords(bounds=bounds)
    with pytest.raises(ConfigError, match="the timeout of a record store must be"):
        SQLiteRecords("never-opened", timeout=float("inf"))
    with pytest.raises(ConfigError, match="records of Bounds must be a whole number above 0, not nan"):
        Bounds(records=float("nan"))  # type: ignore[arg-type]


async def test_a_cancelled_call_disturbs_no_other(open_store: Opener) -> None:
    """A caller that goes away leaves the store usable, and what others put in its order."""
    store = open_store()
    await store.put("space", "name", b"0", ttl=60)
    task = asyncio.create_task(store.put("space", "name", b"1", ttl=60))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.put("space", "name", b"2", ttl=60)
    found = await store.get("space", "name")
    assert found is not None
    assert found.data == b"2"

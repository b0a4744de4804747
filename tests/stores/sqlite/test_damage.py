"""Files that are cut short or overwritten: a clear error, or a loss that is noticed; no wrong count."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand, Metric
from llm_router.errors import StoreCorruptError, StoreError, StoreUnavailableError
from llm_router.stores.base import RECOUNT, Taking
from llm_router.stores.failover import FailoverStore
from llm_router.stores.sqlite import SQLiteStore
from llm_router.stores.sqlite.database import checkpoint

if TYPE_CHECKING:
    from llm_router.testing import ManualClock
    from tests.conftest import Pools

TAKEN = 20


@pytest.fixture
def limited(pools: Pools) -> Deployment:
    """A deployment of which :data:`TAKEN` of 30 requests are spent in the file of ``killed``."""
    return pools.one(rpm=30, key_id="key")


@pytest.fixture
async def killed(path: Path, store: SQLiteStore, limited: Deployment, tmp_path: Path) -> Path:
    """The files that a process leaves which was killed: none has been tidied up."""
    for number in range(TAKEN):
        await store.reserve(f"spent-{number}", [limited], Demand(), 600.0)
    (tmp_path / "killed").mkdir()
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(f"{path}{suffix}", tmp_path / "killed" / f"{path.name}{suffix}")
    return tmp_path / "killed" / path.name


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _overwrite(path: Path, *places: int) -> None:
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x55]))


def _overwrite_without_index(path: Path) -> None:
    path.with_name(f"{path.name}-shm").unlink()
    _overwrite(_wal(path), _wal(path).stat().st_size // 2)


def _cut(keep: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(_wal(path), int(_wal(path).stat().st_size * keep))


WAL_DAMAGE: dict[str, Callable[[Path], None]] = {
    "nothing left": _cut(0),
    "less than a header": lambda path: os.truncate(_wal(path), 20),
    "a header": lambda path: os.truncate(_wal(path), 32),
    "half": _cut(0.5),
    "all but the end": lambda path: os.truncate(_wal(path), _wal(path).stat().st_size - 1),
    "deleted": lambda path: _wal(path).unlink(),
    "header overwritten": lambda path: _overwrite(_wal(path), 17),
    "no page size": lambda path: _overwrite(_wal(path), 9),
    "middle overwritten": lambda path: _overwrite(_wal(path), _wal(path).stat().st_size // 2),
    "middle overwritten, no index": _overwrite_without_index,
}


@pytest.mark.parametrize("damage", WAL_DAMAGE)
async def test_a_damaged_wal_is_noticed(
    damage: str,
    killed: Path,
    limited: Deployment,
    open_store: Callable[..., SQLiteStore],
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The file has lost something: nobody gets anything for a second, and all charge again what they took."""
    WAL_DAMAGE[damage](killed)
    store = open_store(killed)
    [refusal] = (await store.reserve("id", [limited], Demand(), 60.0)).refusals
    assert refusal.reason == RECOUNT
    assert [repr(str(killed)) in record.getMessage() for record in caplog.records] == [True]
    clock.shift(1.0)
    store.known[limited.model_scope] = 1.0  # as a process knows it that has used the file before
    decision = await store.reserve("id", [limited], Demand(), 60.0)
    assert decision.lost == (limited,)
    assert decision.reset_at > 0.0


@pytest.mark.parametrize("change", ["", "-shm deleted", "-shm overwritten", "uncommitted frames"])
async def test_a_killed_process_loses_nothing(
    change: str,
    killed: Path,
    limited: Deployment,
    open_store: Callable[..., SQLiteStore],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it leaves is no damage, with or without the index, which is made anew."""
    index = killed.with_name(f"{killed.name}-shm")
    if change == "-shm deleted":
        index.unlink()
    elif change == "-shm overwritten":
        index.write_bytes(random.Random(1).randbytes(index.stat().st_size))
    elif change:
        with _wal(killed).open("r+b") as file:
            head = file.read(24 + 32)[32:]
            file.seek(0, os.SEEK_END)
            file.write(head[:4] + bytes(4) + head[8:] + bytes(4096) + b"half of a frame")
    store = open_store(killed)
    assert (await store.reserve("id", [limited], Demand(), 60.0)).deployment is limited
    [snapshot] = await store.snapshot([limited])
    assert snapshot.quotas[0].used == TAKEN + 1
    assert not caplog.records


async def test_an_empty_database_beside_its_wal_is_damaged(
    killed: Path, limited: Deployment, open_store: Callable[..., SQLiteStore]
) -> None:
    """SQLite would delete the WAL, and the count with it; the error names the file and what to do."""
    os.truncate(killed, 0)
    before = _wal(killed).read_bytes()
    with pytest.raises(StoreCorruptError, match=r"empty, but not its -wal.*left as it is.*move") as raised:
        await open_store(killed).reserve("id", [limited], Demand(), 60.0)
    assert repr(str(killed)) in str(raised.value)
    assert _wal(killed).read_bytes() == before


@pytest.mark.parametrize("left", ["-wal", "-shm", "an empty -wal and -shm"])
@pytest.mark.parametrize("is_deleted", [False, True])
async def test_a_database_that_is_gone_but_for_its_companions_was_lost(
    left: str,
    killed: Path,
    limited: Deployment,
    open_store: Callable[..., SQLiteStore],
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    *,
    is_deleted: bool,
) -> None:
    """One that knew nothing of it makes the new file, and says so: all are careful for a window."""
    index = killed.with_name(f"{killed.name}-shm")
    if left == "-shm":
        _wal(killed).unlink()
    elif left == "-wal":
        index.unlink()
    if left != "-shm" and not (left == "-wal" and is_deleted):  # else the empty file is an error
        os.truncate(_wal(killed), 0)
    if is_deleted:
        killed.unlink()
    else:
        os.truncate(killed, 0)
    [refusal] = (await open_store(killed).reserve("id", [limited], Demand(), 60.0)).refusals
    assert refusal.reason == RECOUNT
    assert [repr(str(killed)) in record.getMessage() for record in caplog.records] == [True]
    decision = await open_store(killed).reserve("id", [limited], Demand(), 60.0)
    assert decision.reset_at == clock.time()
    clock.shift(1.0)
    assert (await open_store(killed).reserve("id", [limited], Demand(), 60.0)).deployment is limited


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_random_bytes_raise_nothing_but_store_errors(
    suffix: str,
    tmp_path: Path,
    path: Path,
    store: SQLiteStore,
    killed: Path,
    limited: Deployment,
    open_store: Callable[..., SQLiteStore],
) -> None:
    """Whatever they hit, a call answers, or raises an error of this library that names the file."""
    if not suffix:
        await store.aclose()
        shutil.copy(path, killed)
        _wal(killed).unlink()
        killed.with_name(f"{killed.name}-shm").unlink()
    for seed in range(8):
        copied = shutil.copytree(killed.parent, tmp_path / f"seed {seed}") / killed.name
        file = Path(f"{copied}{suffix}")
        size, chance = file.stat().st_size, random.Random(seed)
        _overwrite(file, *(chance.randrange(size) for _ in range((20, 400)[seed % 2])))
        damaged, errors = open_store(copied), list[str]()
        for call in (damaged.snapshot([limited]), damaged.reserve("id", [limited], Demand(), 60.0)):
            try:
                await call
            except StoreError as error:
                errors.append(str(error))
        assert all(str(copied) in error and "; " in error for error in errors), seed


HUGE = b"\xff" * 9 + b"\1"  # 2^64 - 1


@pytest.mark.parametrize(
    "limits",
    [
        *(b"\x0b\x0f\x80", b"\x0b\x0f", b"\x63\1\1\1\1", b"\x0e\1\1\1\1", "text"),
        *(b"\x0b" + fields for fields in (HUGE + b"\1\1\1", b"\1" + HUGE + b"\1\1", b"\1\1" + HUGE + b"\1")),
        b"\x15\1\1\1" + HUGE,
    ],
)
async def test_limits_that_make_no_sense_are_damage(
    limits: bytes | str,
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    limited: Deployment,
    path: Path,
) -> None:
    """Cut short, of a metric or source that there is not, out of bounds, or no packed numbers at all."""
    await store.cool_down(Cooldown.learn(limited.model_scope, LearntLimit(Metric.RPM, 7)))
    await store.aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE learnt_limits SET limits = ?", (limits,))
    with pytest.raises(StoreCorruptError, match="is damaged"):
        await open_store().snapshot([limited])


async def test_a_limit_that_rises_before_it_was_learnt_has_risen(
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    limited: Deployment,
    query: Callable[..., list[Any]],
    clock: ManualClock,
) -> None:
    """Where the clock was set back as well, it does not rise before 1970, which no file could hold."""
    await store.cool_down(Cooldown.learn(limited.model_scope, LearntLimit(Metric.RPM, 7)))
    await store.aclose()
    in_future = b"\xff" * 8 + b"\1"
    query("UPDATE learnt_limits SET limits = ?", b"\x0b\5" + in_future + b"\6\1")
    [snapshot] = await open_store().snapshot([limited])
    assert [(quota.limit, quota.learnt and quota.learnt.learnt_at) for quota in snapshot.quotas] == [
        (6, clock.time())
    ]


@pytest.mark.parametrize(
    "change",
    [
        "cooldown SET until = 'x'",
        "cooldown SET reason = x'00'",
        "cooldown_details SET imposed = 'x'",
        "cooldown_details SET strikes = 9e999",
        "lifts SET count = 'x'",
    ],
)
async def test_a_cooldown_that_makes_no_sense_is_damage(
    change: str,
    store: SQLiteStore,
    open_store: Callable[..., SQLiteStore],
    limited: Deployment,
    query: Callable[..., list[Any]],
    clock: ManualClock,
) -> None:
    """SQLite keeps text in a column of numbers: every call would fail with what Python says of it."""
    await store.cool_down(Cooldown(limited.key_scope, clock.time() + 60.0, "dead", half_open=True))
    await store.aclose()
    query(f"UPDATE {change}")
    reopened = open_store()
    for call in (reopened.snapshot([limited]), reopened.reserve("id", [limited], Demand(), 60.0)):
        with pytest.raises(StoreCorruptError, match="is damaged"):
            await call


async def test_a_charge_that_makes_no_sense_is_damage(
    store: SQLiteStore, limited: Deployment, query: Callable[..., list[Any]], clock: ManualClock
) -> None:
    """Its process is told so; what does not need it goes on."""
    takings = [Taking(clock.time(), Demand(1, 5))]
    await store.charge("process", 1, limited, takings)
    query("UPDATE charges SET sequence = 'x'")
    with pytest.raises(StoreCorruptError, match="is damaged"):
        await store.charge("process", 2, limited, takings)
    assert (await store.reserve("id", [limited], Demand(), 60.0)).deployment == limited


@pytest.mark.parametrize("policy", ["closed", "local"])
async def test_a_damaged_file_is_a_store_that_fails(
    policy: str, killed: Path, limited: Deployment, open_store: Callable[..., SQLiteStore], clock: ManualClock
) -> None:
    """In front of it the policy decides: nothing is granted, or a share, never more than the limit."""
    os.truncate(killed, 0)
    failover = FailoverStore(open_store(killed), policy=policy, clock=clock)  # type: ignore[arg-type]
    granted, refused = 0, ""
    for number in range(40):
        try:
            decision = await failover.reserve(f"id-{number}", [limited], Demand(), 60.0)
        except StoreUnavailableError as error:
            refused = str(error)
        else:
            granted += decision.deployment is not None
    assert granted == (0 if policy == "closed" else 7)
    assert (str(killed) in refused) is (policy == "closed")
    assert str(killed) in (failover.trouble or "")
    await failover.aclose()


@pytest.mark.parametrize(
    ("keep", "moved"), [(0.0, False), (0.001, False), (0.001, True), (0.5, False), (0.5, True)]
)
async def test_a_wal_that_is_cut_while_it_is_open(
    keep: float,
    moved: bool,
    path: Path,
    store: SQLiteStore,
    limited: Deployment,
    clock: ManualClock,
) -> None:
    """Nobody writes beyond its end: the loss is noticed, and the database is whole."""
    for number in range(TAKEN):
        await store.reserve(f"spent-{number}", [limited], Demand(), 600.0)
    if moved:
        checkpoint(path, "NORMAL", lambda: True)
    await store.snapshot([limited])
    _cut(keep)(path)
    [refusal] = (await store.reserve("refused", [limited], Demand(), 600.0)).refusals
    assert refusal.reason == RECOUNT
    clock.shift(1.0)
    store.known[limited.model_scope] = 1.0  # as a process knows it that has used the file before
    assert (await store.reserve("told", [limited], Demand(), 600.0)).lost == (limited,)
    store.known.clear()
    [snapshot] = await store.snapshot([limited])
    assert (snapshot.quotas[0].used == TAKEN) is moved
    assert (await store.reserve("id", [limited], Demand(), 600.0)).deployment is limited
    await store.aclose()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("written", [False, True])
async def test_a_wal_that_another_program_has_emptied_is_no_loss(
    written: bool,
    path: Path,
    store: SQLiteStore,
    limited: Deployment,
    spawn: Callable[..., subprocess.Popen[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may, with a checkpoint that moves all of it into the database, even if others have written since."""
    for number in range(TAKEN):
        await store.reserve(f"spent-{number}", [limited], Demand(), 600.0)
    size = _wal(path).stat().st_size
    statement = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", statement, str(path)], check=True)
    assert _wal(path).stat().st_size == 0
    if written:
        await asyncio.to_thread(spawn("hammer", path, 1, 30, 1000, 1).communicate, "\n")
        assert 0 < _wal(path).stat().st_size < size
    assert (await store.reserve("id", [limited], Demand(), 600.0)).deployment is limited
    assert (await store.snapshot([limited]))[0].quotas[0].used == TAKEN + 1
    assert not caplog.records


async def test_a_wal_that_starts_again_stays_as_long_as_it_was(
    path: Path, open_store: Callable[..., SQLiteStore], limited: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some builds of SQLite would cut it: each time the database would have to be opened anew."""
    connect = sqlite3.connect

    def connect_as_on_macos(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.execute("PRAGMA journal_size_limit = 32768")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_as_on_macos)
    store = open_store(path)
    for number in range(TAKEN):
        await store.reserve(f"spent-{number}", [limited], Demand(), 600.0)
    size = _wal(path).stat().st_size
    assert size > 32768
    checkpoint(path, "NORMAL", lambda: True)
    for number in range(3):
        assert (await store.reserve(f"id-{number}", [limited], Demand(), 600.0)).deployment is limited
    assert _wal(path).stat().st_size == size

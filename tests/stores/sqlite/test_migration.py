"""A file of an earlier version is migrated, and nothing that it counted is lost."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from llm_router import Deployment, Key, Secret
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.limits import LimitRecord, LimitSource
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.errors import StoreCorruptError
from llm_router.stores.base import Taking
from llm_router.stores.sqlite import SQLiteStore
from llm_router.stores.sqlite.database import APPLICATION_ID, SCHEMA_VERSION
from llm_router.testing import ManualClock

NOW = 1_800_000_003.0
QUOTAS = (
    Quota(Metric.RPM, 15),
    Quota(Metric.TPM, 1000, Refill.STEADY, burst=500),
    Quota(Metric.RPD, 100, Refill.DAILY),
)
FIRST = Deployment(Key("key-0", Secret("secret-0")), "model", quotas=QUOTAS)
SECOND = Deployment(Key("key-1", Secret("secret-1")), "model", quotas=QUOTAS[:1])


@pytest.fixture
def clock() -> ManualClock:
    """A clock that shows when the file was closed."""
    return ManualClock(NOW)


SCRIPTS = {1: ("schema.sql",), 2: ("schema.sql", "journal.sql", "additions.sql")}


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    """The version of the file: each in turn, unless a test says which."""
    return int(request.param)


@pytest.fixture(autouse=True)
def _earlier_file(path: Path, version: int) -> None:
    package = files("llm_router.stores.sqlite")
    schema = "".join(package.joinpath(name).read_text("utf-8") for name in SCRIPTS[version])
    rows = Path(__file__).with_name(f"version_{version}.sql").read_text("utf-8")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
            f"PRAGMA journal_mode = WAL; {schema}; {rows}"
        )


only_version_1 = pytest.mark.parametrize("version", [1], indirect=True)
only_version_2 = pytest.mark.parametrize("version", [2], indirect=True)


@only_version_1
async def test_counts_cooldowns_and_learnt_limits_are_kept(
    store: SQLiteStore, query: Callable[..., list[Any]]
) -> None:
    """Rolling, steady and daily quotas are as they were, to the microsecond."""
    first, second = await store.snapshot([FIRST, SECOND])
    assert [(quota.limit, quota.used, quota.resets_at) for quota in first.quotas] == [
        (15, 3, NOW + 59.3),
        (1000, 316, 1800000040.922156),
        (100, 3, 1800086400.0),
    ]
    assert [(quota.limit, quota.used, quota.resets_at) for quota in second.quotas] == [(9, 1, NOW + 60.3)]
    learnt = (LearntLimit(Metric.RPM, 9),)
    assert second.cooldown == Cooldown(SECOND.model_scope, NOW + 30.0, "told so", learnt)
    assert query("PRAGMA user_version") == [(SCHEMA_VERSION,)]


@only_version_2
async def test_nothing_of_version_2_is_lost(store: SQLiteStore, query: Callable[..., list[Any]]) -> None:
    """Counts, cooldowns and learnt limits are as its program showed them; reservations can be settled."""
    first, second = await store.snapshot([FIRST, SECOND])
    assert [(quota.limit, quota.used, quota.resets_at) for quota in first.quotas] == [
        (4, 3, NOW + 60.3),
        (1000, 324, 1800000041.922156),
        (100, 3, 1800086400.0),
        (5000, 0, NOW),
    ]
    assert [quota.learnt for quota in first.quotas] == [
        LimitRecord(4, LimitSource.INFERRED, NOW, 5, NOW + 20.0),
        None,
        None,
        LimitRecord(5000, LimitSource.STATED, NOW, 5000, math.inf),
    ]
    assert [(quota.limit, quota.used, quota.learnt) for quota in second.quotas] == [
        (9, 3, LimitRecord(9, LimitSource.STATED, NOW, 9, math.inf)),
        (70, 0, LimitRecord(70, LimitSource.STATED, NOW - 3600.0, 70, math.inf)),
    ]
    assert second.cooldown == Cooldown(
        SECOND.key_scope,
        NOW + 300.0,
        "dead",
        (),
        half_open=True,
        strikes=2,
        since=NOW - 5.0,
        credential="mark",
    )
    await store.settle("a2", Demand(1, 0))
    await store.release("b0")
    await store.settle("a0", Demand(9, 9))  # it was settled before
    await store.charge("process", 7, SECOND, [Taking(NOW, Demand(5, 5))])  # so was this charge made
    first, second = await store.snapshot([FIRST, SECOND])
    assert [quota.used for quota in (*first.quotas, *second.quotas)] == [3, 224, 3, 0, 2, 0]
    assert query("PRAGMA user_version") == [(SCHEMA_VERSION,)]
    names = {name for (name,) in query("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not names & {"learnt_limit", "limit_details"}


@only_version_2
@pytest.mark.parametrize("forged", ["'rainfall', 9", "'tpd', -9", "'tpd', 9000000000000000000", "'tpd', 'x'"])
async def test_a_limit_that_makes_no_sense_leaves_the_file_as_it_was(
    forged: str, store: SQLiteStore, query: Callable[..., list[Any]]
) -> None:
    """The error says that the file is damaged; the version stays the same."""
    query(f"INSERT INTO learnt_limit VALUES ('model:gemini:key-1:model', {forged}, 1801209603000000)")
    with pytest.raises(StoreCorruptError, match="is damaged"):
        await store.snapshot([FIRST])
    assert query("PRAGMA user_version") == [(2,)]
    assert query("SELECT count(*) FROM learnt_limit") == [(5,)]


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_what_is_in_a_wal_is_migrated(
    path: Path, open_store: Callable[..., SQLiteStore], tmp_path: Path, *, is_damaged: bool
) -> None:
    """Of a process that was killed, or still runs: nothing is lost, unless the WAL was damaged."""
    copied = tmp_path / "killed" / path.name
    copied.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for _ in range(3):
            connection.executescript("CREATE TABLE filler (x); DROP TABLE filler")
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{path}{suffix}", f"{copied}{suffix}")
    if is_damaged:
        wal = copied.with_name(f"{copied.name}-wal")
        os.truncate(wal, wal.stat().st_size // 2)
    decision = await open_store(copied).reserve("new", [FIRST], Demand(1, 50), 60.0)
    assert (decision.reset_at > 0.0) is is_damaged
    assert (decision.deployment is None) is is_damaged


@only_version_1
async def test_what_was_reserved_is_never_given_back(store: SQLiteStore) -> None:
    """The process that made a reservation ran the earlier version and is gone: it keeps what it took."""
    await store.release("a1")
    await store.settle("b0", Demand(5, 5))
    first, second = await store.snapshot([FIRST, SECOND])
    assert [quota.used for quota in (*first.quotas, *second.quotas)] == [3, 316, 3, 1]


@only_version_1
async def test_a_migrated_file_is_used_like_any_other(
    store: SQLiteStore, open_store: Callable[..., SQLiteStore]
) -> None:
    """What is reserved and released after the migration is added to what was there."""
    await store.reserve("new", [FIRST], Demand(1, 50), 60.0)
    await store.reserve("other", [FIRST], Demand(1, 50), 60.0)
    await store.release("other")
    await store.aclose()
    [first] = await open_store().snapshot([FIRST])
    assert [quota.used for quota in first.quotas] == [4, 366, 4]


@only_version_2
async def test_details_of_a_cooldown_apply_to_that_cooldown_only(
    store: SQLiteStore, query: Callable[..., list[Any]]
) -> None:
    """An earlier program for version 2, which did not know them, wrote another cooldown of the scope."""
    query("UPDATE cooldown SET until = ?, reason = 'busy' WHERE scope = ?", NOW + 400.0, SECOND.key_scope)
    [snapshot] = await store.snapshot([SECOND])
    assert snapshot.cooldown == Cooldown(SECOND.key_scope, NOW + 400.0, "busy")


@only_version_2
async def test_details_of_a_limit_apply_to_that_limit_only(
    store: SQLiteStore, query: Callable[..., list[Any]]
) -> None:
    """One that an earlier program learnt later was stated a day before its end."""
    query(
        "UPDATE learnt_limit SET value = 3, until = ? WHERE scope = ? AND metric = 'rpm'",
        round((NOW + 86_400.0) * 1e6),
        FIRST.model_scope,
    )
    [snapshot] = await store.snapshot([FIRST])
    assert snapshot.quotas[0].limit == 3
    assert snapshot.quotas[0].learnt == LimitRecord(3, LimitSource.STATED, NOW, 3, math.inf)

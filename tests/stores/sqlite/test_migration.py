"""A file of an earlier version is migrated, and nothing that it counted is lost."""

from __future__ import annotations

import math
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


@pytest.fixture(autouse=True)
def _version_1(path: Path) -> None:
    schema = files("llm_router.stores.sqlite").joinpath("schema.sql").read_text("utf-8")
    rows = Path(__file__).with_name("version_1.sql").read_text("utf-8")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;"
            f"{schema}; {rows}"
        )


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


async def test_what_was_reserved_is_never_given_back(store: SQLiteStore) -> None:
    """The process that made a reservation ran the earlier version and is gone: it keeps what it took."""
    await store.release("a1")
    await store.settle("b0", Demand(5, 5))
    first, second = await store.snapshot([FIRST, SECOND])
    assert [quota.used for quota in (*first.quotas, *second.quotas)] == [3, 316, 3, 1]


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


async def test_an_earlier_version_sees_a_half_open_cooldown_as_a_plain_one(
    store: SQLiteStore, open_store: Callable[..., SQLiteStore], query: Callable[..., list[Any]]
) -> None:
    """It reads the columns that it knows; what it writes itself takes the place of the details."""
    verdict = Cooldown(FIRST.key_scope, NOW + 300.0, "dead", half_open=True, strikes=2, since=NOW - 5.0)
    await store.cool_down(verdict)
    [row] = query("SELECT until, reason, learnt FROM cooldown WHERE scope = ?", FIRST.key_scope)
    assert row == (NOW + 300.0, "dead", "[]")
    await store.aclose()
    [snapshot] = await open_store().snapshot([FIRST])
    assert snapshot.cooldown == verdict
    query(
        "INSERT OR REPLACE INTO cooldown (scope, until, reason, learnt) VALUES (?, ?, 'busy', '[]')",
        FIRST.key_scope,
        NOW + 400.0,
    )
    [snapshot] = await open_store().snapshot([FIRST])
    assert snapshot.cooldown == Cooldown(FIRST.key_scope, NOW + 400.0, "busy")


async def test_a_limit_that_an_earlier_version_learnt_was_stated_a_day_before_its_end(
    store: SQLiteStore, open_store: Callable[..., SQLiteStore], query: Callable[..., list[Any]]
) -> None:
    """Details of a limit apply to that limit only: what an earlier version writes takes their place."""
    rises = LearntLimit(Metric.RPM, 4, LimitSource.INFERRED, raised=5, raise_after=20.0)
    await store.cool_down(Cooldown.learn(FIRST.model_scope, rises))
    await store.aclose()
    [snapshot] = await open_store().snapshot([FIRST])
    assert snapshot.quotas[0].learnt == LimitRecord(4, LimitSource.INFERRED, NOW, 5, NOW + 20.0)
    query(
        "INSERT OR REPLACE INTO learnt_limit (scope, metric, value, until) VALUES (?, 'rpm', 3, ?)",
        FIRST.model_scope,
        round((NOW + 86_400.0) * 1e6),
    )
    [snapshot] = await open_store().snapshot([FIRST])
    assert snapshot.quotas[0].limit == 3
    assert snapshot.quotas[0].learnt == LimitRecord(3, LimitSource.STATED, NOW, 3, math.inf)

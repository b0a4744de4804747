"""The text of statuses, for terminals of any width."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from llm_router import Cooldown, Deployment, Router
from llm_router.cli.status_view import blocks, notes, table
from llm_router.cli.words import (
    amount,
    failure_words,
    fraction,
    health_words,
    learnt_words,
    moment,
    state_of,
    today_words,
)
from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.status import DayTotals, FailureStatus, Health, KeyStatus, LimitStatus
from llm_router.stores.memory import MemoryStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Show the times of a test as they are in UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def statuses_of(pools: Pools, clock: ManualClock) -> tuple[Health, list[KeyStatus]]:
    """Return what there is to see of a pool in which everything has happened."""

    async def run() -> tuple[Health, list[KeyStatus]]:
        store = MemoryStore(clock=clock)
        pool: list[Deployment] = [
            pools.one("gemini-3.5-flash-lite", key_id="gemini-key-01", rpm=15, tpm=250_000, rpd=500),
            pools.one("gemini-3.8-flash", "medium", key_id="gemini-key-01", rpm=1),
            pools.one("gemini-3.8-flash", "medium", key_id="gemini-key-02", project="acme", rpm=5, rpd=20),
            pools.one("gemini-pro-latest", "heavy", key_id="gemini-key-03", rpm=5),
            pools.one("gemini-pro-latest", "heavy", key_id="gemini-key-04", rpm=0),
        ]
        router = Router(pool, store=store, provider=FakeProvider(clock=clock), clock=clock)
        async with router:
            for deployment in (*pool[1:3], *pool[2:3] * 3):
                await router.send("hello", model=deployment.model, fallback="none")
            learnt = LearntLimit(pool[0].quotas[0].metric, 10, LimitSource.INFERRED)
            await store.cool_down(Cooldown.learn(pool[0].model_scope, learnt))
            end = clock.time() + 90.0
            await store.cool_down(Cooldown(pool[2].model_scope, end, "429: \x1b[31mrpm spent"))
            await router.keys.disable("gemini-key-03", reason="to be rotated")
            return await router.health_check(), await router.get_all_key_statuses()

    return asyncio.run(run())


def test_each_state_has_its_words(pools: Pools, clock: ManualClock) -> None:
    """What is spent is not ready, and each says until when, without control characters."""
    health, statuses = statuses_of(pools, clock)
    assert [state_of(row) for row in statuses] == [
        "ready",
        "spent until 12:01:00 (60 s): rpm",
        "cooling down until 12:01:30 (90 s): 429: [31mrpm spent",
        "disabled: to be rotated",
        "spent for good: rpm",
    ]
    assert [row["state"] for row in statuses] == ["ready", "spent", "cooling_down", "disabled", "spent"]
    assert health_words(health) == "healthy"
    spent = Health(**{**health, "state": "spent", "usable_at": clock.time(), "usable_in_seconds": 0.0})
    assert health_words(spent) == "spent until 12:00:00 (0 s)"
    assert "goes on alone" in health_words(Health(**{**health, "state": "store_lost"}))
    unusable = Health(**{**health, "state": "unusable", "usable_at": None})
    assert health_words(unusable) == "not healthy"


def test_what_happened_is_told_in_words(pools: Pools, clock: ManualClock) -> None:
    """Totals, limits that rise, failures with and without a code, quarantines, a provider out of reach."""
    _, statuses = statuses_of(pools, clock)
    row, now = statuses[1], clock.time()
    day = DayTotals(day="2027-01-15", requests=312, input_tokens=1, output_tokens=1, rate_limited=4, errors=2)
    assert today_words(day) == "312, 4x429, 2 failed"
    assert today_words(None) == "–"
    limit = row["limits"]["rpm"]
    limit |= {"source": "unknown", "learnt_at": now - 30, "raised_at": now + 600}
    words = "rpm 1 instead of 1, not refused so far; grew 30 s ago; more is tried in 10 min"
    assert learnt_words("rpm", limit, now) == words
    assert fraction(limit) == "1/1?"
    unknown: LimitStatus = {**limit, "limit": None, "raised_at": None}
    assert learnt_words("rpm", unknown, now) == "rpm has no known limit; counted since a refusal 30 s ago"
    failure = FailureStatus(at=now - 90, model="m", kind="server", code=503, words="broken")
    assert failure_words(failure, now) == "90 s ago, m: 503 broken"
    failure["code"] = None
    row["failures"] = [failure, {**failure, "at": now - 600}]
    assert list(notes([row, row], now))[1:] == [
        "gemini-key-01 failed 90 s ago, m: broken",
        "gemini-key-01 failed 10 min ago, m: broken",
    ]
    row |= {"state": "quarantined", "reason": "key: dead", "usable_at": now + 60}
    assert state_of(row, now) == "quarantined until 12:01:00 (60 s): key: dead"
    row |= {"state": "unreachable", "usable_at": None}
    assert state_of(row) == "provider cannot be reached; tried again"


def test_a_long_reason_does_not_widen_a_table(pools: Pools, clock: ManualClock) -> None:
    """What a provider wrote at length is shortened to one line; short reasons are told in full."""
    _, statuses = statuses_of(pools, clock)
    row = statuses[2] | {"reason": "404 model not found:\n" + "see the list of models " * 40}
    words = state_of(row)
    assert words.startswith("cooling down until 12:01:30 (90 s): 404 model not found: see the list")
    assert words.endswith("…")
    assert len(words) < 100
    assert "\n" not in words


@pytest.mark.parametrize("width", [30, 60, 80])
def test_blocks_fit(pools: Pools, clock: ManualClock, width: int) -> None:
    """No line is longer than the terminal is wide, and nothing is lost."""
    _, statuses = statuses_of(pools, clock)
    lines = list(blocks(statuses, width))
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    for row in statuses:
        assert f"{row['workload']}, priority 1" in words
        assert row["model"] in words
    assert "rpm 0/10~" in words
    assert "(90 s)" in words
    assert "today 1" in words
    if width > 30:
        assert "gemini-key-01  gemini-3.5-flash-lite  ready" in lines


def test_a_table_says_how_wide_it_is(pools: Pools, clock: ManualClock) -> None:
    """It fits 200 columns, and not 80; what is learnt is marked and explained."""
    _, statuses = statuses_of(pools, clock)
    head, rows, needed = table(statuses)
    assert 80 < needed <= 200
    assert rows[0] == (
        "gemini-key-01",
        "gemini-3.5-flash-lite",
        "gemini-key-01",
        "light",
        "1",
        "0/10~",
        "0/250k",
        "0/500",
        "–",
        "0",
        "–",
        "ready",
    )
    assert len(head) == len(rows[0])
    assert list(notes(statuses, clock.time() + 30)) == [
        "gemini-key-01 gemini-3.5-flash-lite: rpm 10 instead of 15, inferred from refusals 30 s ago"
    ]


def test_numbers_and_times_are_short(pools: Pools, clock: ManualClock) -> None:
    """Six characters at most for a number; the date where the time of day would not be clear."""
    assert [amount(number) for number in (0, 9_999, 10_000, 12_345, 250_000, 1_000_000, 10**15)] == [
        "0",
        "9999",
        "10k",
        "12.3k",
        "250k",
        "1M",
        "1000000G",
    ]
    assert moment(clock.time(), clock.time() - 7_200) == "12:00"
    assert moment(clock.time(), 0.0) == "2027-01-15 12:00"
    assert moment(1e300, 0.0) == "some day"
    assert fraction(None) == "–"

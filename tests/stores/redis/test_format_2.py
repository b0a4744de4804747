"""What the previous release wrote, in format 2, is read and continued by this one."""

from __future__ import annotations

import json
import math
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llm_router.domain.cooldown import LEARNT_FOR, Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.stores.redis import RedisStore
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer


START = 1_800_041_000.25
"""When the previous release began to write ``format_2.json``, which took four seconds of its clock."""

QUOTAS = (Quota(Metric.RPM, 5), Quota(Metric.TPM, 5000, Refill.STEADY), Quota(Metric.RPD, 50, Refill.DAILY))
A_DAY = 86_400.0


def deployment(name: str, *quotas: Quota) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=quotas)


@pytest.fixture
def clock() -> ManualClock:
    """Provide the clock as it was after the last write."""
    return ManualClock(START + 4.0)


@pytest.fixture
def former(server: RedisServer) -> RedisServer:
    """Provide a server with what the previous release left there."""
    written = json.loads(Path(__file__).with_name("format_2.json").read_text())
    with server.client() as client:
        for key, value in written.items():
            if isinstance(value, dict):
                client.hset(key, mapping=value)
            else:
                client.set(key, bytes.fromhex(value))
    return server


def opened(server: RedisServer, clock: ManualClock) -> aclosing[RedisStore]:
    return aclosing(RedisStore(server.url, clock=clock))


async def test_what_was_taken_still_counts(former: RedisServer, clock: ManualClock) -> None:
    """Four requests of a rolling minute and of a day, and the debt of a steady quota."""
    limited = deployment("a", *QUOTAS)
    async with opened(former, clock) as store:
        [snapshot] = await store.snapshot([limited])
        assert [quota.used for quota in snapshot.quotas] == [4, 1435, 4]
        assert (await store.reserve("new", [limited], Demand(1, 10), 60.0)).deployment is limited
        assert (await store.reserve("newer", [limited], Demand(1, 10), 60.0)).deployment is None
        clock.shift(56.3)
        assert (await store.reserve("newest", [limited], Demand(1, 10), 60.0)).deployment is limited


async def test_a_reservation_can_still_be_settled(former: RedisServer, clock: ManualClock) -> None:
    """By whichever process; the marks in it mean the same as before."""
    limited = deployment("a", *QUOTAS)
    async with opened(former, clock) as store:
        await store.release("r3")
        [snapshot] = await store.snapshot([limited])
        assert [quota.used for quota in snapshot.quotas] == [3, 935, 3]


async def test_a_reservation_that_an_earlier_version_keeps_elsewhere_is_settled_once(
    former: RedisServer, clock: ManualClock
) -> None:
    """In either format; what is not settled is left to expire with the rest."""
    limited = deployment("a", *QUOTAS)
    with former.client() as client:
        before = set(client.hkeys("{llm_router}:reservations"))
        async with opened(former, clock) as store:
            await store.reserve("new", [limited], Demand(1, 10), 60.0)
            present = client.hget("{llm_router}:reservations:3", "new")
            client.delete("{llm_router}:reservations:3")
            client.hset("{llm_router}:reservations", "new", present)  # as a version in between did
            for _ in range(2):
                await store.settle("r3", Demand(1, 7))
                await store.release("new")
            [snapshot] = await store.snapshot([limited])
            assert [quota.used for quota in snapshot.quotas] == [4, 942, 4]
        assert set(client.hkeys("{llm_router}:reservations")) == before - {b"r3"}


async def test_what_an_earlier_version_left_of_another_type_is_no_reservation(server: RedisServer) -> None:
    """The present hash is all that counts then."""
    limited = deployment("a", Quota(Metric.RPM, 5))
    with server.client() as client:
        client.set("{llm_router}:reservations", "x")
        async with opened(server, ManualClock(START)) as store:
            await store.reserve("r", [limited], Demand(), 60.0)
            await store.release("r")
            await store.release("unknown")
            [snapshot] = await store.snapshot([limited])
            assert snapshot.quotas[0].used == 0
        assert client.get("{llm_router}:reservations") == b"x"


async def test_cooldowns_and_learnt_limits_still_apply(former: RedisServer, clock: ManualClock) -> None:
    """With all that was known of them; the limits even after the cooldowns."""
    rests = deployment("b", Quota(Metric.RPM, 10))
    async with opened(former, clock) as store:
        [snapshot] = await store.snapshot([rests])
        learnt = (LearntLimit(Metric.RPM, 3),)
        assert snapshot.cooldown == Cooldown(rests.key_scope, START + 300.0, "rests: «ü»", learnt)
        clock.shift(296.0)
        granted = [await store.reserve(f"new {n}", [rests], Demand(), 60.0) for n in range(4)]
        assert [decision.deployment is rests for decision in granted] == [True] * 3 + [False]
        clock.shift(LEARNT_FOR)
        [snapshot] = await store.snapshot([rests])
        assert snapshot.quotas[0].limit == 10


async def test_a_quarantine_that_is_lifted_does_not_come_back(
    former: RedisServer, clock: ManualClock
) -> None:
    """However long what the previous release wrote is still there."""
    dead = deployment("c", Quota(Metric.RPM, 10))
    async with opened(former, clock) as store:
        [refusal] = (await store.reserve("new", [dead], Demand(), 60.0)).refusals
        assert (refusal.reason, refusal.retry_at) == ("dead", math.inf)
        await store.cool_down(Cooldown.lift(dead.key_scope))
        with former.client() as client:
            [former_key, key] = sorted(client.scan_iter("*key:gemini:c*"))
            assert key == former_key + b":3"
            assert client.pttl(key) > 365 * A_DAY * 1000
        assert (await store.reserve("newer", [dead], Demand(), 60.0)).deployment is dead


async def test_what_the_previous_release_uses_is_left_as_it_was(
    former: RedisServer, clock: ManualClock
) -> None:
    """It may still be running; nothing is shared with it but what it reserved."""
    limited = deployment("a", *QUOTAS)
    with former.client() as client:
        before = {key: client.dump(key) for key in client.scan_iter()}
        async with opened(former, clock) as store:
            await store.reserve("new", [limited], Demand(1, 10), 60.0)
            await store.settle("new", Demand(1, 7))
            await store.cool_down(Cooldown(limited.key_scope, START + 50.0, "rests"))
        assert {key: client.dump(key) for key in before} == before

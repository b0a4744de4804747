"""The contract of sharing: which deployments share a quota, and what a second process sees."""

from __future__ import annotations

import asyncio
import itertools

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import RateLimitStore
from llm_router.testing.clock import ManualClock
from llm_router.testing.store_contract.base import (
    SECRET,
    SPAN,
    START,
    ContractBase,
    close,
    deployment,
    grants,
    quotas_of,
    reserve,
    rpd,
    rpm,
    steady,
    tpm,
    used,
)

__all__ = ["SharingContract"]

_ODD = (
    "a",
    "a:b",
    "a%3Ab",
    "a/b",
    "a b",
    "a_b",
    "a\nb",
    "a\x00b",
    "A",
    "é",
    "e\u0301",
    "日本",
    "🙂",
    "{}",
    "{a}",
    "'; DROP TABLE quotas; --",
    '"a"',
    "*",
    "[a]",
    "\\",
    "model:gemini:a:m",
    "%",
    "0",
    "-1",
    "None",
)


async def _granted(store: RateLimitStore, candidate: Deployment) -> int:
    """Return how many requests are granted until one is not."""
    granted = 0
    while granted < 500 and await grants(store, candidate):
        granted += 1
    return granted


class SharingContract(ContractBase):
    """What deployments, keys and processes share."""

    async def test_a_store_implements_the_protocol(self) -> None:
        """It has the methods of a RateLimitStore."""
        async with self.open_store(ManualClock(START)) as store:
            assert isinstance(store, RateLimitStore)

    async def test_keys_of_one_project_share_their_quotas(self) -> None:
        """What one key takes is missing for the other, and either may settle it."""
        async with self.open_store(ManualClock(START)) as store:
            one, two = (deployment(rpm(3), tpm(90), key=key, project="p") for key in ("one", "two"))
            await reserve(store, one, tokens=60, reservation_id="first")
            assert await grants(store, two, tokens=30)
            assert not await grants(store, two, tokens=1)
            await store.settle("first", Demand(1, 20))
            assert await grants(store, two, tokens=40)
            assert not await grants(store, one)
            assert await used(store, one) == await used(store, two) == [3, 90]

    async def test_projects_models_and_providers_do_not_share(self) -> None:
        """A quota belongs to one provider, project and model."""
        async with self.open_store(ManualClock(START)) as store:
            deployments = [
                deployment(rpm(1), key="a", project="p"),
                deployment(rpm(1), key="b", project="q"),
                deployment(rpm(1), key="a", project="p", model="other"),
                deployment(rpm(1), key="a", project="p", provider="other"),
            ]
            assert all([await grants(store, each) for each in deployments])
            assert not any([await grants(store, each) for each in deployments])

    async def test_a_key_without_project_is_its_own(self) -> None:
        """It shares with the project of the same name, and with no other key."""
        async with self.open_store(ManualClock(START)) as store:
            assert await grants(store, deployment(rpm(1), key="a"))
            assert not await grants(store, deployment(rpm(1), key="b", project="a"))
            assert await grants(store, deployment(rpm(1), key="b"))

    async def test_no_character_of_an_id_makes_two_quotas_one(self) -> None:
        """Each of many odd projects and models has a quota of its own."""
        async with self.open_store(ManualClock(START)) as store:
            pairs = list(itertools.product(_ODD, _ODD[:6]))
            deployments = [deployment(rpm(1), key=key, model=model) for key, model in pairs]
            granted = await asyncio.gather(*(grants(store, each) for each in deployments))
            assert granted == [True] * len(deployments)
            granted = await asyncio.gather(*(grants(store, each) for each in deployments))
            assert granted == [False] * len(deployments)

    async def test_no_character_of_an_id_makes_two_cooldowns_one(self) -> None:
        """A cooldown of one odd key does not affect any other, and its reason is kept exactly."""
        async with self.open_store(ManualClock(START)) as store:
            deployments = [deployment(key=key) for key in _ODD]
            for number, cooled in enumerate(deployments):
                await store.cool_down(Cooldown(cooled.key_scope, START + 10.0 + number, _ODD[number]))
                decisions = await asyncio.gather(*(reserve(store, each) for each in deployments))
                refused = [each for each, made in zip(deployments, decisions, strict=True) if made.refusals]
                assert refused == deployments[: number + 1]
                assert decisions[number].refusals[0].reason == _ODD[number]

    async def test_many_deployments_keep_every_limit(self) -> None:
        """Nothing is evicted: each of 300 deployments refuses what exceeds its limit."""
        async with self.open_store(ManualClock(START)) as store:
            deployments = [deployment(rpm(2), key=f"key-{n}") for n in range(300)]
            for expected in (True, True, False):
                granted = await asyncio.gather(*(grants(store, each) for each in deployments))
                assert granted == [expected] * len(deployments)

    # --- snapshots ------------------------------------------------------------------------------------

    async def test_a_snapshot_has_limits_use_and_reset(self) -> None:
        """Quotas and deployments are in the order asked for; a deployment asked for twice is there twice."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            one, other = deployment(rpm(3), tpm(90), rpd(9), key="one"), deployment(tpm(5), key="other")
            assert await grants(store, one, tokens=60)
            clock.shift(4.0)
            assert await grants(store, one, tokens=20)
            snapshots = await store.snapshot([other, one, other])
            assert [snapshot.deployment for snapshot in snapshots] == [other, one, other]
            assert snapshots[0].quotas == snapshots[2].quotas
            reported = [(quota.metric.value, quota.limit, quota.used) for quota in snapshots[1].quotas]
            assert reported == [("rpm", 3, 2), ("tpm", 90, 80), ("rpd", 9, 2)]
            assert [quota.used for quota in snapshots[0].quotas] == [0]
            quotas = await quotas_of(store, one)
            assert close(quotas[Metric.RPM].resets_at, START + 4.0 + SPAN)
            assert close(quotas[Metric.TPM].resets_at, START + 4.0 + SPAN)
            assert START < quotas[Metric.RPD].resets_at <= START + 86_400
            assert close(snapshots[0].quotas[0].resets_at, clock.time())
            assert all(snapshot.cooldown is None for snapshot in snapshots)

    async def test_a_snapshot_changes_nothing(self) -> None:
        """Not even a snapshot of a deployment that was never used."""
        async with self.open_store(ManualClock(START)) as store:
            one, unused = deployment(rpm(2), key="one"), deployment(rpm(2), key="unused")
            assert await grants(store, one)
            first = await store.snapshot([one, unused])
            for _ in range(10):
                assert await store.snapshot([one, unused]) == first
            assert await store.snapshot([]) == []
            for each, left in ((one, 1), (unused, 2)):
                assert [await grants(store, each) for _ in range(3)] == [True] * left + [False] * (3 - left)

    async def test_no_credential_is_shown(self) -> None:
        """Neither by the store nor by its answers."""
        async with self.open_store(ManualClock(START)) as store:
            one = deployment(rpm(1))
            shown = [
                await reserve(store, one),
                await reserve(store, one),
                *await store.snapshot([one]),
                store,
            ]
            assert not [each for each in shown if SECRET in repr(each)]

    async def test_closing_twice_is_closing_once(self) -> None:
        """Each user of a store may close it."""
        async with self.open_store(ManualClock(START)) as store:
            assert await grants(store, deployment(rpm(1)))
            await store.aclose()
            await store.aclose()

    # --- a second process -----------------------------------------------------------------------------

    async def test_a_second_handle_shares_every_quota(self) -> None:
        """What one takes is missing for the other at its next call, and either may settle it."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as second:
            one, two = deployment(rpm(2), tpm(100)), deployment(rpm(2), tpm(100))
            await reserve(store, one, tokens=80, reservation_id="shared")
            assert not await grants(second, two, tokens=30)
            await second.settle("shared", Demand(1, 10))
            assert await used(store, one) == [1, 10]
            assert await grants(second, two, tokens=90)
            assert not await grants(store, one)
            await store.release("shared")
            assert await used(second, two) == [2, 100]

    async def test_a_second_handle_sees_cooldowns_at_its_next_call(self) -> None:
        """Set, prolonged, quarantined and lifted by one, seen by the other."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as second:
            one = deployment(rpm(9))
            assert await grants(second, one)
            for seconds in (10.0, 40.0, 20.0, float("inf")):
                await store.cool_down(Cooldown(one.model_scope, START + seconds, "busy"))
                [refusal] = (await reserve(second, one)).refusals
                assert close(refusal.retry_at, START + max(seconds, 40.0 if seconds > 10.0 else 10.0))
            await second.cool_down(Cooldown.lift(one.model_scope))
            assert await grants(store, one)
            assert await grants(second, one)

    async def test_a_second_handle_sees_learnt_limits_at_its_next_call(self) -> None:
        """A limit that one has learnt applies to the other."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as second:
            one = deployment(rpm(9))
            assert await grants(second, one)
            learnt = (LearntLimit(Metric.RPM, 2), LearntLimit(Metric.RPD, 50))
            await store.cool_down(Cooldown(one.model_scope, START, "stated", learnt))
            assert [await grants(second, one) for _ in range(2)] == [True, False]
            assert list(await quotas_of(second, one)) == [Metric.RPM, Metric.RPD]

    async def test_two_handles_at_once_get_exactly_the_limit(self) -> None:
        """Fifty requests through each at the same time, with a limit of 15."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as second:
            one = deployment(rpm(15))
            granted = await asyncio.gather(
                *(grants(handle, one) for _ in range(50) for handle in (store, second))
            )
            assert sum(granted) == 15

    async def test_a_changed_limit_of_one_handle_holds_for_its_own_calls(self) -> None:
        """A process that was started with a new limit applies it, on top of what the other took."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as second:
            before, after = deployment(rpm(2)), deployment(rpm(5))
            assert [await grants(store, before) for _ in range(3)] == [True, True, False]
            assert await grants(second, after)
            assert not await grants(store, before)
            assert [await grants(second, after) for _ in range(3)] == [True, True, False]

    async def test_a_look_under_other_terms_changes_nothing(self) -> None:
        """By either handle, in a call with others or alone: all is as if nobody had looked."""
        hour = 3600.0
        terms = [
            Quota(Metric.RPM, 20, window=hour),
            Quota(Metric.RPM, 20),
            Quota(Metric.RPM, 300),
            Quota(Metric.RPM, 20, Refill.STEADY, window=hour, burst=5),
            Quota(Metric.RPM, 20, Refill.STEADY, burst=5),
            Quota(Metric.RPM, 20, Refill.DAILY),
            Quota(Metric.RPM, 20, Refill.DAILY, timezone="Asia/Tokyo"),
        ]
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as second:
            own = [deployment(each, key=f"own-{n}") for n, each in enumerate(terms)]
            unseen = [deployment(each, key=f"unseen-{n}") for n, each in enumerate(terms)]
            looks = [deployment(each, key=f"own-{n}") for n in range(len(terms)) for each in terms]
            for turn in range(3):
                takings = [reserve(store, each, reservation_id=f"{each.key.key_id} {turn}") for each in own]
                await asyncio.gather(store.snapshot(looks), *takings, store.snapshot(looks))
                for each in unseen:
                    await reserve(store, each, reservation_id=f"{each.key.key_id} {turn}")
                clock.shift(40.0)
                await second.snapshot(looks)
                await store.snapshot(looks)
                clock.shift(0.5)
            for each in (*own, *unseen):
                await store.settle(f"{each.key.key_id} 2", Demand(2, 0))
            for expected, found in zip(await store.snapshot(unseen), await store.snapshot(own), strict=True):
                assert found.quotas == expected.quotas
            for one, two in zip(own, unseen, strict=True):
                assert await _granted(store, one) == await _granted(store, two)

    async def test_another_refill_keeps_what_was_taken(self) -> None:
        """A change of the way a quota refills admits nothing beyond its limit, nor do two that take turns."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as second:
            rolling, drips = deployment(rpm(10)), deployment(steady(Metric.RPM, 10))
            granted = 0
            for turn in range(40):
                granted += await grants(store, rolling)
                granted += await grants(second, drips)
                if turn < 4:
                    clock.shift(1.0)
            assert 5 <= granted <= 10

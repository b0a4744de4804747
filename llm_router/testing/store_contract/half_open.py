"""The contract of half-open cooldowns: one request goes first, strikes are remembered, lifts are noticed."""

from __future__ import annotations

import asyncio
import math

import attrs

from llm_router.domain.cooldown import PROBE_TIME, STRIKES_KEPT, Cooldown
from llm_router.domain.deployment import Scope
from llm_router.testing.clock import ManualClock
from llm_router.testing.store_contract.base import (
    MS,
    START,
    ContractBase,
    close,
    deployment,
    grants,
    move_to,
    reserve,
    rpm,
    set_back,
)

__all__ = ["HalfOpenContract"]


def _verdict(scope: Scope, seconds: float = 300.0, strikes: int = 2) -> Cooldown:
    return Cooldown(
        scope,
        START + seconds,
        'key: no "permission" — π',
        half_open=True,
        strikes=strikes,
        since=START - 3.25,
        credential="00ff:1a2b",
    )


def _same(one: Cooldown | None, other: Cooldown) -> bool:
    """Whether two cooldowns agree; moments may differ by less than a millisecond."""
    if one is None:
        return False
    moments = close(one.until, other.until) and close(one.since, other.since)
    return moments and attrs.evolve(one, until=other.until, since=other.since) == other


class HalfOpenContract(ContractBase):
    """Verdicts that end: cooldowns after which one request goes first."""

    async def test_a_verdict_refuses_and_is_shown_whole(self) -> None:
        """The refusal and the snapshot carry the cooldown with all its fields."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(5))
            verdict = _verdict(limited.key_scope)
            await store.cool_down(verdict)
            [refusal] = (await reserve(store, limited)).refusals
            assert close(refusal.retry_at, START + 300.0)
            assert _same(refusal.cooldown, verdict)
            [snapshot] = await store.snapshot([limited])
            assert _same(snapshot.cooldown, verdict)

    async def test_a_quota_refuses_without_a_cooldown(self) -> None:
        """A refusal for want of quota names none."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(1))
            assert await grants(store, limited)
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.cooldown is None

    async def test_one_request_goes_first(self) -> None:
        """At the end of a verdict one reserve is granted and told what it probes; all others are refused."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(50))
            verdict = _verdict(limited.model_scope)
            await store.cool_down(verdict)
            move_to(clock, START + 300.0 - MS)
            assert not await grants(store, limited)
            move_to(clock, START + 300.0)
            decision = await reserve(store, limited)
            assert decision.deployment is limited
            [probe] = decision.probes
            assert _same(probe, verdict)
            for _ in range(3):
                [refusal] = (await reserve(store, limited)).refusals
                assert close(refusal.retry_at, START + 300.0 + PROBE_TIME)
                assert refusal.cooldown is not None
                assert refusal.cooldown.strikes == 2

    async def test_a_probe_that_is_never_concluded_is_followed_by_another(self) -> None:
        """One at a time, every PROBE_TIME seconds."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(50))
            await store.cool_down(_verdict(limited.key_scope))
            for turn in range(3):
                move_to(clock, START + 300.0 + turn * PROBE_TIME)
                assert [probe.strikes for probe in (await reserve(store, limited)).probes] == [2]
                assert not await grants(store, limited)

    async def test_a_probe_whose_reserve_is_cancelled_and_released_is_another_s(self) -> None:
        """At whichever await it is cancelled: soon the next request goes first, and one alone."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            for awaits in range(20):
                limited = deployment(rpm(50), key=f"key-{awaits}")
                await store.cool_down(_verdict(limited.model_scope, seconds=clock.time() - START + 1.0))
                clock.shift(1.0)
                task = asyncio.ensure_future(reserve(store, limited, reservation_id=f"cancelled-{awaits}"))
                for _ in range(awaits):
                    await asyncio.sleep(0)
                task.cancel()
                [outcome] = await asyncio.gather(task, return_exceptions=True)
                await store.release(f"cancelled-{awaits}")
                await store.snapshot([limited])
                granted = [await grants(store, limited) for _ in range(2)]
                assert granted == [isinstance(outcome, asyncio.CancelledError), False]

    async def test_a_lift_after_the_probe_admits_all(self) -> None:
        """The strikes are gone with it."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(50))
            await store.cool_down(_verdict(limited.key_scope))
            move_to(clock, START + 300.0)
            assert (await reserve(store, limited)).probes
            await store.cool_down(Cooldown.lift(limited.key_scope))
            for _ in range(3):
                decision = await reserve(store, limited)
                assert decision.deployment is limited
                assert decision.probes == ()

    async def test_a_probe_is_passed_on(self) -> None:
        """After a retry the next reserve probes the same verdict, with its strikes, and the others wait."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(50))
            await store.cool_down(_verdict(limited.model_scope))
            move_to(clock, START + 300.0)
            for _ in range(3):
                assert [probe.strikes for probe in (await reserve(store, limited)).probes] == [2]
                assert not await grants(store, limited)
                await store.cool_down(Cooldown.retry(limited.model_scope))

    async def test_a_failed_probe_counts_a_strike_more(self) -> None:
        """The next verdict, which ends later than the probe, takes the place of the one before."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(50))
            await store.cool_down(_verdict(limited.key_scope))
            move_to(clock, START + 300.0)
            assert (await reserve(store, limited)).probes
            await store.cool_down(_verdict(limited.key_scope, 2100.0, strikes=3))
            [refusal] = (await reserve(store, limited)).refusals
            assert close(refusal.retry_at, START + 2100.0)
            move_to(clock, START + 2100.0)
            assert [probe.strikes for probe in (await reserve(store, limited)).probes] == [3]

    async def test_a_request_without_quota_probes_nothing(self) -> None:
        """A verdict that is due stays due until a request is really granted."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(1))
            move_to(clock, START + 290.0)
            assert await grants(store, limited)
            await store.cool_down(_verdict(limited.model_scope))
            move_to(clock, START + 300.0)
            decision = await reserve(store, limited)
            assert (decision.deployment, decision.probes) == (None, ())
            assert decision.refusals[0].cooldown is None
            move_to(clock, START + 400.0)
            assert (await reserve(store, limited)).probes

    async def test_a_candidate_that_is_passed_over_is_not_probed(self) -> None:
        """Only the candidate that is granted is; the others stay as they were."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            first, second = deployment(key="first"), deployment(key="second")
            await store.cool_down(_verdict(second.key_scope))
            move_to(clock, START + 300.0)
            assert (await reserve(store, first, second)).probes == ()
            assert (await reserve(store, second)).probes

    async def test_every_scope_can_have_a_verdict(self) -> None:
        """The model's, the key's, the project's and the provider's; one grant may probe several."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(50))
            for scope in limited.scopes:
                await store.cool_down(_verdict(scope))
                assert not await grants(store, limited)
            move_to(clock, START + 300.0)
            probes = (await reserve(store, limited)).probes
            assert {probe.scope for probe in probes} == {*limited.scopes}
            assert not await grants(store, limited)

    async def test_a_project_cools_down_as_a_whole(self) -> None:
        """All its keys and models are refused, and no other project's."""
        async with self.open_store(ManualClock(START)) as store:
            one = deployment(key="one", project="shared")
            two = deployment(key="two", project="shared", model="other-model")
            apart = deployment(key="apart")
            await store.cool_down(Cooldown(one.project_scope, START + 60.0, "billing"))
            assert not await grants(store, one)
            assert not await grants(store, two)
            assert await grants(store, apart)

    async def test_strikes_are_remembered_for_a_day(self) -> None:
        """A verdict that has ended and was not probed is still there a day later, but not for ever."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            kept, forgotten = deployment(key="kept"), deployment(key="forgotten")
            for each in (kept, forgotten):
                await store.cool_down(_verdict(each.key_scope))
            move_to(clock, START + 300.0 + STRIKES_KEPT - 1.0)
            assert [probe.strikes for probe in (await reserve(store, kept)).probes] == [2]
            move_to(clock, START + 300.0 + STRIKES_KEPT + 120.0)
            decision = await reserve(store, forgotten)
            assert decision.deployment is forgotten
            assert decision.probes == ()

    async def test_a_plain_cooldown_after_a_verdict_takes_its_place(self) -> None:
        """A verdict that has ended does not outlive what is imposed later."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(50))
            await store.cool_down(_verdict(limited.key_scope))
            move_to(clock, START + 310.0)
            await store.cool_down(Cooldown(limited.key_scope, START + 320.0, "busy"))
            assert not await grants(store, limited)
            move_to(clock, START + 320.0)
            decision = await reserve(store, limited)
            assert (decision.deployment, decision.probes) == (limited, ())

    async def test_a_retry_makes_a_verdict_due(self) -> None:
        """One request tries at once; the strikes stay. Other cooldowns stay as they are."""
        async with self.open_store(ManualClock(START)) as store:
            limited, busy, free = deployment(key="dead"), deployment(key="busy"), deployment(key="free")
            await store.cool_down(_verdict(limited.key_scope, 86_400.0))
            await store.cool_down(Cooldown(busy.key_scope, START + 60.0, "busy"))
            for each in (limited, busy, free):
                await store.cool_down(Cooldown.retry(each.key_scope))
            assert [probe.strikes for probe in (await reserve(store, limited)).probes] == [2]
            assert not await grants(store, limited)
            assert not await grants(store, busy)
            assert (await reserve(store, free)).probes == ()

    async def test_a_quarantine_by_hand_has_no_end(self) -> None:
        """Neither time nor a retry ends it; a lift does."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment()
            await store.cool_down(Cooldown(limited.key_scope, math.inf, "disabled"))
            await store.cool_down(Cooldown.retry(limited.key_scope))
            clock.shift(400 * 86_400.0)
            assert not await grants(store, limited)
            await store.cool_down(Cooldown.lift(limited.key_scope))
            assert await grants(store, limited)

    async def test_lifts_are_noticed(self) -> None:
        """The number of lifts changes with a lift and with a retry, and with nothing else."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(50))
            seen = [(await reserve(store, limited)).lifts]
            await store.cool_down(_verdict(limited.key_scope))
            seen.append((await reserve(store, limited)).lifts)
            await store.cool_down(Cooldown.retry(limited.key_scope))
            seen.append((await reserve(store, limited)).lifts)
            seen.append((await reserve(store, limited)).lifts)
            await store.cool_down(Cooldown.lift(limited.key_scope))
            seen.append((await reserve(store, limited)).lifts)
            assert seen[0] == seen[1] != seen[2] == seen[3] != seen[4]

    async def test_another_process_notices_a_lift_and_shares_the_probe(self) -> None:
        """One request goes first for both, and what one lifts the other is told at its next call."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store, self.second_store(store, clock) as other:
            limited = deployment(rpm(50))
            before = (await reserve(other, limited)).lifts
            await store.cool_down(_verdict(limited.key_scope))
            assert not await grants(other, limited)
            move_to(clock, START + 300.0)
            assert (await reserve(other, limited)).probes
            assert not await grants(store, limited)
            await store.cool_down(Cooldown.lift(limited.key_scope))
            decision = await reserve(other, limited)
            assert decision.deployment is limited
            assert decision.lifts != before

    async def test_no_cooldown_outlasts_a_correction_of_the_clock(self) -> None:
        """One imposed while the clock was ahead lasts as long as it was meant to."""
        clock = ManualClock(START + 86_400.0)
        async with self.open_store(clock) as store, self.second_store(store, clock) as other:
            plain, verdict = deployment(rpm(50), key="plain"), deployment(rpm(50), key="verdict")
            await store.cool_down(Cooldown(plain.key_scope, START + 86_430.0, "busy"))
            await store.cool_down(_verdict(verdict.key_scope, 86_430.0))
            assert not await grants(other, plain)
            set_back(clock, START)
            for each in (plain, verdict):
                [refusal] = (await reserve(store, each)).refusals
                assert close(refusal.retry_at, START + 30.0)
            move_to(clock, START + 30.0)
            assert (await reserve(other, plain)).deployment is plain
            assert (await reserve(store, verdict)).probes
            assert not await grants(other, verdict)
            set_back(clock, START - 86_400.0)
            assert not await grants(store, verdict)
            clock.shift(PROBE_TIME)
            assert (await reserve(store, verdict)).probes

"""The contract of cooldowns: what cools down, and until when."""

from __future__ import annotations

import math

from llm_router.domain.cooldown import Cooldown
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
    tpm,
    used,
)

__all__ = ["CooldownContract"]

_DAY = 24 * 3600.0


class CooldownContract(ContractBase):
    """Cooldowns and quarantines."""

    async def test_a_cooldown_refuses_until_its_end(self) -> None:
        """Refused a millisecond before the end, granted at the end; the refusal has its reason and end."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(5))
            await store.cool_down(Cooldown(limited.model_scope, START + 47.5, "der Dienst ist müde: 'ruhe'"))
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "der Dienst ist müde: 'ruhe'"
            assert close(refusal.retry_at, START + 47.5)
            assert close(refusal.wake_at, START + 47.5)
            move_to(clock, START + 47.5 - MS)
            assert not await grants(store, limited)
            move_to(clock, START + 47.5)
            assert await grants(store, limited)

    async def test_a_candidate_that_cools_down_is_passed_over(self) -> None:
        """The next candidate is taken instead."""
        async with self.open_store(ManualClock(START)) as store:
            cooled, ready = deployment(key="cooled"), deployment(key="ready")
            await store.cool_down(Cooldown(cooled.key_scope, START + 5.0, "busy"))
            decision = await reserve(store, cooled, ready)
            assert decision.deployment is ready
            assert [refusal.deployment for refusal in decision.refusals] == [cooled]

    async def test_of_two_cooldowns_the_later_end_wins(self) -> None:
        """Whichever came first; the reason is that of the one that applies."""
        async with self.open_store(ManualClock(START)) as store:
            for order in ((30.0, 50.0), (50.0, 30.0)):
                limited = deployment(key=f"key-{order[0]}")
                for seconds in order:
                    await store.cool_down(Cooldown(limited.model_scope, START + seconds, f"{seconds:.0f} s"))
                [refusal] = (await reserve(store, limited)).refusals
                assert close(refusal.retry_at, START + 50.0)
                assert refusal.reason == "50 s"

    async def test_a_cooldown_can_follow_one_that_has_ended(self) -> None:
        """A cooldown that has ended does not affect the next one."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment()
            await store.cool_down(Cooldown(limited.model_scope, START + 10.0, "first"))
            clock.shift(20.0)
            assert await grants(store, limited)
            await store.cool_down(Cooldown(limited.model_scope, START + 25.0, "second"))
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "second"
            assert close(refusal.retry_at, START + 25.0)

    async def test_a_cooldown_that_is_over_is_none(self) -> None:
        """One that ended before it was set refuses nothing and ends no other cooldown."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment()
            await store.cool_down(Cooldown(limited.model_scope, START - 5.0, "past"))
            assert await grants(store, limited)
            await store.cool_down(Cooldown(limited.model_scope, START + 5.0, "present"))
            await store.cool_down(Cooldown(limited.model_scope, START - 5.0, "past"))
            assert not await grants(store, limited)

    async def test_a_lift_ends_a_cooldown_at_once(self) -> None:
        """That of the scope that it names, and no other; lifting nothing is not an error."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment()
            await store.cool_down(Cooldown.lift(limited.model_scope))
            await store.cool_down(Cooldown(limited.model_scope, START + 500.0, "busy"))
            await store.cool_down(Cooldown(limited.key_scope, START + 20.0, "key"))
            await store.cool_down(Cooldown.lift(limited.model_scope))
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "key"
            await store.cool_down(Cooldown.lift(limited.key_scope))
            assert await grants(store, limited)

    async def test_a_quarantine_lasts_until_it_is_lifted(self) -> None:
        """Neither time nor a shorter cooldown ends it."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment(rpm(5))
            await store.cool_down(Cooldown(limited.key_scope, math.inf, "invalid key"))
            await store.cool_down(Cooldown(limited.key_scope, START + 5.0, "busy"))
            for _ in range(2):
                [refusal] = (await reserve(store, limited)).refusals
                assert refusal.reason == "invalid key"
                assert refusal.retry_at == math.inf
                assert refusal.wake_at == math.inf
                [snapshot] = await store.snapshot([limited])
                assert snapshot.cooldown is not None
                assert snapshot.cooldown.is_quarantine
                clock.shift(400 * _DAY)
            await store.cool_down(Cooldown.lift(limited.key_scope))
            assert await grants(store, limited)

    async def test_a_cooldown_becomes_a_quarantine(self) -> None:
        """A quarantine counts as ending later than every cooldown."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment()
            await store.cool_down(Cooldown(limited.key_scope, START + 5.0, "busy"))
            await store.cool_down(Cooldown(limited.key_scope, math.inf, "invalid key"))
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.retry_at == math.inf

    async def test_a_cooldown_reaches_what_its_scope_names_and_nothing_else(self) -> None:
        """A (project, model), all models of a key, or all keys of a provider."""
        deployments = {
            "itself": deployment(key="a", model="m", project="p"),
            "sibling": deployment(key="b", model="m", project="p"),
            "other model": deployment(key="a", model="n", project="p"),
            "other project": deployment(key="c", model="m", project="q"),
            "other provider": deployment(key="a", model="m", project="p", provider="other"),
        }
        reached = {
            "model_scope": {"itself", "sibling"},
            "key_scope": {"itself", "other model"},
            "provider_scope": {"itself", "sibling", "other model", "other project"},
        }
        for kind, names in reached.items():
            async with self.open_store(ManualClock(START)) as store:
                await store.cool_down(Cooldown(getattr(deployments["itself"], kind), START + 5.0, kind))
                refused = {name for name, each in deployments.items() if not await grants(store, each)}
                assert refused == names

    async def test_the_scope_that_ends_last_decides(self) -> None:
        """Of cooldowns on several scopes of one deployment, the latest is reported."""
        clock = ManualClock(START)
        async with self.open_store(clock) as store:
            limited = deployment()
            await store.cool_down(Cooldown(limited.model_scope, START + 10.0, "model"))
            await store.cool_down(Cooldown(limited.key_scope, START + 30.0, "key"))
            await store.cool_down(Cooldown(limited.provider_scope, START + 20.0, "provider"))
            [refusal] = (await reserve(store, limited)).refusals
            assert refusal.reason == "key"
            assert close(refusal.retry_at, START + 30.0)
            [snapshot] = await store.snapshot([limited])
            assert snapshot.cooldown is not None
            assert snapshot.cooldown.scope == limited.key_scope
            assert snapshot.cooldown.reason == "key"
            assert close(snapshot.cooldown.until, START + 30.0)
            clock.shift(30.0)
            [snapshot] = await store.snapshot([limited])
            assert snapshot.cooldown is None

    async def test_a_cooldown_takes_no_quota(self) -> None:
        """Neither setting one nor being refused for it takes anything."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(2), tpm(100))
            assert await grants(store, limited, tokens=10)
            await store.cool_down(Cooldown(limited.model_scope, START + 5.0, "busy"))
            for _ in range(5):
                assert not await grants(store, limited, tokens=10)
            assert await used(store, limited) == [1, 10]

    async def test_a_reservation_can_be_settled_while_its_scope_cools_down(self) -> None:
        """A cooldown stops new reserves, not requests under way."""
        async with self.open_store(ManualClock(START)) as store:
            limited = deployment(rpm(2), tpm(100))
            await reserve(store, limited, tokens=50, reservation_id="one")
            await store.cool_down(Cooldown(limited.key_scope, math.inf, "invalid key"))
            await store.release("one")
            assert await used(store, limited) == [0, 0]

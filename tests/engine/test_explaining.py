"""Explanations: they say what a send decides, and move nothing."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import (
    Candidate,
    Cooldown,
    Demand,
    Deployment,
    Exclusion,
    ExplainedCandidate,
    Explanation,
    InvalidRequestError,
    Key,
    LeastLoaded,
    MemoryStore,
    Metric,
    ProviderError,
    Quota,
    Refill,
    Request,
    Router,
    RouterClosedError,
    Secret,
    StoreUnavailableError,
    UnknownModelError,
    UnknownWorkloadError,
    Weighted,
)
from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.quota import MAX_LIMIT
from llm_router.engine.estimates import TEXT
from llm_router.stores.base import Refusal
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

WORKLOADS = ("light", "medium", "heavy")

MakeRouter = Callable[..., Router]


def by_key(explanation: Explanation) -> dict[str, ExplainedCandidate]:
    return {candidate.key_id: candidate for candidate in explanation.candidates}


async def state_of(router: Router, store: MemoryStore) -> list[Any]:
    """Everything that a send moves: the local index, what the provider's path is known for, the store."""
    found: list[Any] = [await store.snapshot(list(router.keys.pool.states)), copy.copy(store._cooldowns)]
    found += [copy.copy(store._reservations), repr(store)]
    for group in router.keys.pool.groups.values():
        rings: dict[int, Any] = dict(group._rings)
        found += [(priority, ring.cursor, list(ring.states)) for priority, ring in rings.items()]
        found += [list(group.ready), list(group.parked), group.avoided_until, copy.copy(group.breaker)]
        found += [group.corrections[TEXT].factor]
    for order in router._sender.orders.values():
        found += [step.turn for tier in order.tiers for step in tier]
    for state in router.keys.pool:
        found.append([getattr(state, name) for name in state.__slots__ if name != "__weakref__"])
        found += [state.headroom, state.failures, state.load, state.distance]
    quarantines = router._sender.selector.quarantines
    return [*found, quarantines.lifts, set(quarantines._met)]


# --- what a send takes --------------------------------------------------------------------------------


class World:
    """A router in a random state, driven at random."""

    def __init__(self, seed: int, clock: ManualClock, make_router: MakeRouter) -> None:
        random.seed(seed)  # where the rings of the local index start
        self.draw = random.Random(seed)
        self.clock = clock
        self.store = MemoryStore(clock=clock)
        self.provider = FakeProvider(clock=clock)
        self.models = [f"model-{letter}" for letter in "abc"[: self.draw.randint(1, 3)]]
        self.deployments = self._deployments()
        self.router = make_router(
            self.deployments, store=self.store, provider=self.provider, max_retries=0, workloads=WORKLOADS
        )

    def _deployments(self) -> list[Deployment]:
        draw = self.draw
        quotas = {(model, number): self._quotas() for model in self.models for number in range(4)}
        count = draw.choice([1, 3, 8, 20, 40])
        found = []
        for number in range(count):
            model, shared = draw.choice(self.models), draw.randrange(8)
            key = Key(f"key-{number}", Secret("x"), project=f"project-{shared}" if shared < 4 else "")
            found.append(
                Deployment(
                    key,
                    model,
                    draw.choice(WORKLOADS),
                    draw.choice([0, 1, 1, 1]),
                    quotas[model, shared] if shared < 4 else self._quotas(),
                )
            )
        return found

    def _quotas(self) -> tuple[Quota, ...]:
        draw, found = self.draw, []
        if draw.random() < 0.9:
            refill = draw.choice([Refill.ROLLING, Refill.ROLLING, Refill.STEADY])
            adaptive = draw.random() < 0.3
            found.append(Quota(Metric.RPM, draw.randint(1, 4), refill, adaptive=adaptive))
        if draw.random() < 0.5:
            found.append(Quota(Metric.TPM, draw.randint(5, 60)))
        if draw.random() < 0.3:
            found.append(Quota(Metric.RPD, draw.randint(0, 9), Refill.DAILY))
        return tuple(found)

    def wish(self) -> dict[str, Any]:
        draw = self.draw
        model = draw.choice([None, *sorted({deployment.model for deployment in self.deployments})])
        fallback = "any" if model is None else draw.choice(["any", "any", "model"])
        workload = draw.choice([None, *WORKLOADS])
        return {"workload": workload, "model_preference": model, "fallback": fallback}

    def answer(self) -> None:
        """Script what the provider answers next: usually an answer, sometimes a failure."""
        if self.draw.random() < 0.7:
            return
        kind, code = self.draw.choice(
            [("quota", 429), ("server", 503), ("key", 400), ("model", 404), ("network", None)]
        )
        self.provider.script(ProviderError("failed", kind=kind, code=code, charged=kind == "server"))

    async def hear_of_lifts(self) -> None:
        """Have the router hear of what was lifted, as with any reply of the store; snapshots do not say."""
        decision = await self.store.reserve("asking", self.deployments[:1], Demand(0, 0), 1.0)
        await self.store.release("asking")
        quarantines = self.router._sender.selector.quarantines
        if decision.lifts != quarantines.lifts:
            quarantines.notice_lifts(decision.lifts, self.clock.time())

    async def disturb(self) -> None:
        """Let time pass, or something happen to a deployment that has nothing to do with a send."""
        draw, deployment = self.draw, self.draw.choice(self.deployments)
        until = self.clock.time() + draw.choice([0.5, 20.0, math.inf])
        match draw.randrange(8):
            case 0:
                await self.clock.advance(draw.choice([0.05, 1.0, 20.0, 70.0]))
            case 1:
                await self.store.cool_down(Cooldown(deployment.model_scope, until, "elsewhere"))
            case 2:
                await self.router.keys.disable(deployment.key.key_id)
            case 3:
                await self.router.keys.lift(deployment.key.key_id)
                await self.router.keys.enable(deployment.key.key_id)
            case 4:
                limit = LearntLimit(Metric.RPM, draw.randint(1, 3), raised=4, raise_after=30.0)
                await self.store.cool_down(Cooldown.learn(deployment.model_scope, limit))
            case _:
                pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed > 5 else ()) for seed in range(24)]
)
async def test_what_is_explained_is_what_a_send_takes(
    seed: int, clock: ManualClock, make_router: MakeRouter
) -> None:
    """In random worlds the deployment explained is the one that the next send takes, and nothing moves."""
    world = World(seed, clock, make_router)
    taken = refused = 0
    async with world.router as router:
        for _ in range(40):
            wish, prompt = world.wish(), "word " * world.draw.randint(1, 40)
            await world.hear_of_lifts()
            explanation = await router.explain(prompt, **wish)  # makes the order of this wish
            before = await state_of(router, world.store)
            again = await router.explain(prompt, **wish)
            assert again == explanation
            assert await state_of(router, world.store) == before

            world.answer()
            sent = len(world.provider.calls)
            response = await router.send(prompt, **wish)
            calls = world.provider.calls[sent:]
            chosen = explanation.taken
            assert [(call.key_id, call.model) for call in calls] == (
                [] if chosen is None else [(chosen.key_id, chosen.model)]
            )
            if chosen is None:
                refused += 1
                assert not response.success
                await wait_for_room(world, prompt, wish, explanation)
            else:
                taken += 1
                assert explanation.retry_after == 0.0
                assert (chosen.exclusion, chosen.reason, chosen.usable_in) == (None, None, 0.0)
                assert all(quota.fits for quota in chosen.quotas)
            await world.disturb()
    assert taken + refused == 40


async def wait_for_room(world: World, prompt: str, wish: dict[str, Any], explanation: Explanation) -> None:
    """After the time that an explanation gives there is room, unless a learnt limit had to rise first."""
    quotas = [quota for candidate in explanation.candidates for quota in candidate.quotas]
    if any(quota.amount > (quota.status["limit"] or quota.amount) for quota in quotas):
        return
    if explanation.retry_after is not None and explanation.retry_after < 100.0:
        await world.clock.advance(explanation.retry_after + 0.001)  # stores round to microseconds
        assert (await world.router.explain(prompt, **wish)).taken is not None


async def test_a_weighted_draw_is_explained(make_router: MakeRouter, pools: Pools) -> None:
    """The draw of a weighted strategy is rehearsed on a copy of it, and so comes true."""
    async with make_router(pools.many(6), strategy=Weighted()) as router:
        for _ in range(20):
            chosen = (await router.explain("x")).taken
            assert chosen is not None
            assert (await router.send("x")).key_id == chosen.key_id


@pytest.mark.slow
async def test_many_deployments(make_router: MakeRouter, pools: Pools) -> None:
    """Of a large pool the first 128 are explained, in the order in which they would be asked."""
    async with make_router(pools.many(300, rpm=1)) as router:
        for _ in range(20):
            explanation = await router.explain("x")
            assert explanation.left_out == 172
            [tier] = explanation.tiers
            assert tier.size == 300
            assert [candidate.rank for candidate in tier.candidates] == list(range(1, 129))
            assert explanation.taken is tier.candidates[0]
            assert (await router.send("x")).key_id == explanation.taken.key_id


class Turns:
    """A strategy that keeps turns of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        self.calls += 1
        first = sorted(candidates, key=lambda candidate: candidate.deployment.id)
        turn = self.calls % len(first)
        return [*first[turn:], *first[:turn]]


class Uncopied(Turns):
    """The same, but it cannot be copied."""

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise TypeError("no copies")


async def test_what_another_request_probes_is_waited_for(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """A send asks again in a second, and so not what is parked for longer, though that has room by now."""
    store, probed, parked = MemoryStore(clock=clock), pools.one(rpm=9), pools.one(rpm=9)
    async with make_router([probed, parked], store=store) as router:
        now = clock.time()
        state = router.keys.pool.states[parked]
        state.group.park(state, now + 50.0)
        state.note(Refusal(parked, "rpm", now + 50.0, now + 50.0), now)
        await store.cool_down(
            Cooldown(probed.model_scope, now + 5.0, "spent", half_open=True, strikes=1, since=now)
        )
        assert not (await router.send("x")).success
        clock.shift(5.0)
        await store.reserve("a probe", [probed], Demand(1, 1), 60.0)
        explanation = await router.explain("x")
        assert explanation.taken is None
        found = by_key(explanation)[parked.key.key_id]
        assert found.exclusion is Exclusion.PARKED
        assert found.usable_in == pytest.approx(45.0)
        assert (await router.send("x")).retry_after == pytest.approx(1.0)


async def test_a_strategy_with_turns_is_copied(make_router: MakeRouter, pools: Pools) -> None:
    """A user's strategy that has state keeps it: a copy is asked."""
    strategy = Turns()
    async with make_router(pools.many(3), strategy=strategy) as router:
        for sends in range(4):
            chosen = (await router.explain("x")).taken
            assert strategy.calls == sends
            assert chosen is not None
            assert (await router.send("x")).key_id == chosen.key_id


async def test_a_strategy_that_cannot_be_copied_is_asked(make_router: MakeRouter, pools: Pools) -> None:
    """One that cannot be copied is asked itself."""
    strategy = Uncopied()
    async with make_router(pools.many(3), strategy=strategy) as router:
        assert (await router.explain("x")).taken is not None
        assert strategy.calls > 0


class Cheapest(LeastLoaded):
    """A strategy that accepts one key only."""

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        return [each for each in candidates if each.deployment.key.key_id == "cheap"]


async def test_what_a_strategy_leaves_out(make_router: MakeRouter, pools: Pools) -> None:
    """A deployment that the strategy does not return is shown as left out by it."""
    deployments = [pools.one(key_id="dear"), pools.one(key_id="cheap")]
    async with make_router(deployments, strategy=Cheapest()) as router:
        found = by_key(await router.explain("x"))
        assert found["cheap"].is_taken
        assert (found["dear"].rank, found["dear"].usable_in) == (None, None)
        assert found["dear"].exclusion is Exclusion.STRATEGY


# --- what is said of each candidate -------------------------------------------------------------------


async def test_tiers_and_ranks(make_router: MakeRouter, pools: Pools) -> None:
    """Tiers come in the fallback order, and ranks go on from tier to tier."""
    near = pools.one("model-a", "light", key_id="near")
    other = pools.one("model-a", "heavy", key_id="other")
    far = pools.one("model-b", "medium", key_id="far")
    async with make_router([far, other, near]) as router:
        explanation = await router.explain("x", workload="light", model_preference="models/model-a")
    assert [[each.key_id for each in tier.candidates] for tier in explanation.tiers] == [
        ["near"],
        ["other"],
        ["far"],
    ]
    assert [each.rank for each in explanation.candidates] == [1, 2, 3]
    assert [each.distance for each in explanation.candidates] == [0, 2, 1]
    assert (explanation.workload, explanation.model, explanation.fallback) == ("light", "model-a", "any")
    assert explanation.taken is not None
    assert explanation.taken.key_id == "near"
    assert explanation.left_out == 0


async def test_a_spent_quota(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """A spent quota shows what is used, the limit and its source, and from when on the request fits."""
    async with make_router([pools.one(rpm=2, tpm=10)]) as router:
        await router.send("one two three")
        await clock.advance(10.0)
        await router.send("one two three")
        explanation = await router.explain("one two three four five")
        [found] = explanation.candidates
        rpm, tpm = found.quotas
        assert (rpm.amount, rpm.fits, tpm.amount, tpm.fits) == (1, False, 5, False)
        assert rpm.remaining == 0.0
        assert tpm.remaining == pytest.approx(0.4)
        assert (rpm.status["used"], rpm.status["limit"], rpm.status["source"]) == (2, 2, "configured")
        assert explanation.retry_after == found.usable_in == pytest.approx(60.3)
        assert (found.exclusion, found.reason) == (Exclusion.QUOTA, "rpm")
        assert not (await router.send("x")).success  # which shows when the first comes back
        [found] = (await router.explain("x")).candidates
        assert found.usable_in == pytest.approx(50.3)
        assert found.quotas[0].fits_in == pytest.approx(50.3)
        await clock.advance(50.4)
        assert (await router.explain("x")).taken is not None


async def test_a_request_that_never_fits(make_router: MakeRouter, pools: Pools) -> None:
    """A request above the limit will never fit, and waiting does not help."""
    async with make_router([pools.one(tpm=3)]) as router:
        explanation = await router.explain("one two three four")
        [found] = explanation.candidates
        assert (explanation.retry_after, found.usable_in, found.quotas[1].fits_in) == (None, None, None)
        assert (found.exclusion, found.reason) == (Exclusion.QUOTA, "tpm")


async def test_a_steady_quota(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """A steady quota comes back one by one, and the explanation says when."""
    deployment = Deployment(
        Key("key-1", Secret("x")), "m", quotas=(Quota(Metric.RPM, 60, Refill.STEADY, burst=2),)
    )
    async with make_router([deployment]) as router:
        for _ in range(2):
            await router.send("x")
        explanation = await router.explain("x")
        response = await router.send("x")
        assert explanation.retry_after == pytest.approx(response.retry_after, abs=1e-3)


async def test_a_learnt_limit(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """A learnt limit shows its source, and when it rises the request fits."""
    store, deployment = MemoryStore(clock=clock), pools.one(rpm=15)
    limit = LearntLimit(Metric.RPM, 1, raised=2, raise_after=5.0)
    await store.cool_down(Cooldown.learn(deployment.model_scope, limit))
    async with make_router([deployment], store=store) as router:
        await router.send("x")
        [found] = (await router.explain("x")).candidates
        [quota] = found.quotas
        assert (quota.status["source"], quota.status["limit"], quota.status["configured"]) == (
            "stated",
            1,
            15,
        )
        assert quota.fits_in == pytest.approx(5.0)
        await clock.advance(5.0)
        assert (await router.explain("x")).taken is not None


async def test_verdicts_in_the_store(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """Cooldown, quarantine and what is disabled are told apart, each with its reason and its end."""
    store = MemoryStore(clock=clock)
    cool, bad, off = pools.one(key_id="cool"), pools.one(key_id="bad"), pools.one(key_id="off")
    now = clock.time()
    await store.cool_down(Cooldown(cool.model_scope, now + 30.0, "overloaded"))
    await store.cool_down(
        Cooldown(bad.key_scope, now + 300.0, "API key not valid", credential="*", since=now)
    )
    async with make_router([cool, bad, off], store=store) as router:
        await router.keys.disable("off", reason="rotation")
        explanation = await router.explain("x")
    found = {each.key_id: (each.exclusion, each.reason, each.usable_in) for each in explanation.candidates}
    assert found == {
        "cool": (Exclusion.COOLING_DOWN, "overloaded", 30.0),
        "bad": (Exclusion.QUARANTINED, "API key not valid", 300.0),
        "off": (Exclusion.DISABLED, "disabled: rotation", None),
    }
    assert explanation.taken is None
    assert explanation.retry_after == 30.0


async def test_what_lasts_longest_is_the_reason(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """Of several obstacles the one that lasts longest is given."""
    store, deployment = MemoryStore(clock=clock), pools.one(rpm=1)
    async with make_router([deployment], store=store) as router:
        await router.send("x")
        await store.cool_down(Cooldown(deployment.model_scope, clock.time() + 5.0, "briefly"))
        [found] = (await router.explain("x")).candidates
        assert found.exclusion is Exclusion.QUOTA
        assert found.usable_in == pytest.approx(60.3)
        await store.cool_down(Cooldown(deployment.model_scope, clock.time() + 500.0, "for longer"))
        [found] = (await router.explain("x")).candidates
        assert (found.exclusion, found.reason) == (Exclusion.COOLING_DOWN, "for longer")


async def test_an_old_quarantine_is_tried(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """A quarantine that a send would try again, since it is old, keeps nothing out."""
    store, deployment = MemoryStore(clock=clock), pools.one()
    now = clock.time()
    await store.cool_down(
        Cooldown(
            deployment.key_scope, now + 9e4, "refused", half_open=True, since=now - 7200.0, credential="*"
        )
    )
    async with make_router([deployment], store=store) as router:
        before = await state_of(router, store)
        explanation = await router.explain("x")
        assert explanation.taken is not None
        assert (await state_of(router, store))[:2] == before[:2]
        assert (await router.send("x")).success


async def test_an_avoided_deployment(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """What this process alone avoids is shown with its reason, and ranks nowhere."""
    bad, good = pools.one(key_id="bad"), pools.one(key_id="good")
    async with make_router([bad, good]) as router:
        pool = router.keys.pool
        pool.avoid(pool.states[bad], clock.time() + 7.0, "it hung")
        pool.states[bad].failures = 2
        found = by_key(await router.explain("x"))
        assert found["good"].is_taken
        assert (found["bad"].exclusion, found["bad"].reason) == (Exclusion.AVOIDED, "it hung")
        assert (found["bad"].usable_in, found["bad"].rank, found["bad"].failures) == (7.0, None, 2)


async def test_an_open_circuit_breaker(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """While a provider cannot be reached, its deployments are out until the breaker is half-open."""
    deployments = pools.many(3)
    async with make_router(deployments) as router:
        breaker = router.keys.pool.states[deployments[0]].group.breaker
        for deployment in deployments:
            breaker.record_failure(deployment.key.key_id, clock.time())
        explanation = await router.explain("x")
        assert {each.exclusion for each in explanation.candidates} == {Exclusion.UNREACHABLE}
        assert explanation.retry_after == 1.0


async def test_a_deployment_that_has_room_again(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """Quota that another process gave back is seen in the store, but the deployment is still parked here."""
    store, first, second = MemoryStore(clock=clock), pools.one(key_id="a", rpm=1), pools.one(key_id="b")
    await store.reserve("elsewhere", [first], Demand(1, 1), 60.0)
    async with make_router([first, second], store=store) as router:
        for _ in range(2):
            await router.send("x")  # one of them asks the first in vain
        found = by_key(await router.explain("x"))
        assert (found["a"].exclusion, found["a"].reason) == (Exclusion.QUOTA, "rpm")
        await store.release("elsewhere")
        found = by_key(await router.explain("x"))
        assert (found["a"].exclusion, found["a"].reason, found["a"].rank) == (Exclusion.PARKED, "rpm", None)
        assert found["a"].usable_in == pytest.approx(60.3)


# --- arguments and errors -----------------------------------------------------------------------------


async def test_the_same_errors_as_a_send(make_router: MakeRouter, pools: Pools) -> None:
    """Wrong arguments are refused as by a send."""
    async with make_router(pools.many(1)) as router:
        with pytest.raises(UnknownWorkloadError):
            await router.explain("x", workload="tiny")
        with pytest.raises(UnknownModelError):
            await router.explain("x", model_preference="none")
        with pytest.raises(InvalidRequestError, match="empty"):
            await router.explain("")
        with pytest.raises(InvalidRequestError, match="temperature"):
            await router.explain("x", temperature=-1.0)
        with pytest.raises(InvalidRequestError, match="max_wait"):
            await router.explain("x", max_wait=-1.0)
        with pytest.raises(
            TypeError, match=r"explain\(\) has no option 'workloads': did you mean 'workload'"
        ):
            await router.explain("x", workloads="light")  # type: ignore[call-arg]
    with pytest.raises(RouterClosedError):
        await router.explain("x")


async def test_a_request_is_explained(make_router: MakeRouter, pools: Pools) -> None:
    """A Request is accepted in place of a prompt, and a provider's estimate of it is shown."""
    async with make_router(pools.many(1)) as router:
        [found] = (await router.explain(Request(contents="one two three"), timeout=None)).candidates
        assert found.tokens == 3


async def test_a_store_that_fails(make_router: MakeRouter, pools: Pools, clock: ManualClock) -> None:
    """If the store fails there is nothing to explain, and its error is raised."""

    class Failing(MemoryStore):
        async def snapshot(self, deployments: Sequence[Deployment]) -> Any:
            raise StoreUnavailableError("away")

    async with make_router(pools.many(1), store=Failing(clock=clock)) as router:
        with pytest.raises(StoreUnavailableError):
            await router.explain("x")


# --- in words -----------------------------------------------------------------------------------------


async def test_what_a_reload_took_away_while_it_was_spent_is_not_explained(
    make_router: MakeRouter, pools: Pools
) -> None:
    """Nor is it stumbled over: that it is to be ready in a minute is still in the heap."""
    first, second = pools.one(key_id="first", rpm=1), pools.one(key_id="second", rpm=1)
    async with make_router([first, second]) as router:
        assert [(await router.send("x")).success for _ in range(3)] == [True, True, False]
        await router.reload([first])
        explanation = await router.explain("x")
    assert [each.key_id for each in explanation.candidates] == ["first"]
    assert explanation.retry_after == pytest.approx(60.3)


async def test_an_explanation_is_read_at_a_prompt(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """What would be taken comes first, then a line for each candidate: its place, what is left, why not."""
    store = MemoryStore(clock=clock)
    pool = [
        pools.one("flash", "light", key_id="a", rpm=2, tpm=1000),
        pools.one("pro", "heavy", key_id="b", rpm=None, rpd=1),
        pools.one("pro", "heavy", key_id="c", rpm=None),
    ]
    await store.cool_down(Cooldown(pool[2].model_scope, clock.time() + 7_200.0, "over\x1b[31mload"))
    async with make_router(pool, store=store) as router:
        await router.send("x", model="pro")
        explanation = await router.explain("x", workload="light")
    verdict, *lines = str(explanation).splitlines()
    assert verdict == explanation.verdict == "would be sent through a/flash, reserving 1 token"
    assert lines[0] == (
        "tier 1, rank 1: a/flash (light, priority 1): taken; 100% left: "
        "rpm 0/2 (configured), tpm 0 + 1/1000 (configured)"
    )
    assert sorted(line.partition(": ")[2] for line in lines[1:]) == [
        "b/pro (heavy, priority 1): rpd has no room, for 72000.0 s (20.0 h); 0% left: rpd 1/1 (configured)",
        "c/pro (heavy, priority 1): cooling down: over[31mload, for 7200.0 s (2.0 h); 100% left: no limits",
    ]
    assert "ExplainedCandidate(" in repr(explanation)


async def test_a_text_of_many_deployments_is_short(make_router: MakeRouter, pools: Pools) -> None:
    """The first twenty candidates have a line, the others are counted: also those not explained."""
    async with make_router(pools.many(130, rpm=1)) as router:
        lines = str(await router.explain("x")).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "and 110 more"


async def test_a_text_says_when_to_come_back(make_router: MakeRouter, pools: Pools) -> None:
    """Where nothing would be taken, the first line says for how long, or that waiting does not help."""
    async with make_router([pools.one(rpd=1)]) as router:
        await router.send("x")
        spent = await router.explain("x")
    assert str(spent).startswith("nothing has room now: retry in 72000.0 s (20.0 h)\ntier 1, ")
    async with make_router([pools.one(rpm=0)]) as router:
        verdict, line = str(await router.explain("x")).splitlines()
    assert verdict == "nothing has room, and waiting does not help"
    assert line.endswith("rpm has no room, for good; 0% left: rpm 0/0 (configured)")


async def test_a_text_says_how_a_limit_is_known(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """What was not refused so far, or is counted since a refusal named it, has the words of a status."""
    store, deployment = MemoryStore(clock=clock), pools.one(rpm=4)
    deployment = attrs.evolve(deployment, quotas=(Quota(Metric.RPM, 4, adaptive=True),))
    counted = LearntLimit(Metric.RPD, MAX_LIMIT, LimitSource.UNKNOWN)
    stated = LearntLimit(Metric.TPM, 500)
    await store.cool_down(Cooldown.learn(deployment.model_scope, counted, stated))
    clock.shift(300.0)
    async with make_router([deployment], store=store) as router:
        await router.send("x")
        [found] = (await router.explain("x")).candidates
    assert sorted(map(str, found.quotas)) == [
        "rpd ≥1/? (no known limit; counted since a refusal 5 min ago)",
        "rpm 1/4 (not refused so far)",
        "tpm 1 + 1/500 (stated by the provider 5 min ago)",
    ]

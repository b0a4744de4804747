"""How a request gets its quota, and what becomes of the quota afterwards."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import attrs
import pytest

from llm_router import Cooldown, Demand, Deployment, MemoryStore, StoreError, StoreUnavailableError
from llm_router.domain.quota import GUARD
from llm_router.engine import pool as pool_module
from llm_router.engine.estimates import TEXT
from llm_router.engine.gate import DispatchGate
from llm_router.engine.index import DeploymentState, FallbackOrder
from llm_router.engine.lease import Lease, new_reservation_id
from llm_router.engine.pool import Pool
from llm_router.engine.reserving import Selector
from llm_router.engine.search import FIRST_CANDIDATES
from llm_router.engine.state import SendState
from llm_router.engine.waiting import Shortage
from llm_router.stores.base import Decision
from llm_router.testing import ManualClock

MakeDeployment = Callable[..., Deployment]
MakeDeployments = Callable[..., list[Deployment]]
MakePool = Callable[..., Pool]
MakeOrder = Callable[..., FallbackOrder]
MakeSelector = Callable[..., Selector]
MakeSend = Callable[..., SendState]


@attrs.frozen
class Asked:
    """One reserve."""

    reservation_id: str
    candidates: list[Deployment]
    demand: Demand
    ttl: float


class Scripted(MemoryStore):
    """A store in memory that records its calls, and fails or pauses on request.

    Attributes:
        asked: The reserves, in order.
        ended: The id of each reservation that was settled or released, with what was used, in order.
        failure: Raised by every call, if set.
        pause: Awaited by a reserve after it took effect, by a settle and a release before, if set.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.asked: list[Asked] = []
        self.ended: list[tuple[str, Demand]] = []
        self.failure: StoreError | None = None
        self.pause: asyncio.Event | None = None

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.asked.append(Asked(reservation_id, list(candidates), demand, ttl))
        decision = await super().reserve(reservation_id, candidates, demand, ttl)
        await self._obey()
        return decision

    async def settle(self, reservation_id: str, used: Demand) -> None:
        self.ended.append((reservation_id, used))
        await self._obey()
        await super().settle(reservation_id, used)

    async def _obey(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.pause is not None:
            await self.pause.wait()

    async def fill(self, deployments: Sequence[Deployment], seconds: float = 60.0) -> None:
        """Make the store refuse every request on ``deployments`` for a while."""
        for deployment in deployments:
            await self.cool_down(Cooldown(deployment.model_scope, self._time() + seconds, "full"))


@pytest.fixture
def store(clock: ManualClock) -> Scripted:
    return Scripted(clock)


@pytest.fixture
def gate(clock: ManualClock) -> DispatchGate:
    return DispatchGate(clock, GUARD)


async def used(store: MemoryStore, deployment: Deployment) -> list[int]:
    [snapshot] = await store.snapshot([deployment])
    return [quota.used for quota in snapshot.quotas]


async def granted(outcome: Awaitable[Lease | Shortage]) -> Lease:
    lease = await outcome
    assert isinstance(lease, Lease)
    return lease


async def refused(outcome: Awaitable[Lease | Shortage]) -> Shortage:
    shortage = await outcome
    assert isinstance(shortage, Shortage)
    return shortage


# --- the selector -------------------------------------------------------------------------------------


async def test_a_lease_is_quota_on_the_best_deployment(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
) -> None:
    """The store is asked once, with the candidates best first, and takes what the request needs."""
    second, first = make_deployment(priority=5), make_deployment(priority=0, tpm=100)
    pool = make_pool([second, first])
    lease = await granted(make_selector(pool, store).acquire(make_send(make_order(pool), tokens=7), 0.0))
    assert lease.state is pool.states[first]
    assert lease.demand == Demand(1, 7)
    assert store.asked == [Asked(lease.reservation_id, [first, second], Demand(1, 7), 120.0)]
    assert await used(store, first) == [1, 7]


def test_no_two_reservations_have_the_same_id() -> None:
    """A thousand new reservation ids are all different."""
    assert len({new_reservation_id() for _ in range(1_000)}) == 1_000


async def test_a_refused_shortlist_is_followed_by_longer_lists(
    make_deployment: MakeDeployment,
    make_deployments: MakeDeployments,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
) -> None:
    """After a refused shortlist ever more deployments are asked, each once, until one has room."""
    full, roomy = make_deployments(59), make_deployment(priority=9)
    pool = make_pool([*full, roomy])
    await store.fill(full)
    lease = await granted(make_selector(pool, store).acquire(make_send(make_order(pool)), 0.0))
    assert lease.state.deployment is roomy
    assert [len(asked.candidates) for asked in store.asked] == [FIRST_CANDIDATES, 32, 20]
    everyone = [deployment for asked in store.asked for deployment in asked.candidates]
    assert len(everyone) == len(set(everyone))
    assert len({asked.reservation_id for asked in store.asked}) == len(store.asked)
    assert all(pool.states[deployment].is_parked for deployment in full)


async def test_a_shortage_names_every_refusal_and_the_first_to_have_room(
    make_deployments: MakeDeployments,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
    clock: ManualClock,
) -> None:
    """A shortage carries the refusals of all deployments and the earliest time one has room."""
    deployments = make_deployments(50)
    pool = make_pool(deployments)
    await store.fill(deployments[:20], seconds=60.0)
    await store.fill(deployments[20:21], seconds=40.0)
    await store.fill(deployments[21:], seconds=50.0)
    shortage = await refused(make_selector(pool, store).acquire(make_send(make_order(pool)), 0.0))
    assert shortage.retry_at == clock.time() + 40.0
    assert {refusal.deployment for refusal in shortage.refusals} == set(deployments)
    assert {refusal.reason for refusal in shortage.refusals} == {"full"}
    assert [len(asked.candidates) for asked in store.asked] == [FIRST_CANDIDATES, 32, 10]
    assert all(state.is_parked for state in pool)


async def test_tried_deployments_come_last(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
) -> None:
    """Deployments already tried come after all others, and are taken if no other has room."""
    deployments = [make_deployment(priority=priority) for priority in range(4)]
    pool = make_pool(deployments)
    send = make_send(make_order(pool))
    send.tried |= {pool.states[deployments[0]], pool.states[deployments[2]]}
    selector = make_selector(pool, store)
    lease = await granted(selector.acquire(send, 0.0))
    assert lease.state.deployment is deployments[1]
    assert store.asked[0].candidates == [deployments[number] for number in (1, 3, 0, 2)]
    await lease.close()
    await store.fill([deployments[1], deployments[3]])
    lease = await granted(selector.acquire(send, 0.0))
    assert lease.state.deployment is deployments[0]


async def test_the_demand_uses_the_largest_correction(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
) -> None:
    """The estimate is multiplied by the largest correction among the candidates' models."""
    low, high, other = (make_deployment(model) for model in ("low", "high", "other"))
    pool = make_pool([low, high, other])
    factors = {low: 0.5, high: 2.5, other: 4.0}
    for deployment, factor in factors.items():
        pool.states[deployment].group.corrections[TEXT].factor = factor
    pool.cool_down(Cooldown(other.model_scope, math.inf, "gone"))
    await make_selector(pool, store).acquire(make_send(make_order(pool), tokens=100), 0.0)
    assert set(store.asked[0].candidates) == {low, high}
    assert store.asked[0].demand == Demand(1, 250)
    await make_selector(pool, store).acquire(
        make_send(make_order(pool, None, "low", "none"), tokens=100), 0.0
    )
    assert store.asked[1].demand == Demand(1, 50)


async def test_the_demand_uses_the_estimate_of_each_provider(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
) -> None:
    """Each provider's estimate is multiplied by its model's correction, and the largest is taken."""
    near, far = make_deployment(provider="near"), make_deployment(provider="far")
    pool = make_pool([near, far])
    send = make_send(make_order(pool))
    for deployment, estimate, factor in ((near, 100, 1.2), (far, 30, 3.0)):
        group = pool.states[deployment].group
        send.tokens[group.upstream], group.corrections[TEXT].factor = estimate, factor
    await make_selector(pool, store).acquire(send, 0.0)
    assert store.asked[0].demand == Demand(1, 120)


async def test_a_demand_is_at_least_one_token(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
) -> None:
    """A correction below 1 does not round a demand down to 0 tokens."""
    pool = make_pool([make_deployment()])
    next(iter(pool)).group.corrections[TEXT].factor = 0.25
    await make_selector(pool, store).acquire(make_send(make_order(pool), tokens=1), 0.0)
    assert store.asked[0].demand == Demand(1, 1)


async def test_a_cancelled_reserve_leaves_nothing_behind(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
    gate: DispatchGate,
    clock: ManualClock,
) -> None:
    """A cancelled reserve releases what the store granted and frees its permit."""
    deployment = make_deployment(tpm=100)
    pool = make_pool([deployment])
    selector = make_selector(pool, store, gate)
    store.pause = asyncio.Event()
    task = asyncio.create_task(selector.acquire(make_send(make_order(pool)), 0.0))
    await clock.advance(0)
    assert await used(store, deployment) == [1, 1]
    for _ in range(2):
        task.cancel()
        await clock.advance(0)
    assert not task.done()  # the release runs to its end
    store.pause.set()
    await clock.advance(0)
    assert task.cancelled()
    assert [reservation_id for reservation_id, _ in store.ended] == [store.asked[0].reservation_id]
    assert await used(store, deployment) == [0, 0]
    assert gate.busy == 0


async def test_a_reserve_is_cancelled_even_if_it_cannot_be_released(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
    gate: DispatchGate,
    clock: ManualClock,
) -> None:
    """If the release fails, the caller still gets only the cancellation."""
    pool = make_pool([make_deployment()])
    store.pause = asyncio.Event()
    task = asyncio.create_task(make_selector(pool, store, gate).acquire(make_send(make_order(pool)), 0.0))
    await clock.advance(0)
    store.failure = StoreUnavailableError("no answer")
    task.cancel()
    await clock.advance(0)
    assert task.cancelled()
    assert gate.busy == 0


async def test_a_store_error_is_raised_and_frees_the_permit(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
    gate: DispatchGate,
) -> None:
    """A store error reaches the caller, and the next request gets through."""
    pool = make_pool([make_deployment()])
    selector, send = make_selector(pool, store, gate), make_send(make_order(pool))
    store.failure = StoreUnavailableError("no answer")
    with pytest.raises(StoreUnavailableError):
        await selector.acquire(send, 10.0)
    assert (gate.busy, selector.waiting) == (0, 0)
    store.failure = None
    await granted(selector.acquire(send, 0.0))


async def test_a_lease_keeps_its_permit_until_it_is_dispatched_or_closed(
    make_deployments: MakeDeployments,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    gate: DispatchGate,
) -> None:
    """A lease frees its permit once, when it is dispatched or closed, and a refusal frees it at once."""
    pool = make_pool(make_deployments(1, rpm=2))
    selector, send = make_selector(pool, None, gate), make_send(make_order(pool))
    lease = await granted(selector.acquire(send, 0.0))
    assert gate.busy == 1
    lease.mark_dispatched()
    lease.mark_dispatched()
    await lease.close()
    assert gate.busy == 0
    lease = await granted(selector.acquire(send, 0.0))
    lease.mark_sent()
    await lease.close()
    assert gate.busy == 0
    lease = await granted(selector.acquire(send, 0.0))
    lease.mark_sent()
    await lease.close()
    await refused(selector.acquire(send, 0.0))
    assert gate.busy == 0


# --- waiting ------------------------------------------------------------------------------------------


@pytest.fixture
async def spent(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    store: Scripted,
) -> tuple[Selector, SendState, Lease]:
    """A selector without room for another request, such a request, and the lease that took the room."""
    pool = make_pool([make_deployment(rpm=1)])
    selector, send = make_selector(pool, store), make_send(make_order(pool))
    lease = await granted(selector.acquire(send, 0.0))
    lease.mark_sent()
    lease.mark_dispatched()
    return selector, send, lease


Spent = tuple[Selector, SendState, Lease]


async def test_a_request_waits_for_room(spent: Spent, clock: ManualClock) -> None:
    """A waiting request is served as soon as there is room."""
    selector, send, _ = spent
    task = asyncio.create_task(selector.acquire(send, 100.0))
    await clock.advance(60.2)
    assert (task.done(), selector.waiting) == (False, 1)
    await clock.advance(0.2)
    assert isinstance(task.result(), Lease)
    assert selector.waiting == 0


@pytest.mark.parametrize("max_wait", [0.0, 60.2])
async def test_a_request_that_cannot_be_served_in_time_is_answered_at_once(
    spent: Spent, clock: ManualClock, max_wait: float
) -> None:
    """If there is no room before its deadline, a request is refused at once, even behind a line."""
    selector, send, _ = spent
    assert (await refused(selector.acquire(send, max_wait))).retry_at == clock.time() + 60.3
    patient = asyncio.create_task(selector.acquire(send, 100.0))
    await clock.advance(0)
    assert (await refused(selector.acquire(send, max_wait))).retry_at == clock.time() + 60.3
    assert selector.waiting == 1
    patient.cancel()
    await clock.advance(0)


async def test_returned_quota_wakes_a_waiter(spent: Spent, store: Scripted, clock: ManualClock) -> None:
    """A lease that is closed unsent makes room for the first waiter at once."""
    selector, send, lease = spent
    first, second = (asyncio.create_task(selector.acquire(send, 100.0)) for _ in range(2))
    await clock.advance(5.0)
    asked = len(store.asked)
    lease.mark_unsent()
    await lease.close()
    await clock.advance(0)
    assert isinstance(first.result(), Lease)
    assert not second.done()
    assert len(store.asked) <= asked + 2
    second.cancel()
    await clock.advance(0)


async def test_returned_quota_makes_a_deployment_ready(spent: Spent) -> None:
    """A deployment that just refused everything is ready again once a lease is closed unsent."""
    selector, send, lease = spent
    await refused(selector.acquire(send, 0.0))
    parked = [lease.state.is_parked]
    lease.mark_unsent()
    await lease.close()
    parked.append(lease.state.is_parked)
    assert parked == [True, False]
    await granted(selector.acquire(send, 0.0))


async def test_returned_tokens_wake_a_waiter(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    clock: ManualClock,
) -> None:
    """A lease settled below its estimate makes room for a request that waits for tokens."""
    pool = make_pool([make_deployment(tpm=1_000)])
    order = make_order(pool)
    selector = make_selector(pool)
    lease = await granted(selector.acquire(make_send(order, tokens=800), 0.0))
    lease.mark_sent()
    waiting = asyncio.create_task(selector.acquire(make_send(order, tokens=500), 100.0))
    await clock.advance(1.0)
    assert not waiting.done()
    lease.settle_at(400)
    await lease.close()
    await clock.advance(0)
    assert isinstance(waiting.result(), Lease)


async def test_returned_tokens_have_a_project_looked_at_once_a_refusal(
    make_deployment: MakeDeployment,
    make_pool: MakePool,
    make_order: MakeOrder,
    make_selector: MakeSelector,
    make_send: MakeSend,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have thousands of keys: not for each answer, though who waits is told every time."""
    pool = make_pool([make_deployment(key_id=f"k{n}", project="p", rpm=900, tpm=1_000) for n in range(40)])
    order, selector, looked_at = make_order(pool), make_selector(pool), list[str]()
    return_quota = pool_module._return_quota

    def count(state: DeploymentState, now: float) -> float:
        looked_at.append(state.deployment.key.key_id)
        return return_quota(state, now)

    async def returned(lease: Lease | Shortage) -> None:
        assert isinstance(lease, Lease)
        lease.mark_sent()
        lease.settle_at(1)
        await lease.close()

    monkeypatch.setattr(pool_module, "_return_quota", count)
    for refusals in (1, 2, 3):
        first = await granted(selector.acquire(make_send(order, tokens=1_000), 0.0))
        first.mark_sent()
        waiting = asyncio.create_task(selector.acquire(make_send(order, tokens=500), 100.0))
        await clock.advance(1.0)
        assert not waiting.done()
        assert all(state.is_parked for state in pool)
        first.settle_at(300)
        await first.close()
        assert not any(state.is_parked for state in pool)
        await clock.advance(0.1)
        await returned(waiting.result())
        for _ in range(30):
            await returned(await selector.acquire(make_send(order, tokens=5), 0.0))
        assert len(looked_at) == refusals * len(pool)
        clock.shift(61.0)


async def test_fewer_tokens_do_not_wake_a_waiter_for_requests(
    spent: Spent, store: Scripted, clock: ManualClock
) -> None:
    """A lease settled below its estimate does not wake a request that waits for requests per minute."""
    selector, send, lease = spent
    waiting = asyncio.create_task(selector.acquire(send, 100.0))
    await clock.advance(5.0)
    asked = len(store.asked)
    lease.settle_at(0)
    await lease.close()
    await clock.advance(1.0)
    assert len(store.asked) == asked
    waiting.cancel()
    await clock.advance(0)


async def test_an_avoided_deployment_stays_avoided(spent: Spent, clock: ManualClock, store: Scripted) -> None:
    """Returned quota does not make a deployment ready that this process avoids."""
    selector, send, lease = spent
    group = lease.state.group
    lease.state.avoided_until = group.avoided_until = clock.time() + 20.0
    group.park(lease.state, clock.time() + 20.0)
    lease.mark_unsent()
    await lease.close()
    assert lease.state.is_parked
    assert await used(store, lease.state.deployment) == [0]
    assert (await refused(selector.acquire(send, 0.0))).retry_at == clock.time() + 20.0


# --- the lease ----------------------------------------------------------------------------------------


class Returned:
    """Notes of which deployments what came back early."""

    def __init__(self) -> None:
        self.quota: list[DeploymentState] = []
        self.tokens: list[DeploymentState] = []

    def quota_returned(self, state: DeploymentState) -> None:
        self.quota.append(state)

    def tokens_returned(self, state: DeploymentState) -> None:
        self.tokens.append(state)


Leased = tuple[Lease, Returned]


@pytest.fixture
async def leased(
    make_deployment: MakeDeployment, make_pool: MakePool, store: Scripted, gate: DispatchGate
) -> Leased:
    """A lease with a demand of 50 tokens, and what it reported to have come back."""
    deployment = make_deployment(tpm=1_000)
    [state] = make_pool([deployment])
    demand = Demand(1, 50)
    await store.reserve("r", [deployment], demand, 60.0)
    await gate.enter()
    returned = Returned()
    return Lease(store, "r", state, demand, gate, returned, Decision(state.deployment), 0.0), returned


async def test_an_unsent_lease_is_released(leased: Leased, store: Scripted) -> None:
    """Closing a lease whose request was not sent gives back its quota and reports that."""
    lease, returned = leased
    await lease.close()
    assert await used(store, lease.state.deployment) == [0, 0]
    assert returned.quota == [lease.state]
    assert not returned.tokens


async def test_a_sent_lease_is_settled_at_the_estimate(leased: Leased, store: Scripted) -> None:
    """Closing a lease whose request was sent, but not counted, settles it at the estimate."""
    lease, returned = leased
    lease.mark_sent()
    await lease.close()
    assert store.ended == [("r", Demand(1, 50))]
    assert await used(store, lease.state.deployment) == [1, 50]
    assert not returned.quota
    assert not returned.tokens


@pytest.mark.parametrize("counted", [10, 50, 2_000])
async def test_a_counted_lease_is_settled_at_the_last_count(
    leased: Leased, store: Scripted, counted: int
) -> None:
    """Closing a lease settles it at the last count, even above the limit."""
    lease, returned = leased
    lease.mark_sent()
    lease.settle_at(5)
    lease.settle_at(counted)
    await lease.close()
    assert await used(store, lease.state.deployment) == [1, counted]
    assert returned.tokens == ([lease.state] if counted < 50 else [])
    assert not returned.quota


async def test_a_lease_marked_unsent_is_released(leased: Leased, store: Scripted) -> None:
    """A lease that was marked as sent, then as unsent, gives back its quota."""
    lease, returned = leased
    lease.mark_sent()
    lease.mark_unsent()
    await lease.close()
    assert await used(store, lease.state.deployment) == [0, 0]
    assert returned.quota == [lease.state]
    assert not returned.tokens


async def test_a_store_error_on_closing_is_not_raised(
    leased: Leased, store: Scripted, gate: DispatchGate
) -> None:
    """A lease that the store cannot settle closes without an error and frees its permit."""
    lease, _ = leased
    store.failure = StoreUnavailableError("no answer")
    lease.mark_sent()
    await lease.close()
    assert gate.busy == 0


@pytest.mark.parametrize("sent", [True, False])
async def test_a_lease_cancelled_while_closing_is_closed_once(
    leased: Leased, store: Scripted, clock: ManualClock, gate: DispatchGate, *, sent: bool
) -> None:
    """A cancelled close still settles or releases the lease exactly once, then delivers the cancellation."""
    lease, _ = leased
    if sent:
        lease.mark_sent()
        lease.settle_at(70)
    store.pause = asyncio.Event()
    task = asyncio.create_task(lease.close())
    await clock.advance(0)
    for _ in range(2):
        task.cancel()
        await clock.advance(0)
    assert not task.done()
    store.pause.set()
    await clock.advance(0)
    assert task.cancelled()
    assert await used(store, lease.state.deployment) == ([1, 70] if sent else [0, 0])
    assert gate.busy == 0


async def test_a_store_error_after_a_cancelled_close_is_not_raised(
    leased: Leased, store: Scripted, clock: ManualClock
) -> None:
    """If the store fails after a cancelled close, the caller gets only the cancellation."""
    lease, _ = leased
    lease.mark_sent()
    store.pause = asyncio.Event()
    task = asyncio.create_task(lease.close())
    await clock.advance(0)
    store.failure = StoreUnavailableError("no answer")
    task.cancel()
    await clock.advance(0)
    assert task.cancelled()

"""The consequences of a failure: in this process, in the store and in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llm_router import Cooldown, Deployment, FailureKind, MemoryStore, ProviderError, StoreUnavailableError
from llm_router.engine.breaker import PATH_FAILURES
from llm_router.engine.index import DeploymentState
from llm_router.engine.judging import Judge
from llm_router.engine.pool import Pool
from llm_router.engine.retry import Next, RetryPolicy
from llm_router.stores.base import DeploymentSnapshot
from llm_router.testing import ManualClock

MakeDeployment = Callable[..., Deployment]
MakePool = Callable[..., Pool]


class Fragile(MemoryStore):
    """A store in memory that cannot share cooldowns while ``fails`` is set, and counts the tries."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.fails = False
        self.tries = 0

    async def cool_down(self, cooldown: Cooldown) -> None:
        self.tries += 1
        if self.fails:
            raise StoreUnavailableError("no answer within 2 s")
        await super().cool_down(cooldown)


@pytest.fixture
def store(clock: ManualClock) -> Fragile:
    return Fragile(clock)


@pytest.fixture
def pool(make_pool: MakePool, make_deployment: MakeDeployment) -> Pool:
    """Two models of key k1 and one of key k2."""
    return make_pool(
        [
            make_deployment("model-a", key_id="k1"),
            make_deployment("model-b", key_id="k1"),
            make_deployment("model-a", key_id="k2"),
        ]
    )


@pytest.fixture
def judge(pool: Pool, store: Fragile, clock: ManualClock) -> Judge:
    return Judge(RetryPolicy(base_backoff=4.0), pool, store, clock)


def failure(kind: FailureKind, **details: Any) -> ProviderError:
    return ProviderError("it failed", kind=kind, **details)


def first(pool: Pool) -> DeploymentState:
    return next(iter(pool))


def parked(pool: Pool) -> list[bool]:
    return [state.is_parked for state in pool]


async def cooldowns(store: MemoryStore, pool: Pool) -> list[Cooldown | None]:
    """Return the shared cooldown of each deployment, or None."""
    return [snapshot.cooldown for snapshot in await store.snapshot(list(pool.states))]


# --- cooldowns ----------------------------------------------------------------------------------------


async def test_a_cooldown_is_applied_here_and_shared(
    judge: Judge, pool: Pool, store: Fragile, clock: ManualClock
) -> None:
    """A quota failure parks its (project, model) here and cools it down in the store, and no other."""
    verdict = await judge.judge(failure(FailureKind.QUOTA, retry_delay=36.0), first(pool))
    assert verdict.next is Next.ELSEWHERE
    assert parked(pool) == [True, False, False]
    assert first(pool).wakes_at == clock.time() + 36.0
    assert await cooldowns(store, pool) == [verdict.cooldown, None, None]


async def test_a_dead_key_is_quarantined_with_all_its_models(
    judge: Judge, pool: Pool, store: Fragile
) -> None:
    """A key failure quarantines all deployments of the key, here and in the store, until it is confirmed."""
    verdict = await judge.judge(failure(FailureKind.KEY), first(pool))
    assert parked(pool) == [True, True, False]
    assert [state.wakes_at for state in pool if state.is_parked] == [judge.clock.time() + 10.0] * 2
    assert await cooldowns(store, pool) == [verdict.cooldown, verdict.cooldown, None]


@pytest.mark.parametrize("kind", PATH_FAILURES)
async def test_a_path_failure_is_not_shared(
    judge: Judge, pool: Pool, store: Fragile, clock: ManualClock, kind: FailureKind
) -> None:
    """After a path failure only this process avoids the deployment."""
    verdict = await judge.judge(failure(kind), first(pool))
    assert verdict.next is Next.BACK_OFF
    assert parked(pool) == [True, False, False]
    assert first(pool).avoided_until == first(pool).wakes_at == clock.time() + 4.0
    assert store.tries == 0


async def test_a_wrong_request_has_no_consequences(
    judge: Judge, pool: Pool, store: Fragile, caplog: pytest.LogCaptureFixture
) -> None:
    """A request failure parks nothing, shares nothing and logs nothing."""
    verdict = await judge.judge(failure(FailureKind.REQUEST), first(pool))
    assert verdict.next is Next.GIVE_UP
    assert parked(pool) == [False] * 3
    assert store.tries == 0
    assert caplog.records == []


async def test_a_cooldown_that_cannot_be_shared_still_applies_here(
    judge: Judge, pool: Pool, store: Fragile, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """If the store fails, the deployment is parked all the same, and one debug line says why."""
    caplog.set_level(logging.DEBUG, "llm_router")
    store.fails = True
    verdict = await judge.judge(failure(FailureKind.SERVER), first(pool))
    assert verdict.next is Next.BACK_OFF
    assert store.tries == 1
    assert first(pool).wakes_at == clock.time() + 4.0
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert "no answer within 2 s" in record.getMessage()


async def test_an_unexpected_store_exception_is_logged(
    pool: Pool, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the store costs no attempt: the deployment is parked, and a warning names the method."""

    class Buggy(MemoryStore):
        async def cool_down(self, cooldown: Cooldown) -> None:
            raise ZeroDivisionError

    judge = Judge(RetryPolicy(), pool, Buggy(clock=clock), clock)
    await judge.judge(failure(FailureKind.SERVER), first(pool))
    assert "Buggy.cool_down() raised ZeroDivisionError" in caplog.text
    assert parked(pool) == [True, False, False]


# --- the log ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True], ids=["store answers", "store fails"])
async def test_a_quarantine_is_logged_once_as_a_warning(
    judge: Judge, pool: Pool, store: Fragile, caplog: pytest.LogCaptureFixture, *, fails: bool
) -> None:
    """The warning names the deployment and the reason, and contains no secret."""
    store.fails = fails
    began = judge.clock.time() - 1.0
    for _ in range(3):  # requests that were in flight together are one event
        await judge.judge(failure(FailureKind.MODEL), first(pool), began=began)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("llm_router", logging.WARNING)
    assert "k1/model-a" in record.getMessage()
    assert "model: it failed" in record.getMessage()
    assert "AIza" not in caplog.text


async def test_a_temporary_cooldown_is_not_logged(
    judge: Judge, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures that only cool a deployment down, or avoid it, log no warning."""
    for kind in (FailureKind.QUOTA, FailureKind.SERVER, FailureKind.NETWORK, FailureKind.TIMEOUT):
        await judge.judge(failure(kind), first(pool))
    assert caplog.records == []


# --- the breaker --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FailureKind)
async def test_what_opens_the_breaker(
    judge: Judge, make_deployment: MakeDeployment, make_pool: MakePool, clock: ManualClock, kind: FailureKind
) -> None:
    """Three keys open the breaker by network failures and timeouts, or if all are called wrong at once."""
    pool = make_pool([make_deployment() for _ in range(3)])
    judge = Judge(judge.policy, pool, judge.store, clock)
    for state in pool:
        await judge.judge(failure(kind), state)
    is_open = first(pool).group.breaker.open_until > clock.time()
    assert is_open is (kind in (FailureKind.NETWORK, FailureKind.TIMEOUT, FailureKind.KEY))


async def test_failures_of_one_key_do_not_open_the_breaker(
    judge: Judge, make_deployment: MakeDeployment, make_pool: MakePool, clock: ManualClock
) -> None:
    """One key does not open the breaker, however many of its models fail."""
    pool = make_pool([make_deployment(model, key_id="k") for model in "abcd"])
    judge = Judge(judge.policy, pool, judge.store, clock)
    for state in pool:
        await judge.judge(failure(FailureKind.NETWORK), state)
    assert first(pool).group.breaker.open_until <= clock.time()


async def test_an_error_answer_closes_the_breaker(
    judge: Judge, make_deployment: MakeDeployment, make_pool: MakePool, clock: ManualClock
) -> None:
    """An error that the provider itself sent closes the breaker."""
    pool = make_pool([make_deployment() for _ in range(3)])
    judge = Judge(judge.policy, pool, judge.store, clock)
    for state in pool:
        await judge.judge(failure(FailureKind.NETWORK), state)
    breaker = first(pool).group.breaker
    assert breaker.open_until > clock.time()
    await judge.judge(failure(FailureKind.SERVER), first(pool))
    assert breaker.open_until <= clock.time()
    assert breaker.is_clear


async def test_a_probe_that_succeeds_while_the_store_fails_is_acquitted_here(
    make_pool: MakePool, make_deployment: MakeDeployment, clock: ManualClock
) -> None:
    """Whether it was disabled meanwhile cannot be known; the store cannot be told either."""

    class Away(Fragile):
        async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
            raise StoreUnavailableError("no answer within 2 s")

    store, pool = Away(clock), make_pool([make_deployment()])
    store.fails = True
    probe = Cooldown(first(pool).deployment.model_scope, clock.time() + 60, "model: gone", half_open=True)
    pool.cool_down(probe)
    await Judge(RetryPolicy(), pool, store, clock).acquit(first(pool), [probe])
    assert parked(pool) == [False]


async def test_an_answer_does_not_forget_at_once_that_there_was_nothing(
    pool: Pool, store: Fragile, judge: Judge
) -> None:
    """Of two keys that take turns, one gives way: an answer takes back one refusal, and never the last."""
    state, probe = first(pool), Cooldown(first(pool).deployment.model_scope, 0.0, "", half_open=True)
    found = []
    for starved in (0, 1, 2, 5):
        state.starved = starved
        await judge.acquit(state, [probe])
        found.append(state.starved)
    assert found == [0, 1, 1, 4]
    pool.forgive(state.deployment)
    assert state.starved == 0

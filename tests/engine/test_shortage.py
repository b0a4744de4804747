"""The error of a request that found no room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from llm_router import Deployment, FailureKind, ProviderError, QuotaExhaustedError, StoreUnavailableError
from llm_router.domain.cooldown import Cooldown
from llm_router.engine.index import FallbackOrder
from llm_router.engine.pool import Pool
from llm_router.engine.shortage import NAMED_CANDIDATES, explain_shortage, retry_after, store_failure
from llm_router.engine.waiting import Shortage
from llm_router.errors import SendError
from llm_router.stores.base import Refusal

MakeDeployment = Callable[..., Deployment]
MakeDeployments = Callable[..., list[Deployment]]
MakePool = Callable[..., Pool]
MakeOrder = Callable[..., FallbackOrder]

NOW = 1_000.0


def refuse(pool: Pool, deployments: Sequence[Deployment], reason: str, seconds: float) -> tuple[Refusal, ...]:
    """Note that the store refuses requests on ``deployments`` for ``seconds``."""
    at = NOW + seconds
    refusals = tuple(Refusal(deployment, reason, at, at) for deployment in deployments)
    for refusal in refusals:
        pool.note_refusal(refusal, NOW)
    return refusals


def explain(
    order: FallbackOrder, refusals: tuple[Refusal, ...] = (), seconds: float = math.inf
) -> QuotaExhaustedError:
    """Explain a shortage that ends after ``seconds``, without an earlier failure."""
    error = explain_shortage(order, None, Shortage(NOW + seconds, refusals), NOW)
    assert isinstance(error, QuotaExhaustedError)
    return error


# --- the candidates -----------------------------------------------------------------------------------


def test_each_refusal_is_a_candidate(
    make_deployment: MakeDeployment, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Each refusal is listed with its key, model, reason and time, the earliest first."""
    deployments = [make_deployment(model, key_id=f"k-{model}") for model in "abc"]
    pool = make_pool(deployments)
    refusals = (
        *refuse(pool, deployments[:1], "rpm", 40.0),
        *refuse(pool, deployments[1:2], "key: dead", math.inf),
        *refuse(pool, deployments[2:], "tpm", 2.5),
    )
    error = explain(make_order(pool), refusals, 2.5)
    assert [(each.key_id, each.model, each.reason, each.retry_after) for each in error.candidates] == [
        ("k-c", "c", "tpm", 2.5),
        ("k-a", "a", "rpm", 40.0),
        ("k-b", "b", "key: dead", None),
    ]


def test_parked_deployments_are_candidates_too(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Parked deployments are listed by their last refusal, those just asked by the present one."""
    asked, parked, quarantined = make_deployments(3)
    pool = make_pool([asked, parked, quarantined])
    refuse(pool, [asked], "rpm", 10.0)
    refuse(pool, [parked], "rpd", 500.0)
    pool.cool_down(Cooldown(quarantined.key_scope, math.inf, "key: dead"))
    error = explain(make_order(pool), (Refusal(asked, "tpm", NOW + 30.0, NOW),), 30.0)
    assert [(each.key_id, each.reason, each.retry_after) for each in error.candidates] == [
        (asked.key.key_id, "tpm", 30.0),
        (parked.key.key_id, "rpd", 500.0),
        (quarantined.key.key_id, "key: dead", None),
    ]


def test_deployments_outside_the_order_are_not_candidates(
    make_deployment: MakeDeployment, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Deployments outside the fallback order are neither listed nor counted."""
    here, elsewhere = make_deployment("a"), make_deployment("b")
    pool = make_pool([here, elsewhere])
    refuse(pool, [here, elsewhere], "rpm", 10.0)
    error = explain(make_order(pool, None, "a", "none"), (), 10.0)
    assert [each.model for each in error.candidates] == ["a"]
    assert "none of 1 deployment has room" in str(error)


@pytest.mark.parametrize("asked", [0, 150])
def test_an_error_lists_at_most_64_candidates(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder, asked: int
) -> None:
    """The error lists the 64 that have room first and counts all deployments."""
    deployments = make_deployments(150)
    pool = make_pool(deployments)
    refusals: list[Refusal] = []
    for number in reversed(range(150)):
        refusals += refuse(pool, [deployments[number]], "rpm", 1.0 + number)
    error = explain(make_order(pool), tuple(refusals[:asked]), 1.0)
    assert len(error.candidates) == NAMED_CANDIDATES == 64
    assert [each.retry_after for each in error.candidates] == [1.0 + number for number in range(64)]
    assert "none of 150 deployments" in str(error)


# --- the message --------------------------------------------------------------------------------------


def test_the_message_sums_up_the_three_most_frequent_reasons(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """The message gives the three most frequent reasons and the time until the next try."""
    deployments = make_deployments(11)
    pool = make_pool(deployments)
    refuse(pool, deployments[:2], "tpm", 40.0)
    refuse(pool, deployments[2:7], "rpm", 30.0)
    refuse(pool, deployments[7:8], "rpd", 20.0)
    refuse(pool, deployments[8:], "key: dead", math.inf)
    error = explain(make_order(pool), (), 20.04)
    assert str(error) == ("none of 11 deployments has room: rpm (5), key: dead (3), tpm (2); retry in 20.0 s")
    assert error.retry_after == pytest.approx(20.04)


def test_an_endless_shortage_has_no_retry_after(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """If no deployment ever has room, the message says that waiting does not help."""
    deployments = make_deployments(2)
    pool = make_pool(deployments)
    refuse(pool, deployments, "key: dead", math.inf)
    error = explain(make_order(pool))
    assert str(error) == "none of 2 deployments has room: key: dead (2); waiting does not help"
    assert error.retry_after is None


def test_a_long_wait_is_told_as_a_person_would_say_it(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """The message says when to come back in seconds and, if that is minutes or hours, in these as well."""
    deployments = make_deployments(2)
    pool = make_pool(deployments)
    refusals = refuse(pool, deployments, "rpd", 43_210.3)
    assert str(explain(make_order(pool), refusals, 36.4)).endswith("; retry in 36.4 s")
    error = explain(make_order(pool), refusals, 43_210.3)
    assert str(error).endswith("none of 2 deployments has room: rpd (2); retry in 43210.3 s (12.0 h)")
    assert error.retry_after == pytest.approx(43_210.3)


def test_without_refusals_nothing_is_ready(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """Without any refusal, as with an open breaker, the message says that nothing is ready."""
    error = explain(make_order(make_pool(make_deployments(2))), (), 1.0)
    assert str(error) == "none of 2 deployments has room: nothing is ready; retry in 1.0 s"
    assert error.candidates == ()


def test_a_time_in_the_past_is_now(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """A retry time in the past is reported as 0 s."""
    [deployment] = make_deployments(1)
    pool = make_pool([deployment])
    error = explain(make_order(pool), (Refusal(deployment, "rpm", NOW - 3.0, NOW - 3.0),), -3.0)
    assert error.retry_after == error.candidates[0].retry_after == 0.0


# --- failures before it -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FailureKind)
def test_a_transient_failure_is_returned_itself(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder, kind: FailureKind
) -> None:
    """After a transient failure the shortage is reported as that failure, with its retry_after set."""
    failure = ProviderError("it failed", kind=kind)
    order = make_order(make_pool(make_deployments(1)))
    error = explain_shortage(order, failure, Shortage(NOW + 7.0), NOW)
    transient = kind in (FailureKind.SERVER, FailureKind.NETWORK, FailureKind.TIMEOUT)
    assert (error is failure) is transient
    assert isinstance(error, QuotaExhaustedError) is not transient
    assert error.retry_after == 7.0


def test_a_transient_failure_loses_an_outdated_retry_after(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """If no deployment ever has room, a transient failure's retry_after becomes None."""
    failure = ProviderError("it failed", kind=FailureKind.SERVER)
    failure.retry_after = 3.0
    order = make_order(make_pool(make_deployments(1)))
    assert explain_shortage(order, failure, Shortage(math.inf), NOW) is failure
    assert failure.retry_after is None


def test_a_failing_store_is_the_cause_of_a_failed_send() -> None:
    """The error of a send that the store failed has its message and has it as its cause."""
    error = StoreUnavailableError("no answer within 2 s")
    failure = store_failure(error)
    assert type(failure) is SendError
    assert failure.__cause__ is error
    assert "no answer within 2 s" in str(failure)
    assert failure.retry_after is None


# --- when to come back --------------------------------------------------------------------------------


def test_retry_after_is_when_the_first_deployment_is_ready(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """The time is 0 if a deployment is ready, and None if all are quarantined."""
    deployments = make_deployments(3)
    pool = make_pool(deployments)
    order = make_order(pool)
    assert retry_after(order, NOW) == 0.0
    refuse(pool, deployments[:1], "rpm", 40.0)
    refuse(pool, deployments[1:2], "rpm", 30.0)
    assert retry_after(order, NOW) == 0.0
    pool.cool_down(Cooldown(deployments[2].key_scope, math.inf, "key: dead"))
    assert retry_after(order, NOW) == 30.0
    assert retry_after(order, NOW + 35.0) == 0.0
    for deployment in deployments:
        pool.cool_down(Cooldown(deployment.key_scope, math.inf, "key: dead"))
    assert retry_after(order, NOW) is None


def test_retry_after_respects_an_open_breaker(
    make_deployments: MakeDeployments, make_pool: MakePool, make_order: MakeOrder
) -> None:
    """While the breaker is open, its end is when another send may succeed."""
    pool = make_pool(make_deployments(3))
    for state in pool:
        state.group.breaker.record_failure(state.deployment.key.key_id, NOW)
    assert retry_after(make_order(pool), NOW) == 1.0

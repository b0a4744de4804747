"""The pool of deployments, their groups and their scopes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from llm_router import Deployment
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import ProjectDeployment
from llm_router.domain.methods import usual_methods
from llm_router.engine.pool import Pool
from llm_router.engine.project_limits import shared_state
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import Refusal
from llm_router.testing import FakeProvider

MakeDeployment = Callable[..., Deployment]
MakePool = Callable[..., Pool]

NOW = 1_000.0


@pytest.fixture
def deployments(make_deployment: MakeDeployment) -> list[Deployment]:
    """Two keys of one project, of which the first has two models, and a key of another provider."""
    return [
        make_deployment("a", key_id="k1", project="p"),
        make_deployment("b", key_id="k1", project="p"),
        make_deployment("a", key_id="k2", project="p"),
        make_deployment("a", key_id="k3", provider="other"),
    ]


@pytest.fixture
def pool(make_pool: MakePool, deployments: list[Deployment]) -> Pool:
    return make_pool(deployments)


def parked(pool: Pool) -> list[bool]:
    return [state.is_parked for state in pool]


def test_deployments_are_grouped_by_provider_workload_and_model(make_deployment: MakeDeployment) -> None:
    """Deployments that agree in provider, workload and model are one group, and all start ready."""
    deployments = [
        make_deployment(model, workload, provider=provider)
        for provider in ("near", "far")
        for workload in ("light", "heavy")
        for model in ("a", "a", "b")
    ]
    upstreams = {name: Upstream(name, FakeProvider()) for name in ("near", "far")}
    pool = Pool(deployments, upstreams)
    assert len(pool) == 12
    assert [state.deployment for state in pool] == deployments
    assert {name: len(group.states) for name, group in pool.groups.items()} == {
        (provider, workload, model, usual_methods(model)): count
        for provider in ("near", "far")
        for workload in ("light", "heavy")
        for model, count in (("a", 2), ("b", 1))
    }
    assert all(group.upstream is upstreams[name] for (name, *_), group in pool.groups.items())
    assert not any(parked(pool))
    assert not pool.sharded


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("model_scope", [True, False, True, False]),
        ("key_scope", [True, True, False, False]),
        ("provider_scope", [True, True, True, False]),
    ],
)
def test_a_scope_is_parked_and_roused_as_a_whole(
    pool: Pool, deployments: list[Deployment], scope: str, expected: list[bool]
) -> None:
    """Parking or rousing a scope affects all its deployments, and parking notes the reason on each."""
    name = getattr(deployments[0], scope)
    pool.cool_down(Cooldown(name, NOW + 60.0, "spent"))
    assert parked(pool) == expected
    for state in pool:
        if state.is_parked:
            cooldown = Cooldown(name, NOW + 60.0, "spent")
            assert state.refusal == Refusal(state.deployment, "spent", NOW + 60.0, NOW + 60.0, cooldown)
    pool.rouse(name, NOW)
    assert not any(parked(pool))


def test_an_unknown_scope_is_ignored(pool: Pool, make_deployment: MakeDeployment) -> None:
    """Parking or rousing a scope without deployments does nothing."""
    pool.cool_down(Cooldown(make_deployment().model_scope, NOW + 60.0, "spent"))
    pool.rouse(make_deployment().key_scope, NOW)
    assert not any(parked(pool))


def test_a_refusal_parks_only_if_no_request_fits(pool: Pool, deployments: list[Deployment]) -> None:
    """A deployment with room for a smaller request stays ready, though its refusal is noted."""
    pool.note_refusal(Refusal(deployments[0], "rpm", NOW + 60.0, NOW + 60.0), NOW)
    pool.note_refusal(Refusal(deployments[1], "tpm", NOW + 60.0, NOW), NOW)
    assert parked(pool) == [True, False, False, False]
    assert [state.refusal.reason for state in pool if state.refusal] == ["rpm", "tpm"]


def test_an_avoided_deployment_is_not_roused_before_its_time(
    pool: Pool, deployments: list[Deployment]
) -> None:
    """Rousing a scope leaves out a deployment that this process still avoids."""
    first, _, sibling, _ = pool
    pool.cool_down(Cooldown(deployments[0].model_scope, NOW + 5.0, "spent"))
    pool.avoid(first, NOW + 20.0, "no route")
    pool.rouse(deployments[0].model_scope, NOW + 10.0)
    assert (first.is_parked, sibling.is_parked) == (True, False)
    pool.rouse(deployments[0].model_scope, NOW + 20.0)
    assert not first.is_parked


def test_avoiding_for_a_shorter_time_changes_nothing(pool: Pool) -> None:
    """A shorter avoidance does not move the end of a longer one."""
    first = next(iter(pool))
    pool.avoid(first, NOW + 20.0, "no route")
    pool.avoid(first, NOW + 10.0, "no route")
    assert first.avoided_until == first.wakes_at == first.group.avoided_until == NOW + 20.0


def test_a_quarantine_is_not_shortened_by_a_cooldown(pool: Pool, deployments: list[Deployment]) -> None:
    """A later cooldown does not make a quarantined deployment wake."""
    pool.cool_down(Cooldown(deployments[0].key_scope, math.inf, "key: dead"))
    pool.cool_down(Cooldown(deployments[0].model_scope, NOW + 30.0, "spent"))
    assert next(iter(pool)).wakes_at == math.inf


def test_quota_that_comes_back_makes_its_deployments_ready(pool: Pool, deployments: list[Deployment]) -> None:
    """Those of the model; of the whole project, once limits are known that all its models share."""
    first, other, sibling, _ = pool
    for shares, expected in ((False, [False, True, False, False]), (True, [False] * 4)):
        for each in (first, other, sibling):
            pool.note_refusal(Refusal(each.deployment, "tpm", NOW + 60.0, NOW + 60.0), NOW)
        if shares:
            pool.share(shared_state(first, ProjectDeployment.of(first.deployment)))
        pool.return_quota_of(sibling, NOW)
        assert parked(pool) == expected


def test_quota_that_comes_back_during_an_avoidance_is_used_after_it(
    pool: Pool, deployments: list[Deployment]
) -> None:
    """What this process avoids is looked at again when it does not any more, and then not again."""
    first, _, sibling, _ = pool
    pool.avoid(first, NOW + 10.0, "no route")
    for each in (first, sibling):
        pool.note_refusal(Refusal(each.deployment, "rpd", NOW + 9_000.0, NOW + 9_000.0), NOW)
    pool.return_quota_of(sibling, NOW + 1.0)
    assert (first.is_parked, sibling.is_parked) == (True, False)
    pool.return_quota_of(sibling, NOW + 10.0)
    assert not first.is_parked


def test_quota_that_comes_back_ends_no_cooldown(pool: Pool, deployments: list[Deployment]) -> None:
    """Nor is a deployment that cools down looked at again and again."""
    first, _, sibling, _ = pool
    pool.cool_down(Cooldown(deployments[0].key_scope, NOW + 60.0, "busy"))
    pool.note_refusal(Refusal(sibling.deployment, "tpm", NOW + 60.0, NOW + 60.0), NOW)
    pool.return_quota_of(sibling, NOW)
    assert (first.is_parked, sibling.is_parked) == (True, False)
    # Once the cooldown has given way to a refusal for want of quota, it is.
    pool.note_refusal(Refusal(first.deployment, "tpm", NOW + 50.0, NOW), NOW)
    pool.return_quota_of(sibling, NOW)
    assert not first.is_parked


def test_what_lacks_quota_for_long_is_asked_for_again_in_turns(
    make_pool: MakePool, make_deployment: MakeDeployment
) -> None:
    """Once a minute and 128 at a time, those first that were asked longest ago."""
    pool = make_pool([make_deployment(key_id=f"k{n}") for n in range(300)])
    assert pool.again_at == math.inf
    for number, state in enumerate(pool):
        pool.note_refusal(Refusal(state.deployment, "rpd", NOW + 9e4, NOW + 9e4), NOW + number * 1e-6)
    seen: list[bool] = [False] * 300
    for minute in (1, 2, 3):
        assert pool.again_at == pytest.approx(NOW + minute * 60.0)
        now = pool.again_at
        pool.ask_again(now)
        roused = [not each for each in parked(pool)]
        assert sum(roused) == (128 if minute < 3 else 300 - 2 * 128 + 84)
        seen = [before or each for before, each in zip(seen, roused, strict=True)]
        for state, each in zip(pool, roused, strict=True):
            if each:
                pool.note_refusal(Refusal(state.deployment, "rpd", NOW + 9e4, NOW + 9e4), now)
    assert all(seen)


def test_only_what_lacks_quota_for_long_is_asked_for_again(pool: Pool) -> None:
    """Not what cools down, what this process avoids, or what has quota again within a minute."""
    for state, reason, ends in zip(pool, ("rpd", "rpm", "rpd", "busy"), (9e4, 60.0, 9e4, 9e4), strict=True):
        cooldown = Cooldown(state.deployment.model_scope, NOW + ends, reason) if reason == "busy" else None
        pool.note_refusal(Refusal(state.deployment, reason, NOW + ends, NOW + ends, cooldown), NOW)
    _, _, avoided, _ = pool
    avoided.avoided_until = NOW + 70.0
    pool.ask_again(NOW + 59.0)
    assert parked(pool) == [True] * 4
    pool.ask_again(NOW + 60.0)
    assert parked(pool) == [False, True, True, True]
    pool.ask_again(NOW + 120.0)
    assert parked(pool) == [False, True, False, True]
    pool.ask_again(NOW + 180.0)
    assert pool.again_at == math.inf


def test_what_lacks_quota_is_asked_for_at_once_when_the_clock_was_set_back(pool: Pool) -> None:
    """Nobody knows how much of the minute has passed."""
    first, *_ = pool
    pool.note_refusal(Refusal(first.deployment, "rpd", NOW + 9e4, NOW + 9e4), NOW)
    pool.ask_again(NOW - 500.0)
    assert not first.is_parked
    assert pool.again_at == NOW - 440.0

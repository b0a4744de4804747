"""Plans: what the real engine does with traffic on virtual time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import ConfigError, InvalidRequestError, Metric, Quota
from llm_router.planning import (
    Arrival,
    Plan,
    Setting,
    can_draw,
    draw,
    make_plan,
    make_traffic,
    projects_needed,
    simulate,
)
from llm_router.planning.growth import _copies, _search
from llm_router.planning.traffic import MIDNIGHT

if TYPE_CHECKING:
    from tests.conftest import Pools


def _at(*seconds: float, **fields: Any) -> list[Arrival]:
    return [Arrival(MIDNIGHT + at, **fields) for at in seconds]


def _plan(traffic: Sequence[Arrival], setting: Setting) -> Plan:
    return make_plan(traffic, setting, simulate(traffic, setting))


def test_waits_are_those_of_the_quota(pools: Pools) -> None:
    """Two a minute: the third waits for the window of the first, guard included, the fifth for two."""
    setting = Setting(deployments=[pools.one(rpm=2)])
    outcome = simulate(_at(0, 1, 2, 3, 4), setting)
    assert outcome.waits == pytest.approx([0, 0, 58.3, 58.3, 116.6], abs=0.2)
    assert not outcome.stopped
    impatient = attrs.evolve(setting, max_wait=60)
    plan = _plan(_at(0, 1, 2, 3, 4), impatient)
    assert (plan.requests, plan.answered, plan.p95) == (5, 4, math.inf)
    assert (plan.p50, plan.longest) == pytest.approx((58.3, 58.3), abs=0.2)


def test_what_binds_and_when_the_day_ends(pools: Pools) -> None:
    """Each model is named with its metric, and how much of it was full; what has room is not."""
    pool = [
        *pools.many(2, "small", "light", rpm=100, rpd=30),
        pools.one("large", "heavy", rpm=5),
        pools.one("idle", "medium", rpm=None, tpm=100),
    ]
    setting = Setting(deployments=pool, fallback="none", max_wait=120)
    traffic = [
        *_at(*range(0, 600, 6), workload="light"),
        *_at(*range(0, 600, 6), workload="heavy"),
    ]
    traffic.sort(key=lambda each: each.at)
    plan = _plan(traffic, setting)
    assert plan.by_model == {"small": 60, "large": pytest.approx(59, abs=2)}
    binds = {(each.model, each.metric): each.share for each in plan.binds}
    assert binds.keys() == {("small", Metric.RPD), ("large", Metric.RPM), ("idle", Metric.TPM)}
    assert binds["large", Metric.RPM] > 0.8
    assert plan.spent_at.keys() == {"small"}
    assert plan.spent_at["small"] - plan.begins == pytest.approx(360, abs=60)
    assert (plan.projects, plan.deployments, plan.unknown) == (4, 4, ())


def test_the_same_plan_twice(pools: Pools) -> None:
    """Nothing is left to chance, and nothing of it takes real time."""
    pool = [*pools.many(3, "a", rpm=5, rpd=200), pools.one("b", rpm=None, tpm=9_000)]
    setting = Setting(deployments=pool, max_wait=math.inf)
    traffic = make_traffic(30, hours=0.2, tokens=900)
    plan = _plan(traffic, setting)
    assert plan == _plan(traffic, setting)
    assert plan.answered == len(traffic)
    assert 0 < plan.p50 <= plan.p95 <= plan.p99 <= plan.longest


def test_limits_that_are_to_be_learnt(pools: Pools) -> None:
    """The plan says of which models it does not know the limits."""
    unknown = attrs.evolve(pools.one("new"), quotas=(Quota(Metric.RPM, 4, adaptive=True),))
    assert _plan(_at(0, 1), Setting(deployments=[unknown, pools.one()])).unknown == ("new",)


@pytest.mark.slow
def test_how_many_more_projects(pools: Pools) -> None:
    """As many as the rate takes, like the project with most models; none if there are enough."""
    pool = [pools.one("a", rpm=10, key_id="k"), pools.one("b", rpm=10, key_id="k"), pools.one("a", rpm=10)]
    setting = Setting(deployments=pool)
    traffic = make_traffic(100, hours=0.1)
    growth = projects_needed(traffic, setting, 5.0)
    assert (growth.like, growth.target) == ("k", 5.0)
    assert growth.more == pytest.approx(4, abs=1)  # (100 + chance - 30) / 20
    assert growth.more is not None
    for more, is_enough in ((growth.more, True), (growth.more - 1, False)):
        larger = attrs.evolve(setting, deployments=[*pool, *_copies(pool[:2], more)])
        assert (_plan(traffic, larger).p95 <= 5.0) is is_enough
    assert projects_needed(_at(0, 1), setting, 0.0).more == 0
    a_day = Setting(deployments=[pools.one(rpm=None, rpd=10)])
    assert projects_needed(_at(*range(100)), a_day, 1.0).more == 9  # 95 of 100 requests


def test_the_search_for_a_number() -> None:
    """It finds the smallest one, wherever it begins, and gives up in the end."""
    for wanted in (0, 1, 2, 7, 100, 1024):
        for at_least in {0, wanted // 2, wanted}:
            assert _search(lambda more, wanted=wanted: more >= wanted, at_least) == wanted  # type: ignore[misc]
    assert _search(lambda _: False, 3) is None


@pytest.mark.parametrize(
    ("traffic", "fields", "named"),
    [
        (_at(0, workload="huge"), {}, "workload 'huge': use one of 'heavy'"),
        (_at(0, model="gemini-0"), {}, "model 'gemini-0': use one of 'model-a'"),
        (_at(0), {"fallback": "some"}, "any, model, none"),
        (_at(0), {"answering": math.nan}, "not nan"),
        (_at(0), {"max_wait": -1}, "max_wait"),
    ],
)
def test_wrong_arguments(pools: Pools, traffic: list[Arrival], fields: dict[str, Any], named: str) -> None:
    """They are named before anything is simulated."""
    with pytest.raises((InvalidRequestError, ConfigError), match=named):
        simulate(traffic, Setting(deployments=[pools.one()], **fields))


def test_targets_that_cannot_be_meant(pools: Pools) -> None:
    """A target is a number of seconds."""
    with pytest.raises(InvalidRequestError, match="target"):
        projects_needed(_at(0), Setting(deployments=[pools.one()]), math.inf)


@pytest.mark.slow
def test_a_picture(pools: Pools, tmp_path: Path) -> None:
    """A plan with lost requests and a spent day is drawn, and so is one of a single request."""
    if not can_draw():
        pytest.skip("matplotlib is not installed: .ci/run has it")
    for number, traffic in enumerate((_at(0), make_traffic(10, hours=1))):
        setting = Setting(deployments=[pools.one(rpm=5, rpd=100)])
        outcome = simulate(traffic, setting)
        draw(tmp_path / f"{number}.png", traffic, outcome, make_plan(traffic, setting, outcome))
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")

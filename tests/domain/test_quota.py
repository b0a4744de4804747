"""Quotas as values: what they take for granted, and what they refuse."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from llm_router import ConfigError, Metric, Quota, Refill


@pytest.mark.parametrize("metric", list(Metric))
def test_a_quota_of_a_day_comes_back_at_midnight(metric: Metric) -> None:
    """One of a minute comes back while it rolls on; whoever says how, is believed."""
    assert Quota(metric, 10).refill is (Refill.DAILY if metric.is_daily else Refill.ROLLING)
    assert Quota(metric, 10, Refill.STEADY).refill is Refill.STEADY


def test_names_stand_for_what_they_name() -> None:
    """As they are written in files."""
    named: Any = "rpd", 250, "daily"
    assert Quota(*named) == Quota(Metric.RPD, 250)


@pytest.mark.parametrize("odd", ["rpx", "", None, [], float("nan"), "x" * 10_000])
def test_what_is_none_is_refused_with_what_there_is(odd: Any) -> None:
    """Instead of an error from inside, and without pages of it."""
    with pytest.raises(
        ConfigError, match=r"counts one of rpm, tpm, rpd, tpd, such as Metric\.RPM, not"
    ) as one:
        Quota(odd, 1)
    with pytest.raises(
        ConfigError, match=r"must be one of rolling, steady, daily, such as Refill\.ROLLING"
    ) as two:
        Quota(Metric.RPM, 1, odd)
    assert max(len(str(one.value)), len(str(two.value))) < 200


@pytest.mark.parametrize("metric", [Metric.RPD, Metric.TPD])
def test_a_window_of_a_daily_quota_is_refused_with_the_remedy(metric: Metric) -> None:
    """It would have been ignored: a day's quota comes back at midnight unless the refill says otherwise."""
    with pytest.raises(
        ConfigError, match=f'^{metric.value}: .*window=2.0 means nothing: add refill="rolling"'
    ):
        Quota(metric, 5, window=2.0)
    for refill in (Refill.ROLLING, Refill.STEADY):
        assert Quota(metric, 5, refill, window=2.0).window == 2.0


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize(
    ("refill", "void"),
    [
        (Refill.DAILY, {"window": 86_400}),
        (Refill.DAILY, {"burst": 1}),
        (Refill.ROLLING, {"burst": 1}),
        (Refill.ROLLING, {"timezone": "UTC"}),
        (Refill.STEADY, {"timezone": "UTC"}),
    ],
)
def test_what_a_refill_would_ignore_is_refused(metric: Metric, refill: Refill, void: dict[str, Any]) -> None:
    """By name, with the refill under which it means something."""
    [name] = void
    with pytest.raises(ConfigError, match=rf"^{metric.value}: .*{name}=.* means nothing: add refill="):
        Quota(metric, 5, refill, **void)


@pytest.mark.parametrize("refill", list(Refill))
def test_a_quota_can_be_changed_whatever_its_refill(refill: Refill) -> None:
    """What has its default value is taken for not given."""
    assert attrs.evolve(Quota(Metric.RPD, 5, refill), limit=6) == Quota(Metric.RPD, 6, refill)

"""Quotas as values: what they take for granted, and what they refuse."""

from __future__ import annotations

from typing import Any

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

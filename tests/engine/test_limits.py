"""What the controller of learnt limits concludes from refusals and answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from llm_router import Deployment, Metric, ProviderError, Quota, Refill
from llm_router.domain.limits import LearntLimit, LimitRecord, LimitSource
from llm_router.domain.quota import MAX_LIMIT
from llm_router.engine.evidence import WINDOW, Circumstances, Growth, Inference
from llm_router.engine.limits import (
    FIRST_WAIT,
    LONGEST_WAIT,
    after_answer,
    after_refusal,
    first_inferences,
    for_another_project,
)
from llm_router.engine.unnamed import counting_tokens, is_refuted, taken_for_tokens
from llm_router.errors import QuotaViolation
from llm_router.stores.base import QuotaSnapshot

MakeDeployment = Callable[..., Deployment]

NOW = 1_800_014_400.0
"""Noon UTC: four in the morning in Los Angeles."""

TO_MIDNIGHT = 20 * 3600.0
STATED, INFERRED, UNKNOWN = LimitSource.STATED, LimitSource.INFERRED, LimitSource.UNKNOWN
RPM, TPM, RPD = Metric.RPM, Metric.TPM, Metric.RPD


def refusal(*violations: tuple[Metric, int | None]) -> ProviderError:
    named = tuple(QuotaViolation(metric, limit) for metric, limit in violations)
    return ProviderError("refused", kind="quota", code=429, violations=named)


def counted(metric: Metric, used: int, limit: int, learnt: LimitRecord | None = None) -> QuotaSnapshot:
    return QuotaSnapshot(metric, limit, used, NOW + 60.0, learnt)


def record(
    limit: int,
    source: LimitSource = INFERRED,
    *,
    ago: float = 1000.0,
    wait: float = FIRST_WAIT,
    raised: int | None = None,
) -> LimitRecord:
    """Make the record of a limit that was learnt some seconds ago, and rises ``wait`` after that."""
    learnt_at = NOW - ago
    return LimitRecord(limit, source, learnt_at, limit + 1 if raised is None else raised, learnt_at + wait)


def found(
    metric: Metric, limit: int, source: LimitSource = INFERRED, wait: float = FIRST_WAIT
) -> LearntLimit:
    """Return a limit that rises by one request, or by 1 % of the tokens, after ``wait`` seconds."""
    step = max(1, limit // 100) if metric.counts_tokens else 1
    return LearntLimit(metric, limit, source, limit + step, wait)


@pytest.fixture
def conclude(make_deployment: MakeDeployment) -> Callable[..., Inference]:
    """Draw the conclusion from a refusal of a request that was sent a second ago."""

    def after(
        *quotas: QuotaSnapshot,
        named: tuple[tuple[Metric, int | None], ...] = (),
        configured: tuple[Quota, ...] = (Quota(RPM, 15),),
        **circumstances: Any,
    ) -> Inference:
        deployment = attrs.evolve(make_deployment(), quotas=configured)
        when = Circumstances(NOW, **{"began": NOW - 1.0, **circumstances})
        return after_refusal(refusal(*named), deployment, quotas, when)

    return after


# --- refusals for the minute --------------------------------------------------------------------------


@pytest.mark.parametrize("named", [(), ((RPM, None),)])
def test_what_was_admitted_is_the_limit(
    conclude: Callable[..., Inference], named: tuple[tuple[Metric, int | None], ...]
) -> None:
    """A refusal without a number teaches the count of the window before it, which explains it."""
    assert conclude(counted(RPM, 10, 15), named=named) == Inference((found(RPM, 10),), is_explained=True)


def test_a_limit_far_below_what_is_expected_needs_a_second_refusal(
    conclude: Callable[..., Inference],
) -> None:
    """The first may be the fault of the minute; after the deployment was left alone it is believed."""
    assert conclude(counted(RPM, 3, 15)) == Inference()
    assert conclude(counted(RPM, 3, 15), strikes=1) == Inference((found(RPM, 3),), is_explained=True)


def test_nothing_is_learnt_where_nothing_was_admitted(conclude: Callable[..., Inference]) -> None:
    """Without a request in the window a refusal must be waited out.

    That nothing was admitted is said, of all that is named and of what is counted only.
    """
    assert conclude(counted(RPM, 0, 15)) == Inference(is_starved=True)
    assert conclude(counted(RPM, 1, 15)) == Inference()
    assert not conclude(counted(RPM, 0, 15), named=((RPM, None), (TPM, None))).is_starved
    assert not conclude(counted(RPM, 0, 15), counted(TPM, 9, 90), named=((RPM, 9), (TPM, None))).is_starved


@pytest.mark.parametrize("metric", [RPM, TPM])
def test_what_is_not_counted_is_from_its_first_refusal_on(
    conclude: Callable[..., Inference], metric: Metric
) -> None:
    """A part of the window shows nothing; what was admitted in a whole one is the limit."""
    other = counted(TPM if metric is RPM else RPM, 5, 15)
    begun = LearntLimit(metric, MAX_LIMIT, UNKNOWN, replaces=0.0)
    assert conclude(other, named=((metric, None),)) == Inference((begun,))
    for ago, learnt in ((WINDOW - 1.0, ()), (WINDOW + 1.0, (found(metric, 900),))):
        whole = counted(metric, 900, MAX_LIMIT, record(MAX_LIMIT, UNKNOWN, ago=ago))
        assert conclude(other, whole, named=((metric, None),), doubted=True).learnt == learnt
    assert first_inferences((begun,), (other,)) == ()


@pytest.mark.parametrize("ago", [30.0, WINDOW + 1.0])
def test_a_number_is_believed_of_what_is_counted_since_a_while(
    conclude: Callable[..., Inference], ago: float
) -> None:
    """A part of the window does not contradict it, however little was counted there."""
    part = counted(TPM, 20_000, MAX_LIMIT, record(MAX_LIMIT, UNKNOWN, ago=ago))
    assert conclude(part, named=((TPM, 100_000),), tokens=1_000).learnt == (found(TPM, 100_000, STATED),)


def test_a_bare_refusal_far_below_all_that_is_counted_is_for_requests(
    conclude: Callable[..., Inference],
) -> None:
    """Also where these are not counted yet, or nothing is."""
    begun = (LearntLimit(RPM, MAX_LIMIT, UNKNOWN, replaces=0.0),)
    assert conclude().learnt == begun
    assert conclude(counted(TPM, 499, 1000), doubted=True).learnt == begun
    assert {each.metric for each in conclude(counted(TPM, 500, 1000), doubted=True).learnt} == {TPM}


def test_bare_refusals_at_as_many_tokens_are_for_tokens(conclude: Callable[..., Inference]) -> None:
    """If the requests are others, and fewer than the limit that the ones before were taken for."""
    taken_for = record(12, ago=500.0)
    quotas = counted(RPM, 7, 12, taken_for), counted(TPM, 5_800, MAX_LIMIT, record(MAX_LIMIT, UNKNOWN))
    latest = [(counted(RPM, rpm, 15), counted(TPM, 5_500, MAX_LIMIT)) for rpm in (12, 9)]
    inference = conclude(*quotas, doubted=True, tokens=600, latest=latest)
    assert inference.learnt == (
        LearntLimit(RPM, None, replaces=taken_for.learnt_at),
        found(TPM, 6_100),
    )
    assert taken_for_tokens(inference) == 6_100
    for case in (
        {"latest": [latest[0], (counted(RPM, 9, 15), counted(TPM, 4_000, MAX_LIMIT))]},
        {"latest": [(counted(RPM, 7, 15), counted(TPM, 5_500, MAX_LIMIT))] * 2},
        {"latest": latest[:1]},  # it may be chance
        {"latest": ()},
        {"latest": latest, "first_tokens": 9_000},  # it was so already
    ):
        inference = conclude(*quotas, doubted=True, tokens=600, **case)
        assert [entry.metric for entry in inference.learnt] == [RPM]
        assert taken_for_tokens(inference) == 0


def test_refusals_that_go_on_at_far_fewer_tokens_are_not_for_tokens(
    conclude: Callable[..., Inference],
) -> None:
    """Others use the quota: so the limit of tokens is forgotten, and requests are limited as before."""
    limited = record(1_500, ago=500.0)
    quotas = counted(RPM, 7, 12, record(12, ago=500.0)), counted(TPM, 1_400, 1_500, limited)
    inference = conclude(*quotas, doubted=True, tokens=200, first_tokens=6_000)
    assert inference.learnt[0] == LearntLimit(TPM, None, replaces=limited.learnt_at)
    assert [entry.metric for entry in inference.learnt[1:]] == [RPM]
    assert is_refuted(inference)
    for first in (3_000, 0):
        inference = conclude(*quotas, doubted=True, tokens=200, first_tokens=first)
        assert RPM not in {entry.metric for entry in inference.learnt}
        assert not is_refuted(inference)


def test_a_bare_refusal_that_nothing_explains_has_tokens_counted(conclude: Callable[..., Inference]) -> None:
    """They may be what it is for."""
    quotas = (counted(RPM, 3, 15),)
    begun = LearntLimit(TPM, MAX_LIMIT, UNKNOWN, replaces=0.0)
    assert counting_tokens(conclude(*quotas), quotas).learnt == (begun,)
    both = (*quotas, counted(TPM, 9, 99))
    for inference, its_quotas in (
        (conclude(counted(RPM, 15, 15)), quotas),
        (conclude(counted(RPM, 0, 15)), quotas),
        (conclude(*both), both),
        (conclude(), ()),
    ):
        assert counting_tokens(inference, its_quotas) is inference


def test_a_stated_limit_is_believed(conclude: Callable[..., Inference]) -> None:
    """Down and up; the lowest of several; it explains the refusal if as much was counted."""
    stated = ((RPM, 12), (RPM, 10), (RPM, None))
    assert conclude(counted(RPM, 10, 15), named=stated) == Inference(
        (found(RPM, 10, STATED),), is_explained=True
    )
    assert conclude(counted(RPM, 7, 15), named=stated) == Inference((found(RPM, 10, STATED),))
    before = record(5, ago=10.0)
    assert conclude(counted(RPM, 0, 5, before), named=stated).learnt == (found(RPM, 10, STATED),)


def test_a_bare_refusal_is_about_the_fullest_quota(conclude: Callable[..., Inference]) -> None:
    """Of requests, unless more than half of the tokens are used and a larger share of them."""
    configured = (Quota(RPM, 10), Quota(TPM, 1000))
    for requests, tokens, expected in (
        (9, 800, found(RPM, 9)),
        (6, 900, found(TPM, 1000)),
        (5, 400, found(RPM, 5)),
    ):
        quotas = counted(RPM, requests, 10), counted(TPM, tokens, 1000)
        assert conclude(*quotas, configured=configured).learnt == (expected,)


def test_refusals_of_a_steady_quota_lower_it_step_by_step(conclude: Callable[..., Inference]) -> None:
    """A quarter at a time, from the second on; after a failed try it is what it was, for twice as long."""
    terms: dict[str, Any] = {"configured": (Quota(RPM, 60, Refill.STEADY),), "named": ((RPM, None),)}
    assert conclude(counted(RPM, 3, 60), **terms) == Inference()
    assert conclude(counted(RPM, 3, 60), doubted=True, **terms).learnt == (found(RPM, 45),)
    assert conclude(counted(RPM, 0, 1), strikes=1, **terms).learnt == (found(RPM, 1),)
    tried = counted(RPM, 3, 13, record(12, ago=130.0, wait=120.0))
    assert conclude(tried, doubted=True, **terms).learnt == (found(RPM, 12, wait=240.0),)
    assert conclude(tried, doubted=True, repeated=True, **terms).learnt == ()
    just_now = counted(RPM, 3, 12, record(12, ago=0.5))
    assert conclude(just_now, doubted=True, **terms).learnt == ()


def test_a_steady_quota_is_not_counted_by_windows(conclude: Callable[..., Inference]) -> None:
    """What it owes says nothing of what was admitted; a stated limit is believed."""
    steady = (Quota(RPM, 15, Refill.STEADY),)
    assert conclude(counted(RPM, 10, 15), configured=steady) == Inference()
    stated = conclude(counted(RPM, 10, 15), configured=steady, named=((RPM, 9),))
    assert stated == Inference((found(RPM, 9, STATED),))


def test_a_failed_try_keeps_the_limit_and_waits_twice_as_long(conclude: Callable[..., Inference]) -> None:
    """Up to half an hour; or as long as it took to use up the limit, up to a day."""
    for ago, wait, longer in (
        (150.0, FIRST_WAIT, 2 * FIRST_WAIT),
        (1000.0, 10.0, 2 * WINDOW),
        (1000.0, 1000.0, LONGEST_WAIT),
        (1000.0, math.inf, LONGEST_WAIT),
        (5000.0, FIRST_WAIT, 5000.0),
        (9e5, FIRST_WAIT, 86_400.0),
    ):
        known = record(10, ago=ago, wait=wait)
        inference = conclude(counted(RPM, 10, 11, known))
        assert inference.learnt == (found(RPM, 10, wait=longer),)
        assert inference.is_explained


def test_a_small_limit_is_tried_less_often(conclude: Callable[..., Inference]) -> None:
    """So that the tries cost the same share of what is sent: below 10 a minute they are rarer."""
    for limit, longest in ((10, LONGEST_WAIT), (5, 2 * LONGEST_WAIT), (1, 10 * LONGEST_WAIT)):
        known = record(limit, ago=longest - 1.0, wait=longest - 1.0)
        inference = conclude(counted(RPM, limit, limit + 1, known))
        assert inference.learnt == (found(RPM, limit, wait=longest),)


def test_a_second_refusal_takes_a_margin_off_a_token_limit(conclude: Callable[..., Inference]) -> None:
    """What is sent is only estimated, so one in ten minutes says nothing; one event takes it off once."""
    configured, tokens = (Quota(TPM, 1000),), ((TPM, None),)
    terms: dict[str, Any] = {"configured": configured, "named": tokens}
    once = counted(TPM, 980, 1000)
    assert conclude(once, **terms) == Inference((found(TPM, 1000),))
    earlier = counted(TPM, 980, 1000, record(1000, ago=600.0))
    assert conclude(earlier, **terms) == Inference((found(TPM, 1000),), pause=3.0)
    recent = record(1000, ago=599.0)
    assert conclude(counted(TPM, 980, 1000, recent), **terms) == Inference(
        (found(TPM, 975, wait=LONGEST_WAIT),), is_explained=True, pause=3.0
    )
    lower = record(800, ago=100.0)
    assert conclude(counted(TPM, 790, 800, lower), **terms).learnt == (found(TPM, 780, wait=LONGEST_WAIT),)
    assert conclude(counted(TPM, 790, 800, lower), repeated=True, **terms).learnt == ()
    stated = {**terms, "named": ((TPM, 600),)}
    assert conclude(counted(TPM, 590, 1000), **stated) == Inference((found(TPM, 600, STATED),))
    for second in ({"strikes": 1}, {"doubted": True}):
        assert conclude(counted(TPM, 200, 1000), **second, **terms).learnt == (found(TPM, 200),)
    unknown = (Quota(TPM, MAX_LIMIT, adaptive=True),)
    found_first = conclude(counted(TPM, 700, MAX_LIMIT), strikes=1, configured=unknown, named=tokens)
    assert found_first.learnt == (found(TPM, 700),)


def test_a_token_limit_lies_between_what_was_used_and_what_was_asked_for(
    conclude: Callable[..., Inference],
) -> None:
    """Which is far apart where requests are large; and a request of that size is never ruled out."""
    terms: dict[str, Any] = {"configured": (Quota(TPM, 20_000),), "named": ((TPM, None),)}
    known = record(20_000, ago=100.0)
    for used, tokens, limit, is_explained in (
        (13_000, 4_000, 15_000, True),  # by a quarter at most at a time
        (16_000, 1_000, 16_500, True),
        (8_000, 1_000, 8_500, True),  # a small request shows it exactly
        (3_000, 8_000, 15_000, False),
        (500, 16_000, 16_000, True),
    ):
        found_now = conclude(counted(TPM, used, 20_000, known), tokens=tokens, **terms)
        assert found_now.learnt == (found(TPM, limit, wait=LONGEST_WAIT),)
        assert found_now.is_explained is is_explained
    unknown = (Quota(TPM, MAX_LIMIT, adaptive=True),)
    terms["configured"] = unknown
    first = conclude(counted(TPM, 1_000, MAX_LIMIT), doubted=True, tokens=4_000, **terms)
    assert first.learnt == (found(TPM, 4_000),)


def test_a_second_doubt_is_believed(conclude: Callable[..., Inference]) -> None:
    """Also if the deployment was answered between the two: its minute was over, and came again."""
    for named in ((), ((RPM, None),)):
        assert conclude(counted(RPM, 10, 60), named=named, configured=(Quota(RPM, 60),)) == Inference()
        again = conclude(counted(RPM, 10, 60), named=named, configured=(Quota(RPM, 60),), doubted=True)
        assert again == Inference((found(RPM, 10),), is_explained=True)


def test_the_newest_statement_is_believed_also_if_it_is_higher(conclude: Callable[..., Inference]) -> None:
    """That less was admitted has another cause then; a limit that was inferred is not raised by it."""
    for metric, unit in ((RPM, 1), (TPM, 100)):
        terms: dict[str, Any] = {"configured": (Quota(metric, 20 * unit),), "named": ((metric, 10 * unit),)}
        stated = counted(metric, 3 * unit, 5 * unit, record(5 * unit, STATED))
        assert conclude(stated, **terms) == Inference(
            (found(metric, 10 * unit, STATED),), pause=60 / (5 * unit) if metric is RPM else 3.0
        )
        before = counted(metric, 3 * unit, 5 * unit, record(5 * unit, STATED, ago=0.5))
        assert conclude(before, **terms).learnt == ()
        inferred = counted(metric, 4 * unit, 5 * unit, record(5 * unit))
        assert all((entry.limit or 0) <= 5 * unit for entry in conclude(inferred, **terms).learnt)


def test_a_refusal_below_the_limit_lowers_it(conclude: Callable[..., Inference]) -> None:
    """To what was admitted, at most by a quarter at a time, with a pause; it rises again soon."""
    for used, limit in ((9, 9), (5, 8), (1, 8)):
        inference = conclude(counted(RPM, used, 10, record(10)))
        assert inference == Inference((found(RPM, limit, wait=WINDOW),), pause=6.0)
    for known, wait in ((2, 5 * WINDOW), (3, 1.25 * WINDOW), (4, WINDOW)):
        few = conclude(counted(RPM, 1, known, record(known)))  # a minute is too short for few requests
        assert few.learnt == (found(RPM, known - 1, wait=wait),)


def test_refusals_of_one_event_find_the_limit_exactly(conclude: Callable[..., Inference]) -> None:
    """Those in flight when a limit was found each lower it to what is left."""
    known = record(12, ago=0.5)
    again = conclude(counted(RPM, 11, 12, known), repeated=True, finding=True)
    assert again == Inference((found(RPM, 11),), is_explained=True, pause=5.0)
    for used, circumstances, is_explained in (
        (11, {"repeated": True}, True),
        (12, {"began": NOW - 0.6}, True),
        (11, {"began": NOW - 0.6}, False),  # the clock of the store may be ahead of ours
    ):
        inference = conclude(counted(RPM, used, 12, known), **circumstances)
        assert (inference.learnt, inference.is_explained) == ((), is_explained)


# --- refusals for the day -----------------------------------------------------------------------------

DAILY = (Quota(RPD, 1500, Refill.DAILY),)


def test_a_day_is_believed_when_it_is_confirmed(conclude: Callable[..., Inference]) -> None:
    """Its count is tomorrow's limit, and one more is tried then; minutes teach nothing about days."""
    day = counted(RPD, 250, 1500)
    first = conclude(day, counted(RPM, 9, 15), named=((RPD, None), (RPM, None)), configured=DAILY)
    assert first == Inference()
    second = conclude(day, named=((RPD, None),), configured=DAILY, strikes=1)
    tomorrow = found(RPD, 250, wait=TO_MIDNIGHT)
    assert second == Inference((tomorrow,), is_day_confirmed=True)


def test_a_day_that_was_expected_to_end_needs_no_second_refusal(conclude: Callable[..., Inference]) -> None:
    """At the limit that was learnt yesterday, or that the refusal states."""
    known = record(250, ago=86_400.0, wait=3600.0)
    again = conclude(counted(RPD, 250, 251, known), named=((RPD, None),), configured=DAILY)
    assert again == Inference((found(RPD, 250, wait=TO_MIDNIGHT),), is_day_confirmed=True)
    stated = conclude(counted(RPD, 251, 1500), named=((RPD, 250),), configured=DAILY)
    assert stated == Inference((found(RPD, 250, STATED, TO_MIDNIGHT),), is_day_confirmed=True)
    early = conclude(counted(RPD, 100, 1500), named=((RPD, 250),), configured=DAILY)
    assert early == Inference((found(RPD, 250, STATED, TO_MIDNIGHT),))


@pytest.mark.parametrize("configured", [DAILY, ()])
def test_what_is_refused_for_an_hour_is_a_spent_day(
    conclude: Callable[..., Inference], configured: tuple[Quota, ...]
) -> None:
    """Its count is tomorrow's limit, and what seemed to be the limit of a minute meanwhile is forgotten."""
    mistaken, day = record(3, ago=3_650.0), counted(RPD, 250, 1500)
    quotas = (counted(RPM, 0, 3, mistaken), day) if configured else (counted(RPM, 0, 3, mistaken),)
    long = {"strikes": 9, "since": NOW - 3600.0, "configured": configured}
    assert conclude(*quotas, **{**long, "since": NOW - 3599.0}) == Inference(is_starved=True)
    inference = conclude(*quotas, **long)
    assert inference.is_day_confirmed
    assert inference.learnt[0] == LearntLimit(RPM, None, replaces=mistaken.learnt_at)
    counts = LearntLimit(RPD, MAX_LIMIT, UNKNOWN, replaces=0.0)  # from now on
    assert inference.learnt[1:] == ((found(RPD, 250, wait=TO_MIDNIGHT) if configured else counts),)
    elder = counted(RPM, 0, 3, record(3, ago=9_000.0))
    assert conclude(elder, day, **long).learnt == (found(RPD, 250, wait=TO_MIDNIGHT),)


def test_a_bare_refusal_beyond_yesterdays_count_ends_the_day(conclude: Callable[..., Inference]) -> None:
    """One more was tried; that is the one refusal of the day."""
    known = record(250, ago=86_400.0, wait=3600.0)
    inference = conclude(counted(RPM, 2, 15), counted(RPD, 250, 251, known), configured=DAILY)
    assert inference == Inference((found(RPD, 250, wait=TO_MIDNIGHT),), is_day_confirmed=True)


def test_a_try_for_the_minute_is_not_the_end_of_the_day(conclude: Callable[..., Inference]) -> None:
    """Though more than yesterday was admitted: only while the minute's own limit is not raised."""
    day = counted(RPD, 300, 301, record(250, ago=3600.0, wait=0.0, raised=301))
    for limit, is_over in ((11, False), (10, True)):
        minute = counted(RPM, 10, limit, record(10))
        assert conclude(minute, day, configured=DAILY).is_day_confirmed is is_over


def test_others_on_their_way_are_not_counted_as_admitted(conclude: Callable[..., Inference]) -> None:
    """What was refused was within yesterday's count and one more."""
    known = record(250, ago=86_400.0, wait=3600.0)
    inference = conclude(counted(RPD, 251, 251, known), configured=DAILY)
    assert inference.learnt == (found(RPD, 250, wait=TO_MIDNIGHT),)


def test_a_minute_is_what_it_was_before_the_end_of_the_day(conclude: Callable[..., Inference]) -> None:
    """What was inferred of it from refusals for the day is undone, if it is known what was before."""
    day, since = counted(RPD, 2500, 15_000), NOW - 3600.0
    lowered = record(8, ago=3_590.0, wait=WINDOW)
    minute = counted(RPM, 0, 9, lowered)
    circumstances = {"strikes": 9, "since": since, "configured": DAILY}
    tomorrow = found(RPD, 2500, wait=TO_MIDNIGHT)
    before = record(10, ago=4000.0, wait=480.0)
    for source in (INFERRED, UNKNOWN):
        earlier = attrs.evolve(before, source=source)
        inference = conclude(minute, day, before=(counted(RPM, 7, 10, earlier),), **circumstances)
        restored = LearntLimit(RPM, 10, source, 11, 0.0, lowered.learnt_at)
        assert inference.learnt == (restored, tomorrow)
    inference = conclude(minute, day, before=(counted(RPM, 7, 15),), **circumstances)
    assert inference.learnt == (LearntLimit(RPM, None, replaces=lowered.learnt_at), tomorrow)
    assert conclude(minute, day, **circumstances).learnt == (tomorrow,)  # it rises by itself


def test_a_minute_is_not_tried_where_the_day_is_spent_sooner(conclude: Callable[..., Inference]) -> None:
    """Nothing would be gained: 250 are gone in 25 minutes anyway. It is after a day that is not spent."""
    known = record(250, ago=86_400.0, wait=3600.0)
    for wait, used, is_put_off in ((480.0, 250, True), (FIRST_WAIT, 250, False), (480.0, 301, False)):
        minute = record(10, ago=1000.0, wait=wait)
        day = counted(RPD, used, used + 1, attrs.evolve(known, limit=used, raised=used + 1))
        inference = conclude(counted(RPM, 9, 10, minute), day, named=((RPD, None),), configured=DAILY)
        put_off = LearntLimit(RPM, 10, INFERRED, 11, 1.5 * 86_400.0, minute.learnt_at)
        tomorrow = found(RPD, used, wait=TO_MIDNIGHT)
        assert inference.learnt == ((put_off, tomorrow) if is_put_off else (tomorrow,))


@pytest.mark.parametrize("named", [(), ((RPD, None),)])
def test_a_day_that_is_not_counted_is_from_its_first_end_on(
    conclude: Callable[..., Inference], named: tuple[tuple[Metric, int | None], ...]
) -> None:
    """The rest of that day says nothing; the next one is counted from its start."""
    long = {"strikes": 9, "since": NOW - 3600.0, "named": named}
    begun = LearntLimit(RPD, MAX_LIMIT, UNKNOWN, replaces=0.0)
    assert conclude(**long) == Inference((begun,), is_day_confirmed=True)
    for ago, learnt in ((3600.0, ()), (5 * 3600.0, (found(RPD, 40, wait=TO_MIDNIGHT),))):
        started = LimitRecord(MAX_LIMIT, UNKNOWN, NOW - ago, MAX_LIMIT, math.inf)
        assert conclude(counted(RPD, 40, MAX_LIMIT, started), **long).learnt == learnt
    assert conclude(counted(RPD, 40, MAX_LIMIT, started), named=((RPD, None),)).is_day_confirmed


# --- other projects -----------------------------------------------------------------------------------


def test_what_one_project_found_is_where_others_start(make_deployment: MakeDeployment) -> None:
    """Where a limit is to be learnt, nothing is known, and no more was admitted."""
    news = first_inferences((found(RPM, 10), found(RPD, 99)), (counted(RPM, 10, 12, record(11, UNKNOWN)),))
    assert news == (found(RPM, 10),)
    assert first_inferences((found(RPM, 10),), (counted(RPM, 10, 12, record(11)),)) == ()
    other = attrs.evolve(make_deployment(), quotas=(Quota(RPM, 4, adaptive=True),))
    for quota, replaces in (
        (counted(RPM, 2, 4), 0.0),
        (counted(RPM, 7, 7, record(7, UNKNOWN, ago=5.0)), NOW - 5.0),
    ):
        expected = attrs.evolve(found(RPM, 10), replaces=replaces)
        assert for_another_project(news, other, (quota,)) == (expected,)
    for quota in (counted(RPM, 12, 12, record(12, UNKNOWN)), counted(RPM, 3, 3, record(3))):
        assert for_another_project(news, other, (quota,)) == ()
    assert for_another_project(news, make_deployment(), (counted(RPM, 2, 15),)) == ()


# --- answers ------------------------------------------------------------------------------------------


@pytest.fixture
def adaptive(make_deployment: MakeDeployment) -> Deployment:
    """A deployment of which nothing is known."""
    quotas = (Quota(RPM, 4, adaptive=True), Quota(TPM, MAX_LIMIT, adaptive=True))
    return attrs.evolve(make_deployment(), quotas=quotas)


def test_an_unknown_limit_grows_with_each_answer_at_it(adaptive: Deployment) -> None:
    """By one of eight requests, at least by one; tokens are only counted."""
    tokens = counted(TPM, 9_000, MAX_LIMIT)
    growth = after_answer(adaptive, (counted(RPM, 4, 4), tokens), NOW)
    assert growth.learnt == (LearntLimit(RPM, 5, UNKNOWN, replaces=0.0),)
    assert growth.due == NOW
    growth = after_answer(adaptive, (counted(RPM, 80, 80, record(80, UNKNOWN, ago=3.0)), tokens), NOW)
    assert growth.learnt == (LearntLimit(RPM, 90, UNKNOWN, replaces=NOW - 3.0),)
    assert after_answer(adaptive, (counted(RPM, 79, 80, record(80, UNKNOWN)), tokens), NOW).learnt == ()


def test_a_limit_that_was_raised_rises_in_longer_steps(adaptive: Deployment) -> None:
    """If more than before was admitted, and not refused for ten seconds."""
    known = record(10, ago=FIRST_WAIT + 10.0, raised=12)
    growth = after_answer(adaptive, (counted(RPM, 11, 12, known),), NOW)
    assert growth.learnt == (LearntLimit(RPM, 12, INFERRED, 16, 10.0, known.learnt_at),)
    assert growth.due == NOW + 20.0
    assert after_answer(adaptive, (counted(RPM, 10, 12, known),), NOW).learnt == ()
    early = record(10, ago=FIRST_WAIT + 1.0, raised=12)
    growth = after_answer(adaptive, (counted(RPM, 11, 12, early),), NOW)
    assert growth.learnt == ()
    assert growth.due == pytest.approx(NOW + 9.0)


def test_a_token_limit_rises_though_no_request_fits_the_step(make_deployment: MakeDeployment) -> None:
    """After half an hour in which nothing was refused; at once if more was used, in steps that double."""
    deployment = attrs.evolve(make_deployment(), quotas=(Quota(TPM, 20_000),))
    since = record(10_000, ago=FIRST_WAIT + LONGEST_WAIT, raised=10_100)
    recent = record(10_000, ago=FIRST_WAIT + WINDOW, raised=10_100)
    for used, known, is_raised in (
        (9_000, since, True),
        (4_000, since, False),
        (9_000, recent, False),
        (10_050, recent, True),
    ):
        growth = after_answer(deployment, (counted(TPM, used, 10_100, known),), NOW)
        expected = LearntLimit(TPM, 10_100, INFERRED, 10_300, 0.0, known.learnt_at)
        assert growth.learnt == ((expected,) if is_raised else ())
    far = record(8_000, ago=FIRST_WAIT + WINDOW, raised=12_000)
    [step] = after_answer(deployment, (counted(TPM, 9_000, 12_000, far),), NOW).learnt
    assert step.raised == 15_000  # by a quarter at most


def test_a_steady_limit_rises_again(make_deployment: MakeDeployment) -> None:
    """It never owes as much as its limit: a window at the higher limit is the proof."""
    deployment = attrs.evolve(make_deployment(), quotas=(Quota(RPM, 10, Refill.STEADY, burst=2),))
    for ago, is_raised in ((WINDOW, True), (WINDOW - 1.0, False)):
        known = record(5, STATED, ago=FIRST_WAIT + ago)
        growth = after_answer(deployment, (counted(RPM, 2, 6, known),), NOW)
        assert [entry.limit for entry in growth.learnt] == ([6] if is_raised else [])


def test_a_day_that_admits_more_rises_at_once(make_deployment: MakeDeployment) -> None:
    """There is no window to wait for, and the next answer is looked at as well: it may be the last."""
    deployment = attrs.evolve(make_deployment(), quotas=DAILY)
    known = record(250, ago=86_400.0, wait=3600.0)
    growth = after_answer(deployment, (counted(RPD, 251, 251, known),), NOW)
    assert growth.learnt == (LearntLimit(RPD, 251, INFERRED, 253, 0.0, known.learnt_at),)
    assert growth.due == NOW
    # The one that is above the limit may still be on its way, and be refused.
    on_its_way = after_answer(deployment, (counted(RPD, 251, 251, known),), NOW, ends_day=False)
    assert on_its_way == Growth((), NOW)
    minute = counted(RPM, 15, 15, record(15, STATED))
    for used, due in ((225, NOW), (210, NOW + 60.0), (60, NOW + 600.0)):  # 15 more in each minute at most
        assert after_answer(deployment, (minute, counted(RPD, used, 251, known)), NOW) == Growth((), due)


def test_a_configured_limit_is_never_exceeded(make_deployment: MakeDeployment) -> None:
    """Nothing is to be learnt at it; the next look is minutes away."""
    deployment = attrs.evolve(make_deployment(), quotas=(Quota(RPM, 15),))
    for learnt in (None, record(15, STATED), record(20, STATED)):
        growth = after_answer(deployment, (counted(RPM, 15, 15, learnt),), NOW)
        assert (growth.learnt, growth.due) == ((), NOW + 600.0)

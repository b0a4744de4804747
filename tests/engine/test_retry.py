"""What a failure means: what is avoided and for how long, and whether the request goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from llm_router import Deployment, FailureKind, Metric, ProviderError, Quota, Refill
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.engine.evidence import Inference
from llm_router.engine.index import DeploymentState
from llm_router.engine.pool import Pool
from llm_router.engine.retry import Next, RetryPolicy, Verdict
from llm_router.errors import QuotaViolation

MakeDeployment = Callable[..., Deployment]
MakePool = Callable[..., Pool]

NOW = 1_800_014_400.0  # noon UTC, 04:00 in Los Angeles, 13:00 in Berlin
HOUR = 3600.0

RPD = Quota(Metric.RPD, 1_500, Refill.DAILY)


class Drawn(random.Random):
    """Draws the same share of every range."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


@pytest.fixture
def policy() -> RetryPolicy:
    return RetryPolicy(base_backoff=0.5, random=Drawn(0.5))


@pytest.fixture
def state(make_pool: MakePool, make_deployment: MakeDeployment) -> DeploymentState:
    """A deployment without a daily quota."""
    return next(iter(make_pool([make_deployment()])))


@pytest.fixture
def daily_state(make_pool: MakePool, make_deployment: MakeDeployment) -> DeploymentState:
    """A deployment whose daily quota was nearly spent at the last grant."""
    [state] = make_pool([attrs.evolve(make_deployment(), quotas=(RPD,))])
    state.daily_headroom = 0.01
    return state


def failure(kind: FailureKind, **details: Any) -> ProviderError:
    return ProviderError("it failed", kind=kind, **details)


def refusal(*violations: QuotaViolation, delay: float | None = None) -> ProviderError:
    return failure(FailureKind.QUOTA, code=429, violations=violations, retry_delay=delay)


def cooldown_after(policy: RetryPolicy, error: ProviderError, state: DeploymentState) -> Cooldown:
    """Judge a refusal and return its cooldown, which must be that of the (project, model)."""
    verdict = policy.judge(error, state, NOW)
    assert verdict.next is Next.ELSEWHERE
    assert verdict.avoid_until is None
    assert verdict.cooldown is not None
    assert verdict.cooldown.scope == state.deployment.model_scope
    return verdict.cooldown


def cooldown_length(policy: RetryPolicy, error: ProviderError, state: DeploymentState) -> float:
    """Return the length of the cooldown of a refusal, in seconds."""
    return cooldown_after(policy, error, state).until - NOW


# --- what each kind means -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FailureKind)
def test_each_kind_of_failure_decides_what_the_request_does_next(
    policy: RetryPolicy, state: DeploymentState, kind: FailureKind
) -> None:
    """Faults of a deployment lead elsewhere, transient ones to a backoff, wrong requests to giving up."""
    expected = {
        FailureKind.REQUEST: Next.GIVE_UP,
        FailureKind.KEY: Next.ELSEWHERE,
        FailureKind.MODEL: Next.ELSEWHERE,
        FailureKind.QUOTA: Next.ELSEWHERE,
        FailureKind.SERVER: Next.BACK_OFF,
        FailureKind.NETWORK: Next.BACK_OFF,
        FailureKind.TIMEOUT: Next.BACK_OFF,
    }
    assert policy.judge(failure(kind), state, NOW).next is expected[kind]


def test_a_wrong_request_is_not_blamed_on_the_deployment(policy: RetryPolicy, state: DeploymentState) -> None:
    """A request failure cools nothing down, avoids nothing and is not counted."""
    verdict = policy.judge(failure(FailureKind.REQUEST), state, NOW)
    assert (verdict.cooldown, verdict.avoid_until, state.failures) == (None, None, 0)


@pytest.mark.parametrize(
    ("kind", "scope"), [(FailureKind.KEY, "key_scope"), (FailureKind.MODEL, "model_scope")]
)
def test_a_dead_key_and_a_missing_model_are_quarantined(
    policy: RetryPolicy, state: DeploymentState, kind: FailureKind, scope: str
) -> None:
    """A dead key is quarantined with all its models, a missing model only in its own project."""
    cooldown = policy.judge(failure(kind), state, NOW).cooldown
    assert cooldown is not None
    assert cooldown.is_quarantine
    assert cooldown.scope == getattr(state.deployment, scope)
    assert cooldown.reason == f"{kind}: it failed"


def test_server_failures_in_a_row_cool_down_for_longer_each_time(
    policy: RetryPolicy, state: DeploymentState
) -> None:
    """The shared cooldown of the (project, model) doubles with each failure in a row."""
    cooldowns = [policy.judge(failure(FailureKind.SERVER), state, NOW).cooldown for _ in range(4)]
    assert {each.scope for each in cooldowns if each} == {state.deployment.model_scope}
    assert [each.until - NOW for each in cooldowns if each] == [0.5, 1.0, 2.0, 4.0]
    assert state.failures == 4


@pytest.mark.parametrize("kind", [FailureKind.NETWORK, FailureKind.TIMEOUT])
def test_path_failures_in_a_row_are_avoided_for_longer_each_time(
    policy: RetryPolicy, state: DeploymentState, kind: FailureKind
) -> None:
    """This process alone avoids the deployment, for twice as long after each failure in a row."""
    verdicts = [policy.judge(failure(kind), state, NOW) for _ in range(4)]
    assert [verdict.avoid_until for verdict in verdicts] == [
        NOW + seconds for seconds in (0.5, 1.0, 2.0, 4.0)
    ]
    assert all(verdict.cooldown is None for verdict in verdicts)
    assert state.failures == 4


def test_a_server_is_left_alone_for_as_long_as_it_asks(policy: RetryPolicy, state: DeploymentState) -> None:
    """At least; for 15 minutes at most, and no shorter than without a word of it."""
    asked = [30.0, 0.01, 86_400.0, -5.0, None]
    overloads = [
        policy.judge(failure(FailureKind.SERVER, retry_delay=delay), state, NOW).cooldown for delay in asked
    ]
    assert [each.until - NOW for each in overloads if each] == [30.0, 1.0, 900.0, 4.0, 8.0]
    state.failures = 0
    paths = [policy.judge(failure(FailureKind.NETWORK, retry_delay=delay), state, NOW) for delay in asked]
    assert [each.avoid_until for each in paths] == [NOW + delay for delay in (30.0, 1.0, 900.0, 4.0, 8.0)]


@pytest.mark.parametrize(("delay", "ends"), [(30.0, 30.0), (5.0, 20.0)])
def test_a_turn_waits_for_what_the_server_asks(
    policy: RetryPolicy, state: DeploymentState, delay: float, ends: float
) -> None:
    """In an outage of the model as well, the later of both counts."""
    error = failure(FailureKind.SERVER, retry_delay=delay)
    cooldown = policy.judge(error, state, NOW, turn=NOW + 20.0).cooldown
    assert cooldown is not None
    assert (cooldown.until, cooldown.half_open) == (NOW + ends, True)


# --- backoffs -----------------------------------------------------------------------------------------


def test_the_longest_backoff_doubles_up_to_a_minute() -> None:
    """The ceiling of the backoff doubles with each attempt and never exceeds 60 s."""
    policy = RetryPolicy(base_backoff=0.5)
    assert [policy.ceiling(attempts) for attempts in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert policy.ceiling(8) == policy.ceiling(100_000) == 60.0
    assert RetryPolicy(base_backoff=90.0).ceiling(1) == 60.0
    assert RetryPolicy(base_backoff=0.0).ceiling(100_000) == 0.0


@pytest.mark.parametrize("attempts", [1, 3, 10])
def test_a_backoff_is_drawn_from_the_whole_range(attempts: int) -> None:
    """Backoffs are spread evenly between 0 and the ceiling."""
    policy = RetryPolicy(random=random.Random(1))
    drawn = [policy.backoff(attempts) / policy.ceiling(attempts) for _ in range(300)]
    assert 0.0 <= min(drawn) < 0.05
    assert 0.95 < max(drawn) <= 1.0
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.1)


# --- refusals for quota -------------------------------------------------------------------------------


@pytest.mark.parametrize("violations", [(), (QuotaViolation(Metric.RPM, None),)], ids=["bare", "named"])
def test_a_delay_that_the_provider_states_is_kept_exactly(
    policy: RetryPolicy, state: DeploymentState, violations: tuple[QuotaViolation, ...]
) -> None:
    """A stated retry delay is used as it is each time, and no failure is counted."""
    error = refusal(*violations, delay=36.0)
    assert [cooldown_length(policy, error, state) for _ in range(5)] == [36.0] * 5
    assert state.failures == 0


@pytest.mark.parametrize(
    "violations", [(), (QuotaViolation(None, None),)], ids=["bare", "of an unknown quota"]
)
def test_unexplained_refusals_cool_down_for_longer_each_time(
    policy: RetryPolicy, state: DeploymentState, violations: tuple[QuotaViolation, ...]
) -> None:
    """Without a delay or a quota name the cooldown lasts thrice as long each time, up to 15 minutes."""
    error, lengths = refusal(*violations), []
    for strikes in (0, 1, 2, 3, 100_000):
        cooldown = policy.judge(error, state, NOW, strikes, since=NOW - 1.0).cooldown
        assert cooldown is not None
        assert (cooldown.half_open, cooldown.strikes, cooldown.since) == (True, strikes + 1, NOW - 1.0)
        assert cooldown.reason == "unnamed quota spent, says the provider"
        lengths.append(cooldown.until - NOW)
    assert lengths == [45.0, 135.0, 405.0, 900.0, 900.0]
    assert state.failures == 0


@pytest.mark.parametrize(("delay", "first"), [(60.0, 60.0), (None, 45.0)])
def test_who_gets_nothing_gives_way(
    policy: RetryPolicy, state: DeploymentState, delay: float | None, first: float
) -> None:
    """Refused though nothing was admitted for a window, twice as long each time, up to 15 minutes."""
    error, starved = refusal(delay=delay), Inference(is_starved=True)

    def length(inference: Inference) -> float:
        cooldown = policy.judge(error, state, NOW, inference=inference).cooldown
        assert cooldown is not None
        return cooldown.until - NOW

    assert [length(starved) for _ in range(6)] == [min(first * 2**n, 900.0) for n in range(6)]
    assert (length(Inference()), state.starved) == (first, 6)


def test_an_outage_is_probed_by_one_request_at_a_time(policy: RetryPolicy, state: DeploymentState) -> None:
    """From the third failure in a row on; those on their way together are one, and strikes are shared."""
    error = ProviderError("overloaded", kind="server", code=503)
    found = [policy.judge(error, state, NOW).cooldown for _ in range(3)]
    assert [cooldown is not None and cooldown.half_open for cooldown in found] == [False, False, True]
    assert policy.judge(error, state, NOW, repeated=True) == Verdict(Next.BACK_OFF, overloaded=True)
    state.failures = 0
    cooldown = policy.judge(error, state, NOW, 6).cooldown
    assert cooldown is not None
    assert (cooldown.half_open, cooldown.strikes) == (True, 7)
    assert cooldown.until - NOW == policy.ceiling(7)


def test_a_confirmed_day_lasts_until_midnight(policy: RetryPolicy, state: DeploymentState) -> None:
    """Though the refusal names nothing."""
    inference = Inference(is_day_confirmed=True)
    cooldown = policy.judge(refusal(), state, NOW, 7, inference=inference).cooldown
    assert cooldown is not None
    assert (cooldown.until - NOW, cooldown.half_open) == (20 * HOUR + 1.0, False)


def test_refusals_of_one_event_count_once(policy: RetryPolicy, state: DeploymentState) -> None:
    """What was on its way already only helps to find the limit."""
    inference = Inference((LearntLimit(Metric.RPM, 3),))
    verdict = policy.judge(refusal(), state, NOW, repeated=True, inference=inference)
    assert verdict == Verdict(Next.ELSEWHERE, learnt=inference.learnt)


def test_a_refusal_that_the_count_explains_cools_nothing_down(
    policy: RetryPolicy, state: DeploymentState
) -> None:
    """The learnt limit keeps the deployment closed for exactly as long as needed."""
    inference = Inference((LearntLimit(Metric.RPM, 3),), is_explained=True)
    error = refusal(QuotaViolation(Metric.RPM, None), delay=36.0)
    assert policy.judge(error, state, NOW, inference=inference) == Verdict(
        Next.ELSEWHERE, learnt=inference.learnt
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_drawn_delay_lies_between_30_and_60_seconds(state: DeploymentState, share: float) -> None:
    """A refusal without a delay cools down for 30 to 60 s, whether or not it names a quota."""
    policy = RetryPolicy(random=Drawn(share))
    assert cooldown_length(policy, refusal(QuotaViolation(Metric.TPM, None)), state) == 30.0 + 30.0 * share
    assert cooldown_length(policy, refusal(), state) == 30.0 + 30.0 * share


def test_a_named_minute_refusal_does_not_escalate(policy: RetryPolicy, state: DeploymentState) -> None:
    """Repeated refusals that name a per-minute quota always get the same delay."""
    error = refusal(QuotaViolation(Metric.TPM, None))
    assert [cooldown_length(policy, error, state) for _ in range(6)] == [45.0] * 6
    assert state.failures == 0


def test_the_reason_names_the_spent_quotas(policy: RetryPolicy, state: DeploymentState) -> None:
    """The reason lists all quotas of the refusal in the provider's order."""
    error = refusal(QuotaViolation(Metric.TPM, None), QuotaViolation(Metric.RPM, None))
    assert cooldown_after(policy, error, state).reason == "tpm, rpm spent, says the provider"


@pytest.mark.parametrize("metric", [Metric.RPM, Metric.RPD, None])
def test_a_limit_of_zero_is_a_quarantine(
    policy: RetryPolicy, state: DeploymentState, metric: Metric | None
) -> None:
    """A limit of 0 on any metric quarantines the deployment, whatever else the refusal says."""
    error = refusal(QuotaViolation(Metric.TPM, 1_000), QuotaViolation(metric, 0), delay=5.0)
    cooldown = cooldown_after(policy, error, state)
    assert (cooldown.is_quarantine, cooldown.half_open, cooldown.strikes) == (True, True, 1)
    assert cooldown.until == cooldown.since + 300.0
    assert "limit 0" in cooldown.reason
    assert state.failures == 0


# --- refusals for the day -----------------------------------------------------------------------------


def test_a_daily_refusal_lasts_until_midnight_at_the_provider(
    policy: RetryPolicy, state: DeploymentState
) -> None:
    """Without a configured daily quota the cooldown ends one second after midnight in Los Angeles."""
    error = refusal(QuotaViolation(Metric.RPD, 200), delay=36.0)
    cooldown = cooldown_after(policy, error, state)
    assert cooldown.until == NOW + 20 * HOUR + 1.0
    assert "daily" in cooldown.reason


def test_a_daily_refusal_uses_the_time_zone_of_the_quota(
    policy: RetryPolicy, make_pool: MakePool, make_deployment: MakeDeployment
) -> None:
    """The cooldown ends at midnight in the time zone of the configured daily quota."""
    quota = attrs.evolve(RPD, timezone="Europe/Berlin")
    [state] = make_pool([attrs.evolve(make_deployment(), quotas=(Quota(Metric.RPM, 15), quota))])
    state.daily_headroom = 0.0
    assert cooldown_length(policy, refusal(QuotaViolation(Metric.RPD, None)), state) == 11 * HOUR + 1.0


def test_a_daily_refusal_overrides_a_minute_refusal(
    policy: RetryPolicy, daily_state: DeploymentState
) -> None:
    """If a refusal names a per-minute and a daily quota, the cooldown lasts until midnight."""
    error = refusal(QuotaViolation(Metric.RPM, None), QuotaViolation(Metric.TPD, None), delay=36.0)
    assert cooldown_length(policy, error, daily_state) == 20 * HOUR + 1.0


@pytest.mark.parametrize(("delay", "short_length"), [(36.0, 36.0), (None, 45.0)])
def test_a_doubtful_daily_refusal_is_probed_once(
    policy: RetryPolicy, daily_state: DeploymentState, delay: float | None, short_length: float
) -> None:
    """The first doubtful daily refusal is short and half-open; that of the probe lasts until midnight."""
    daily_state.daily_headroom = 0.9
    error = refusal(QuotaViolation(Metric.RPD, None), delay=delay)
    first = policy.judge(error, daily_state, NOW).cooldown
    second = policy.judge(error, daily_state, NOW, 1).cooldown
    assert first is not None
    assert second is not None
    assert (first.until, first.half_open, first.strikes) == (NOW + short_length, True, 1)
    assert (second.until, second.half_open) == (NOW + 20 * HOUR + 1.0, False)
    assert not first.is_quarantine
    assert daily_state.failures == 0


@pytest.mark.parametrize(("headroom", "is_doubtful"), [(0.0, False), (0.05, False), (0.051, True)])
def test_a_daily_refusal_is_doubtful_only_above_five_percent(
    policy: RetryPolicy, daily_state: DeploymentState, headroom: float, *, is_doubtful: bool
) -> None:
    """A daily refusal is doubtful if more than 5 % of the day's quota remained at the last grant."""
    daily_state.daily_headroom = headroom
    assert (
        cooldown_length(policy, refusal(QuotaViolation(Metric.RPD, None)), daily_state) < HOUR
    ) is is_doubtful


def test_a_projects_refusal_is_looked_at_again_after_minutes(
    policy: RetryPolicy, state: DeploymentState
) -> None:
    """A bill that is not paid, or a location, takes the project out for five minutes and not for good."""
    error = ProviderError("billing is not active", kind="key", code=400, scope="project")
    verdict = policy.judge(error, state, NOW)
    assert verdict.next is Next.ELSEWHERE
    assert verdict.cooldown is not None
    assert (verdict.cooldown.scope, verdict.cooldown.until) == (state.deployment.project_scope, NOW + 300.0)


def test_a_spent_budget_takes_out_the_whole_project(policy: RetryPolicy, state: DeploymentState) -> None:
    """The limits that such a refusal states are not those of the deployment."""
    error = ProviderError(
        "spending limit",
        kind="quota",
        code=429,
        scope="project",
        retry_delay=90.0,
        violations=(QuotaViolation(Metric.RPM, 7),),
    )
    cooldown = policy.judge(error, state, NOW).cooldown
    assert cooldown is not None
    assert (cooldown.scope, cooldown.until) == (state.deployment.project_scope, NOW + 90.0)
    assert cooldown.learnt == ()


def test_a_feature_without_quota_stops_no_other_request(policy: RetryPolicy, state: DeploymentState) -> None:
    """Only requests with the feature avoid the deployment, for as long as a minute's refusal lasts."""
    error = ProviderError(
        "grounding", kind="quota", code=429, scope="feature", feature="google_search", retry_delay=9.0
    )
    assert policy.judge(error, state, NOW) == Verdict(Next.ELSEWHERE, feature_until=NOW + 9.0)


def test_a_forbidden_model_is_tried_again_after_minutes(policy: RetryPolicy, state: DeploymentState) -> None:
    """A permission may be granted at any time; the key's other models stay."""
    cooldown = policy.judge(ProviderError("forbidden", kind="model", code=403), state, NOW).cooldown
    assert cooldown is not None
    assert (cooldown.scope, cooldown.until) == (state.deployment.model_scope, NOW + 300.0)

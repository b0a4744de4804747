"""What a page shows of the events of a router."""

from __future__ import annotations

from typing import Any

from llm_router import Deployment, Key, Metric, Secret
from llm_router.domain.deployment import ProjectDeployment, Scope
from llm_router.domain.response import Usage
from llm_router.errors import ProviderError
from llm_router.gateway.activity import Activity
from llm_router.observe import (
    AttemptEnded,
    CooledDown,
    Disabled,
    Lifted,
    LimitLearnt,
    Quarantined,
    Reloaded,
    SendEnded,
    Settled,
    StoreBack,
    StoreLost,
    Waited,
    Waiting,
)

DEPLOYMENT = Deployment(Key("alpha", Secret("AIza0"), project="one"), "flash", "light")
NOW = 1_800_000_000.0
QUOTA = ProviderError("a prompt may be in here", kind="quota", code=429)


def _request(at: float, request_id: str = "r") -> Any:
    return {"at": at, "request_id": request_id, "workload": "light", "metadata": {"tenant": "acme"}}


def _ended(
    at: float, error: BaseException | None = None, waited: float = 0.0, attempts: int = 1
) -> SendEnded:
    return SendEnded(
        **_request(at),
        deployment=None if error else DEPLOYMENT,
        seconds=0.5,
        waited=waited,
        attempts=attempts,
        error=error,
        response=None,
    )


def _attempt(at: float, error: BaseException | None = None, tokens: int = 0) -> AttemptEnded:
    usage = Usage(input_tokens=tokens, output_tokens=2 * tokens)
    return AttemptEnded(
        **_request(at),
        deployment=DEPLOYMENT,
        number=1,
        seconds=0.25,
        error=error,
        usage=usage,
        response_model=None,
        finish_reason=None,
    )


def test_rates_are_those_of_a_minute() -> None:
    """Calls, failures, 429s and tokens count for a minute, second by second, also after the clock was set."""
    activity = Activity()
    for event in (_attempt(NOW, QUOTA), _attempt(NOW, tokens=7), _ended(NOW), _ended(NOW + 1, QUOTA)):
        activity.observe(event)
    rates = activity.rates(NOW + 1)
    assert (rates["calls"], rates["failed"], rates["limited"]) == (2, 1, 1)
    assert (rates["input_tokens"], rates["output_tokens"]) == (7, 14)
    assert (rates["history"][-2:], len(rates["history"])) == ([1, 1], 60)
    assert activity.rates(NOW + 60)["calls"] == 1
    assert activity.rates(NOW + 61)["calls"] == 0
    activity.observe(_ended(NOW - 3600))
    assert activity.rates(NOW - 3600)["history"] == [0] * 59 + [1]


def test_the_line_tells_who_waits_for_what() -> None:
    """Those who wait are grouped, largest group first, until they have waited or their call has ended."""
    activity = Activity()
    for number in range(3):
        activity.observe(Waiting(**_request(NOW + number, str(number)), reason="quota"))
    activity.observe(Waiting(**_request(NOW, "other"), reason="backoff"))
    first, second = activity.line(NOW + 5)
    assert (first["count"], first["longest"], first["reason"], first["tenant"]) == (3, 5.0, "quota", "acme")
    assert (second["count"], second["reason"]) == (1, "backoff")
    for name in ("0", "1", "2", "other"):
        activity.observe(Waited(**_request(NOW + 6, name), reason="quota", seconds=1.0))
    assert activity.line(NOW + 6) == []


def test_decisions_are_told_in_words() -> None:
    """Each change says what it is about; the text of an error is never told, and the same is told once."""
    activity = Activity()
    common: Any = {"at": NOW, "deployment": DEPLOYMENT}
    scope = DEPLOYMENT.model_scope
    events = [
        CooledDown(**common, scope=scope, reason="slow down", until=NOW + 30),
        Quarantined(**common, scope=DEPLOYMENT.key_scope, reason="dead", until=NOW, strikes=1),
        Disabled(**common, scope=Scope("provider:gemini"), reason="disabled: overdue"),
        Lifted(**common, scope=scope, reason="lifted"),
        LimitLearnt(**common, metric=Metric.RPM, limit=15),
        LimitLearnt(
            at=NOW, deployment=ProjectDeployment.spending_of(DEPLOYMENT), metric=Metric.RPM, limit=60
        ),
        StoreLost(at=NOW, reason="refused"),
        StoreBack(at=NOW, seconds=3.0),
        Reloaded(at=NOW, added=("a", "b")),
        Settled(**_request(NOW), deployment=DEPLOYMENT, reserved=1, used=1, released=False),
        _attempt(NOW, QUOTA),
        _ended(NOW, QUOTA),
        _ended(NOW, QUOTA),
        _ended(NOW, waited=1.5, attempts=2),
    ]
    for event in events:
        activity.observe(event)
    found = [(each["what"], each["about"]) for each in activity.decisions()]
    assert found == [
        ("answered", "flash on alpha, 0.50 s, 2 attempts, waited 1.50 s, workload light, tenant acme"),
        ("failed: 429", "0.50 s, workload light, tenant acme"),
        ("attempt failed: 429", "flash on alpha, attempt 1, after 0.25 s"),
        ("configuration read again", "2 added, 0 removed, 0 changed"),
        ("the store answers again", "after 3 s"),
        ("the store is lost", "refused"),
        ("spending is 60 requests in 10 min, stated", "* spending of project one"),
        ("rpm is 15, stated", "flash of project one"),
        ("lifted", "model one flash"),
        ("disabled", "provider gemini: overdue"),
        ("quarantined", "key alpha: dead"),
        ("cools down for 30 s", "model one flash: slow down"),
    ]
    assert [each["times"] for each in activity.decisions()][:3] == [1, 2, 1]


def test_it_is_bounded() -> None:
    """However many calls and changes there are, and however long their words, little is kept."""
    activity = Activity()
    for number in range(500):
        activity.observe(_ended(NOW + number, waited=float(number)))
        activity.observe(StoreLost(at=NOW, reason=f"{number}" * 1000))
        activity.observe(Waiting(**_request(NOW, str(number)) | {"workload": f"w{number}"}, reason="quota"))
    found = activity.decisions()
    assert (len(found), max(len(each["about"]) for each in found)) == (80, 200)
    assert len(activity.line(NOW)) == 12

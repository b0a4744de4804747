"""Reading the bodies of refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_router.errors import QuotaViolation
from llm_router.gemini_http.durations import read_duration
from llm_router.providers._gemini_error_body import ErrorBody, read_error_body


def body(message: str = "", *details: Any, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "details": list(details), **fields}}


def violations(*entries: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": list(entries)}


@pytest.mark.parametrize(
    ("quota_id", "metric"),
    [
        ("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "rpm"),
        ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "rpd"),
        ("GenerateContentInputTokensPerModelPerMinute-FreeTier", "tpm"),
        ("GenerateContentPaidTierInputTokensPerModelPerDay", "tpd"),
        ("generate_requests_per_model_per_day", "rpd"),
        ("GenerateContentOutputTokensPerModelPerMinute", None),
        ("GenerateImagesPerMinute", None),
        ("GenerateRequestsPerHour", None),
        ("", None),
    ],
)
def test_metric_by_quota_id(quota_id: str, metric: str | None) -> None:
    """The metric of a quota is judged by its id alone."""
    text = json.dumps(body("", violations({"quotaId": quota_id, "quotaValue": "15"})))
    assert read_error_body(text).violations == (QuotaViolation(metric, 15),)


def test_metric_without_an_id() -> None:
    """Without an id, the metric is judged by its name."""
    entry = {"quotaMetric": "generativelanguage.googleapis.com/generate_requests_per_model_per_day"}
    assert read_error_body(json.dumps(body("", violations(entry)))).violations == (
        QuotaViolation("rpd", None),
    )


def test_limits_in_the_message_go_to_their_violations() -> None:
    """A limit that only the message states belongs to the violation of that metric, in order."""
    name = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
    exceeded = f"* Quota exceeded for metric: {name}"
    message = f"{exceeded}, limit: 0\n{exceeded}, limit: 15, model: x"
    entries = violations(
        {"quotaMetric": name, "quotaId": "GenerateRequestsPerDayPerProjectPerModel"},
        {"quotaMetric": name, "quotaId": "GenerateRequestsPerMinutePerProjectPerModel"},
    )
    found = read_error_body(json.dumps(body(message, entries))).violations
    assert found == (QuotaViolation("rpd", 0), QuotaViolation("rpm", 15))
    assert read_error_body(json.dumps(body(message))).violations == (
        QuotaViolation(None, 0),
        QuotaViolation(None, 15),
    )


@pytest.mark.parametrize("value", ["many", "", "-1", "1.5", None, [], {}, True])
def test_limit_that_is_not_a_number(value: Any) -> None:
    """A quotaValue that is not a whole number is not a limit."""
    entry = {"quotaId": "GenerateRequestsPerDay", "quotaValue": value}
    assert read_error_body(json.dumps(body("", violations(entry)))).violations == (
        QuotaViolation("rpd", None),
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("36s", 36.0),
        ("45.837906927s", 45.837906927),
        ("0s", 0.0),
        ("8h57m44.5s", 8 * 3600 + 57 * 60 + 44.5),
        ("1d2h", 93600.0),
        ("425.5ms", 0.4255),
        ("3m", 180.0),
        ("", None),
        ("soon", None),
        ("-3s", None),
        ("1e9s", None),
        (36, None),
        (None, None),
    ],
)
def test_duration(text: str | int | None, seconds: float | None) -> None:
    """Durations of protobuf and of the message's prose are read as seconds; anything else is None."""
    assert read_duration(text) == (None if seconds is None else pytest.approx(seconds))


def test_delay_of_the_message() -> None:
    """Without RetryInfo, the delay is read from the message."""
    assert read_error_body(json.dumps(body("Exceeded. Please retry in 36.4s."))).retry_delay == 36.4


def test_delay_of_the_details_comes_first() -> None:
    """RetryInfo takes precedence over the message."""
    text = json.dumps(body("Please retry in 36.4s.", {"retryDelay": "37s"}))
    assert read_error_body(text).retry_delay == 37.0


def test_cut_json_is_read() -> None:
    """JSON that was cut short is read as far as it goes."""
    whole = json.dumps(
        body(
            "You exceeded your quota.",
            violations({"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}),
            {"retryDelay": "36s"},
            {"reason": "RATE_LIMIT_EXCEEDED"},
            status="RESOURCE_EXHAUSTED",
        )
    )
    found = read_error_body(whole[:-3])
    assert found == ErrorBody(
        message="You exceeded your quota.",
        status="RESOURCE_EXHAUSTED",
        reasons=frozenset({"RATE_LIMIT_EXCEEDED"}),
        violations=(QuotaViolation("rpd", None),),
        retry_delay=36.0,
    )
    assert read_error_body('{"error": {"message": "Please retry in 36.').retry_delay is None


def test_plain_text_is_the_message() -> None:
    """Text that is not JSON is the message."""
    found = read_error_body("Too busy. Please retry in 5s.")
    assert (found.message, found.retry_delay) == ("Too busy. Please retry in 5s.", 5.0)


def test_web_page_is_recognised() -> None:
    """HTML does not come from the API, and is not repeated."""
    found = read_error_body("  <html><body>blocked</body></html>")
    assert found.is_page
    assert "<" not in found.message


@pytest.mark.parametrize(
    "text", ["[]", "[[]]", "null", "3", '{"error": "words"}', '{"error": []}', "[" * 100_000]
)
def test_other_json_is_not_a_refusal(text: str) -> None:
    """JSON in another form is kept as text."""
    assert read_error_body(text) == ErrorBody(message=text)


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["error", "details", "violations", "message", "quotaId", "quotaValue", "retryDelay", "reason"]
            ),
            inner,
        )
    ),
)


@pytest.mark.slow
@given(_json, st.integers(min_value=0, max_value=3))
def test_never_fails(value: Any, cut: int) -> None:
    """Any JSON, even cut short, is read without an error, and delays are finite."""
    text = json.dumps({"error": value})
    found = read_error_body(text[: len(text) - cut])
    assert found.retry_delay is None or 0 <= found.retry_delay < float("inf")


@given(st.text())
def test_never_fails_on_text(text: str) -> None:
    """Any text is read without an error."""
    assert isinstance(read_error_body(text), ErrorBody)

from __future__ import annotations

from typing import Any

import pytest

from llm_router.domain.quota import Metric
from llm_router.gemini_http import api_errors
from llm_router.gemini_http.api_errors import ApiError, quota_exceeded, usual_error
from llm_router.gemini_http.durations import read_duration, read_retry_sentence
from llm_router.gemini_http.quota_names import metric_of, quota_metric, stated_limits


def detail(error: ApiError, name: str) -> Any:
    [found] = [item for item in error.details if item["@type"] == f"type.googleapis.com/google.rpc.{name}"]
    return found


def test_an_error_is_a_json_body() -> None:
    """The body has details only if the error has any."""
    error = ApiError(418, "UNKNOWN", "I am a teapot.")
    assert error.body == {"error": {"code": 418, "message": "I am a teapot.", "status": "UNKNOWN"}}
    assert "details" in api_errors.invalid_key().body["error"]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 499, 500, 503, 504, 599])
def test_every_status_has_its_usual_error(code: int) -> None:
    """The usual error has a status word and a message; an unused status is UNKNOWN."""
    error = usual_error(code)
    assert error.code == code
    assert (error.status == "UNKNOWN") == (code == 599)
    assert error.message


def test_an_exceeded_quota_reads_as_it_was_written() -> None:
    """Details and message both state each exceeded quota with its limit, and the delay."""
    error = quota_exceeded("gemini-x", {Metric.RPM: 15, Metric.TPD: 0}, 36.4)
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    violations = detail(error, "QuotaFailure")["violations"]
    assert [(metric_of(one["quotaId"]), one["quotaValue"]) for one in violations] == [
        ("rpm", "15"),
        ("tpd", "0"),
    ]
    assert [one["quotaMetric"] for one in violations] == [quota_metric(Metric.RPM), quota_metric(Metric.TPD)]
    assert [limit for _, limit in stated_limits(error.message)] == [15, 0]
    assert read_duration(detail(error, "RetryInfo")["retryDelay"]) == 36.4
    assert read_retry_sentence(error.message) == 36.4


def test_a_refusal_may_state_no_limit() -> None:
    """Without a limit, neither the details nor the message state one."""
    error = quota_exceeded("gemini-x", {Metric.RPM: None}, 36.4)
    [violation] = detail(error, "QuotaFailure")["violations"]
    assert metric_of(violation["quotaId"]) == "rpm"
    assert "quotaValue" not in violation
    assert stated_limits(error.message) == []
    assert f"{quota_metric(Metric.RPM)}, model: gemini-x" in error.message


def test_a_key_that_is_not_valid_has_a_reason() -> None:
    """The reason lets a client tell an invalid key from an invalid request."""
    assert detail(api_errors.invalid_key(), "ErrorInfo")["reason"] == api_errors.API_KEY_INVALID


def test_a_refusal_may_name_no_quota() -> None:
    """It has a delay, in details and message, only if one is known."""
    error = api_errors.exhausted("Nothing has room.", 1.5)
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    assert error.message == "Nothing has room. Please retry in 1.5s."
    assert detail(error, "RetryInfo")["retryDelay"] == "1.5s"
    assert "details" not in api_errors.exhausted("Nothing has room.").body["error"]


def test_what_belongs_to_another_project_is_denied_by_name() -> None:
    """A file is named without its collection, as the API does."""
    error = api_errors.file_denied("files/abc")
    assert error.code == 403
    assert error.message == "You do not have permission to access the File abc or it may not exist."
    assert api_errors.cache_denied().code == 403


def test_authorization_of_openai_s_paths() -> None:
    """An absent header and one without a token are refused with a 400, as Google does."""
    errors = [api_errors.missing_authorization(), api_errors.invalid_authorization()]
    assert [(error.code, error.message.split()[0]) for error in errors] == [
        (400, "Missing"),
        (400, "Invalid"),
    ]

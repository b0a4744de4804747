from __future__ import annotations

import pytest

from llm_router.gemini_http import api_errors
from llm_router.gemini_http.openai_errors import google_list, openai_error


def test_google_sends_a_list() -> None:
    """Under OpenAI's paths Google puts its own error into a list."""
    error = api_errors.multiple_credentials()
    assert google_list(error) == [
        {
            "error": {
                "code": 400,
                "message": "Multiple authentication credentials received. Please pass only one.",
                "status": "INVALID_ARGUMENT",
            }
        }
    ]


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "invalid_request_error", "invalid_api_key"),
        (404, "invalid_request_error", "model_not_found"),
        (429, "rate_limit_error", "rate_limit_exceeded"),
        (503, "server_error", None),
    ],
)
def test_openai_sends_an_object(status: int, kind: str, code: str | None) -> None:
    """OpenAI's error has a type that follows from the status, and the usual code if there is one."""
    body = openai_error(status, "No.")
    assert body == {"error": {"message": "No.", "type": kind, "param": None, "code": code}}


def test_code_and_param_may_be_given() -> None:
    """A given code replaces the usual one."""
    fields = openai_error(404, "No.", code="not_here", param="model")["error"]
    assert (fields["code"], fields["param"]) == ("not_here", "model")

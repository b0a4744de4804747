from __future__ import annotations

import json
from typing import Any

import pytest

from llm_router.domain.exchange import Exchange
from llm_router.domain.kinds import FailureKind
from llm_router.errors import LLMRouterError, ProviderError, QuotaExhaustedError, UnknownPathError
from llm_router.gemini_http.answers import answer_for
from llm_router.gemini_http.durations import read_retry_sentence

GEMINI = Exchange(path="/v1beta/models/flash:generateContent", body=b"{}")
OPENAI = Exchange(path="/v1/chat/completions", body=b"{}")
REFUSED = '{"error": {"code": 400, "message": "No such field.", "status": "INVALID_ARGUMENT"}}'


def answer(exchange: Exchange, error: LLMRouterError) -> tuple[int, dict[str, str], Any]:
    head, body = answer_for(exchange, error)
    return head.status, dict(head.headers), json.loads(body)


@pytest.mark.parametrize("exchange", [GEMINI, OPENAI])
def test_when_to_come_back_is_a_sentence(exchange: Exchange) -> None:
    """It follows the error's own sentence, in both protocols, and programs can read it there."""
    error = QuotaExhaustedError("nothing has room: rpm (2); retry in 60.3 s", retry_after=60.25)
    status, headers, body = answer(exchange, error)
    message = body["error"]["message"]
    assert message == "nothing has room: rpm (2); retry in 60.3 s. Please retry in 60.25s."
    assert (status, headers["retry-after"], read_retry_sentence(message)) == (429, "61", 60.25)


@pytest.mark.parametrize(
    ("retry_after", "expected"), [(0.5, None), (60.0, None), (60.1, "false"), (None, "false")]
)
def test_who_should_not_wait_is_told(retry_after: float | None, expected: str | None) -> None:
    """OpenAI's SDKs, which try again by themselves, do so only where that helps, and soon."""
    error = QuotaExhaustedError("nothing has room", retry_after=retry_after)
    assert answer(OPENAI, error)[1].get("x-should-retry") == expected
    assert "x-should-retry" not in answer(GEMINI, error)[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (REFUSED, "No such field."),
        (f"[{REFUSED}]", "No such field."),
        ("[]", "the provider failed"),
        ('[{"error": {"message": 5}}]', "the provider failed"),
        ("Bad Request", "the provider failed"),
        ("[" * 100_000, "the provider failed"),
    ],
)
def test_an_openai_client_can_read_what_google_says(body: str, message: str) -> None:
    """A refusal is OpenAI's error object with the provider's words, whatever form they have."""
    error = ProviderError("the provider failed", kind=FailureKind.REQUEST, code=400)
    error.body = body.encode()
    told = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    assert answer(OPENAI, error)[::2] == (400, {"error": told})
    assert answer_for(GEMINI, error)[1] == error.body


def test_an_error_of_openai_stays_what_it_is() -> None:
    """One that has its form already is passed on."""
    error = ProviderError("the provider failed", kind=FailureKind.REQUEST, code=400)
    told = {"error": {"message": "No.", "type": "invalid_request_error", "param": "n", "code": "odd"}}
    error.body = json.dumps(told).encode()
    assert answer(OPENAI, error)[2] == told


def test_an_unknown_path_is_not_an_unknown_model() -> None:
    """OpenAI has a code of its own for it."""
    assert answer(OPENAI, UnknownPathError("there is none"))[2]["error"]["code"] == "unknown_url"

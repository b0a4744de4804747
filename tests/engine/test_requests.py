"""The checks of a request before quota is taken, and the merging of a request and arguments."""

from __future__ import annotations

from typing import Any

import pytest

from llm_router import InvalidRequestError, Request
from llm_router.engine.requests import check_request, merge_requests

FULL = Request(
    contents="inner",
    system_instruction="be brief",
    max_output_tokens=5,
    temperature=0.1,
    config={"top_k": 3},
    safety_settings={"HARM": "OFF"},
)


def test_a_request_without_further_arguments_is_unchanged() -> None:
    """Without further arguments the inner request itself is returned."""
    assert merge_requests(FULL, Request(contents=FULL)) is FULL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("system_instruction", "be long"),
        ("max_output_tokens", 9),
        ("temperature", 0.0),
        ("config", {}),
        ("safety_settings", {}),
    ],
)
def test_an_argument_wins_over_the_request(name: str, value: Any) -> None:
    """An argument that is given, even an empty one, replaces that field and no other."""
    options: dict[str, Any] = {name: value}
    merged = merge_requests(FULL, Request(contents=FULL, **options))
    assert getattr(merged, name) == value
    for other in ("contents", "system_instruction", "max_output_tokens", "temperature", "config"):
        if other != name:
            assert getattr(merged, other) == getattr(FULL, other)


@pytest.mark.parametrize("contents", ["x", ["x"], {"parts": []}])
def test_anything_may_be_a_prompt(contents: Any) -> None:
    """Any contents that are not empty pass."""
    check_request(Request(contents=contents, max_output_tokens=1))


@pytest.mark.parametrize("contents", ["", [], None, {}])
def test_an_empty_prompt_is_rejected(contents: Any) -> None:
    """Empty contents of any type raise."""
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        check_request(Request(contents=contents))


@pytest.mark.parametrize("limit", [0, -1, 1.5, "9"])
def test_a_wrong_max_output_tokens_is_rejected(limit: Any) -> None:
    """A limit that is not a whole number above 0 raises."""
    with pytest.raises(InvalidRequestError, match="max_output_tokens"):
        check_request(Request(contents="x", max_output_tokens=limit))

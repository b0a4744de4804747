"""What is read from a request to judge its answer."""

from __future__ import annotations

from typing import Any

import pytest
from google.genai import types

from llm_router.domain.request import Request
from llm_router.providers._gemini_request import limits_output, metered_tools

BOTH = types.Tool(google_search=types.GoogleSearch(), google_maps=types.GoogleMaps())


@pytest.mark.parametrize(
    ("tools", "found"),
    [
        ([{"google_search": {}}], ("google_search",)),
        ([{"googleSearch": {}}, {"googleSearchRetrieval": {}}], ("google_search",)),
        (({"google_maps": {}}, {"google_search": {}}), ("google_maps", "google_search")),
        ([types.Tool(url_context=types.UrlContext())], ("url_context",)),
        ([BOTH], ("google_search", "google_maps")),
        (types.Tool(google_search=types.GoogleSearch()), ("google_search",)),
        ({"googleSearch": {}}, ("google_search",)),
        ([{"google_search": None}], ()),
        ([{"code_execution": {}}, print, None, 5], ()),
        ([], ()),
        (None, ()),
    ],
)
def test_tools_with_quotas_of_their_own(tools: Any, found: tuple[Any, ...]) -> None:
    """They are found in dicts of either spelling and in the SDK's objects, each once."""
    for config in ({"tools": tools}, types.GenerateContentConfig.model_construct(tools=tools)):
        assert metered_tools(Request(contents="x", config=config)) == found


def test_a_request_may_have_no_config() -> None:
    """Without a config there are no tools."""
    assert metered_tools(Request(contents="x")) == ()


@pytest.mark.parametrize(
    ("fields", "limited"),
    [
        ({}, False),
        ({"config": {"temperature": 1}}, False),
        ({"max_output_tokens": 5}, True),
        ({"config": {"max_output_tokens": 5}}, True),
        ({"config": {"maxOutputTokens": 5}}, True),
        ({"config": types.GenerateContentConfig(max_output_tokens=5)}, True),
        ({"config": types.GenerateContentConfig()}, False),
    ],
)
def test_whether_the_answer_is_limited(fields: Any, limited: bool) -> None:
    """A limit may be the request's own or its config's, in any form."""
    assert limits_output(Request(contents="x", **fields)) == limited

"""What clients ask for in headers, and what they are told in them."""

from __future__ import annotations

import pytest

from llm_router.errors import InvalidRequestError
from llm_router.gemini_http.wishes import read_wishes, trace_headers


def test_each_wish() -> None:
    """Each header is an option, and other headers are none."""
    headers = (
        ("content-type", "application/json"),
        ("x-llm-router-workload", " heavy "),
        ("x-llm-router-fallback", "any"),
        ("x-llm-router-max-wait", "2.5"),
        ("x-llm-router-urgency", " batch"),
        ("x-llm-router-tenant", "acme"),
    )
    assert read_wishes(headers) == {
        "workload": "heavy",
        "fallback": "any",
        "max_wait": 2.5,
        "urgency": "batch",
        "metadata": {"tenant": "acme"},
    }
    assert read_wishes((("x-llm-router-workload", ""),)) == {"workload": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-llm-router-wrkload", "heavy"),
        ("x-llm-router-fallback", "far"),
        ("x-llm-router-max-wait", "long"),
        ("x-llm-router-urgency", "high"),
    ],
)
def test_wishes_that_make_no_sense(name: str, value: str) -> None:
    """The message names the header."""
    with pytest.raises(InvalidRequestError, match=name):
        read_wishes(((name, value),))


def test_what_is_told() -> None:
    """Names that a header cannot have are quoted; what is unknown is left out."""
    assert trace_headers("schlüssel\n", "flash", 2, 0.12345) == (
        ("x-llm-router-key-id", "schl%C3%BCssel%0A"),
        ("x-llm-router-model", "flash"),
        ("x-llm-router-attempts", "2"),
        ("x-llm-router-waited", "0.123"),
    )
    assert trace_headers(None, None, 0, 0.0)[0] == ("x-llm-router-attempts", "0")

from __future__ import annotations

import pytest

from llm_router.gemini_http.routes import Method, Route, parse_path, read_key, wants_sse


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1beta/models", Route("v1beta")),
        ("/v1/models/gemini-x", Route("v1", "gemini-x")),
        ("/v1beta/models/gemini-x:generateContent", Route("v1beta", "gemini-x", Method.GENERATE)),
        ("/v1beta/models/a:b:countTokens", Route("v1beta", "a:b", "countTokens")),
        ("/v1beta/models/a/b:predict", Route("v1beta", "a/b", "predict")),
        ("/v7/models/a:", Route("v7", "a", "")),
    ],
)
def test_paths_are_parsed(path: str, route: Route) -> None:
    """A path has a version, a model and a method, each of them any word."""
    assert parse_path(path) == route


@pytest.mark.parametrize(
    "path", ["", "/", "/models", "//models", "/v1/files", "/v1/models/", "/v1/modelsx", "v1/models", "/v1"]
)
def test_other_paths_are_not_routes(path: str) -> None:
    """A path of any other form is None."""
    assert parse_path(path) is None


@pytest.mark.parametrize(
    ("headers", "query", "key"),
    [
        ([(b"host", b"x"), (b"x-goog-api-key", b"k1")], "key=k2", "k1"),
        ([(b"host", b"x")], "alt=sse&key=a%2Bb", "a+b"),
        ([], "", ""),
    ],
)
def test_the_key_is_read_from_header_or_query(
    headers: list[tuple[bytes, bytes]], query: str, key: str
) -> None:
    """The header wins; a request without a key has an empty one."""
    assert read_key(headers, query) == key


def test_the_form_of_a_stream_is_read_from_the_query() -> None:
    """A stream is sent as server-sent events only on request."""
    assert wants_sse("key=k&alt=sse")
    assert not wants_sse("key=k")

"""The names of what belongs to one project: where an answer makes it, and where a request continues it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from llm_router.domain.exchange import PAGES, Headers
from llm_router.gemini_http.targets import Operation

__all__ = [
    "LISTS",
    "UPLOAD_URL",
    "continued_name",
    "created_name",
    "further_names",
    "upload_name",
    "with_origin",
    "without_host",
]

UPLOAD_URL = "x-goog-upload-url"
"""The header that says where the next piece of an upload goes."""

LISTS = frozenset(
    {Operation.LIST_FILES, Operation.LIST_CACHES, Operation.LIST_BATCHES, Operation.LIST_TUNED_MODELS}
)
"""The lists of what belongs to a project."""

_UPLOAD_ID = "upload_id"
_PAGED = LISTS | {Operation.LIST_MODELS}
_WITH_RESULTS = frozenset({Operation.GET_BATCH, Operation.GET_OPERATION, Operation.CREATE_BATCH})
_RESULTS = (
    ("response", "responsesFile"),
    ("response", "output", "responsesFile"),
    ("metadata", "output", "responsesFile"),
    ("output", "responsesFile"),
    ("response", "generateVideoResponse", "generatedSamples", "video", "uri"),
    ("response", "generatedVideos", "video", "uri"),
)
"""Where an answer names the files that were made meanwhile. Elsewhere such a name may be a model's word."""

_FILE = re.compile(r"(?:\A|/)(files/[A-Za-z0-9_-]+)(?::download)?(?:\?[^/]*)?")
_INTERACTION = re.compile(rb'"(?:id|interaction_id)"\s*:\s*"([A-Za-z0-9_-]{1,256})"')


def created_name(operation: Operation, body: bytes, headers: Headers = ()) -> str:
    """Return the name of what an answer says was made, as requests will refer to it; empty if nothing.

    Args:
        operation: What was asked for.
        body: The answer, or how it begins.
        headers: Its headers, with names in lower case.
    """
    if not operation.creates:
        return ""
    if operation is Operation.CREATE_INTERACTION:
        found = _INTERACTION.search(body)
        return f"interactions/{found[1].decode()}" if found else ""
    for name, value in headers:
        if name == UPLOAD_URL:
            return "".join(upload_name(operation, urlsplit(value).query))
    try:
        made = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        return ""
    if isinstance(made, dict) and operation is Operation.UPLOAD:
        made = made.get("file")
    named = made.get("name") if isinstance(made, dict) else None
    return named if isinstance(named, str) else ""


def further_names(operation: Operation, body: bytes) -> tuple[str, ...]:
    """Return what else an answer names that only its project has: files with results, a list's next page.

    Args:
        operation: What was asked for.
        body: The whole answer.
    """
    if operation not in _PAGED and operation not in _WITH_RESULTS:
        return ()
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    if operation in _PAGED:
        page = answer.get("nextPageToken") if isinstance(answer, dict) else None
        return (_page(operation, page),) if isinstance(page, str) and page else ()
    named = [value for path in _RESULTS for value in _values(answer, path) if isinstance(value, str)]
    return tuple(dict.fromkeys(found[1] for value in named if (found := _FILE.search(value))))


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield what is at a path of names, in each item of the lists on it."""
    if isinstance(value, list):
        for each in value:
            yield from _values(each, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _values(value[path[0]], path[1:])


def _page(operation: Operation, token: str) -> str:
    return f"{PAGES}{operation}/{token}"


def continued_name(operation: Operation, query: str) -> tuple[str, ...]:
    """Return the name under which an upload that has begun, or the next page of a list, is known."""
    if operation in _PAGED:
        return tuple(_page(operation, token) for token in parse_qs(query).get("pageToken", ())[:1])
    return upload_name(operation, query)


def upload_name(operation: Operation, query: str) -> tuple[str, ...]:
    """Return the name under which an upload that has begun is known, if a request continues one."""
    found = parse_qs(query).get(_UPLOAD_ID) if operation is Operation.UPLOAD else None
    return (f"uploads/{found[0]}",) if found else ()


def with_origin(headers: Headers, origin: str) -> Headers:
    """Return the headers of an answer in which an upload goes on at ``origin``, as the client sees it."""
    return tuple((name, origin + value if name == UPLOAD_URL else value) for name, value in headers)


def without_host(url: str) -> str:
    """Return the path and the query of a URL."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path

"""The names of what belongs to one project: where an answer makes it, and where a request continues it."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs, urlsplit

from llm_router.domain.exchange import Headers
from llm_router.gemini_http.targets import Operation

__all__ = ["UPLOAD_URL", "created_name", "upload_name", "with_origin", "without_host"]

UPLOAD_URL = "x-goog-upload-url"
"""The header that says where the next piece of an upload goes."""

_UPLOAD_ID = "upload_id"
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

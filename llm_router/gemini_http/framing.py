"""How the API frames its answers: one JSON body, server-sent events, or a JSON array sent piece by piece."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["JSON_TYPE", "SSE_TYPE", "Body", "array_item", "dump", "sse_event"]

Body = dict[str, Any]
"""A JSON object of the API."""

JSON_TYPE = "application/json; charset=UTF-8"
"""The content type of a JSON body or array."""

SSE_TYPE = "text/event-stream"
"""The content type of server-sent events."""


def dump(body: object) -> bytes:
    """Return ``body`` as compact JSON."""
    return json.dumps(body, separators=(",", ":")).encode()


def sse_event(data: bytes) -> bytes:
    """Return ``data``, a piece of a stream as JSON, as one server-sent event."""
    return b"data: " + data + b"\r\n\r\n"


def array_item(data: bytes, index: int, last: int) -> bytes:
    """Return piece ``index`` of a stream, which is JSON, as an item of an array that ends with ``last``."""
    return (b"[" if index == 0 else b",\r\n") + data + (b"]" if index == last else b"")

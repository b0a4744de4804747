"""What a request to the Gemini API says outside its body: path, API key, form of the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from urllib.parse import parse_qs

import attrs

__all__ = ["API_VERSIONS", "KEY_HEADER", "Method", "Route", "parse_path", "read_key", "wants_sse"]

API_VERSIONS = frozenset({"v1", "v1alpha", "v1beta"})
"""The versions of the API, as a path begins with them."""

KEY_HEADER = "x-goog-api-key"
"""The header that carries the API key."""

_KEY_HEADER = KEY_HEADER.encode()
_PATH = re.compile(
    r"/(?P<version>[^/]+)/models(?:/(?P<model>.+?)(?::(?P<method>[^:]*))?)?",
    re.DOTALL,
)


class Method(StrEnum):
    """A method of a model, as a path ends with it."""

    GENERATE = "generateContent"
    STREAM = "streamGenerateContent"
    COUNT_TOKENS = "countTokens"
    EMBED = "embedContent"
    BATCH_EMBED = "batchEmbedContents"


@attrs.frozen
class Route:
    """The parts of a path such as ``/v1beta/models/gemini-flash-latest:generateContent``.

    Attributes:
        version: The version of the API; any word, not only those of :data:`API_VERSIONS`.
        model: The name of the model; empty for the list of models.
        method: The method; empty if the path names only the model. Any word, not only a :class:`Method`.
    """

    version: str
    model: str = ""
    method: str = ""


def parse_path(path: str) -> Route | None:
    """Return the parts of ``path`` (decoded, without the query), or None if it is not of this form."""
    found = _PATH.fullmatch(path)
    return Route(**found.groupdict(default="")) if found else None


def read_key(headers: Iterable[tuple[bytes, bytes]], query: str) -> str:
    """Return the API key of a request, from its header or else its query; empty if there is none.

    Args:
        headers: The headers, names in lower case.
        query: The query string, without the question mark.
    """
    for name, value in headers:
        if name == _KEY_HEADER:
            return value.decode("latin-1")
    return parse_qs(query).get("key", [""])[0]


def wants_sse(query: str) -> bool:
    """Return whether a stream is to be sent as server-sent events, and not as a JSON array."""
    return "alt=sse" in query

"""The credentials of a request: where each kind is sent, and which ones a request has."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import attrs

from llm_router.gemini_http.routes import KEY_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AUTHORIZATION", "Credential", "Place", "read_credentials"]

AUTHORIZATION = "authorization"
"""The header that carries a bearer token."""

_KEY_HEADER = KEY_HEADER.encode()
_AUTHORIZATION = AUTHORIZATION.encode()
_SCHEME = "bearer"


class Place(StrEnum):
    """Where a credential was sent."""

    HEADER = "x-goog-api-key"
    QUERY = "key"
    BEARER = "bearer"


@attrs.frozen
class Credential:
    """One credential of a request.

    Attributes:
        place: Where it was sent.
        value: The key or token; empty if a header or parameter has none.
    """

    place: Place
    value: str = attrs.field(repr=False)


def read_credentials(headers: Iterable[tuple[bytes, bytes]], query: str) -> list[Credential]:
    """Return every credential of a request, in the order of its headers, those of the query last.

    The API takes exactly one. An Authorization header of another scheme counts as an empty bearer token.

    Args:
        headers: The headers, names in lower case.
        query: The query string, without the question mark.
    """
    found = []
    for name, value in headers:
        if name == _KEY_HEADER:
            found.append(Credential(Place.HEADER, value.decode("latin-1")))
        elif name == _AUTHORIZATION:
            found.append(Credential(Place.BEARER, _token(value.decode("latin-1"))))
    if "key" in query:
        pairs = parse_qsl(query, keep_blank_values=True)
        found += [Credential(Place.QUERY, value) for name, value in pairs if name == "key"]
    return found


def _token(header: str) -> str:
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == _SCHEME else ""

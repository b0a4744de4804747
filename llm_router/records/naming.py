"""Names of records for what may be called anything."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from llm_router.errors import InvalidRequestError
from llm_router.records.entries import name_of

__all__ = ["digest_name", "key_name", "short_name"]

_DIGEST = "sha256:"
_LONGEST_NAME = 500
"""Characters of the longest name of a key that is kept as it is."""


def short_name(text: str) -> str:
    """Return a text as a name; its digest if it is too long, or has characters that no name has."""
    try:
        return digest_name(text) if text.startswith(_DIGEST) else name_of(text)
    except InvalidRequestError:
        return digest_name(text)


def key_name(provider: str, key_id: str) -> str:
    """Return a name for what belongs to a key, which has room for a date before it."""
    name = f"{quote(provider, safe='')} {quote(key_id, safe='')}"
    return name if len(name) <= _LONGEST_NAME else digest_name(name)


def digest_name(text: str) -> str:
    """Return a name that shows nothing of a text."""
    return _DIGEST + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

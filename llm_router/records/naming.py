"""Names of records for what may be called anything."""

from __future__ import annotations

import hashlib

from llm_router.errors import InvalidRequestError
from llm_router.records.entries import name_of

__all__ = ["digest_name", "short_name"]

_DIGEST = "sha256:"


def short_name(text: str) -> str:
    """Return a text as a name; its digest if it is too long, or has characters that no name has."""
    try:
        return digest_name(text) if text.startswith(_DIGEST) else name_of(text)
    except InvalidRequestError:
        return digest_name(text)


def digest_name(text: str) -> str:
    """Return a name that shows nothing of a text."""
    return _DIGEST + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

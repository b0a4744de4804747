"""Which model a misspelt name may mean; a name that nothing here is like may well be a new one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llm_router.config.models import BUILT_IN

__all__ = ["meant_instead"]

_SEEN = (
    "gemini-2.0-flash",
    "gemini-2.0-flash-lite",
    "gemini-2.5-flash",
    "gemini-2.5-flash-image",
    "gemini-2.5-flash-lite",
    "gemini-2.5-flash-preview-tts",
    "gemini-2.5-pro",
    "gemini-3-pro-preview",
    "gemini-3.1-pro-preview",
    "gemini-3.5-flash",
    "gemini-3.5-flash-lite",
    "gemini-3.6-flash",
    "gemini-3.7-flash",
    "gemini-3.8-flash",
    "gemini-embedding-001",
    "gemini-flash-latest",
    "gemini-flash-lite-latest",
    "gemini-pro-latest",
)
"""Names that exist or existed, to compare others with; a model that is missing here is as good."""

_OTHER_WORDS = frozenset(("audio", "computer", "customtools", "dialog", "live", "native", "thinking", "use"))
_NEAR = 0.7
"""Least likeness of two words, or names, of which one may be a slip of the other."""


def meant_instead(name: str, others: Iterable[str] = ()) -> str | None:
    """Return the known name that a model's name is probably a slip of, or None.

    A name differs by a slip if a word of it is unknown and like a known one, or if only separators, capitals
    or the order of its words differ. Another version number is not a slip, nor is a word like no other.

    Args:
        name: The name.
        others: Further names that are right, such as those of the same file that stand there more often.
    """
    known = {*_SEEN, *BUILT_IN, *others}
    if name in known:
        return None
    same = next((other for other in sorted(known) if _parts(other) == _parts(name)), None)
    if same is not None:
        return same
    words = {word for other in known for word in _words(other)} | _OTHER_WORDS
    if not any(_is_slip(word, words) for word in _words(name) - words):
        return None
    from difflib import get_close_matches  # noqa: PLC0415 - only needed for a mistake

    return next(iter(get_close_matches(name.lower(), sorted(known), n=1, cutoff=_NEAR)), None)


def _is_slip(word: str, words: Iterable[str]) -> bool:
    from difflib import get_close_matches  # noqa: PLC0415 - as above

    return bool(get_close_matches(word, words, n=1, cutoff=_NEAR))


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def _parts(name: str) -> list[str]:
    """Return the words and the digits of a name, in an order that does not depend on how it is written."""
    return sorted(re.findall(r"[a-z]+|\d", name.lower()))

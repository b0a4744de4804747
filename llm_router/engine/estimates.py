"""What a provider counts: which of its token counts make sense, and how far they are from our estimates."""

from __future__ import annotations

import attrs

from llm_router.domain.numbers import whole
from llm_router.domain.quota import MAX_LIMIT
from llm_router.domain.response import Usage
from llm_router.providers.base import Reply

__all__ = ["OTHER", "TEXT", "TokenCorrection", "kind_of", "understood"]

TEXT, OTHER = 0, 1
"""The kinds of content: nothing but text, and what has something else among it. Estimates of images, sound
and structured data are wrong by other factors than those of text."""

_TEXT_FIELDS = frozenset(
    {"text", "parts", "role", "type", "thought", "thoughtSignature", "thought_signature"}
)
_DEEPEST = 3
"""A list of contents, a content, its list of parts, a part."""

_LOWEST, _HIGHEST = 0.25, 4.0
_RISE, _FALL = 0.15, 0.005
"""The share of an error by which a count moves the factor. It comes to rest where one of about ten requests
has more tokens than are reserved: few of these are sent into the last of a quota, and refused."""


def kind_of(contents: object, depth: int = 0) -> int:
    """Return the kind of the contents of a request: :data:`TEXT` or :data:`OTHER`."""
    if isinstance(contents, str):
        return TEXT
    if isinstance(contents, list | tuple) and depth <= _DEEPEST:
        return max((kind_of(each, depth + 1) for each in contents), default=TEXT)
    if isinstance(contents, dict) and contents.keys() <= _TEXT_FIELDS and depth <= _DEEPEST:
        return max(kind_of(contents.get(name) or "", depth + 1) for name in ("text", "parts"))
    parts = getattr(contents, "parts", None)  # of an object of the SDK
    if isinstance(parts, list):
        return kind_of(parts, depth + 1)
    return TEXT if isinstance(getattr(contents, "text", None), str) else OTHER


class TokenCorrection:
    """A factor for one model and kind of content, learnt from the provider's counts.

    It rises much faster than it falls, so that it is near the highest counts: reserving too little earns
    refusals, reserving too much is given back when the request is settled.

    Attributes:
        factor: What an estimate is to be multiplied by; between 0.25 and 4.
    """

    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0

    def learn(self, estimate: int, counted: int) -> None:
        """Note how many tokens the provider counted, and what the uncorrected estimate was."""
        if counted <= 0 or estimate <= 0:
            return
        error = counted / estimate - self.factor
        factor = self.factor + error * (_RISE if error > 0 else _FALL)
        self.factor = min(max(factor, _LOWEST), _HIGHEST)

    def __repr__(self) -> str:
        return f"TokenCorrection(factor={self.factor:g})"


def understood(reply: Reply) -> Reply:
    """Return a reply in which each count that cannot be a number of tokens counts as not given."""
    usage = reply.usage
    if usage is None:
        return reply
    counts = {name: _tokens(getattr(usage, name, 0)) for name in _COUNTS}
    return attrs.evolve(reply, usage=Usage(**counts))


_COUNTS = tuple(field.name for field in attrs.fields(Usage))


def _tokens(count: object) -> int:
    number = whole(count)
    return number if number is not None and 0 <= number <= MAX_LIMIT else 0

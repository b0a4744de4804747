"""What a model can be asked for: the methods of its API, by its name unless it is stated.

The names are those of the Gemini API. ``images`` and ``speech`` are not methods there: they stand for a model
that answers a ``generateContent`` with pictures or sound, and that a prompt reaches only if it names it.
"""

from __future__ import annotations

import re

__all__ = [
    "ANY_METHOD",
    "COUNT",
    "EMBED",
    "GENERATE",
    "IMAGES",
    "METHODS",
    "SPEECH",
    "serves_any",
    "usual_methods",
]

GENERATE = "generateContent"
"""Answer a prompt."""

EMBED = "embedContent"
"""Turn texts into vectors."""

COUNT = "countTokens"
"""Count the tokens of a prompt."""

IMAGES = "images"
"""Answer with pictures."""

SPEECH = "speech"
"""Answer with sound."""

_OTHER_OUTPUTS = frozenset({IMAGES, SPEECH})
"""What a model that has one of them answers prompts with, so that it must be named."""

METHODS = frozenset({GENERATE, EMBED, COUNT, IMAGES, SPEECH, "predict", "predictLongRunning"})
"""All that can be stated of a model."""

ANY_METHOD = ""
"""In place of a method: whatever the model can do."""

_BY_NAME = (
    (re.compile(r"embed"), frozenset({EMBED, COUNT})),
    (re.compile(r"\btts\b|speech|native-audio|\blive\b"), frozenset({GENERATE, COUNT, SPEECH})),
    (re.compile(r"^imagen\b"), frozenset({"predict", IMAGES})),
    (re.compile(r"^veo\b"), frozenset({"predictLongRunning"})),
    (re.compile(r"\bimage\b"), frozenset({GENERATE, COUNT, IMAGES})),
)
_USUAL = frozenset({GENERATE, COUNT})


def serves_any(methods: frozenset[str], method: str = GENERATE) -> bool:
    """Return whether a request for ``method`` that names no model may go to one with these methods."""
    return method in methods and _OTHER_OUTPUTS.isdisjoint(methods)


def usual_methods(model: str) -> frozenset[str]:
    """Return what a model can be asked for, as far as its name says; most generate."""
    name = model.lower()
    return next((methods for pattern, methods in _BY_NAME if pattern.search(name)), _USUAL)

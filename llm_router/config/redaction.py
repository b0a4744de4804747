"""Keeping secrets out of what is said about a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Redactor", "is_placeholder", "is_secret_field", "mask_url"]

_MASK = "***"
_LOOKS_LIKE_KEY = re.compile(r"(?:AIza|(?<![A-Za-z0-9])AQ\.)[\w.-]{16,}", re.ASCII)
_LONG_ENOUGH = 16
"""Characters from which a value of the environment is a key rather than a word that may stand anywhere."""

_SECRET_FIELDS = ("key", "secret", "token", "password", "passwd", "credential", "credentials", "bearer")
_GAPS = ("any", "all", "none", "null", "nil", "undefined", "n/a", "?", "-", "todo", "tbd", "fixme")
_STAND_INS = ("placeholder", "changeme", "change-me", "replace-me", "model", "model-name", "api-key")
_PLACEHOLDERS = frozenset((*_GAPS, *_STAND_INS))
_FRAMED = re.compile(
    r"<.*>|\{.*\}|\[.*\]|\$\(.*|x{3,}|\*+|\.+|…+|(?:.*-)?your-.*|(?:insert|paste|put)-.*|.*-here", re.DOTALL
)
"""How templates mark a gap: brackets, filling, and words that address the reader."""


def is_secret_field(name: str) -> bool:
    """Tell whether a field of this name would hold a credential, such as ``api_key`` or ``accessToken``."""
    plain = re.sub(r"[\W_]", "", name).casefold()
    return plain.endswith(_SECRET_FIELDS)


def is_placeholder(value: str) -> bool:
    """Tell whether ``value`` stands in a template for what the user has to put there."""
    plain = value.strip().casefold().replace("_", "-").replace(" ", "-")
    return plain in _PLACEHOLDERS or _FRAMED.fullmatch(plain) is not None


def mask_url(url: str) -> str:
    """Return ``url`` without the parts that may hold a password: user, password, query and fragment."""
    return re.sub(r"[?#].*", "?***", re.sub(r"://.*@", "://***@", url, flags=re.DOTALL), flags=re.DOTALL)


class Redactor:
    """Knows the secrets of the environment, and takes them, and what looks like one, out of texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        stripped = (secret.strip() for secret in secrets)
        known = frozenset(secret for secret in stripped if len(secret) >= _LONG_ENOUGH)
        # In a message they may stand as repr() spells them; the longest first, lest a part hide the whole.
        spelt = sorted({*known, *(repr(secret)[1:-1] for secret in known)}, key=len, reverse=True)

        # Closures, so that neither vars() nor a traceback that prints locals comes across the secrets.
        def is_secret(text: str) -> bool:
            return text.strip() in known or _LOOKS_LIKE_KEY.search(text) is not None

        def redact(text: str) -> str:
            for secret in spelt:
                text = text.replace(secret, _MASK)
            return _LOOKS_LIKE_KEY.sub(_MASK, text)

        self._is_secret, self._redact = is_secret, redact

    def is_secret(self, text: str) -> bool:
        """Tell whether ``text`` is a secret of the environment or looks like an API key."""
        return self._is_secret(text)

    def redact(self, text: str) -> str:
        """Return ``text`` with every such secret masked."""
        return self._redact(text)

"""How secrets and placeholders are recognised, and secrets masked in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Redactor", "is_placeholder", "is_secret_field", "mask_url"]

_MASK = "***"
_LOOKS_LIKE_KEY = re.compile(r"(?:AIza|(?<![A-Za-z0-9])AQ\.)[\w.-]{16,}", re.ASCII)
_LONG_ENOUGH = 16
"""Fewest characters of an environment value that is masked: a shorter one may be an ordinary word."""

_SECRET_FIELDS = ("key", "secret", "token", "password", "passwd", "credential", "credentials", "bearer")
_GAPS = ("any", "all", "none", "null", "nil", "undefined", "n/a", "?", "-", "todo", "tbd", "fixme")
_STAND_INS = ("placeholder", "changeme", "change-me", "replace-me", "model", "model-name", "api-key")
_PLACEHOLDERS = frozenset((*_GAPS, *_STAND_INS))
_FRAMED = re.compile(
    r"<.*>|\{.*\}|\[.*\]|\$\(.*|x{3,}|\*+|\.+|…+|(?:.*-)?your-.*|(?:insert|paste|put)-.*|.*-here", re.DOTALL
)
"""The forms of a template's placeholder: brackets, filler, and words addressed to the reader."""


def is_secret_field(name: str) -> bool:
    """Return whether a field of this name is meant for a credential, such as ``api_key``, ``accessToken``."""
    plain = re.sub(r"[\W_]", "", name).casefold()
    return plain.endswith(_SECRET_FIELDS)


def is_placeholder(value: str) -> bool:
    """Return whether ``value`` is a placeholder that the user of a template has to replace."""
    plain = value.strip().casefold().replace("_", "-").replace(" ", "-")
    return plain in _PLACEHOLDERS or _FRAMED.fullmatch(plain) is not None


def mask_url(url: str) -> str:
    """Return ``url`` without the parts that may contain a password: user, password, query and fragment."""
    return re.sub(r"[?#].*", "?***", re.sub(r"://.*@", "://***@", url, flags=re.DOTALL), flags=re.DOTALL)


class Redactor:
    """A filter for API keys: the secrets of the environment, and anything that looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        stripped = (secret.strip() for secret in secrets)
        known = frozenset(secret for secret in stripped if len(secret) >= _LONG_ENOUGH)
        # A message may contain a secret as repr() writes it. The longest come first: masking a secret that
        # is part of a longer one would leave the rest of the longer one visible.
        spelt = sorted({*known, *(repr(secret)[1:-1] for secret in known)}, key=len, reverse=True)

        # Closures, so that neither vars() nor a traceback with locals can print the secrets.
        def is_secret(text: str) -> bool:
            return text.strip() in known or _LOOKS_LIKE_KEY.search(text) is not None

        def redact(text: str) -> str:
            for secret in spelt:
                text = text.replace(secret, _MASK)
            return _LOOKS_LIKE_KEY.sub(_MASK, text)

        self._is_secret, self._redact = is_secret, redact

    def is_secret(self, text: str) -> bool:
        """Return whether ``text`` is a secret of the environment or contains what looks like an API key."""
        return self._is_secret(text)

    def redact(self, text: str) -> str:
        """Return ``text`` with all secrets masked."""
        return self._redact(text)

"""A credential that cannot be shown by accident."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

__all__ = ["Secret"]

_MASK = "Secret('***')"
_MARK_BYTES = 4


class Secret:
    """An API key that masks itself wherever Python would print, format or store it.

    ``repr``, ``str``, ``format`` and ``attrs.asdict`` show a mask; pickling and copying are refused; only
    :meth:`reveal` returns the value. Two secrets are equal only if they are the same object, so that a
    comparison reveals nothing.
    """

    __slots__ = ("__reveal",)

    def __init__(self, value: str) -> None:
        def reveal() -> str:
            return value

        # A closure, so that neither vars(), nor a debugger's dump of attributes, nor a traceback that
        # prints locals finds the value.
        self.__reveal = reveal

    def reveal(self) -> str:
        """Return the credential itself. Only a provider adapter needs it."""
        return self.__reveal()

    def mark(self, salt: bytes) -> str:
        """Return 32 bits that differ for another credential, nearly always; too few to find or prove one."""
        return hmac.digest(salt, self._bytes(), hashlib.sha256)[:_MARK_BYTES].hex()

    def is_same(self, other: Secret) -> bool:
        """Whether both are the same credential."""
        return hmac.compare_digest(self._bytes(), other._bytes())

    def _bytes(self) -> bytes:
        return self.__reveal().encode("utf-8", "surrogatepass")

    def __repr__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __bool__(self) -> bool:
        return bool(self.__reveal())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied: read it from the environment instead")

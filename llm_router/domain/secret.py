"""A credential that cannot be shown by accident."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Secret"]

_MASK = "Secret('***')"


class Secret:
    """An API key that masks itself wherever Python would print, format or store it.

    ``repr``, ``str``, ``format`` and ``attrs.asdict`` show a mask; pickling and copying into another
    process are refused; :meth:`reveal` is the only way to the value. Two secrets are equal only when they
    are the same object, so that comparing them tells nothing.
    """

    __slots__ = ("__reveal",)

    def __init__(self, value: str) -> None:
        def reveal() -> str:
            return value

        # A closure, so that neither vars(), nor a debugger's dump of attributes, nor a traceback that
        # prints locals comes across the value.
        self.__reveal = reveal

    def reveal(self) -> str:
        """Return the credential itself. Only a provider adapter has a reason to call this."""
        return self.__reveal()

    def __repr__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __bool__(self) -> bool:
        return bool(self.__reveal())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret refuses to be pickled or copied: read it from the environment instead")

"""How far a model's own token counts are from our estimates."""

from __future__ import annotations

__all__ = ["TokenCorrection"]

_LOWEST, _HIGHEST = 0.25, 4.0
_RISE, _FALL = 0.5, 0.05


class TokenCorrection:
    """A factor for one model, learnt from the provider's counts.

    It rises fast and falls slowly: reserving too little earns refusals, reserving too much is given back
    when the request is settled.

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

"""Telling a broken path to the provider from broken keys."""

from __future__ import annotations

import attrs

from llm_router.providers.base import FailureKind

__all__ = ["PATH_FAILURES", "Outage"]

PATH_FAILURES = (FailureKind.NETWORK, FailureKind.TIMEOUT)
"""What fails for the path to the provider, and says nothing of key or model."""

_KEYS = 3
_SPAN = 10.0
_FIRST_BENCH, _LONGEST_BENCH = 1.0, 30.0


@attrs.define
class Outage:
    """Benches a provider when several keys at once cannot reach it.

    Three different keys failing on the network within 10 s, with no success between them, bench the provider
    for 1 s; each further bench without a success doubles that, up to 30 s. No key is blamed.

    Attributes:
        until: Seconds since the epoch until which the provider is benched.
    """

    until: float = 0.0
    _failures: dict[str, float] = attrs.field(factory=dict)
    _benches: int = 0

    def failed(self, key_id: str, now: float) -> None:
        """Note that a request through ``key_id`` did not get through."""
        self._failures = {key: at for key, at in self._failures.items() if at > now - _SPAN}
        self._failures[key_id] = now
        if len(self._failures) >= _KEYS and now >= self.until:
            self.until = now + min(_FIRST_BENCH * 2**self._benches, _LONGEST_BENCH)
            self._benches += 1
            self._failures.clear()

    def succeeded(self) -> None:
        """Note that the provider answered, be it with an error of its own."""
        if self._failures or self._benches:
            self._failures.clear()
            self._benches = 0
            self.until = 0.0

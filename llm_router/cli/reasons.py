"""Why a request with a key failed, in plain words."""

from __future__ import annotations

from llm_router.domain.kinds import FailureKind
from llm_router.errors import ProviderError

__all__ = ["reason_of"]

_REASONS = {
    FailureKind.KEY: "the provider does not accept the key",
    FailureKind.MODEL: "the key may not use this model",
    FailureKind.QUOTA: "the key is valid, but its project has no quota left, although our count had room",
    FailureKind.SERVER: "the provider is overloaded or broken, which says nothing of the key",
    FailureKind.NETWORK: "the provider cannot be reached, which says nothing of the key",
    FailureKind.TIMEOUT: "no answer came in time, which says nothing of the key",
    FailureKind.REQUEST: "the provider does not take the request",
}


def reason_of(error: Exception) -> str:
    """Say in plain words why a request with a key has failed, followed by the provider's own words."""
    return f"{_REASONS[error.kind]} ({error})" if isinstance(error, ProviderError) else str(error)

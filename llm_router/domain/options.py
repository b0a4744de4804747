"""The options of a send, named and typed in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from llm_router.domain.request import Fallback, Urgency

__all__ = ["QueryOptions", "RelayOptions", "SendOptions"]


class SendOptions(TypedDict, total=False):
    """What ``Router.send`` and ``Router.stream`` take besides the prompt; every option may be left out."""

    workload: str | None
    """The workload wished for; None for any."""
    model_preference: str | None
    """The model wished for; None for any."""
    model: str | None
    """Another name of ``model_preference``."""
    contents: Any
    """Another name of the prompt."""
    max_output_tokens: int | None
    """Upper bound of the answer, in tokens."""
    system_instruction: Any
    """The system instruction, as google-genai takes it."""
    temperature: float | None
    """Sampling temperature."""
    config: Any
    """A ``GenerateContentConfig`` or its dict; the options above win over it."""
    safety_settings: Mapping[str, str] | None
    """Category → threshold, over those of the router; ``{}`` for the provider's own defaults."""
    fallback: Fallback
    """How far from the wish a request may go: to ``"any"`` deployment (the default), to the preferred
    ``"model"`` on any workload, or nowhere (``"none"``)."""
    timeout: float | None
    """Seconds for all attempts together, not counting the wait for capacity; 60 by default, None (or more
    than a year) for no bound."""
    max_wait: float | None
    """Most seconds to wait for capacity, infinity for a year; None for the router's default."""
    cache: bool | Literal["always"] | None
    """For a router with a cache: False neither looks there nor keeps the answer; ``"always"`` keeps it also
    if the temperature is above 0, tools are declared, or images are sent. Streams, and sends whose functions
    are called, do not use the cache."""
    metadata: Mapping[str, str] | None
    """Words to find the request by, such as ``{"tenant": "acme", "feature": "search"}``: in the attempts of
    the response, in the events that observers get, and in metrics. At most 16; the provider does not see
    them."""
    urgency: Urgency
    """Where it waits, if it has to: ``"interactive"`` (the default) before ``"batch"``, which keeps a fifth
    of the grants."""
    tenant: str | None
    """The tenant: those that wait get equal shares of the tokens, or by the ``tenant_weights`` of
    the router. None for the ``tenant`` of the metadata, if there is one. At most 256 characters."""


class RelayOptions(TypedDict, total=False):
    """What ``Router.relay`` takes besides the exchange; every option may be left out."""

    workload: str | None
    """The workload wished for; None for what the exchange names."""
    model_preference: str | None
    """The model wished for; None for what the exchange names."""
    fallback: Fallback | None
    """As for a send; None for ``"model"`` where a model is named, and ``"any"`` otherwise."""
    timeout: float | None
    """Seconds until the answer begins, not counting the wait for capacity, and then for each further piece;
    60 by default, None for no bound."""
    max_wait: float | None
    """As for a send."""
    metadata: Mapping[str, str] | None
    """As for a send."""
    urgency: Urgency
    """As for a send."""
    tenant: str | None
    """As for a send."""


class QueryOptions(TypedDict, total=False):
    """What ``Router.embed``, ``count_tokens`` and ``models`` take besides; every option may be left out."""

    timeout: float | None
    """Seconds for each request, not counting the wait for capacity; 60 by default, None for no bound."""
    max_wait: float | None
    """As for a send."""
    metadata: Mapping[str, str] | None
    """As for a send."""
    urgency: Urgency
    """As for a send."""
    tenant: str | None
    """As for a send."""

"""What a router answers besides prompts: embeddings, and which models there are."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from llm_router.errors import SendError

__all__ = ["Embeddings", "ModelInfo", "ModelList", "Vector"]

Vector = tuple[float, ...]
"""An embedding."""


@attrs.frozen(kw_only=True)
class Embeddings:
    """Texts as vectors.

    Attributes:
        vectors: One for each text, in order, all by the same model.
        model: That model.
        attempts: Requests that were sent to the provider.
        waited: Seconds that the requests waited for capacity, together.
    """

    vectors: tuple[Vector, ...] = attrs.field(repr=False)
    model: str
    attempts: int = 0
    waited: float = 0.0


@attrs.frozen(kw_only=True)
class ModelInfo:
    """A model that the provider serves.

    Attributes:
        name: Its name, without ``models/``.
        methods: What it can be asked for, such as ``generateContent``.
        input_token_limit: Most tokens of a request; 0 if the provider does not say.
        output_token_limit: Most tokens of an answer; likewise.
        projects: The projects of the pool that are served it.
    """

    name: str
    methods: tuple[str, ...] = ()
    input_token_limit: int = 0
    output_token_limit: int = 0
    projects: tuple[str, ...] = ()


@attrs.frozen
class ModelList:
    """The models that the provider serves to the projects of a pool.

    Attributes:
        models: The models by name, in alphabetical order.
        failed: The projects that could not be asked, each with the reason.
    """

    models: Mapping[str, ModelInfo]
    failed: Mapping[str, SendError] = attrs.field(factory=dict)

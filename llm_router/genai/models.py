"""The SDK's calls of models, which say what to write in place of messages as OpenAI has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from google.genai import models, types

from llm_router.errors import InvalidRequestError
from llm_router.providers._gemini_foreign import remedy_for

__all__ = ["AsyncModels", "Models"]


class Models(models.Models):
    """``client.models``: every call that takes contents looks at their form first."""

    def generate_content(self, **wish: Any) -> types.GenerateContentResponse:
        """Generate an answer, as the SDK does."""
        _refuse_foreign(wish)
        return super().generate_content(**wish)

    def generate_content_stream(self, **wish: Any) -> Iterator[types.GenerateContentResponse]:
        """Generate an answer in pieces, as the SDK does."""
        _refuse_foreign(wish)
        return super().generate_content_stream(**wish)

    def count_tokens(self, **wish: Any) -> types.CountTokensResponse:
        """Count tokens, as the SDK does."""
        _refuse_foreign(wish)
        return super().count_tokens(**wish)

    def embed_content(self, **wish: Any) -> types.EmbedContentResponse:
        """Embed contents, as the SDK does."""
        _refuse_foreign(wish)
        return super().embed_content(**wish)


class AsyncModels(models.AsyncModels):
    """``client.aio.models``: likewise."""

    async def generate_content(self, **wish: Any) -> types.GenerateContentResponse:
        """Generate an answer, as the SDK does."""
        _refuse_foreign(wish)
        return await super().generate_content(**wish)

    async def generate_content_stream(self, **wish: Any) -> AsyncIterator[types.GenerateContentResponse]:
        """Generate an answer in pieces, as the SDK does."""
        _refuse_foreign(wish)
        return await super().generate_content_stream(**wish)

    async def count_tokens(self, **wish: Any) -> types.CountTokensResponse:
        """Count tokens, as the SDK does."""
        _refuse_foreign(wish)
        return await super().count_tokens(**wish)

    async def embed_content(self, **wish: Any) -> types.EmbedContentResponse:
        """Embed contents, as the SDK does."""
        _refuse_foreign(wish)
        return await super().embed_content(**wish)


def _refuse_foreign(wish: Mapping[str, Any]) -> None:
    """Refuse contents in the form of another API, of which the SDK says only what they are not.

    Raises:
        InvalidRequestError: They are; the message says what to write.
    """
    if remedy := remedy_for(wish.get("contents")):
        raise InvalidRequestError(f"contents is wrong: {remedy}")

"""A gateway: the paths of Gemini and of OpenAI over HTTP, every call of theirs through a pool of keys."""

from __future__ import annotations

from llm_router.gateway.app import Gateway

__all__ = ["Gateway"]

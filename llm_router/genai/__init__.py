"""A drop-in for ``google.genai.Client`` whose every call goes through a router's pool of keys."""

from llm_router.genai.client import Client

__all__ = ["Client"]

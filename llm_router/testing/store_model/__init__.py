"""A reference model of :class:`~llm_router.stores.RateLimitStore`, and random play to compare stores with it.

For tests of stores only. Hypothesis is imported when :func:`worlds` or :func:`plays` is called.
"""

from __future__ import annotations

from llm_router.testing.store_model.model import StoreModel
from llm_router.testing.store_model.play import Player, World, plays, worlds

__all__ = ["Player", "StoreModel", "World", "plays", "worlds"]

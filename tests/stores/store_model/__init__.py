"""A reference model of :class:`~llm_router.stores.RateLimitStore`, and random play to compare stores with it.

``conftest.py`` loads this package under the name ``llm_router_tests_store_model``.
"""

from __future__ import annotations

from llm_router_tests_store_model.model import StoreModel
from llm_router_tests_store_model.play import Player, World, plays, worlds

__all__ = ["Player", "StoreModel", "World", "plays", "worlds"]

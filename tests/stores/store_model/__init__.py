"""A reference model of :class:`~llm_router.stores.RateLimitStore`, and random play to compare stores with it.

``conftest.py`` loads this package under the name ``llm_router_tests_store_model``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # where its files are, for a type checker
    from tests.stores.store_model.model import StoreModel
    from tests.stores.store_model.play import Operation, Player, World, plays, worlds
else:
    from llm_router_tests_store_model.model import StoreModel
    from llm_router_tests_store_model.play import Operation, Player, World, plays, worlds

__all__ = ["Operation", "Player", "StoreModel", "World", "plays", "worlds"]

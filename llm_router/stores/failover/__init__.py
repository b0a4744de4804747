"""What to do while a store fails, and when it has lost what it was told."""

from llm_router.stores.failover.alone import LOCAL_SHARE
from llm_router.stores.failover.peers import LocalShare
from llm_router.stores.failover.store import FailoverStore, StoreFailurePolicy

__all__ = ["LOCAL_SHARE", "FailoverStore", "LocalShare", "StoreFailurePolicy"]

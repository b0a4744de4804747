"""What to do while a store fails, and when it has lost what it was told.

From top to bottom:

* ``store.py``: the store that users hold; its plain path asks the store behind it, and notes what was taken.
* ``careful.py``: the other path of a reserve, on which the policy, the shares and the caution are.
* ``outages.py``, ``losses.py``: notice that a shard fails, answers again, or has lost something.
* ``backlog.py``, ``telling.py``: what the store is to be told, and how.
* ``alone.py``: the quotas of a process alone, made from its ``books.py``: ``takings.py`` (of ``records.py``),
  ``rooms.py``, ``cooldowns.py``, ``limits.py`` and ``peers.py``.
* ``shards.py``: what holds of each shard. ``times.py``: the steady time of all this.
"""

from llm_router.stores.failover.alone import LOCAL_SHARE
from llm_router.stores.failover.outages import StoreFailurePolicy
from llm_router.stores.failover.peers import LocalShare
from llm_router.stores.failover.store import FailoverStore

__all__ = ["LOCAL_SHARE", "FailoverStore", "LocalShare", "StoreFailurePolicy"]

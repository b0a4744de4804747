"""How the deployments inside a tier are ordered."""

from llm_router.strategies.base import Candidate, SelectionStrategy
from llm_router.strategies.least_loaded import LeastLoaded
from llm_router.strategies.round_robin import RoundRobin
from llm_router.strategies.weighted import Weighted

__all__ = ["Candidate", "LeastLoaded", "RoundRobin", "SelectionStrategy", "Weighted"]

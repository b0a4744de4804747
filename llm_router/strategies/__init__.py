"""Strategies: the order of the deployments inside a tier."""

from llm_router.strategies.base import Candidate, SelectionStrategy
from llm_router.strategies.least_loaded import LeastLoaded
from llm_router.strategies.round_robin import RoundRobin
from llm_router.strategies.weighted import Weighted

__all__ = ["Candidate", "LeastLoaded", "RoundRobin", "SelectionStrategy", "Weighted"]

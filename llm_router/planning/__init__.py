"""Plans: what traffic would meet on a pool of keys, by the real engine on virtual time."""

from llm_router.planning.figures import Binding, Plan, make_plan
from llm_router.planning.growth import Growth, projects_needed
from llm_router.planning.plot import can_draw, draw
from llm_router.planning.simulation import Outcome, Setting, simulate
from llm_router.planning.traffic import Arrival, make_traffic, read_traffic

__all__ = [
    "Arrival",
    "Binding",
    "Growth",
    "Outcome",
    "Plan",
    "Setting",
    "can_draw",
    "draw",
    "make_plan",
    "make_traffic",
    "projects_needed",
    "read_traffic",
    "simulate",
]

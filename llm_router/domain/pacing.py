"""How the quota of a day is spread over the day."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from llm_router.domain.numbers import real, shown, whole
from llm_router.errors import ConfigError

__all__ = ["Pacing"]


@attrs.frozen(kw_only=True)
class Pacing:
    """Spread what is left of each deployment's requests per day evenly over what is left of the day.

    A deployment that is ahead of this pace counts as full: requests go elsewhere, or wait. What is not used
    in time is spread over the rest of the day again. Each process decides for itself, by what the store says
    is left at each of its own grants, so processes that share a store pace each other, if less exactly.

    Attributes:
        burst: How many requests of a deployment may go at once before they have to keep the pace.
        kept: Shares of the pace by the workload that is asked for: while requests ask for it, all others
            together get no more than the rest. The shares are below 1 together.
        idle: Seconds after which the share of a workload that nothing asks for is lent to the others.

    Raises:
        ConfigError: A number cannot be meant; the message names it.
    """

    burst: int = 1
    kept: Mapping[str, float] = attrs.field(factory=dict)
    idle: float = 900.0

    def __attrs_post_init__(self) -> None:
        if isinstance(self.burst, bool) or (whole(self.burst) or 0) < 1:
            raise ConfigError(f"burst must be a whole number above 0, not {shown(self.burst)}")
        if not 0 < real(self.idle) < math.inf:
            raise ConfigError(f"idle must be a number of seconds above 0, not {shown(self.idle)}")
        if not isinstance(self.kept, Mapping):
            raise ConfigError(f"kept must map workloads to shares, not be {shown(self.kept)}")
        for workload, share in self.kept.items():
            if not isinstance(workload, str) or not 0 < real(share) < 1:
                raise ConfigError(
                    f"kept must map workloads to shares above 0 and below 1, such as {{'heavy': 0.3}}, "
                    f"not {shown(workload)} to {shown(share)}"
                )
        if sum(map(real, self.kept.values())) >= 1:
            raise ConfigError("the shares of kept must be below 1 together: leave some to the others")
        object.__setattr__(self, "kept", {each: real(share) for each, share in self.kept.items()})

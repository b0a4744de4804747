"""What is simulated: keys, hidden limits, what happens to them, and the traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import attrs

from llm_router import Deployment, Key, Metric, Quota, Refill, Secret

__all__ = [
    "HOUR",
    "Bursts",
    "Change",
    "Death",
    "Limits",
    "Others",
    "Outage",
    "Prompt",
    "Retirement",
    "Steady",
    "Wording",
    "World",
]

HOUR = 3600.0


class Wording(Enum):
    """How much a 429 says."""

    BARE = "bare"
    """Nothing: "Resource has been exhausted (e.g. check quota)."."""
    NAMED = "named"
    """Which quota it was, and when to come back."""
    STATED = "stated"
    """The same, and the limit."""


@attrs.frozen
class Limits:
    """Limits of one (project, model); None for unlimited."""

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None

    def items(self) -> list[tuple[Metric, int]]:
        """Return the limits there are."""
        every = ((Metric.RPD, self.rpd), (Metric.RPM, self.rpm), (Metric.TPM, self.tpm))
        return [(metric, limit) for metric, limit in every if limit is not None]

    def quotas(self) -> tuple[Quota, ...]:
        """Return them as a configuration gives them to the router."""
        return tuple(
            Quota(metric, limit, Refill.DAILY if metric.is_daily else Refill.ROLLING)
            for metric, limit in self.items()
        )

    @staticmethod
    def to_be_learnt() -> tuple[Quota, ...]:
        """Return the quotas of a model of which a configuration says nothing."""
        return (
            Quota(Metric.RPM, 4, adaptive=True),
            Quota(Metric.TPM, 10**15, adaptive=True),
            Quota(Metric.RPD, 10**15, Refill.DAILY, adaptive=True),
        )

    def scaled(self, factor: float) -> Limits:
        """Return these limits times ``factor``, each at least 1."""
        values = {metric.value: max(1, round(limit * factor)) for metric, limit in self.items()}
        return Limits(**values)


# Times below are in seconds since the start of the run.


@attrs.frozen
class Change:
    """From ``at`` on all limits are ``factor`` times what they were at the start, until the next change."""

    at: float
    factor: float


@attrs.frozen
class Outage:
    """From ``at`` on every request is answered with 503 for so many seconds."""

    at: float
    seconds: float


@attrs.frozen
class Death:
    """From ``at`` on the key is invalid."""

    at: float
    key_id: str


@attrs.frozen
class Retirement:
    """From ``at`` on the model does not exist."""

    at: float
    model: str


@attrs.frozen
class Others:
    """Requests of other programs through a project, on each model; they are never refused."""

    project: str
    per_minute: float
    begins: float = 0.0
    ends: float = math.inf


@attrs.frozen
class Prompt:
    """One prompt of the traffic: what its size is estimated to be, and what the provider counts."""

    number: int
    estimated: int = 100
    counted: int = 100

    def text(self) -> str:
        """Return the text that a router is given."""
        return f"{self.number}:{self.estimated}:{self.counted}"

    @classmethod
    def read(cls, text: str) -> Prompt:
        """Return the prompt of a text."""
        return cls(*map(int, text.split(":")))


@attrs.frozen
class Steady:
    """Callers who each send again as soon as they have an answer: more than the quota allows."""

    callers: int = 50
    max_wait: float = 300.0


@attrs.frozen
class Bursts:
    """Many callers at once, each with one prompt, every so many seconds on a pool that is idle by then."""

    callers: int = 500
    every: float = HOUR
    max_wait: float = 600.0


@attrs.frozen(kw_only=True)
class World:
    """A provider, keys, what is configured about them, and the traffic.

    Attributes:
        hidden: The limits of each model, known to the provider and the oracle only.
        configured: What keys.json says of them; those of a model without an entry are to be learnt.
        projects: How many keys there are, each with a project of its own as far as is known.
        siblings: The keys that secretly belong to the project of the first key.
        wording: How much a 429 says, in all models or by the model.
        of_project: What all models of a project may take together, beside the limits of each.
        spending: What a project may spend in any ten minutes, a token of input each; a refusal says only so.
        events: What happens.
        traffic: Who sends when.
        hours: How long.
        spread: Bounds of the factor from the estimated to the counted tokens of a prompt.
        sizes: Bounds of the estimated tokens of a prompt.
    """

    hidden: Mapping[str, Limits]
    configured: Mapping[str, Limits] = attrs.field(factory=dict)
    projects: int = 6
    siblings: tuple[str, ...] = ()
    wording: Wording | Mapping[str, Wording] = Wording.BARE
    of_project: Limits = Limits()
    spending: int | None = None
    events: tuple[Change | Outage | Death | Retirement | Others, ...] = ()
    traffic: Steady | Bursts = Steady()
    hours: float = 6.0
    spread: tuple[float, float] = (1.0, 1.0)
    sizes: tuple[int, int] = (100, 100)

    @property
    def seconds(self) -> float:
        """How long the run is."""
        return self.hours * HOUR

    def deployments(self) -> list[Deployment]:
        """Return what the router is configured with."""
        return [
            Deployment(
                Key(f"key-{n}", Secret(f"secret-{n}")),
                model,
                "light",
                quotas=(
                    self.configured[model].quotas() if model in self.configured else Limits.to_be_learnt()
                ),
            )
            for n in range(self.projects)
            for model in self.hidden
        ]

    def wording_of(self, model: str) -> Wording:
        """Return how much a 429 of a model says."""
        return self.wording if isinstance(self.wording, Wording) else self.wording[model]

    def project_of(self, key_id: str) -> str:
        """Return the real project of a key."""
        return "key-0" if key_id in self.siblings else key_id

"""The prompts and the quotas of the demonstration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from llm_router.cli.emulated import with_secrets
from llm_router.config import Settings, load_settings
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import MAX_LIMIT, Quota
from llm_router.errors import ConfigError

__all__ = ["MAX_WAIT", "SPEED", "demo_settings", "prompts_for"]

SPEED = 60.0
"""The speed of the clock: a minute takes a second."""

_DELAY = 1.5
"""Real seconds that a request may take to arrive, so that a busy machine does not exceed the quotas."""

_GUARD = SPEED * _DELAY
"""The guard of the quotas, in seconds of the fast clock."""

MAX_WAIT = 60 * SPEED
"""The longest wait of a prompt for quota, in seconds of the fast clock."""

_WINDOWS = 4
"""How many times the per-minute quotas are to be used up."""

_TOKENS = 60
"""An upper bound of the tokens in a prompt of the demonstration."""

_PROMPTS = {
    "light": (
        "Turn these notes into a TODO list: {}",
        "Summarise this message in one sentence: {}",
        "Answer this greeting kindly: {}",
    ),
    "medium": (
        "Review this function and name its weak points: {}",
        "Find the bug behind this log line: {}",
        "Analyse the sales of region {}",
    ),
    "heavy": (
        "Design the architecture of a trading system: {}",
        "Prove or refute this conjecture: {}",
        "Write the critical section of this scheduler: {}",
    ),
}


def prompts_for(workloads: Sequence[str], count: int) -> Iterator[tuple[str, str]]:
    """Yield ``count`` pairs of workload and prompt, all workloads in turn."""
    for place, workload in zip(range(count), itertools.cycle(workloads), strict=False):
        templates = _PROMPTS.get(workload, _PROMPTS["light"])
        yield workload, templates[place // len(workloads) % len(templates)].format(f"number {place + 1}")


def demo_settings(path: Path, prompts: int) -> tuple[Settings, int]:
    """Load a keys file with made-up secrets, and raise its quotas so that ``prompts`` take a few windows.

    A limit that is to be learnt is fixed at that where learning starts: nothing is to be refused.

    Returns:
        The settings, and the factor by which every quota was raised.

    Raises:
        ConfigError: The file is wrong, or no quota admits a prompt.
    """
    # The settings of the environment and of .env must not influence the demonstration.
    settings = load_settings(path, env={}, env_file=None, guard=_GUARD, secrets_required=False)
    settings = attrs.evolve(settings, deployments=tuple(map(_fixed, settings.deployments)))
    quotas = {deployment.model_scope: deployment.quotas for deployment in settings.deployments}
    capacity = sum(_capacity(each, prompts) for each in quotas.values())
    if capacity == 0:
        raise ConfigError(f"{path}: no deployment has quota for a prompt: raise its limits")
    factor = max(1, math.ceil(prompts / capacity))
    deployments = tuple(_raised(deployment, factor) for deployment in with_secrets(settings.deployments))
    return attrs.evolve(settings, deployments=deployments), factor


def _capacity(quotas: tuple[Quota, ...], prompts: int) -> float:
    """Return how many prompts these quotas admit during the demonstration, at most ``prompts``."""
    rooms = (
        quota.limit
        * (1 if quota.metric.is_daily else _WINDOWS)
        / (_TOKENS if quota.metric.counts_tokens else 1)
        for quota in quotas
    )
    return min(prompts, *rooms, prompts)


def _fixed(deployment: Deployment) -> Deployment:
    known = (quota for quota in deployment.quotas if not quota.adaptive or quota.limit < MAX_LIMIT)
    return attrs.evolve(deployment, quotas=tuple(attrs.evolve(quota, adaptive=False) for quota in known))


def _raised(deployment: Deployment, factor: int) -> Deployment:
    return attrs.evolve(deployment, quotas=tuple(_times(quota, factor) for quota in deployment.quotas))


def _times(quota: Quota, factor: int) -> Quota:
    limit = min(quota.limit * factor, MAX_LIMIT)
    burst = None if quota.burst is None else min(quota.burst * factor, max(limit, 1))
    return attrs.evolve(quota, limit=limit, burst=burst)

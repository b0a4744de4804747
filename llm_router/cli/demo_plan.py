"""What the demonstration sends, and under which quotas."""

from __future__ import annotations

import importlib.resources
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from llm_router.cli.emulated import with_secrets
from llm_router.config import Settings, load_settings
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Quota
from llm_router.errors import ConfigError

__all__ = ["PATIENCE", "SPEED", "demo_settings", "example_keys", "prompts_for"]

SPEED = 60.0
"""How fast time runs: a minute a second."""

_DELAY = 1.5
"""Real seconds that a request may take to arrive: a busy machine must not break the quotas of the demo."""

_GUARD = SPEED * _DELAY
"""The guard of the quotas, in seconds of the fast clock."""

PATIENCE = 60 * SPEED
"""Seconds of the fast clock that a prompt waits for quota at most."""

_WINDOWS = 4
"""How many times the quotas of a minute should be used up."""

_TOKENS = 60
"""More tokens than a prompt of the demo has."""

_EXAMPLE = "keys.json.example"

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
    """Yield ``count`` prompts, each with its workload, all workloads in turn."""
    for place, workload in zip(range(count), itertools.cycle(workloads), strict=False):
        templates = _PROMPTS.get(workload, _PROMPTS["light"])
        yield workload, templates[place // len(workloads) % len(templates)].format(f"number {place + 1}")


def example_keys() -> Path:
    """Return the example of a keys file: the one here, else the one that was installed along.

    Raises:
        ConfigError: There is none.
    """
    root = Path(str(importlib.resources.files("llm_router")))
    for path in (Path(_EXAMPLE), root / _EXAMPLE, root.parent / _EXAMPLE):
        if path.is_file():
            return path
    raise ConfigError(f"{_EXAMPLE} is neither here nor installed: name a keys file with --keys")


def demo_settings(path: Path, prompts: int) -> tuple[Settings, int]:
    """Load a keys file with made-up secrets, and raise its quotas so that ``prompts`` take some windows.

    Returns:
        The settings, and the factor by which every quota was raised.

    Raises:
        ConfigError: The file is wrong, or leaves no quota for anything.
    """
    # Whatever the environment or a .env file wants of the router stays out of the demonstration.
    settings = load_settings(path, env={}, env_file=None, guard=_GUARD, secrets_required=False)
    quotas = {deployment.model_scope: deployment.quotas for deployment in settings.deployments}
    capacity = sum(_capacity(each, prompts) for each in quotas.values())
    if capacity == 0:
        raise ConfigError(f"{path}: no deployment has quota for a prompt: raise the limits")
    factor = max(1, math.ceil(prompts / capacity))
    deployments = tuple(_raised(deployment, factor) for deployment in with_secrets(settings.deployments))
    return attrs.evolve(settings, deployments=deployments), factor


def _capacity(quotas: tuple[Quota, ...], prompts: int) -> float:
    """Return how many prompts these quotas take in the time of the demonstration, at most ``prompts``."""
    rooms = (
        quota.limit
        * (1 if quota.metric.is_daily else _WINDOWS)
        / (_TOKENS if quota.metric.counts_tokens else 1)
        for quota in quotas
    )
    return min(prompts, *rooms, prompts)


def _raised(deployment: Deployment, factor: int) -> Deployment:
    quotas = tuple(
        attrs.evolve(
            quota, limit=quota.limit * factor, burst=None if quota.burst is None else quota.burst * factor
        )
        for quota in deployment.quotas
    )
    return attrs.evolve(deployment, quotas=quotas)

"""An emulator for the deployments of a keys file, with made-up secrets in place of missing ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs

from llm_router.cli.example import example_models
from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Deployment
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError

if TYPE_CHECKING:
    from llm_router.emulator import GeminiEmulator

__all__ = ["made_up_secret", "make_emulator", "with_secrets"]


def made_up_secret(key_id: str) -> str:
    """Return a substitute for the secret of a key, for use with an emulator only."""
    # Encoded, since a key_id may contain anything, but an HTTP header may not.
    return f"made-up-secret-of-{quote(key_id, safe='')}"


def with_secrets(deployments: Iterable[Deployment]) -> tuple[Deployment, ...]:
    """Return the deployments, with made-up secrets in place of missing ones."""
    secrets: dict[str, Secret] = {}
    complete = []
    for deployment in deployments:
        key = deployment.key
        if not key.secret:
            secret = secrets.setdefault(key.key_id, Secret(made_up_secret(key.key_id)))
            complete.append(attrs.evolve(deployment, key=attrs.evolve(key, secret=secret)))
        else:
            complete.append(deployment)
    return tuple(complete)


def make_emulator(clock: Clock, deployments: tuple[Deployment, ...] | None = None) -> GeminiEmulator:
    """Return an emulator that accepts the keys of ``deployments`` only and enforces exactly their limits.

    It answers as any model, and lists theirs. Without ``deployments`` it accepts any key, has no limits, and
    lists the models of keys.json.example, so that ``llm-router init`` finds one for each workload.

    Raises:
        ConfigError: The extra ``cli`` is not installed, or keys.json.example is wrong.
    """
    try:
        from llm_router.emulator import GeminiEmulator, QuotaSpec  # noqa: PLC0415 - heavy, an extra
    except ModuleNotFoundError as error:
        raise ConfigError(f"the emulator needs {error.name}: pip install 'llm-quota-router[cli]'") from error
    if deployments is None:
        return GeminiEmulator(clock=clock, listed=example_models())
    emulator = GeminiEmulator(
        clock=clock,
        listed=[deployment.model for deployment in deployments],
        keys={deployment.key.secret.reveal(): deployment.key.project for deployment in deployments},
    )
    for deployment in deployments:
        limits = {quota.metric.value: quota.limit for quota in deployment.quotas}
        emulator.set_quota(deployment.model, QuotaSpec(**limits), project=deployment.key.project)
    return emulator

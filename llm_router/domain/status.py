"""What users print: statuses of keys and the health of a router."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["Health", "KeyStatus"]


class KeyStatus(TypedDict):
    """One deployment as a status table shows it."""

    key_id: str
    model: str
    provider: str
    project: str
    workload: str
    priority: int
    active: bool
    in_cooldown: bool
    """Whether it is put aside now, by a cooldown or a quarantine."""
    quarantined: bool
    """Whether it is put aside until reload."""
    cooldown_remaining: float | None
    """Seconds; 0 where there is none, None for a quarantine."""
    reason: str | None
    """Why it is put aside, or None."""
    rpm_usage: str
    """``used/limit``; ``∞`` stands for no limit, ``-`` for a store that does not answer."""
    tpm_usage: str
    rpd_usage: str
    tpd_usage: str


class Health(TypedDict):
    """The health of a router."""

    healthy: bool
    """Whether a send has a chance: quotas are counted, the provider is not benched, a key is usable."""
    total_keys: int
    active_keys: int
    in_cooldown: int
    """Active keys of which every deployment is put aside for a while."""
    quarantined: int
    """Active keys of which every deployment is put aside until reload."""
    deployments: int
    waiting: int
    """Requests waiting in line for capacity."""
    store: str
    store_ok: bool
    """Whether the store answers. While it does not, ``healthy`` tells if this process can go on alone."""
    problems: list[str]
    """What is wrong, in words; empty when nothing is."""

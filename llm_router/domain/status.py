"""The dictionaries that users print: the status of each deployment and the health of a router."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["Health", "KeyStatus"]


class KeyStatus(TypedDict):
    """One deployment, as a status table shows it."""

    key_id: str
    model: str
    provider: str
    project: str
    workload: str
    priority: int
    active: bool
    in_cooldown: bool
    """Whether no request is sent through it now, because of a cooldown or a quarantine."""
    quarantined: bool
    """Whether this lasts until a request that tries again succeeds, or until it is lifted."""
    cooldown_remaining: float | None
    """Seconds until it ends or, for a quarantine, until it is tried again; 0 without one, None for never."""
    reason: str | None
    """Why it is cooling down or quarantined, or None."""
    rpm_usage: str
    """``used/limit`` of this metric; ``0/∞`` if it has no limit, since nothing is counted then."""
    tpm_usage: str
    rpd_usage: str
    tpd_usage: str


class Health(TypedDict):
    """The health of a router."""

    healthy: bool
    """Whether a send may succeed: quotas are counted, the provider can be reached and a key is usable."""
    total_keys: int
    active_keys: int
    in_cooldown: int
    """Active keys of which every deployment is cooling down, the quarantined ones not counted."""
    quarantined: int
    """Active keys of which every deployment is quarantined."""
    deployments: int
    waiting: int
    """Requests that wait for capacity."""
    store: str
    store_ok: bool
    """Whether the store answers. While it does not, ``healthy`` says whether this process can go on alone."""
    problems: list[str]
    """What is wrong, in words; empty if nothing is."""

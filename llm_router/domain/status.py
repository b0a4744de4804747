"""The dictionaries that users print: the status of each deployment and the health of a router."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["Health", "KeyStatus", "LimitStatus"]


class LimitStatus(TypedDict):
    """One quota of a deployment, with the limit in force and how it is known."""

    used: int
    """Requests or tokens that were taken and have not come back."""
    limit: int | None
    """How many are admitted; None while nothing is known of it."""
    configured: int | None
    """How many the configuration allows at most; None if it leaves the limit to be learnt."""
    source: str
    """``configured``, ``stated`` by the provider, ``inferred`` from its refusals, or ``unknown``: nothing was
    refused so far."""
    learnt_ago: float | None
    """Seconds since the limit was learnt; None if it is not a learnt one."""
    raised_in: float | None
    """Seconds until more is tried; 0 while it is, None if it will not be."""
    resets_in: float
    """Seconds until all is back if nothing more is taken."""


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
    """Whether no request is sent through it now: it cools down, or is quarantined or disabled."""
    quarantined: bool
    """Whether this lasts until a request that tries again succeeds, or until it is lifted."""
    disabled: bool
    """Whether somebody disabled the key or the model, which is no fault of theirs."""
    cooldown_remaining: float | None
    """Seconds until it ends or, for a quarantine, until it is tried again; 0 without one, None for never."""
    reason: str | None
    """Why it is cooling down, quarantined or disabled, or None."""
    spent: list[str]
    """The metrics whose quota is used up now, such as ``["rpm"]``; empty if there is room in all of them."""
    room_in: float | None
    """Seconds after which there is room again, at the latest; 0 if there is now, None for never."""
    limits: dict[str, LimitStatus]
    """The quotas by metric; a metric without a limit is missing."""
    rpm_usage: str
    """``used/limit`` of this metric; ``0/∞`` if it has no limit, since nothing is counted then."""
    tpm_usage: str
    rpd_usage: str
    tpd_usage: str


class Health(TypedDict):
    """The health of a router."""

    healthy: bool
    """Whether a send may succeed now: a usable key has room, quotas are counted, its provider is reached."""
    total_keys: int
    active_keys: int
    in_cooldown: int
    """Active keys of which every deployment is cooling down, the quarantined ones not counted."""
    quarantined: int
    """Active keys of which every deployment is quarantined."""
    disabled: int
    """Active keys of which every deployment is disabled. The other counts leave out what is disabled."""
    spent: int
    """Active keys of which every deployment is spent or cooling down, and at least one is spent."""
    deployments: int
    waiting: int
    """Requests that wait for capacity."""
    store: str
    store_ok: bool
    """Whether the store answers. While it does not, ``healthy`` says whether this process can go on alone."""
    problems: list[str]
    """What is wrong, in words; empty if nothing is."""

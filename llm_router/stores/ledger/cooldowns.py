"""Which cooldowns apply, and what becomes of them, for stores that decide in Python."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from llm_router.domain.calendar import microseconds, seconds
from llm_router.domain.cooldown import PROBE_TIME, STRIKES_KEPT, Cooldown
from llm_router.domain.deployment import Deployment, Scope

__all__ = ["due_cooldowns", "forgotten_at", "impose", "latest_cooldown", "moved_back", "probed"]


def latest_cooldown(cooldowns: Mapping[Scope, Cooldown], deployment: Deployment, now: int) -> Cooldown | None:
    """Return the cooldown that ends last among those of the deployment's scopes, or None."""
    latest = None
    for scope in deployment.scopes:
        cooldown = cooldowns.get(scope)
        if cooldown is None or microseconds(cooldown.until) <= now:
            continue
        if latest is None or cooldown.until > latest.until:
            latest = cooldown
    return latest


def due_cooldowns(
    cooldowns: Mapping[Scope, Cooldown], deployment: Deployment, now: int
) -> tuple[Cooldown, ...]:
    """Return the half-open cooldowns of the deployment's scopes that have ended: a grant probes them."""
    found = (cooldowns.get(scope) for scope in deployment.scopes)
    return tuple(
        each
        for each in found
        if each is not None and each.half_open and microseconds(each.until) <= now < forgotten_at(each)
    )


def probed(cooldown: Cooldown, now: int) -> Cooldown:
    """Return what a half-open cooldown becomes while a request probes it."""
    return attrs.evolve(cooldown, until=seconds(now) + PROBE_TIME)


def moved_back(cooldown: Cooldown, imposed: int, now: int) -> Cooldown:
    """Return a cooldown with an end that is no further away than when it was imposed.

    Where ``now`` is before ``imposed``, the clock was set back, and the cooldown counts as imposed now.
    """
    if now >= imposed or cooldown.until == math.inf:
        return cooldown
    return attrs.evolve(cooldown, until=seconds(now + microseconds(cooldown.until) - imposed))


def forgotten_at(cooldown: Cooldown) -> int:
    """Return when a cooldown no longer matters, in microseconds."""
    return microseconds(cooldown.until + STRIKES_KEPT if cooldown.half_open else cooldown.until)


def impose(present: Cooldown | None, cooldown: Cooldown, now: int) -> Cooldown | None:
    """Return what a scope's cooldown becomes when another one is imposed on it; None for nothing.

    Args:
        present: The scope's cooldown so far, or None.
        cooldown: The one imposed; or a lift, or a retry.
        now: In microseconds.
    """
    if cooldown.until == -math.inf:
        return None
    if present is not None and forgotten_at(present) <= now:
        present = None
    if cooldown.until == 0.0 and cooldown.half_open:
        is_waiting = present is not None and present.half_open and microseconds(present.until) > now
        return attrs.evolve(present, until=seconds(now)) if present is not None and is_waiting else present
    if microseconds(cooldown.until) <= now:
        return present
    # A verdict that has ended is remembered only for its strikes: whatever is imposed now takes its place.
    if present is None or microseconds(present.until) <= now or cooldown.until > present.until:
        return cooldown
    return present

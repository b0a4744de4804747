"""Cooldowns in the form in which they are sent and stored."""

from __future__ import annotations

import json
import math

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Scope
from llm_router.stores.ledger import read_learnt, write_learnt

__all__ = ["describe", "dump", "order_of", "read_description", "shifted"]

_FIELDS = {field.name for field in attrs.fields(Cooldown)}

dump = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
"""Return JSON without spaces."""


def describe(cooldown: Cooldown) -> str:
    """Return a cooldown as the JSON that is stored with it; what has its default value is left out."""
    told: dict[str, object] = {
        "scope": cooldown.scope,
        "until": repr(cooldown.until),
        "reason": cooldown.reason,
    }
    if cooldown.learnt:
        told["learnt"], details = write_learnt(cooldown.learnt)
        if details:  # apart, because earlier versions read pairs
            told["learnt_details"] = details
    for name in sorted(_FIELDS - {"learnt", *told}):
        if value := getattr(cooldown, name):
            told[name] = value
    return dump(told)


def read_description(text: str | bytes, until: str | bytes, ahead: int) -> Cooldown:
    """Return the cooldown from its JSON, which in format 2 was a list, and from its present end."""
    told = json.loads(text)
    if isinstance(told, list):
        told = dict(zip(("scope", "until", "reason", "learnt"), told, strict=True))
    limits = read_learnt(told.get("learnt", ()), told.get("learnt_details", ()))
    told |= {"scope": Scope(told["scope"]), "until": float(until), "learnt": limits}
    known = {name: value for name, value in told.items() if name in _FIELDS}  # a later release may say more
    return shifted(Cooldown(**known), -ahead)


def shifted(cooldown: Cooldown, ahead: int) -> Cooldown:
    """Return the same cooldown on a clock that is ``ahead`` microseconds ahead.

    What is learnt with it stays: a limit rises after a while, and replaces one that is known by a time that
    is never shifted.
    """
    if not ahead:
        return cooldown
    since = cooldown.since + ahead / 1e6 if cooldown.since else 0.0
    return attrs.evolve(cooldown, until=cooldown.until + ahead / 1e6, since=since)


def order_of(cooldown: Cooldown) -> str:
    """Return "lift" or "retry" if that is what a cooldown stands for, else ""."""
    if cooldown.until == -math.inf:
        return "lift"
    return "retry" if cooldown.until == 0.0 and cooldown.half_open else ""

"""The dictionaries that users print: the status of each deployment and the health of a router."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from llm_router.domain.kinds import Metric

__all__ = [
    "DEPRECATED",
    "CacheSavings",
    "DayTotals",
    "FactStatus",
    "FailureStatus",
    "Health",
    "HealthState",
    "KeyState",
    "KeyStatus",
    "LimitStatus",
    "LimitTerms",
    "LineStatus",
    "without_deprecated",
]

LimitTerms = Literal["cap", "learn", "unlimited"]
"""What a configuration says of a quota: a number as a cap, that it is to be learnt, or that there is no limit
(until a refusal names one): it is null, or left out where the model has other limits."""

KeyState = Literal[
    "ready", "paced", "spent", "cooling_down", "unreachable", "quarantined", "disabled", "inactive"
]
"""Whether a deployment can be used now, and if not, what is the matter with it.

``paced``: this process keeps what is left for later in the day (``rpd_pacing``), as for a request of its own
workload. Each process paces by itself: one that only reports, as `llm-router status` does, knows none."""

HealthState = Literal["healthy", "paced", "spent", "unusable", "store_lost"]
"""Whether a send may succeed now, and if not, why."""

DEPRECATED = frozenset(
    {
        "cooldown_remaining",
        "learnt_ago",
        "raised_in",
        "resets_in",
        "room_in",
        "rpm_usage",
        "tpm_usage",
        "rpd_usage",
        "tpd_usage",
    }
)
"""Fields that stay for those who read them, and have successors that are numbers with their unit in the name.
What is printed as JSON leaves them out."""


class LimitStatus(TypedDict):
    """One quota of a deployment, with the limit in force and how it is known."""

    used: int
    """Requests or tokens that were taken and have not come back."""
    limit: int | None
    """How many are admitted; None while nothing is known of it."""
    remaining: int | None
    """How many are left of it now, at least 0; None while no limit is known."""
    full_until: float | None
    """Until when it is full because the provider refused a request for want of this quota of a day, however
    few are ``used`` by what is counted here; in seconds since the Unix epoch. None otherwise."""
    refill: str
    """How it comes back: ``rolling`` or ``steady``, over a window, or ``daily``, at a midnight."""
    window_seconds: float | None
    """The window that it is counted over; None for a day, whose length varies."""
    configured: int | None
    """How many the configuration allows at most; None if it states no number."""
    configured_as: LimitTerms
    """What the configuration says of it."""
    counted_since: float | None
    """Since when at least it is counted, if that is not yet a whole window or day, in seconds since the Unix
    epoch: more may be ``used``, and less be left. None for what is counted in whole."""
    source: str
    """``configured``, ``stated`` by the provider, ``inferred`` from its refusals, or ``unknown``: nothing was
    refused so far."""
    learnt_at: float | None
    """When the limit was learnt, in seconds since the Unix epoch; None if it is not a learnt one."""
    raised_at: float | None
    """From when on more is tried, likewise; None if it will not be."""
    reset_in_seconds: float
    """Seconds until all is back: if nothing more is taken, or at the end of the day."""
    reset_at: float
    """The same, in seconds since the Unix epoch."""
    per_hour: float | None
    """Of a day: how many are used in an hour at present. It is what this process saw in the last quarter of
    an hour, or the mean of the day so far if it looks for the first time. None for other quotas."""
    used_up_in_seconds: float | None
    """Of a day: in how many seconds it is used up at this pace; None if it lasts, or for other quotas."""
    used_up_at: float | None
    """The same, in seconds since the Unix epoch."""
    learnt_ago: float | None
    """Deprecated, see ``learnt_at``: seconds since the limit was learnt."""
    raised_in: float | None
    """Deprecated, see ``raised_at``: seconds until more is tried, 0 while it is."""
    resets_in: float
    """Deprecated, see ``reset_in_seconds``: seconds until all is back, 0 if nothing is taken."""


class DayTotals(TypedDict):
    """What a key did with a model on one day of the provider's calendar, in all processes."""

    day: str
    """The date, such as ``2026-11-26``, where the provider's day ends at midnight."""
    requests: int
    """Requests that were sent, whatever came of them."""
    input_tokens: int
    output_tokens: int
    """Tokens of answers, thoughts included."""
    rate_limited: int
    """Requests that were refused for want of quota (429)."""
    errors: int
    """Requests that failed otherwise."""


class FailureStatus(TypedDict):
    """One failed call through a key."""

    at: float
    """When it ended, in seconds since the Unix epoch."""
    model: str
    kind: str
    """What kind of failure, as in :class:`~llm_router.FailureKind`."""
    code: int | None
    """The HTTP status, or None if no answer came."""
    words: str
    """What happened, without the provider's own text, which may quote a prompt."""


class FactStatus(TypedDict):
    """Something that was not configured, but that refusals suggest; this process found it."""

    kind: str
    """``shared_project``: keys that are configured as several projects are probably one.
    ``outside_traffic``: something that does not use this store spends the quota as well."""
    at: float
    """When it was last seen, in seconds since the Unix epoch."""
    words: str
    """What was seen, and what to do about it."""
    keys: list[str]
    """The other keys that it is about; empty if none."""


class KeyStatus(TypedDict):
    """One deployment, as a status table shows it."""

    key_id: str
    model: str
    provider: str
    project: str
    workload: str
    priority: int
    active: bool
    state: KeyState
    usable_in_seconds: float | None
    """Seconds after which it can be used, at the latest: 0 if it can now, None if no time is known."""
    usable_at: float | None
    """The same, in seconds since the Unix epoch."""
    in_cooldown: bool
    """Whether no request is sent through it now: it cools down, or is quarantined or disabled."""
    quarantined: bool
    """Whether this lasts until a request that tries again succeeds, or until it is lifted."""
    disabled: bool
    """Whether a user disabled the key or the model; it may be in order."""
    cooldown_until: float | None
    """When it ends or, for a quarantine, is tried again, in seconds since the Unix epoch; None for never, or
    without one."""
    cooldown_remaining: float | None
    """Deprecated, see ``cooldown_until``: the same in seconds from now; 0 without one, None for never."""
    reason: str | None
    """Why it is cooling down, quarantined, disabled or paced, or None."""
    spent: list[str]
    """The metrics whose quota is used up now, such as ``["rpm"]``, and ``spending`` if what the project may
    spend is; empty if there is room in all of them."""
    room_in: float | None
    """Deprecated, see ``usable_in_seconds``: seconds after which there is room in every quota, at the latest;
    0 if there is now, None for never."""
    limits: dict[str, LimitStatus]
    """The quotas by metric; a metric without a limit is missing."""
    project_limits: dict[str, LimitStatus]
    """The same of what all models of the project share, as far as the provider has refused it; else empty.

    ``spending`` is what it spends in ten minutes, counted in requests."""
    today: DayTotals | None
    """What it did today; None if that is not known, since totals are not counted, or their store fails."""
    days: list[DayTotals]
    """The same for as many days as were asked for, today first; empty if nothing is known."""
    facts: list[FactStatus]
    """What refusals suggest about the key and the model."""
    failures: list[FailureStatus]
    """The last ten failures of the key, on any model, the latest first: of all processes that share the
    records of a router, up to five seconds late; of this one alone where no totals are counted."""
    rpm_usage: str
    """Deprecated, see ``limits``: ``used/limit`` of this metric; ``0/∞`` if it has no limit, since nothing is
    counted then."""
    tpm_usage: str
    rpd_usage: str
    tpd_usage: str


class LineStatus(TypedDict):
    """How many requests wait for quota, in all processes that share the records of a router.

    Other processes tell it every five seconds while requests wait in them.
    """

    requests: int
    interactive: int
    batch: int
    tenants: dict[str, int]
    """How many of them for each tenant that is named; the twenty with the most."""


class CacheSavings(TypedDict):
    """What answers from a cache have saved, over all processes that share it."""

    requests: int
    tokens: int


class Health(TypedDict):
    """The health of a router."""

    healthy: bool
    """Whether a send may succeed now: a usable key has room, quotas are counted, its provider is reached."""
    state: HealthState
    """The same in a word: ``paced`` if what is left is kept for later in the day, ``spent`` if only quota is
    missing, ``unusable`` for all else that keeps every key out of use, ``store_lost`` while the store does
    not answer, whether or not this process goes on alone."""
    usable_in_seconds: float | None
    """Seconds after which a key can be used, at the latest: 0 if one can now, None if no time is known."""
    usable_at: float | None
    """The same, in seconds since the Unix epoch."""
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
    paced: int
    """Active keys of which every deployment is paced, spent or cooling down, and at least one is paced."""
    deployments: int
    waiting: int
    """Requests that wait for capacity in this process."""
    line: LineStatus
    """Those of all processes."""
    cache: CacheSavings | None
    """What the cache of the router has saved or, if it has none, one that is kept beside its quotas, such as
    that of another program; None if there is none, or it cannot be asked."""
    store: str
    store_ok: bool
    """Whether the store answers. While it does not, ``healthy`` says whether this process can go on alone."""
    problems: list[str]
    """What is wrong, in words; empty if nothing is."""
    facts: list[str]
    """What refusals suggest about keys and models, in words; empty if nothing."""


def without_deprecated(status: KeyStatus) -> dict[str, Any]:
    """Return a status as it is printed as JSON: without the fields that have successors.

    Each metric is among its ``limits``, with None for one that is not limited.
    """
    kept: dict[str, Any] = {name: value for name, value in status.items() if name not in DEPRECATED}
    kept["limits"] = dict.fromkeys(Metric) | {
        metric: {name: value for name, value in limit.items() if name not in DEPRECATED}
        for metric, limit in status["limits"].items()
    }
    return kept

"""What travels between the store and its script: a batch of operations, and the reply.

``lua/batch.lua`` describes both forms.
"""

from __future__ import annotations

import json
from asyncio import Future
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import Decision, DeploymentSnapshot, QuotaSnapshot, Refusal
from llm_router.stores.ledger import NEVER, microseconds, midnights, seconds
from llm_router.stores.redis.keys import KeyNames

__all__ = ["CoolDown", "Encoder", "Message", "Operation", "Reserve", "Settle", "Snapshot", "decode"]

_RESERVE, _SETTLE, _COOL_DOWN, _SNAPSHOT = 1, 2, 3, 4

_METRICS = (Metric.RPM, Metric.TPM, Metric.RPD, Metric.TPD)
_NUMBERS = {metric: number for number, metric in enumerate(_METRICS, 1)}
_KINDS = {Refill.ROLLING: "R", Refill.STEADY: "S", Refill.DAILY: "D"}

_LEARNT_FOR = 24 * 3600 * 1_000_000
"""Microseconds for which a learnt limit holds."""

_MOST_KNOWN = 50_000
"""Deployments whose encoded form is remembered; configurations that are reloaded must not pile up."""

_dump = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@attrs.define(eq=False)
class Reserve:
    """A reserve that waits for its answer."""

    future: Future[Decision]
    reservation_id: str
    candidates: Sequence[Deployment]
    demand: Demand
    ttl: float


@attrs.define(eq=False)
class Settle:
    """A settle or release that waits for its answer."""

    future: Future[None]
    reservation_id: str
    used: Demand


@attrs.define(eq=False)
class CoolDown:
    """A cooldown that waits for its answer."""

    future: Future[None]
    cooldown: Cooldown


@attrs.define(eq=False)
class Snapshot:
    """A snapshot that waits for its answer."""

    future: Future[list[DeploymentSnapshot]]
    deployments: Sequence[Deployment]


Operation = Reserve | Settle | CoolDown | Snapshot


# --- the batch ----------------------------------------------------------------------------------------------


@attrs.frozen
class _Known:
    """What the script is told of a deployment: the number of its quotas, and a line with that and scopes."""

    profile: int
    record: str


def _quota_fields(quota: Quota) -> list[object]:
    return [
        _NUMBERS[quota.metric],
        _KINDS[quota.refill],
        quota.limit,
        microseconds(quota.window),
        microseconds(quota.window + quota.guard),
        microseconds(quota.guard),
        quota.capacity,
        quota.timezone,
    ]


def _learnt_quota(metric: Metric) -> Quota:
    return Quota(metric, 0, Refill.DAILY if metric.is_daily else Refill.ROLLING)


_LEARNT_QUOTAS = tuple(_learnt_quota(metric) for metric in _METRICS)
_DEFAULTS = _dump([_quota_fields(quota) for quota in _LEARNT_QUOTAS])


def _describe(cooldown: Cooldown) -> str:
    learnt = [[limit.metric.value, limit.limit] for limit in cooldown.learnt]
    return _dump([cooldown.scope, repr(cooldown.until), cooldown.reason, learnt])


def _read_description(text: str | bytes) -> Cooldown:
    scope, until, reason, learnt = json.loads(text)
    limits = tuple(LearntLimit(Metric(metric), limit) for metric, limit in learnt)
    return Cooldown(Scope(scope), float(until), reason, limits)


def _field(reservation_id: str) -> str:
    """Return the hash field of a reservation: ASCII, since not every string is valid JSON to a server."""
    if reservation_id.isascii() and not reservation_id.startswith("\0"):
        return reservation_id
    return "\0" + reservation_id.encode("utf-8", "surrogatepass").hex()


class Encoder:
    """Knows what has to be said of deployments and time zones; makes the messages."""

    def __init__(self, names: KeyNames) -> None:
        self.names = names
        self.deployments: dict[Deployment, _Known] = {}
        self._profiles: dict[str, int] = {}
        self._encoded: list[str] = []
        # Per time zone: the span for which the midnights are right, and their encoded form.
        self._zones: dict[str, tuple[int, int, str]] = {}
        for quota in _LEARNT_QUOTAS:
            self.learn_zone(quota.timezone)

    def learn_zone(self, zone: str) -> None:
        """Tell the script of ``zone`` from now on.

        Raises:
            ZoneInfoNotFoundError: There is no such zone.
        """
        if zone not in self._zones:
            midnights(0, zone)
            self._zones[zone] = (0, 0, "")

    def learn(self, deployment: Deployment) -> _Known:
        """Remember ``deployment`` and return what the script is told of it."""
        quotas = {quota.metric: quota for quota in deployment.quotas}.values()
        for quota in quotas:
            if quota.refill is Refill.DAILY:
                self.learn_zone(quota.timezone)
        profile = self._profile(_dump([_quota_fields(quota) for quota in quotas]))
        known = _Known(profile, f"{' '.join(deployment.scopes)} {profile}")
        if len(self.deployments) >= _MOST_KNOWN:
            self.deployments.clear()
        self.deployments[deployment] = known
        return known

    def _profile(self, encoded: str) -> int:
        number = self._profiles.get(encoded)
        if number is None:
            number = self._profiles[encoded] = len(self._encoded)
            self._encoded.append(encoded)
        return number

    def profiles(self, numbers: Iterable[int]) -> str:
        """Return the quotas of some profiles as JSON."""
        return "{" + ",".join([f'"{number}":{self._encoded[number]}' for number in numbers]) + "}"

    def zones(self, now: int) -> str:
        """Return five midnights of each zone around ``now`` (microseconds), as JSON."""
        parts = []
        for zone, (starts, ends, text) in self._zones.items():
            if not starts <= now < ends:
                first, second, third = midnights(now, zone)
                text = f"{_dump(zone)}:{_dump([first, second, *midnights(third, zone)])}"  # noqa: PLW2901
                self._zones[zone] = (first, second, text)
            parts.append(text)
        return "{" + ",".join(parts) + "}"

    def start(self, ahead: int) -> Message:
        """Begin a message to a server whose clock is ``ahead`` microseconds ahead of the callers'."""
        return Message(self, ahead)


class Message:
    """One batch in the making; see ``lua/batch.lua``."""

    def __init__(self, encoder: Encoder, ahead: int) -> None:
        self._encoder = encoder
        self._ahead = ahead
        self._ids: list[str] = []
        self._numbers: dict[Deployment, int] = {}
        self._records: list[str] = []
        self._profiles: set[int] = set()
        self._shortlists: dict[tuple[Deployment, ...], int] = {}
        self._listed: list[list[int]] = []
        self._cooldowns: list[list[object]] = []
        self._operations: list[int] = []

    def add(self, operation: Operation) -> None:
        """Add an operation at the end."""
        if isinstance(operation, Reserve):
            demand = operation.demand
            candidates = tuple(operation.candidates)
            shortlist = self._shortlists.get(candidates) or self._shortlist(candidates)
            self._ids.append(_field(operation.reservation_id))
            lasts = microseconds(operation.ttl)
            row = (_RESERVE, len(self._ids), shortlist, demand.requests, demand.tokens, lasts)
        elif isinstance(operation, Settle):
            used = operation.used
            self._ids.append(_field(operation.reservation_id))
            row = (_SETTLE, len(self._ids), 0, used.requests, used.tokens, 0)
        elif isinstance(operation, CoolDown):
            row = (_COOL_DOWN, self._cooldown(operation.cooldown), 0, 0, 0, 0)
        else:
            row = (_SNAPSHOT, 0, self._shortlist(tuple(operation.deployments)), 0, 0, 0)
        self._operations += row

    def _shortlist(self, shortlist: tuple[Deployment, ...]) -> int:
        numbers = self._numbers
        self._listed.append([numbers.get(d) or self._deployment(d) for d in shortlist])
        number = self._shortlists[shortlist] = len(self._listed)
        return number

    def _deployment(self, deployment: Deployment) -> int:
        known = self._encoder.deployments.get(deployment) or self._encoder.learn(deployment)
        self._records.append(known.record)
        self._profiles.add(known.profile)
        number = self._numbers[deployment] = len(self._records)
        return number

    def _cooldown(self, cooldown: Cooldown) -> int:
        if self._ahead:
            cooldown = attrs.evolve(cooldown, until=cooldown.until + self._ahead / 1e6)
        until = cooldown.until
        learnt = [number for limit in cooldown.learnt for number in (_NUMBERS[limit.metric], limit.limit)]
        order = [cooldown.scope, microseconds(until), repr(float(until)), _describe(cooldown), learnt]
        self._cooldowns.append(order)
        return len(self._cooldowns)

    def finish(self, now: int, clock: int, deadline: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the keys and the arguments of the script.

        Args:
            now: What time it is for the store, as far as is known, in microseconds.
            clock: The same where the caller decides what time it is; 0 to leave that to the server.
            deadline: The moment after which the server may do nothing; 0 for none.
        """
        names, encoder = self._encoder.names, self._encoder
        width = max(map(len, self._records), default=0) + 1
        batch = (
            f'{{"now":{clock},"deadline":{deadline},"prefix":{_dump(names.scopes)},"learnt_for":{_LEARNT_FOR},'
            f'"zones":{encoder.zones(now)},"profiles":{encoder.profiles(self._profiles)},'
            f'"width":{width},"shortlists":{_dump(self._listed)},"ids":{_dump(self._ids)},'
            f'"cooldowns":{_dump(self._cooldowns)},"operations":{_dump(self._operations)}}}'
        )
        records = "".join([record.ljust(width) for record in self._records])
        return (names.reservations, names.sweep), (batch, records, _DEFAULTS)


# --- the reply ----------------------------------------------------------------------------------------------


def decode(
    operations: Sequence[Operation], descriptions: Sequence[str | bytes], numbers: list[int], ahead: int
) -> list[Any]:
    """Return the results of ``operations``, in their order, from the parts of an ``"ok"`` reply.

    Its moments are on the server's clock, which is ``ahead`` microseconds ahead of the callers'; those of the
    results are on the callers'.
    """
    cooldowns = [_read_description(text) for text in descriptions]
    if ahead:
        cooldowns = [attrs.evolve(c, until=c.until - ahead / 1e6) for c in cooldowns]
    reader = _Reader(numbers, cooldowns, ahead)
    return [reader.read(operation) for operation in operations]


class _Reader:
    """Reads the numbers of a reply one result after the other."""

    __slots__ = ("_ahead", "_at", "_cooldowns", "_numbers")

    def __init__(self, numbers: list[int], cooldowns: list[Cooldown], ahead: int) -> None:
        self._ahead = ahead
        self._numbers = numbers
        self._cooldowns = cooldowns
        self._at = 0

    def read(self, operation: Operation) -> Decision | list[DeploymentSnapshot] | None:
        """Read the result of ``operation``, which comes next."""
        if isinstance(operation, Reserve):
            return self._decision(operation.candidates)
        if isinstance(operation, Snapshot):
            return [self._snapshot(deployment) for deployment in operation.deployments]
        return None

    def _take(self, count: int) -> list[int]:
        at = self._at
        self._at = at + count
        return self._numbers[at : at + count]

    def _decision(self, candidates: Sequence[Deployment]) -> Decision:
        numbers, at = self._numbers, self._at
        refused, granted = numbers[at], numbers[at + 1]
        self._at = at + 2
        refusals = self._refusals(candidates, refused) if refused else ()
        if not granted:
            return Decision(None, 0.0, 0.0, refusals)
        used, limit, daily_used, daily_limit = self._take(4)
        return Decision(candidates[refused], 1.0 - used / limit, 1.0 - daily_used / daily_limit, refusals)

    def _refusals(self, candidates: Sequence[Deployment], count: int) -> tuple[Refusal, ...]:
        refusals = []
        for deployment in candidates[:count]:
            reason, retry_at, wake_at = self._take(3)
            moments = self._moment(retry_at), self._moment(wake_at)
            refusals.append(Refusal(deployment, self._reason(reason), *moments))
        return tuple(refusals)

    def _moment(self, moment: int) -> float:
        return seconds(moment if moment >= NEVER else moment - self._ahead)

    def _reason(self, number: int) -> str:
        if number <= len(_METRICS):
            return _METRICS[number - 1].value
        return self._cooldowns[number - len(_METRICS) - 1].reason

    def _snapshot(self, deployment: Deployment) -> DeploymentSnapshot:
        count, cooldown = self._take(2)
        quotas = []
        for _ in range(count):
            metric, limit, used, resets_at = self._take(4)
            quotas.append(QuotaSnapshot(_METRICS[metric - 1], limit, used, self._moment(resets_at)))
        return DeploymentSnapshot(
            deployment, tuple(quotas), self._cooldowns[cooldown - 1] if cooldown else None
        )

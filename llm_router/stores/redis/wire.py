"""The messages between the store and its script: a batch of operations, and the reply.

``lua/batch.lua`` describes both formats. Packed numbers, instead of JSON, buy server time: together with the
layout of the script (``lua/packed.lua``) they brought a reserve in a batch of 64 from 9.4 to 6.3 µs with 10
keys, and from 39.6 to 20.7 µs with 10,000.
"""

from __future__ import annotations

import json
import struct
from asyncio import Future
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

import attrs

from llm_router.domain.calendar import NEVER, microseconds, midnights, seconds
from llm_router.domain.cooldown import LEARNT_FOR, Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import Decision, DeploymentSnapshot, QuotaSnapshot, Refusal
from llm_router.stores.ledger import learnt_quota
from llm_router.stores.redis.keys import KeyNames

__all__ = ["CoolDown", "Encoder", "Message", "Operation", "Reserve", "Settle", "Snapshot", "decode"]

_RESERVE, _SETTLE, _COOL_DOWN, _SNAPSHOT = 1, 2, 3, 4

_METRICS = (Metric.RPM, Metric.TPM, Metric.RPD, Metric.TPD)
_NUMBERS = {metric: number for number, metric in enumerate(_METRICS, 1)}
_KINDS = {Refill.ROLLING: 1, Refill.STEADY: 2, Refill.DAILY: 3}

_HEAD = struct.Struct("<QQQII")
_OPERATION = struct.Struct("<BIQQQI")
_QUOTA = struct.Struct("<BBQQQQQ")
_MIDNIGHTS = struct.Struct("<QQQQQ")
_SHARE = 2.0**-53
"""The unit of headroom in replies: as fine as a double between 0.5 and 1."""

_MAX_ENCODED = 50_000
"""Deployments whose encoded form is remembered; reloaded configurations must not pile up."""

_NOTHING = Demand(0, 0)

_dump = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@attrs.define(eq=False)
class Reserve:
    """A reserve, and the future of its result."""

    future: Future[Decision]
    reservation_id: str
    candidates: Sequence[Deployment]
    demand: Demand
    ttl: float


@attrs.define(eq=False)
class Settle:
    """A settle or release, and the future of its completion."""

    future: Future[None]
    reservation_id: str
    used: Demand


@attrs.define(eq=False)
class CoolDown:
    """A cooldown, and the future of its completion."""

    future: Future[None]
    cooldown: Cooldown


@attrs.define(eq=False)
class Snapshot:
    """A snapshot, and the future of its result."""

    future: Future[list[DeploymentSnapshot]]
    deployments: Sequence[Deployment]


Operation = Reserve | Settle | CoolDown | Snapshot


# --- the batch ----------------------------------------------------------------------------------------------


@attrs.frozen
class _EncodedDeployment:
    """A deployment in the form that the script reads.

    Attributes:
        model: The scope of its model, and a space.
        others: A space, and its other scopes.
        profile: Its quotas.
    """

    model: bytes
    others: bytes
    profile: bytes


def _profile(quotas: Collection[Quota]) -> bytes:
    packed = [bytes((len(quotas),))]
    for quota in quotas:
        numbers = (
            quota.limit,
            microseconds(quota.window),
            microseconds(quota.window + quota.guard),
            microseconds(quota.guard),
            quota.capacity,
        )
        packed.append(_QUOTA.pack(_NUMBERS[quota.metric], _KINDS[quota.refill], *numbers))
        packed.append(quota.timezone.encode() + b"\0")
    return b"".join(packed)


_LEARNT_QUOTAS = tuple(learnt_quota(metric, 0) for metric in _METRICS)
_LEARNT_PROFILE = _profile(_LEARNT_QUOTAS)
_LEARNT_FOR = microseconds(LEARNT_FOR)


def _describe(cooldown: Cooldown) -> str:
    learnt = [[limit.metric.value, limit.limit] for limit in cooldown.learnt]
    return _dump([cooldown.scope, repr(cooldown.until), cooldown.reason, learnt])


def _read_description(text: str | bytes) -> Cooldown:
    scope, until, reason, learnt = json.loads(text)
    limits = tuple(LearntLimit(Metric(metric), limit) for metric, limit in learnt)
    return Cooldown(Scope(scope), float(until), reason, limits)


def _field(reservation_id: str) -> bytes:
    """Return the hash field of a reservation; different ids have different fields."""
    return reservation_id.encode("utf-8", "surrogatepass")


class Encoder:
    """Makes the messages, and remembers the encoded form of deployments and time zones."""

    def __init__(self, names: KeyNames) -> None:
        self.names = names
        self.deployments: dict[Deployment, _EncodedDeployment] = {}
        # For each time zone: the span for which its midnights are valid, and their packed form.
        self._zones: dict[str, tuple[int, int, bytes]] = {}
        for quota in _LEARNT_QUOTAS:
            self.add_zone(quota.timezone)

    def add_zone(self, zone: str) -> None:
        """Include the midnights of ``zone`` in every message from now on.

        Raises:
            ZoneInfoNotFoundError: There is no such zone.
        """
        if zone not in self._zones:
            midnights(0, zone)
            self._zones[zone] = (0, 0, b"")

    def encode(self, deployment: Deployment) -> _EncodedDeployment:
        """Return the encoded form of ``deployment``, and remember it."""
        quotas = {quota.metric: quota for quota in deployment.quotas}.values()
        for quota in quotas:
            if quota.refill is Refill.DAILY:
                self.add_zone(quota.timezone)
        model, key, provider = deployment.scopes
        encoded = _EncodedDeployment(f"{model} ".encode(), f" {key} {provider}".encode(), _profile(quotas))
        if len(self.deployments) >= _MAX_ENCODED:
            self.deployments.clear()
        self.deployments[deployment] = encoded
        return encoded

    def zones(self, now: int) -> bytes:
        """Return five midnights of each zone around ``now`` (microseconds)."""
        parts = []
        for zone, (starts, ends, packed) in self._zones.items():
            if not starts <= now < ends:
                first, second, third = midnights(now, zone)
                packed = _MIDNIGHTS.pack(first, second, *midnights(third, zone))  # noqa: PLW2901
                packed = zone.encode() + b"\0" + packed  # noqa: PLW2901
                self._zones[zone] = (first, second, packed)
            parts.append(packed)
        return b"".join(parts)

    def start(self, ahead: int) -> Message:
        """Begin a message to a server whose clock is ``ahead`` microseconds ahead of the callers'."""
        return Message(self, ahead)


class Message:
    """One batch in the making; see ``lua/batch.lua``."""

    def __init__(self, encoder: Encoder, ahead: int) -> None:
        self._encoder = encoder
        self._ahead = ahead
        self._operations: list[bytes] = []
        self._settles = 0
        self._shortlists: dict[tuple[Deployment, ...], int] = {}
        self._listed: list[bytes] = []
        self._listed_end = 1
        self._numbers: dict[Deployment, int] = {}
        self._records: list[bytes] = []
        self._places = {_LEARNT_PROFILE: b"1"}
        self._profiles_end = 1 + len(_LEARNT_PROFILE)
        self._cooldowns: list[list[object]] = []

    def add(self, operation: Operation) -> None:
        """Add an operation at the end."""
        if isinstance(operation, Reserve):
            candidates, demand = tuple(operation.candidates), operation.demand
            shortlist = self._shortlists.get(candidates) or self._shortlist(candidates)
            lasts = microseconds(operation.ttl)
            self._add(_RESERVE, shortlist, demand, lasts, _field(operation.reservation_id))
        elif isinstance(operation, Settle):
            self._add(_SETTLE, 0, operation.used, 0, _field(operation.reservation_id))
            self._settles += 1
        elif isinstance(operation, CoolDown):
            self._add(_COOL_DOWN, self._cooldown(operation.cooldown), _NOTHING, 0, b"")
        else:
            self._add(_SNAPSHOT, self._shortlist(tuple(operation.deployments)), _NOTHING, 0, b"")

    def _add(self, kind: int, argument: int, demand: Demand, lasts: int, field: bytes) -> None:
        numbers = _OPERATION.pack(kind, argument, demand.requests, demand.tokens, lasts, len(field))
        self._operations.append(numbers + field)

    def _shortlist(self, shortlist: tuple[Deployment, ...]) -> int:
        """Add a shortlist and return its place."""
        numbers = self._numbers
        listed = [numbers.get(deployment) or self._deployment(deployment) for deployment in shortlist]
        packed = _packer(len(listed))(len(listed), *listed)
        self._listed.append(packed)
        place = self._shortlists[shortlist] = self._listed_end
        self._listed_end += len(packed)
        return place

    def _deployment(self, deployment: Deployment) -> int:
        """Add a deployment and return its number."""
        encoded = self._encoder.deployments.get(deployment) or self._encoder.encode(deployment)
        place = self._places.get(encoded.profile)
        if place is None:
            place = self._places[encoded.profile] = b"%d" % self._profiles_end
            self._profiles_end += len(encoded.profile)
        self._records.append(encoded.model + place + encoded.others)
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

    def finish(self, now: int, clock: int, deadline: int) -> tuple[tuple[str, ...], tuple[str | bytes, ...]]:
        """Return the keys and the arguments of the script.

        Args:
            now: The store's time as far as it is known, in microseconds.
            clock: The same if the caller decides the time; 0 if the server does.
            deadline: When it is too late for the server to do anything; 0 for never.
        """
        names = self._encoder.names
        width = max(map(len, self._records), default=0) + 1
        arguments = (
            _HEAD.pack(clock, deadline, _LEARNT_FOR, width, self._settles),
            names.scopes,
            b"".join(self._operations),
            b"".join(self._listed),
            b"".join([record.ljust(width) for record in self._records]),
            b"".join(self._places),
            self._encoder.zones(now),
            _dump(self._cooldowns) if self._cooldowns else "",
        )
        return (names.reservations, names.sweep, names.others), arguments


@cache
def _packer(count: int) -> Callable[..., bytes]:
    """Return the function that packs the length of a shortlist and its numbers."""
    return struct.Struct(f"<{count + 1}H").pack


# --- the reply ----------------------------------------------------------------------------------------------


def decode(
    operations: Sequence[Operation], descriptions: Sequence[str | bytes], numbers: list[int], ahead: int
) -> list[Any]:
    """Return the results of ``operations``, in order, from the parts of an ``"ok"`` reply.

    The times in the reply are on the server's clock, which is ``ahead`` microseconds ahead of the callers'
    clock; those in the results are on the callers' clock.
    """
    cooldowns = [_read_description(text) for text in descriptions]
    if ahead:
        cooldowns = [attrs.evolve(c, until=c.until - ahead / 1e6) for c in cooldowns]
    reader = _Reader(numbers, cooldowns, ahead)
    return [reader.read(operation) for operation in operations]


class _Reader:
    """Reads the numbers of a reply, one result after the other."""

    __slots__ = ("_ahead", "_at", "_cooldowns", "_numbers")

    def __init__(self, numbers: list[int], cooldowns: list[Cooldown], ahead: int) -> None:
        self._ahead = ahead
        self._numbers = numbers
        self._cooldowns = cooldowns
        self._at = 0

    def read(self, operation: Operation) -> Decision | list[DeploymentSnapshot] | None:
        """Read the next result, which is that of ``operation``."""
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
        refused, granted = divmod(self._numbers[self._at], 2)
        self._at += 1
        refusals = self._refusals(candidates, refused) if refused else ()
        if not granted:
            return Decision(None, 0.0, 0.0, refusals)
        at = self._at
        self._at = at + 2
        numbers = self._numbers
        return Decision(candidates[refused], numbers[at] * _SHARE, numbers[at + 1] * _SHARE, refusals)

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

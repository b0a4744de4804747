"""The operations on a Redis store, and the message that a batch of them becomes.

``lua/batch.lua`` describes the format. Packed numbers, instead of JSON, buy server time: together with the
layout of the script (``lua/packed.lua``) they brought a reserve in a batch of 64 from 9.4 to 6.3 µs with 10
keys, and from 39.6 to 20.7 µs with 10,000.
"""

from __future__ import annotations

import struct
from asyncio import Future
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from urllib.parse import quote

import attrs

from llm_router.domain.calendar import NEVER, microseconds, midnights
from llm_router.domain.cooldown import LEARNT_FOR, PROBE_TIME, STRIKES_KEPT, Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import Decision, DeploymentSnapshot, Standing, Taking
from llm_router.stores.ledger import learnt_quota, learnt_terms
from llm_router.stores.redis.descriptions import describe, dump, order_of, shifted
from llm_router.stores.redis.keys import KeyNames

__all__ = [
    "METRICS",
    "SOURCES",
    "Announce",
    "Charge",
    "CoolDown",
    "Encoder",
    "Message",
    "Operation",
    "Reserve",
    "Settle",
    "Snapshot",
]

_RESERVE, _SETTLE, _COOL_DOWN, _SNAPSHOT, _CHARGE, _ANNOUNCE = 1, 2, 3, 4, 5, 6

METRICS = (Metric.RPM, Metric.TPM, Metric.RPD, Metric.TPD)
"""The metrics in the order of their numbers, from 1."""

_NUMBERS = {metric: number for number, metric in enumerate(METRICS, 1)}

SOURCES = (LimitSource.CONFIGURED, LimitSource.STATED, LimitSource.INFERRED, LimitSource.UNKNOWN)
"""The sources of limits in the order of their numbers, from 1, which are stored."""

_SOURCES = {source: number for number, source in enumerate(SOURCES, 1)}
_KINDS = {Refill.ROLLING: 1, Refill.STEADY: 2, Refill.DAILY: 3}

_HEAD = struct.Struct("<QQQQQQI6sQ?")
_OPERATION = struct.Struct("<BIQQQI")
_QUOTA = struct.Struct("<BBQQQQQ")
_MIDNIGHTS = struct.Struct("<QQQQQ")
_DEPLOYMENT = struct.Struct("<IIQ")

_END = b"\0\0"
"""What follows the shortlists, so that two numbers can be read where an empty one has one."""

_FINGERPRINT = 6
"""Bytes by which the script tells profiles apart."""

_MAX_ENCODED = 50_000
"""Deployments whose encoded form is remembered; reloaded configurations must not pile up."""

_LONGEST_TTL = 1e9
"""The most seconds that a reservation lasts: 31 years."""

_MAX_AMOUNT = 1 << 40
"""The largest amount that is sent: of thousands of them the script still knows the sum exactly."""

_LATEST_TIME = 1e12
"""A time, in seconds since the epoch, that is later than that of any record."""

_MAX_SEQUENCE = 10**20

_NOTHING = Demand(0, 0)


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
    """A cooldown, what it stands for, and the future of the number of lifts; see :class:`Decision`."""

    future: Future[int]
    cooldown: Cooldown
    order: str = attrs.field(default=attrs.Factory(lambda self: order_of(self.cooldown), takes_self=True))


@attrs.define(eq=False)
class Snapshot:
    """A snapshot, and the future of its result."""

    future: Future[list[DeploymentSnapshot]]
    deployments: Sequence[Deployment]


@attrs.define(eq=False)
class Charge:
    """A charge, and the future of the beginning of the record."""

    future: Future[float]
    source: str
    sequence: int
    deployment: Deployment
    missing: Sequence[Taking]
    counted: Sequence[Taking]
    since: float


@attrs.define(eq=False)
class Announce:
    """An announcement, and the future of the place of the process among the others."""

    future: Future[Standing]
    source: str


Operation = Reserve | Settle | CoolDown | Snapshot | Charge | Announce


@attrs.frozen
class _EncodedDeployment:
    """A deployment in the form that the script reads.

    Attributes:
        model: The key of what is known of its model.
        others: Its other scopes.
        profile: Its quotas.
    """

    model: bytes
    others: bytes
    profile: bytes


def _profile(quotas: Collection[Quota]) -> bytes:
    adaptive = sum(4 << _NUMBERS[quota.metric] for quota in quotas if quota.adaptive)
    packed = [bytes((len(quotas) + adaptive,))]
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
    profile = b"".join(packed)
    return blake2b(profile, digest_size=_FINGERPRINT).digest() + profile


def _limit(learnt: LearntLimit) -> tuple[int, ...]:
    """Return a learnt limit as the script reads it; ``replaces`` is by the server's clock already."""
    limit, raised, after = learnt_terms(learnt.limit or 0, learnt)
    replaces = -1 if learnt.replaces is None else microseconds(learnt.replaces)
    limit = -1 if learnt.limit is None else limit
    return _NUMBERS[learnt.metric], limit, raised, after, _SOURCES[learnt.source], replaces


_LEARNT_QUOTAS = tuple(learnt_quota(metric, 0) for metric in METRICS)
_LEARNT_PROFILE = _profile(_LEARNT_QUOTAS)
_SPANS = tuple(map(microseconds, (LEARNT_FOR, PROBE_TIME, STRIKES_KEPT)))


def _name(text: str) -> bytes:
    """Return the name of a reservation or process on the server; different texts have different names."""
    return text.encode("utf-8", "surrogatepass")


def _amount(amount: int) -> int:
    return min(max(int(amount), 0), _MAX_AMOUNT)


@attrs.frozen
class _Midnights:
    """Five consecutive midnights of each time zone, packed, and where now must lie for them.

    Attributes:
        today: The latest of the first ones.
        tomorrow: The earliest of the second ones. From now on others are better.
        latest: The earliest of the third ones. The script can do without others until then.
        packed: All of them.
    """

    today: int = 0
    tomorrow: int = 0
    latest: int = 0
    packed: bytes = b""


class Encoder:
    """Makes the messages, and remembers the encoded form of deployments and time zones."""

    def __init__(self, names: KeyNames, known: Mapping[Scope, float]) -> None:
        self.names = names
        self.known = known
        self.deployments: dict[Deployment, _EncodedDeployment] = {}
        self._zones: list[str] = []
        self._midnights = _Midnights()
        for quota in _LEARNT_QUOTAS:
            self.add_zone(quota.timezone)

    def add_zone(self, zone: str) -> None:
        """Include the midnights of ``zone`` in every message from now on.

        Raises:
            ZoneInfoNotFoundError: There is no such zone.
        """
        if zone not in self._zones:
            midnights(0, zone)
            self._zones.append(zone)
            self._midnights = _Midnights()

    def encode(self, deployment: Deployment) -> _EncodedDeployment:
        """Return the encoded form of ``deployment``, and remember it."""
        quotas = {quota.metric: quota for quota in deployment.quotas}.values()
        for quota in quotas:
            if quota.refill is Refill.DAILY:
                self.add_zone(quota.timezone)
        model, *others = (scope.encode() for scope in deployment.scopes)
        model = self.names.full.encode() + model
        encoded = _EncodedDeployment(model, b"".join(scope + b"\0" for scope in others), _profile(quotas))
        if len(self.deployments) >= _MAX_ENCODED:
            self.deployments.clear()
        self.deployments[deployment] = encoded
        return encoded

    def midnights(self, now: int) -> _Midnights:
        """Return the midnights of each zone around ``now`` (microseconds)."""
        if not self._midnights.today <= now < self._midnights.tomorrow:
            found = [(zone, *midnights(now, zone)) for zone in self._zones]
            packed = [
                zone.encode() + b"\0" + _MIDNIGHTS.pack(first, second, *midnights(third, zone))
                for zone, first, second, third in found
            ]
            _, firsts, seconds, thirds = zip(*found, strict=True)
            self._midnights = _Midnights(max(firsts), min(seconds), min(thirds), b"".join(packed))
        return self._midnights

    def start(self, ahead: int) -> Message:
        """Begin a message to a server whose clock is ``ahead`` microseconds ahead of the callers'."""
        return Message(self, ahead)


class _Places(dict[bytes, int]):
    """Texts that are joined into one argument, and the place of each in it, counted from 1."""

    _end = 1

    def add(self, text: bytes) -> int:
        """Return the place of ``text``, which is added unless it is there already."""
        place = self.get(text)
        if place is None:
            place = self[text] = self._end
            self._end += len(text)
        return place


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
        self._models: list[bytes] = []
        self._others = _Places()
        self._profiles = _Places()
        self._profiles.add(_LEARNT_PROFILE)
        self._rare: list[list[object]] = []

    def add(self, operation: Operation) -> None:
        """Add an operation at the end."""
        if isinstance(operation, Reserve):
            candidates, demand = tuple(operation.candidates), operation.demand
            shortlist = self._shortlists.get(candidates) or self._shortlist(candidates)
            lasts = microseconds(min(operation.ttl, _LONGEST_TTL)) if operation.ttl > 0.0 else 0  # NaN is not
            self._add(_RESERVE, shortlist, demand, lasts, _name(operation.reservation_id))
        elif isinstance(operation, Settle):
            self._add(_SETTLE, 0, operation.used, 0, _name(operation.reservation_id))
            self._settles += 1
        elif isinstance(operation, CoolDown):
            self._add(_COOL_DOWN, self._cooldown(operation), _NOTHING, 0, b"")
        elif isinstance(operation, Snapshot):
            self._add(_SNAPSHOT, self._shortlist(tuple(operation.deployments)), _NOTHING, 0, b"")
        elif isinstance(operation, Charge):
            number = Demand(self._charge(operation), 0)
            self._add(_CHARGE, self._shortlist((operation.deployment,)), number, 0, b"")
        else:
            self._add(_ANNOUNCE, 0, _NOTHING, 0, _name(operation.source))

    def _add(self, kind: int, argument: int, demand: Demand, lasts: int, field: bytes) -> None:
        requests, tokens = demand.requests, demand.tokens
        if requests > _MAX_AMOUNT or tokens > _MAX_AMOUNT:
            requests, tokens = _amount(requests), _amount(tokens)
        numbers = _OPERATION.pack(kind, argument, requests, tokens, lasts, len(field))
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
        others, profile = self._others.add(encoded.others), self._profiles.add(encoded.profile)
        known = self._encoder.known
        since = known.get(deployment.model_scope, 0.0) if known else 0.0
        began = microseconds(since) if 0.0 < since < _LATEST_TIME else 0
        self._records.append(_DEPLOYMENT.pack(others, profile, began))
        self._models.append(encoded.model)
        number = self._numbers[deployment] = len(self._records)
        return number

    def _cooldown(self, operation: CoolDown) -> int:
        """Add a cooldown and return its number."""
        cooldown = shifted(operation.cooldown, self._ahead)
        end = operation.order or repr(float(cooldown.until))
        learnt = [_limit(entry) for entry in cooldown.learnt]
        until, half_open = min(microseconds(cooldown.until), NEVER), int(cooldown.half_open)
        self._rare.append([cooldown.scope, until, end, describe(cooldown), half_open, learnt])
        return len(self._rare)

    def _charge(self, charge: Charge) -> int:
        """Add a charge and return its number."""
        ahead, sequence = self._ahead, charge.sequence
        if not 0 <= sequence < _MAX_SEQUENCE:
            raise ValueError(f"the sequence of a charge must be from 0 to 10^20 - 1, not {sequence}")
        lists = [
            [
                number
                for taking in takings
                for number in (
                    microseconds(taking.at) + ahead,
                    _amount(taking.used.requests),
                    _amount(taking.used.tokens),
                )
            ]
            for takings in (charge.missing, charge.counted)
        ]
        source = quote(_name(charge.source), safe="")
        self._rare.append([source, f"{sequence:020d}", microseconds(charge.since), *lists])
        return len(self._rare)

    def finish(
        self, now: int, clock: int, deadline: int, epoch: int, *, checked: bool
    ) -> tuple[Sequence[str], Sequence[str | bytes]]:
        """Return the keys and the arguments of the script.

        Args:
            now: The store's time as far as it is known, in microseconds.
            clock: The same if the caller decides the time; 0 if the server does.
            deadline: When it is too late for the server to do anything; 0 for never.
            epoch: When the epoch of the shard began, as far as it is known, in microseconds; else 0.
            checked: Whether the server is to check that it is the one that began the epoch.
        """
        names, zones = self._encoder.names, self._encoder.midnights(now)
        latest = min(zones.latest - 1, deadline or NEVER)
        arguments: tuple[str | bytes, ...] = (
            _HEAD.pack(
                clock, zones.today, latest, *_SPANS, self._settles, self._sole_profile(), epoch, checked
            ),
            names.scopes,
            names.version,
            b"".join(self._operations),
            b"".join(self._listed) + _END,
            b"".join(self._records),
            b"".join(self._profiles),
            zones.packed,
            dump(self._rare) if self._rare else "",
            b"".join(self._others),
            names.full,
            names.charges,
            *self._models,
        )
        keys = (
            names.reservations,
            names.sweep,
            names.others,
            names.others_before,
            names.epoch,
            names.processes,
            names.reservations_before,
        )
        return keys, arguments

    def _sole_profile(self) -> bytes:
        """Return the fingerprint of the profile of all deployments, or nothing if there are several."""
        _, *profiles = self._profiles
        return profiles[0][:_FINGERPRINT] if len(profiles) == 1 else b""


@cache
def _packer(count: int) -> Callable[..., bytes]:
    """Return the function that packs the length of a shortlist and its numbers."""
    return struct.Struct(f"<{count + 1}H").pack

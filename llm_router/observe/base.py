"""The port between the engine and whatever watches it: one method, and the events that it is given.

::

    Event                       at
    ├── RequestEvent            request_id, workload, metadata
    │   ├── SendBegan           a send or a stream was accepted
    │   ├── Waiting, Waited     it waits for quota or backs off; that is over
    │   ├── Refused             one deployment has no room for it, or none has
    │   ├── AttemptBegan        a call to a provider begins
    │   ├── AttemptEnded        it is over, however it ended
    │   ├── Settled             what it used was reported to the store
    │   └── SendEnded           the caller gets a response or an exception
    ├── ScopeEvent              scope, deployment, reason
    │   ├── CooledDown          it is left alone until a time
    │   ├── Quarantined         it is left alone until one request that tries again succeeds
    │   ├── Disabled            it was taken out of use by hand
    │   └── Lifted              that is over
    ├── LimitLearnt             a limit that was not known
    ├── StoreLost, StoreBack    the store fails; it answers again
    └── Reloaded                the configuration has changed
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

import attrs

from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.kinds import Metric
from llm_router.domain.request import Request
from llm_router.domain.response import Response, Usage
from llm_router.errors import ProviderError

__all__ = [
    "AttemptBegan",
    "AttemptEnded",
    "CooledDown",
    "Disabled",
    "Event",
    "Lifted",
    "LimitLearnt",
    "Plain",
    "Quarantined",
    "Refused",
    "Reloaded",
    "RequestEvent",
    "RouterObserver",
    "ScopeEvent",
    "SelectiveObserver",
    "SendBegan",
    "SendEnded",
    "Settled",
    "StoreBack",
    "StoreLost",
    "WaitReason",
    "Waited",
    "Waiting",
    "error_type",
]

Plain = str | int | float | bool
"""What :meth:`Event.fields` gives as values."""

WaitReason = Literal["backoff", "quota", "store"]
"""Why a request waits: after a failure, in line for quota, or since the store was overloaded."""


@runtime_checkable
class RouterObserver(Protocol):
    """Watches a router. Implement it to record what happens somewhere else.

    The router promises: events of one request come in order, every ``…Began`` has its ``…Ended``, and an
    observer never changes what a send does. What it raises is logged once and otherwise ignored.

    Not promised: that events of different requests do not interleave, and, if routers on several event loops
    share an observer, that it is called by one thread only.
    """

    def observe(self, event: Event) -> None:
        """Take note of an event.

        It is called between the steps of a send, on the event loop: it must not block, and what it takes
        long to do belongs in a queue. Events may be kept. They may be of classes that are not known yet.
        """
        ...


@runtime_checkable
class SelectiveObserver(RouterObserver, Protocol):
    """An observer that is given some classes of events only, so that the others need not be made for it."""

    @property
    def wants(self) -> Collection[type[Event]]:
        """The classes, which include those under them. They stay as they are."""
        ...


def error_type(error: BaseException | None) -> str | None:
    """Return a short, stable word for an error, such as ``"429"`` or ``"CancelledError"``; None for None.

    It never contains the text of the error, which may quote a prompt.
    """
    if isinstance(error, ProviderError):
        return error.kind.value if error.code is None else str(error.code)
    return None if error is None else type(error).__name__


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        at: When, in seconds since the Unix epoch on the router's clock.
    """

    name: ClassVar[str] = "event"
    at: float

    def fields(self) -> dict[str, Plain]:
        """Return the event as plain values by name: without a prompt, an answer or the text of an error.

        What is not known is left out. Metadata are under ``metadata.`` and their own names.
        """
        found: dict[str, Plain] = {"event": self.name}
        for name in _FIELD_NAMES[type(self)]:
            found.update(_plain(name, getattr(self, name)))
        return found


@attrs.frozen(kw_only=True)
class RequestEvent(Event):
    """Something that happened to one request.

    Attributes:
        request_id: The same in all events of one send, and in no other.
        workload: The workload asked for, or None.
        metadata: What the caller gave as ``metadata``; empty if nothing.
    """

    request_id: str
    workload: str | None
    metadata: Mapping[str, str]

    @property
    def tenant(self) -> str | None:
        """The metadata's ``tenant``, or None."""
        return self.metadata.get("tenant")


@attrs.frozen(kw_only=True)
class SendBegan(RequestEvent):
    """A send or a stream was accepted.

    Attributes:
        requested_model: The model asked for, or None.
        streamed: Whether the answer is read piece by piece.
        request: What is to be sent. It contains the prompt.
    """

    name: ClassVar[str] = "send_began"
    requested_model: str | None
    streamed: bool
    request: Request = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Waiting(RequestEvent):
    """A request begins to wait; a :class:`Waited` follows.

    Attributes:
        reason: Why.
    """

    name: ClassVar[str] = "waiting"
    reason: WaitReason


@attrs.frozen(kw_only=True)
class Waited(RequestEvent):
    """A request has waited: it goes on, or is given up.

    Attributes:
        reason: Why it waited.
        seconds: How long.
    """

    name: ClassVar[str] = "waited"
    reason: WaitReason
    seconds: float


@attrs.frozen(kw_only=True)
class Refused(RequestEvent):
    """There is no room for a request: on one deployment, or on none that it may use.

    Attributes:
        deployment: The deployment that the store refused; None if nothing has room, which ends the send.
        reason: A metric (``"rpm"``, …), the reason of a cooldown, or ``"nothing has room"``.
        retry_at: When there will be room, in seconds since the Unix epoch; ``math.inf`` for never.
    """

    name: ClassVar[str] = "refused"
    deployment: Deployment | None
    reason: str
    retry_at: float


@attrs.frozen(kw_only=True)
class AttemptBegan(RequestEvent):
    """A call to a provider begins; an :class:`AttemptEnded` follows.

    Attributes:
        deployment: What it is made through.
        number: The number of the attempt, from 1.
        reserved: Input tokens that were reserved for it.
    """

    name: ClassVar[str] = "attempt_began"
    deployment: Deployment
    number: int
    reserved: int


@attrs.frozen(kw_only=True)
class AttemptEnded(RequestEvent):
    """A call to a provider is over.

    Attributes:
        deployment: What it was made through.
        number: The number of the attempt, from 1.
        seconds: How long it took.
        error: Why there is no answer: a SendError, or the exception that ended the call, such as a
            cancellation (GeneratorExit: the reader left a stream early). None if there is one.
        usage: Tokens as the provider counted them; 0 if it did not say.
        response_model: The provider's own name of the model that answered, or None.
        finish_reason: The provider's word for why the answer ended, or None.
    """

    name: ClassVar[str] = "attempt_ended"
    deployment: Deployment
    number: int
    seconds: float
    error: BaseException | None
    usage: Usage
    response_model: str | None
    finish_reason: str | None

    @property
    def is_rate_limited(self) -> bool:
        """Whether the provider refused it because a quota was spent (429)."""
        return isinstance(self.error, ProviderError) and self.error.kind.value == "quota"


@attrs.frozen(kw_only=True)
class Settled(RequestEvent):
    """The quota that an attempt took was settled, or released if nothing was sent.

    Attributes:
        deployment: Whose quota.
        reserved: Input tokens that were reserved.
        used: Input tokens that count as used.
        released: Whether everything was given back.
    """

    name: ClassVar[str] = "settled"
    deployment: Deployment
    reserved: int
    used: int
    released: bool


@attrs.frozen(kw_only=True)
class SendEnded(RequestEvent):
    """A send or a stream is over.

    Attributes:
        deployment: What the last attempt was made through, or None if there was none.
        seconds: How long it took, waiting included.
        waited: Seconds of it spent waiting for capacity.
        attempts: How many attempts were finished.
        error: Why there is no answer: the error of the response, or the exception that the caller gets
            instead of one (GeneratorExit: the reader left a stream early). None on success.
        response: What the caller gets, or None. It contains the answer.
    """

    name: ClassVar[str] = "send_ended"
    deployment: Deployment | None
    seconds: float
    waited: float
    attempts: int
    error: BaseException | None
    response: Response | None = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ScopeEvent(Event):
    """This process changed whether a scope may be used. What other processes change is not reported.

    Attributes:
        scope: The key, project, (project, model) or provider; see :class:`~llm_router.Cooldown`.
        deployment: The deployment that was tried, or None if nothing was.
        reason: Why, in words that a status can show.
    """

    scope: Scope
    deployment: Deployment | None
    reason: str


@attrs.frozen(kw_only=True)
class CooledDown(ScopeEvent):
    """A scope is left alone until a time.

    Attributes:
        until: Seconds since the Unix epoch.
    """

    name: ClassVar[str] = "cooled_down"
    until: float


@attrs.frozen(kw_only=True)
class Quarantined(ScopeEvent):
    """A scope is left alone until one request that tries again succeeds, or until it is lifted.

    Attributes:
        until: When it is tried again, in seconds since the Unix epoch; ``math.inf`` for never.
        strikes: How often in a row it was refused, this time included.
    """

    name: ClassVar[str] = "quarantined"
    until: float
    strikes: int


@attrs.frozen(kw_only=True)
class Disabled(ScopeEvent):
    """A scope was taken out of use by hand."""

    name: ClassVar[str] = "disabled"


@attrs.frozen(kw_only=True)
class Lifted(ScopeEvent):
    """A cooldown or quarantine ended before its time, or what was disabled is enabled again."""

    name: ClassVar[str] = "lifted"


@attrs.frozen(kw_only=True)
class LimitLearnt(Event):
    """A limit became known that differs from what was learnt before.

    Attributes:
        deployment: The deployment that was tried; the limit applies to its (project, model). Where all models
            of a project share the limit, it is one that stands for them, of the model ``*``; or of the model
            ``* spending`` where it is what they spend in ten minutes, counted in requests.
        metric: What is limited.
        limit: Requests or tokens per window.
        source: How it is known: ``"stated"`` by the provider in a refusal, ``"inferred"`` from refusals that
            named no number, or ``"unknown"``: nothing was refused so far, and it rises with each answer.
    """

    name: ClassVar[str] = "limit_learnt"
    deployment: Deployment
    metric: Metric
    limit: int
    source: str = "stated"


@attrs.frozen(kw_only=True)
class StoreLost(Event):
    """The store fails: this process goes on as ``on_store_failure`` says.

    Attributes:
        reason: What failed.
    """

    name: ClassVar[str] = "store_lost"
    reason: str


@attrs.frozen(kw_only=True)
class StoreBack(Event):
    """The store answers again.

    Attributes:
        seconds: How long this process was on its own.
    """

    name: ClassVar[str] = "store_back"
    seconds: float


@attrs.frozen(kw_only=True)
class Reloaded(Event):
    """The configuration of the router has changed while it runs; see :meth:`~llm_router.Router.reload`.

    Attributes:
        added: The ids of the deployments that are new.
        removed: The ids of those that are gone.
        changed: The ids of those that have changed.
        settings: The names of the other settings that have changed.
    """

    name: ClassVar[str] = "reloaded"
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


class _FieldNames(dict[type[Event], tuple[str, ...]]):
    """The names of the fields that an event shows in its repr, looked up once per class."""

    def __missing__(self, kind: type[Event]) -> tuple[str, ...]:
        names = self[kind] = tuple(field.name for field in attrs.fields(kind) if field.repr)
        return names


_FIELD_NAMES = _FieldNames()


def _plain(name: str, value: object) -> Iterator[tuple[str, Plain]]:
    """Yield a field as plain values."""
    match value:
        case Deployment():
            key = value.key
            yield from (("provider", key.provider), ("key_id", key.key_id), ("project", key.project))
            yield "model", value.model
        case Usage():
            used = ((field.name, getattr(value, field.name)) for field in attrs.fields(Usage))
            yield from ((each, tokens) for each, tokens in used if tokens)
        case Mapping():
            yield from ((f"{name}.{key}", text) for key, text in value.items())
        case BaseException():
            yield "error_type", error_type(value) or ""
        case tuple():
            yield name, ", ".join(map(str, value))
        case str() | int() | float():  # an enumeration of strings, too, becomes one
            yield name, str(value) if isinstance(value, str) else value

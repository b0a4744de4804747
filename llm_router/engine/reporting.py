"""Report to observers what happens in the engine; what an observer raises goes no further."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import getattr_static
from typing import TypeGuard

from llm_router.domain.clock import Clock, monotonic
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.kinds import Metric
from llm_router.domain.quota import MAX_LIMIT, Demand
from llm_router.domain.reload import ReloadReport
from llm_router.domain.response import Usage
from llm_router.engine.argument_check import elements
from llm_router.engine.extensions import broken_promise, own_error
from llm_router.engine.state import SendState
from llm_router.errors import ConfigError, ExtensionError, SendError
from llm_router.observe.base import (
    AttemptBegan,
    AttemptEnded,
    CooledDown,
    Disabled,
    Event,
    Lifted,
    LimitLearnt,
    Quarantined,
    Refused,
    Reloaded,
    RouterObserver,
    SelectiveObserver,
    SendBegan,
    SendEnded,
    Settled,
    StoreBack,
    StoreLost,
    Waited,
    Waiting,
    WaitReason,
)
from llm_router.providers.base import Reply
from llm_router.stores.base import Refusal

__all__ = ["Reporter", "reporter_for", "waiting"]

_log = logging.getLogger("llm_router")

_NO_USAGE = Usage()
_UNWATCHED = nullcontext()
_UNSAID = object()
_NOTHING_HAS_ROOM = "nothing has room"


class _Audiences(dict[type[Event], tuple[tuple[int, RouterObserver], ...]]):
    """The observers that want events of a class, with their places; found when first asked for.

    What each wants was asked once: it is a user's code, which may raise.
    """

    def __init__(self, observers: Sequence[tuple[RouterObserver, tuple[type[Event], ...]]]) -> None:
        super().__init__()
        self._observers = tuple(enumerate(observers))

    def __missing__(self, kind: type[Event]) -> tuple[tuple[int, RouterObserver], ...]:
        found = self[kind] = tuple(
            (number, observer) for number, (observer, wanted) in self._observers if issubclass(kind, wanted)
        )
        return found


class Reporter:
    """Makes events of what happens, and gives them to every observer that wants them.

    The engine has one, or None where nothing observes it: then each place that would report costs one look.
    Events that every request has are made only if an observer wants them.

    Args:
        observers: What is given the events, in order, and the events that each wants.
        clock: Where time comes from.
    """

    def __init__(
        self, observers: Sequence[tuple[RouterObserver, tuple[type[Event], ...]]], clock: Clock
    ) -> None:
        self._audiences = _Audiences(observers)
        self._clock = clock
        self._monotonic = monotonic(clock)
        self._blamed: set[int] = set()
        self._learnt: dict[tuple[Scope, Metric], int] = {}
        self._lost_at: float | None = None

    def report(self, event: Event) -> None:
        """Give an event to its observers. Only the first failure of each of them is logged."""
        for number, observer in self._audiences[type(event)]:
            try:
                found: object = observer.observe(event)  # type: ignore[func-returns-value]  # a user's may
            # Nothing is awaited here, so that a cancellation can only be the observer's own doing.
            except (Exception, asyncio.CancelledError, GeneratorExit) as error:  # noqa: BLE001 - any of a user
                self._blame(number, own_error(observer, "observe", error))
            else:
                if found is not None:
                    promise = "return None (what it returns is not awaited)"
                    self._blame(number, broken_promise(observer, "observe", promise, found))

    def _blame(self, number: int, failure: ExtensionError) -> None:
        if number not in self._blamed:
            self._blamed.add(number)
            _log.warning("an observer fails, which is not logged again: %s", failure)

    # --- requests -------------------------------------------------------------------------------------

    def send_began(self, send: SendState, *, streamed: bool) -> None:
        """Give the send its id, and report that it began."""
        send.request_id = secrets.token_hex(8)
        if not self._audiences[SendBegan]:
            return
        self.report(
            SendBegan(
                at=self._clock.time(),
                request_id=send.request_id,
                workload=send.order.workload,
                metadata=send.metadata,
                requested_model=send.model,
                streamed=streamed,
                request=send.request,
            )
        )

    def send_ended(self, send: SendState, raised: BaseException | None = None) -> None:
        """Report that a send has its response, or that the caller gets ``raised`` instead."""
        if not self._audiences[SendEnded]:
            return
        response = send.response if raised is None else None
        self.report(
            SendEnded(
                at=self._clock.time(),
                request_id=send.request_id,
                workload=send.order.workload,
                metadata=send.metadata,
                deployment=None if send.last is None else send.last.deployment,
                seconds=self._monotonic() - send.started,
                waited=send.waited,
                attempts=len(send.attempts),
                error=raised if response is None else response.error,
                response=response,
            )
        )

    @contextmanager
    def waiting(self, send: SendState, reason: WaitReason) -> Generator[None]:
        """Report that a request waits inside the block, and afterwards for how long it did."""
        at, began = self._clock.time(), self._monotonic()
        request_id, workload, metadata = send.request_id, send.order.workload, send.metadata
        self.report(
            Waiting(at=at, request_id=request_id, workload=workload, metadata=metadata, reason=reason)
        )
        try:
            yield
        finally:
            self.report(
                Waited(
                    at=self._clock.time(),
                    request_id=request_id,
                    workload=workload,
                    metadata=metadata,
                    reason=reason,
                    seconds=self._monotonic() - began,
                )
            )

    def refused(self, send: SendState, refusals: Iterable[Refusal], now: float) -> None:
        """Report the refusals of a reserve."""
        for refusal in refusals:
            self._refused(send, refusal.deployment, refusal.reason, refusal.retry_at, now)

    def nothing_has_room(self, send: SendState, retry_at: float, now: float) -> None:
        """Report that a request is given up since nothing has room for it in time."""
        self._refused(send, None, _NOTHING_HAS_ROOM, retry_at, now)

    def _refused(
        self, send: SendState, deployment: Deployment | None, reason: str, retry_at: float, now: float
    ) -> None:
        self.report(
            Refused(
                at=now,
                request_id=send.request_id,
                workload=send.order.workload,
                metadata=send.metadata,
                deployment=deployment,
                reason=reason,
                retry_at=retry_at,
            )
        )

    # --- attempts -------------------------------------------------------------------------------------

    def attempt_began(self, send: SendState, deployment: Deployment, reserved: Demand) -> None:
        """Report that the next attempt of a send begins."""
        if not self._audiences[AttemptBegan]:
            return
        self.report(
            AttemptBegan(
                at=self._clock.time(),
                request_id=send.request_id,
                workload=send.order.workload,
                metadata=send.metadata,
                deployment=deployment,
                number=len(send.attempts) + 1,
                reserved=reserved.tokens,
            )
        )

    def attempt_ended(
        self,
        send: SendState,
        deployment: Deployment,
        seconds: float,
        outcome: Reply | SendError,
        raised: BaseException | None,
    ) -> None:
        """Report that an attempt ended with ``outcome``, or was ended by ``raised``."""
        if not self._audiences[AttemptEnded]:
            return
        reply, failure = (outcome, None) if isinstance(outcome, Reply) else (None, outcome)
        self.report(
            AttemptEnded(
                at=self._clock.time(),
                request_id=send.request_id,
                workload=send.order.workload,
                metadata=send.metadata,
                deployment=deployment,
                number=len(send.attempts) + 1,
                seconds=seconds,
                error=raised or failure,
                usage=(reply and reply.usage) or _NO_USAGE,
                response_model=None if reply is None else reply.model,
                finish_reason=None if reply is None else reply.finish_reason,
            )
        )

    def settled(self, send: SendState, deployment: Deployment, reserved: Demand, used: Demand) -> None:
        """Report what became of the quota that an attempt had taken."""
        if not self._audiences[Settled]:
            return
        self.report(
            Settled(
                at=self._clock.time(),
                request_id=send.request_id,
                workload=send.order.workload,
                metadata=send.metadata,
                deployment=deployment,
                reserved=reserved.tokens,
                used=used.tokens,
                released=used.requests == 0,
            )
        )

    # --- verdicts -------------------------------------------------------------------------------------

    def imposed(self, cooldown: Cooldown, deployment: Deployment | None = None) -> None:
        """Report a cooldown, quarantine or lift that this process decided on, and what was learnt with it."""
        now, scope, reason, until = self._clock.time(), cooldown.scope, cooldown.reason, cooldown.until
        event: Event | None
        if cooldown.only_teaches or cooldown.only_retries:
            event = None
        elif until == -math.inf:
            event = Lifted(at=now, scope=scope, deployment=deployment, reason=reason)
        elif cooldown.is_disabled:
            event = Disabled(at=now, scope=scope, deployment=deployment, reason=reason)
        elif cooldown.is_quarantine:
            strikes = cooldown.strikes
            event = Quarantined(
                at=now, scope=scope, deployment=deployment, reason=reason, until=until, strikes=strikes
            )
        else:
            event = CooledDown(at=now, scope=scope, deployment=deployment, reason=reason, until=until)
        if event is not None:
            self.report(event)
        for learnt in cooldown.learnt:
            if learnt.limit is None or learnt.limit >= MAX_LIMIT:  # no limit is known
                self._learnt.pop((scope, learnt.metric), None)
            elif deployment is not None and self._learnt.get((scope, learnt.metric)) != learnt.limit:
                self._learnt[scope, learnt.metric] = learnt.limit
                metric, limit, source = learnt.metric, learnt.limit, learnt.source.value
                self.report(
                    LimitLearnt(at=now, deployment=deployment, metric=metric, limit=limit, source=source)
                )

    # --- the configuration and the store --------------------------------------------------------------

    def reloaded(self, report: ReloadReport) -> None:
        """Report that the configuration was read again."""
        self.report(
            Reloaded(
                at=self._clock.time(),
                added=report.added,
                removed=report.removed,
                changed=tuple(report.changed),
                settings=report.settings,
            )
        )

    def store_changed(self, trouble: str | None) -> None:
        """Report that the store fails, or with None that it answers again."""
        at, now = self._clock.time(), self._monotonic()
        if trouble is None:
            self.report(StoreBack(at=at, seconds=now - (now if self._lost_at is None else self._lost_at)))
            self._lost_at = None
        else:
            self._lost_at = now
            self.report(StoreLost(at=at, reason=trouble))


def reporter_for(observers: Iterable[RouterObserver], clock: Clock) -> Reporter | None:
    """Return what reports to ``observers``, or None if there are none.

    Raises:
        ConfigError: They are not a list, one has no method ``observe``, wants other things than events, or
            cannot say what it wants.
    """
    watching = []
    for observer in elements("observers", observers, "pass a list, such as observers=[LoggingObserver()]"):
        # A mock has the method only when it is asked for it, which isinstance() does not.
        if isinstance(observer, type) or not callable(getattr(observer, "observe", None)):
            raise ConfigError(
                f"observers: an observer must have a method observe(event), unlike this "
                f"{type(observer).__name__}: pass an object, such as LoggingObserver()"
            )
        watching.append((observer, _wanted(observer)))
    return Reporter(watching, clock) if watching else None


def _wanted(observer: RouterObserver) -> tuple[type[Event], ...]:
    """Return the events that an observer wants."""
    if not _is_selective(observer):
        return (Event,)
    found: object = None
    failure: ExtensionError | None = None
    try:
        found = observer.wants
        found = tuple(found) if isinstance(found, Collection) else found
    except Exception as error:  # noqa: BLE001 - whatever a user's observer raises
        failure = own_error(observer, "wants", error)
    if failure is not None:  # raised from here, so that it does not refer to the other one
        raise ConfigError(f"observers: {failure}")
    if not _are_events(found):
        name = type(observer).__name__
        raise ConfigError(f"observers: what {name} wants must be classes of events, such as [SendEnded]")
    return found


def _is_selective(observer: RouterObserver) -> TypeGuard[SelectiveObserver]:
    """Return whether an observer says what it wants; a mock, which has whatever is asked for, does not."""
    return getattr_static(observer, "wants", _UNSAID) is not _UNSAID


def _are_events(wanted: object) -> TypeGuard[tuple[type[Event], ...]]:
    return isinstance(wanted, tuple) and all(
        isinstance(each, type) and issubclass(each, Event) for each in wanted
    )


def waiting(reporter: Reporter | None, send: SendState, reason: WaitReason) -> AbstractContextManager[None]:
    """Return the block in which a request waits."""
    return _UNWATCHED if reporter is None else reporter.waiting(send, reason)

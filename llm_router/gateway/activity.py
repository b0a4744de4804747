"""What has happened lately in a gateway: the last calls and changes, the rates of a minute, and who waits."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection
from functools import partial
from itertools import count
from operator import itemgetter
from typing import Any, TypedDict
from urllib.parse import unquote

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.wording import span
from llm_router.observe.base import (
    AttemptEnded,
    CooledDown,
    Disabled,
    Event,
    Lifted,
    LimitLearnt,
    Quarantined,
    Reloaded,
    ScopeEvent,
    SendEnded,
    StoreBack,
    StoreLost,
    Waited,
    Waiting,
    error_type,
)

__all__ = ["Activity", "Decision", "Group", "Rates"]

WINDOW = 60
"""Seconds that the rates are about."""

_CALLS = 40
"""Calls that are remembered; and as many changes, which would else be lost among calls."""

_GROUPS = 12
"""Groups of waiting requests that are told apart."""

_NOTEWORTHY = 0.005
"""Seconds of waiting that are told."""

_LONGEST_WORD = 200
"""Characters of a word that others have chosen."""


class Decision(TypedDict):
    """Something that was decided, in words."""

    number: int
    """Rises from decision to decision."""
    at: float
    times: int
    """How often the same was decided in a row."""
    tone: str
    """``good``, ``bad``, or ``plain``."""
    what: str
    about: str


class Rates(TypedDict):
    """What happened within the last minute."""

    calls: int
    failed: int
    limited: int
    """Attempts that were refused with 429."""
    input_tokens: int
    output_tokens: int
    history: list[int]
    """Calls that ended in each second, the oldest first."""


class Group(TypedDict):
    """Requests that wait for the same reason."""

    workload: str
    tenant: str
    reason: str
    count: int
    longest: float
    """Seconds for which the first of them has waited."""


@attrs.define
class _Second:
    at: int
    calls: int = 0
    failed: int = 0
    limited: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


_Told = tuple[str, str, str]
"""Tone, what and about of a decision."""

_Noted = tuple[int, float, Callable[[], _Told]]
"""Number and time of a decision, and what tells it."""

_CHANGES: tuple[type[Event], ...] = (
    CooledDown,
    Disabled,
    Lifted,
    LimitLearnt,
    Quarantined,
    Reloaded,
    StoreBack,
    StoreLost,
)


class Activity:
    """Remembers what a page shows of a router that it observes; all of it is bounded, and no prompt is kept.

    Args:
        worker: The name of this process among several, whose activity it is; None if it is the only one.
    """

    def __init__(self, worker: str | None = None) -> None:
        self.worker = worker
        self._numbers = count(1)
        self._calls: deque[_Noted] = deque(maxlen=_CALLS)
        self._changes: deque[_Noted] = deque(maxlen=_CALLS)
        self._seconds: deque[_Second] = deque([_Second(0)], maxlen=WINDOW + 1)
        self._waiting: dict[str, Waiting] = {}
        self._notes: dict[type[Event], Callable[[Any], object]] = {
            AttemptEnded: self._note_attempt,
            SendEnded: self._note_call,
            Waiting: self._note_waiting,
            Waited: self._note_waited,
            **dict.fromkeys(_CHANGES, self._note_change),
        }

    @property
    def wants(self) -> Collection[type[Event]]:
        """The classes of events that are noted."""
        return self._notes.keys()

    def observe(self, event: Event) -> None:
        """Take note of an event."""
        note = self._notes.get(type(event))
        if note is not None:
            note(event)

    def decisions(self) -> list[Decision]:
        """Return what was decided lately, the last first; what was decided several times in a row, once."""
        found: list[Decision] = []
        for number, at, tell in sorted((*self._calls, *self._changes), key=itemgetter(0), reverse=True):
            tone, what, about = tell()
            if found and (found[-1]["what"], found[-1]["about"]) == (what, about):
                found[-1]["times"] += 1
                found[-1]["number"] = number
            else:
                found.append(Decision(number=number, at=at, times=1, tone=tone, what=what, about=about))
        return found

    def rates(self, now: float) -> Rates:
        """Return what happened within the minute before ``now``."""
        this = int(now)
        recent = [each for each in self._seconds if this - WINDOW < each.at <= this]
        history = [0] * WINDOW
        for each in recent:
            history[each.at - this - 1] += each.calls
        return Rates(
            calls=sum(history),
            failed=sum(each.failed for each in recent),
            limited=sum(each.limited for each in recent),
            input_tokens=sum(each.input_tokens for each in recent),
            output_tokens=sum(each.output_tokens for each in recent),
            history=history,
        )

    def line(self, now: float) -> list[Group]:
        """Return who waits, the largest groups first."""
        began: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        for event in self._waiting.values():
            began[_short(event.workload or ""), _short(event.tenant or ""), event.reason].append(event.at)
        largest = sorted(began.items(), key=lambda each: -len(each[1]))[:_GROUPS]
        return [
            Group(
                workload=workload,
                tenant=tenant,
                reason=reason,
                count=len(times),
                longest=max(now - min(times), 0.0),
            )
            for (workload, tenant, reason), times in largest
        ]

    def _second(self, at: float) -> _Second:
        last = self._seconds[-1]
        if last.at != int(at):
            last = _Second(int(at))
            self._seconds.append(last)
        return last

    def _note_attempt(self, event: AttemptEnded) -> None:
        second, usage = self._second(event.at), event.usage
        second.input_tokens += max(usage.input_tokens, 0)
        second.output_tokens += max(usage.output_tokens, 0)
        if event.error is not None:
            second.limited += event.is_rate_limited
            word = error_type(event.error) or ""
            tell = partial(_tell_attempt, event.deployment, event.number, event.seconds, word)
            self._calls.append((next(self._numbers), event.at, tell))

    def _note_call(self, event: SendEnded) -> None:
        second = self._second(event.at)
        second.calls += 1
        word = error_type(event.error)
        second.failed += word is not None
        # Made only when the page asks; without the event, which has the answer.
        how = event.seconds, event.attempts, event.waited
        tell = partial(_tell_call, event.deployment, how, event.workload, event.tenant, word)
        self._calls.append((next(self._numbers), event.at, tell))

    def _note_waiting(self, event: Waiting) -> None:
        self._waiting[event.request_id] = event

    def _note_waited(self, event: Waited) -> None:
        self._waiting.pop(event.request_id, None)

    def _note_change(self, event: Event) -> None:
        self._changes.append((next(self._numbers), event.at, partial(_tell_change, event)))


def _tell_attempt(deployment: Deployment, number: int, seconds: float, error: str) -> _Told:
    return "bad", f"attempt failed: {error}", f"{_place(deployment)}, attempt {number}, after {seconds:.2f} s"


def _tell_call(
    deployment: Deployment | None,
    how: tuple[float, int, float],
    workload: str | None,
    tenant: str | None,
    error: str | None,
) -> _Told:
    seconds, attempts, waited = how
    about = [] if deployment is None else [_place(deployment)]
    about.append(f"{seconds:.2f} s")
    if attempts > 1:
        about.append(f"{attempts} attempts")
    if waited >= _NOTEWORTHY:
        about.append(f"waited {waited:.2f} s")
    if workload:
        about.append(f"workload {_short(workload)}")
    if tenant:
        about.append(f"tenant {_short(tenant)}")
    what = "answered" if error is None else f"failed: {error}"
    return "good" if error is None else "bad", what, ", ".join(about)


def _tell_change(event: Event) -> _Told:
    match event:
        case ScopeEvent():
            tone, what = _verdict(event)
            return tone, what, _subject(event)
        case LimitLearnt():
            where = f"{event.deployment.model} of project {event.deployment.key.project}"
            return "plain", f"{_limit(event)}, {event.source}", _short(where)
        case StoreLost():
            return "bad", "the store is lost", _short(event.reason)
        case StoreBack():
            return "good", "the store answers again", f"after {event.seconds:.0f} s"
        case Reloaded():
            about = f"{len(event.added)} added, {len(event.removed)} removed, {len(event.changed)} changed"
            return "plain", "configuration read again", about
    return "plain", event.name, ""


def _limit(event: LimitLearnt) -> str:
    if event.deployment.is_spending:
        return f"spending is {event.limit} requests in 10 min"
    return f"{event.metric.value} is {event.limit}"


def _verdict(event: ScopeEvent) -> tuple[str, str]:
    match event:
        case CooledDown():
            return "bad", f"cools down for {span(max(event.until - event.at, 0.0))}"
        case Lifted():
            return "good", "lifted"
        case Disabled():
            return "plain", "disabled"
    return "bad", event.name


def _place(deployment: Deployment) -> str:
    return f"{_short(deployment.model)} on {_short(deployment.key.key_id)}"


def _subject(event: ScopeEvent) -> str:
    kind, _, rest = event.scope.partition(":")
    provider, *names = [unquote(each) for each in rest.split(":")]
    reason = event.reason.removeprefix(event.name).removeprefix(": ")
    subject = " ".join((kind, *(names or [provider])))
    return _short(f"{subject}: {reason}" if reason else subject)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_WORD else text[: _LONGEST_WORD - 1] + "…"

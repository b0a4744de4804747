"""What has happened lately in a gateway: the last calls and changes, the rates of a minute, and who waits."""

from __future__ import annotations

from collections import defaultdict, deque
from itertools import count
from typing import TypedDict
from urllib.parse import unquote

import attrs

from llm_router.observe.base import (
    AttemptEnded,
    CooledDown,
    Disabled,
    Event,
    Lifted,
    LimitLearnt,
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

_LONGEST = 200
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


class Activity:
    """Remembers what a page shows of a router that it observes; all of it is bounded, and no prompt is kept.

    Args:
        worker: The name of this process among several, whose activity it is; None if it is the only one.
    """

    def __init__(self, worker: str | None = None) -> None:
        self.worker = worker
        self._numbers = count(1)
        self._calls: deque[Decision] = deque(maxlen=_CALLS)
        self._changes: deque[Decision] = deque(maxlen=_CALLS)
        self._seconds: deque[_Second] = deque([_Second(0)], maxlen=WINDOW + 1)
        self._waiting: dict[str, Waiting] = {}

    def observe(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case AttemptEnded():
                self._note_attempt(event)
            case SendEnded():
                self._note_call(event)
            case Waiting():
                self._waiting[event.request_id] = event
            case Waited():
                self._waiting.pop(event.request_id, None)
            case _:
                self._note_change(event)

    def decisions(self) -> list[Decision]:
        """Return what was decided lately, the last first."""
        return sorted((*self._calls, *self._changes), key=lambda each: -each["number"])

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
        second = self._second(event.at)
        second.input_tokens += max(event.usage.input_tokens, 0)
        second.output_tokens += max(event.usage.output_tokens, 0)
        if event.is_rate_limited:
            second.limited += 1
        if event.error is not None:
            about = f"{_place(event)}, attempt {event.number}, after {event.seconds:.2f} s"
            self._note(self._calls, event.at, "bad", f"attempt failed: {error_type(event.error)}", about)

    def _note_call(self, event: SendEnded) -> None:
        second = self._second(event.at)
        second.calls += 1
        error = error_type(event.error)
        if error is not None:
            second.failed += 1
        self._waiting.pop(event.request_id, None)
        about = [_place(event), f"{event.seconds:.2f} s"]
        if event.attempts > 1:
            about.append(f"{event.attempts} attempts")
        if event.waited >= _NOTEWORTHY:
            about.append(f"waited {event.waited:.2f} s")
        if event.workload:
            about.append(f"workload {_short(event.workload)}")
        if event.tenant:
            about.append(f"tenant {_short(event.tenant)}")
        what = "answered" if error is None else f"failed: {error}"
        tone = "good" if error is None else "bad"
        self._note(self._calls, event.at, tone, what, ", ".join(filter(None, about)))

    def _note_change(self, event: Event) -> None:
        found = _change(event)
        if found is not None:
            self._note(self._changes, event.at, *found)

    def _note(self, into: deque[Decision], at: float, tone: str, what: str, about: str) -> None:
        number, times = next(self._numbers), 1
        if into and into[-1]["what"] == what and into[-1]["about"] == about:
            number, times = into[-1]["number"], into.pop()["times"] + 1
        into.append(Decision(number=number, at=at, times=times, tone=tone, what=what, about=about))


def _change(event: Event) -> tuple[str, str, str] | None:
    """Return tone, words and subject of a change, or None if it is none that a page shows."""
    match event:
        case ScopeEvent():
            tone, what = _verdict(event)
            return tone, what, _subject(event)
        case LimitLearnt():
            where = f"{event.deployment.model} of project {event.deployment.key.project}"
            return "plain", f"{event.metric.value} is {event.limit}, {event.source}", _short(where)
        case StoreLost():
            return "bad", "the store is lost", _short(event.reason)
        case StoreBack():
            return "good", "the store answers again", f"after {event.seconds:.0f} s"
        case Reloaded():
            about = f"{len(event.added)} added, {len(event.removed)} removed, {len(event.changed)} changed"
            return "plain", "configuration read again", about
    return None


def _verdict(event: ScopeEvent) -> tuple[str, str]:
    match event:
        case CooledDown():
            return "bad", f"cools down for {max(event.until - event.at, 0.0):.0f} s"
        case Lifted():
            return "good", "lifted"
        case Disabled():
            return "plain", "disabled"
    return "bad", event.name


def _place(event: AttemptEnded | SendEnded) -> str:
    if event.deployment is None:
        return ""
    return f"{_short(event.deployment.model)} on {_short(event.deployment.key.key_id)}"


def _subject(event: ScopeEvent) -> str:
    kind, _, rest = event.scope.partition(":")
    provider, *names = [unquote(each) for each in rest.split(":")]
    reason = event.reason.removeprefix(event.name).removeprefix(": ")
    subject = " ".join((kind, *(names or [provider])))
    return _short(f"{subject}: {reason}" if reason else subject)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

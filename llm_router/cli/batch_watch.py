"""Know how a batch goes: what waits, why and until when, the 429s so far, and when it may be done."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any, TypedDict

import attrs

from llm_router.cli.batch_eta import seconds_for
from llm_router.cli.batch_lines import Prompt
from llm_router.cli.output import count, printable
from llm_router.cli.words import amount, moment
from llm_router.domain.explanation import Exclusion, ExplainedCandidate, Explanation
from llm_router.domain.request import Fallback
from llm_router.domain.wording import span
from llm_router.errors import LLMRouterError
from llm_router.observe.base import AttemptEnded, Event, SendEnded, Waited, Waiting
from llm_router.router import Router

__all__ = ["Follower", "Progress", "ProgressRecord", "Watch", "follow", "progress_record", "progress_words"]

TICK = 1.0
"""Seconds between two looks at what waits."""

_ASK = 5.0
"""Seconds between two questions what a send would decide."""

_WORTH_SAYING = 1.0
"""Seconds for which something must have waited before anything is said of it."""

_KINDS = 4
"""Most kinds of lines, by what they wish for, that are asked about."""

_SHOWN = 2
"""Most reasons that are named."""

_LONGEST = 100
"""Characters of the longest reason of a cooldown that is told whole."""

_WORDS = {
    Exclusion.DISABLED: "{model} is disabled{keys}",
    Exclusion.QUARANTINED: "{model} is quarantined{keys}: {reason}",
    Exclusion.COOLING_DOWN: "{model} is cooling down{keys}: {reason}",
    Exclusion.QUOTA: "{reason} of {model} is used up{keys}",
    Exclusion.PARKED: "{model} is looked at again{keys}: {reason}",
    Exclusion.STRATEGY: "the strategy leaves out {model}{keys}",
}
_LEFT_ALONE = "{model} is left alone for now{keys}: {reason}"


@attrs.frozen
class Progress:
    """How a batch goes.

    Attributes:
        done: Lines that have a result.
        left: Lines that have none yet.
        waiting: How many of them wait; 0 unless one has for a second.
        reason: Why, in words; None if nothing waits.
        until: When there is room again, in seconds since the Unix epoch; None if that is not known.
        eta: Seconds until the batch may be done; None if that is not known.
        rate_limited: How many requests the provider refused for want of quota (429).
    """

    done: int
    left: int
    waiting: int = 0
    reason: str | None = None
    until: float | None = None
    eta: float | None = None
    rate_limited: int = 0


class ProgressRecord(TypedDict):
    """The same in the form of JSON."""

    event: str
    done: int
    left: int
    waiting: int
    reason: str | None
    wait_seconds: float | None
    wait_until: float | None
    eta_seconds: float | None
    rate_limited: int


def progress_words(progress: Progress, now: float) -> str:
    """Say how a batch goes, but for how many lines are done; "" if there is nothing to say."""
    parts = []
    if progress.eta is not None and progress.left:
        parts.append(f"ETA {span(progress.eta)}")
    if progress.rate_limited:
        parts.append(f"{amount(progress.rate_limited)}x429")
    if progress.reason is not None:
        until = ""
        if progress.until is not None:
            until = f" until {moment(progress.until, now)} ({span(max(progress.until - now, 0.0))})"
        parts.append(f"{progress.waiting} waiting{until}: {progress.reason}")
    return " · ".join(parts)


def progress_record(progress: Progress, now: float) -> ProgressRecord:
    """Return the same in the form of JSON."""
    until, eta = progress.until, progress.eta
    return ProgressRecord(
        event="progress",
        done=progress.done,
        left=progress.left,
        waiting=progress.waiting,
        reason=progress.reason,
        wait_seconds=None if until is None else round(max(until - now, 0.0), 3),
        wait_until=None if until is None else round(until, 3),
        eta_seconds=None if eta is None else round(eta, 1),
        rate_limited=progress.rate_limited,
    )


class Watch:
    """An observer that counts 429s, and knows which requests wait, since when, and whether for quota.

    Attributes:
        rate_limited: How many requests the provider refused for want of quota.
        waited: Seconds that requests have waited for quota, all together.
    """

    def __init__(self) -> None:
        self.rate_limited = 0
        self.waited = 0.0
        self._waiting: dict[str, Waiting] = {}

    def observe(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case AttemptEnded():
                self.rate_limited += event.is_rate_limited
            case Waiting():
                self._waiting[event.request_id] = event
            case Waited():
                self._waiting.pop(event.request_id, None)
                self.waited += event.seconds if event.reason != "backoff" else 0.0
            case SendEnded():
                self._waiting.pop(event.request_id, None)

    def waiting(self, now: float) -> list[Waiting]:
        """Return what waits at ``now`` (seconds since the epoch); nothing unless one has for a second."""
        waits = list(self._waiting.values())
        return waits if any(now - event.at >= _WORTH_SAYING for event in waits) else []


@attrs.define(eq=False)
class Follower:
    """Puts together how a batch goes.

    Attributes:
        router: Sends it.
        watch: Has seen what became of its requests.
        fallback: How far its lines may go.
        workload: That of lines which name none.
        active: The lines that are being sent, by number.
        counts: Returns how many lines are done, and how many are left.
        clock: Returns the seconds since the epoch.
    """

    router: Router
    watch: Watch
    fallback: Fallback
    workload: str | None
    active: Mapping[int, Prompt]
    counts: Callable[[], tuple[int, int]]
    clock: Callable[[], float] = time.time
    _began: float = attrs.field(init=False)
    _asked_at: float = attrs.field(init=False, default=0.0)
    _wishes: list[tuple[Explanation, float]] = attrs.field(init=False, factory=list)
    _trouble: str | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._began = self.clock()

    async def look(self) -> Progress:
        """Return how the batch goes now."""
        now = self.clock()
        waits = self.watch.waiting(now)
        if self._is_stale(waits, now):
            await self._ask(now)
        done, left = self.counts()
        reason, until = self._why(waits)
        return Progress(
            done,
            left,
            waiting=len(waits),
            reason=reason,
            until=until,
            eta=self._eta(done, left, now, waiting=bool(waits)),
            rate_limited=self.watch.rate_limited,
        )

    def _is_stale(self, waits: list[Waiting], now: float) -> bool:
        """Say whether what was asked last may no longer be so."""
        age = now - self._asked_at
        if not waits or not 0.0 <= age < _ASK:
            return not 0.0 <= age < _ASK
        until = self._until()
        return self._asked_at < waits[0].at or until is None or now > until

    async def _ask(self, now: float) -> None:
        """Ask what a send of each kind would decide, for the kinds of what is being sent."""
        self._asked_at, self._trouble = now, None
        kinds: Counter[tuple[str | None, str | None]] = Counter()
        longest: dict[tuple[str | None, str | None], Prompt] = {}
        for prompt in self.active.values():
            kind = prompt.workload or self.workload, prompt.model
            kinds[kind] += 1
            longest.setdefault(kind, prompt)
        wishes, total = [], kinds.total()
        for kind, number in kinds.most_common(_KINDS):
            try:
                wishes.append((await self._explain(kind, longest[kind]), number / total))
            except LLMRouterError as error:  # a line that is wrong, or a store that fails
                self._trouble = str(error)
        self._wishes = wishes

    async def _explain(self, kind: tuple[str | None, str | None], prompt: Prompt) -> Explanation:
        workload, model = kind
        return await self.router.explain(
            prompt.prompt,
            workload=workload,
            model_preference=model,
            fallback=self.fallback,
            max_output_tokens=prompt.max_output_tokens,
            system_instruction=prompt.system_instruction,
        )

    def _why(self, waits: list[Waiting]) -> tuple[str | None, float | None]:
        """Return why requests wait, and until when."""
        if not waits:
            return None, None
        reasons = {event.reason for event in waits}
        if reasons == {"backoff"}:
            return "a pause after a failure", None
        if not self._wishes:
            return self._trouble or "no room", None
        return _reason([each for each, _ in self._wishes if each.taken is None]), self._until()

    def _until(self) -> float | None:
        """Return when there will be room for the first kind of line that has none; None if not known."""
        times = [each.retry_after for each, _ in self._wishes if each.retry_after]
        return self._asked_at + min(times) if times else None

    def _eta(self, done: int, left: int, now: float, *, waiting: bool) -> float | None:
        """Return in how many seconds the batch may be done: by its pace so far, and by its quotas."""
        by_quota = None
        if self._wishes:
            by_quota = seconds_for([(each, left * share) for each, share in self._wishes])
            if by_quota is None:
                return None
            by_quota = max(by_quota - (now - self._asked_at), 0.0)
        by_pace = (now - self._began) / done * left if done else None
        if by_quota is None or (waiting and by_quota > 0.0):  # what was sent at once says nothing of the rest
            return by_quota or by_pace
        return None if by_pace is None else max(by_pace, by_quota)


def _reason(explanations: list[Explanation]) -> str:
    """Say what keeps the deployments out of use, that which ends first first."""
    if not explanations:  # there is room for each kind of line
        return "others that wait go first"
    candidates = [each for explanation in explanations for each in explanation.candidates]
    kinds: dict[tuple[Exclusion | None, str | None, str], dict[str, ExplainedCandidate]] = {}
    for each in sorted(candidates, key=lambda each: (each.usable_in is None, each.usable_in)):
        kinds.setdefault((each.exclusion, each.reason, each.model), {})[each.key_id] = each
    words = []
    for (exclusion, reason, model), keys in kinds.items():
        pattern = _WORDS.get(exclusion, _LEFT_ALONE) if exclusion is not None else _LEFT_ALONE
        on = f" on {count(len(keys), 'key')}" if len(keys) > 1 else f" on {next(iter(keys))}"
        why = shorten(printable(reason or "no reason given"), _LONGEST, placeholder=" …")
        words.append(printable(pattern.format(model=model, keys=on, reason=why)))
    more = f", and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"{', '.join(words[:_SHOWN])}{more}" or "no key is in use"


async def follow(follower: Follower, tell: Callable[[Progress], Any]) -> None:
    """Tell how a batch goes, again and again, until it is cancelled."""
    while True:
        await asyncio.sleep(TICK)
        tell(await follower.look())

"""A provider with hidden limits, which counts exactly and explains as little as it is told to."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from _soak.windows import PacificDay, SlidingWindow, next_midnight
from _soak.world import Change, Death, Limits, Others, Outage, Prompt, Retirement, Wording, World
from llm_router import (
    Clock,
    Deployment,
    FailureKind,
    FaultScope,
    Metric,
    ProviderError,
    Reply,
    Request,
    Usage,
)
from llm_router.errors import QuotaViolation

__all__ = ["Client", "Counts", "HiddenProvider"]

_BUILDING = 0.001
"""Seconds that a client takes to build a request: one at a time, as on the one core of an event loop."""

_PATH = (0.02, 0.06)
"""Bounds of the seconds from the wire to the provider's counter, and of those back."""

_ANSWERING = (0.4, 1.6)
"""Bounds of the seconds that an answer takes."""

_EVERY_MODEL, _SPENDING = "*", "* spending"

_SPENT_IN = 600.0
"""Seconds over which spending is limited."""

_DAY_DELAY = 36.0
"""What a refusal for the day asks to wait: as short as that of a minute."""


@attrs.define
class Counts:
    """What reached the provider.

    Attributes:
        sent: Requests.
        admitted: Requests that were counted.
        refused: 429s.
        failed: Requests that met an outage, a dead key or a retired model.
        in_outage: Requests that met an outage.
        sent_later: Requests after the first midnight of the run.
        refused_later: 429s after it.
        back: Seconds from the end of the last outage to the first request admitted after it.
    """

    sent: int = 0
    admitted: int = 0
    refused: int = 0
    failed: int = 0
    in_outage: int = 0
    sent_later: int = 0
    refused_later: int = 0
    back: float | None = None


@attrs.define
class _Bucket:
    """What one (project, model) has used, what is on its way to it, and when the others will use it next."""

    others: Iterator[float]
    next_other: float
    coming: list[int] = attrs.field(factory=list)
    windows: dict[Metric, SlidingWindow | PacificDay] = attrs.field(
        factory=lambda: {
            Metric.RPD: PacificDay(),
            Metric.RPM: SlidingWindow(),
            Metric.TPM: SlidingWindow(),
        }
    )
    is_spending: bool = False

    def take(self, now: float, tokens: int) -> None:
        for metric, window in self.windows.items():
            window.take(now, tokens if metric.counts_tokens else 1)

    def catch_up(self, now: float) -> None:
        """Count what the others have sent by ``now``."""
        while self.next_other <= now:
            self.take(self.next_other, Prompt(0).counted)
            self.next_other = next(self.others)


class HiddenProvider:
    """A provider whose limits only it knows. All it does is decided by the world and a seed.

    A refused request counts against no quota. One that was admitted counts from its arrival.

    Args:
        world: The limits, and what happens.
        clock: Where time comes from; its present time is the start of the run.
        seed: The seed of all randomness.

    Attributes:
        counts: What reached it.
    """

    def __init__(self, world: World, clock: Clock, seed: int = 0) -> None:
        self.counts = Counts()
        self._world = world
        self._clock = clock
        self._starts = clock.time()
        self._second_day = next_midnight(self._starts)
        self._random = random.Random(seed)
        self._seed = seed
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        events = world.events
        self._changes = sorted((e for e in events if isinstance(e, Change)), key=lambda e: e.at)
        self._outages = [e for e in events if isinstance(e, Outage)]
        self._deaths = {e.key_id: e.at for e in events if isinstance(e, Death)}
        self._retired = {e.model: e.at for e in events if isinstance(e, Retirement)}

    @contextmanager
    def coming(self, deployment: Deployment, prompt: Prompt) -> Iterator[None]:
        """Regard a prompt as on its way: what will be left for it is no room for another one."""
        buckets = [bucket for bucket, _ in self._buckets_of(deployment, self._clock.time())]
        for bucket in buckets:
            bucket.coming.append(prompt.counted)
        try:
            yield
        finally:
            for bucket in buckets:
                bucket.coming.remove(prompt.counted)

    async def travel(self) -> None:
        """Take the time from the wire to the counter."""
        await asyncio.sleep(self._random.uniform(*_PATH))

    async def receive(self, deployment: Deployment, prompt: Prompt) -> Reply:
        """Answer a prompt that arrives now, or refuse it.

        Raises:
            ProviderError: It is refused.
        """
        refusal = self.decide(deployment, prompt)
        if refusal is not None:
            await self.travel()
            raise refusal
        return await self.answer(deployment, prompt)

    async def answer(self, deployment: Deployment, prompt: Prompt) -> Reply:
        """Answer a prompt that was admitted."""
        await asyncio.sleep(self._random.uniform(*_ANSWERING))
        usage = Usage(input_tokens=prompt.counted, output_tokens=1, total_tokens=prompt.counted + 1)
        return Reply("done", usage=usage, finish_reason="STOP", model=deployment.model)

    def decide(self, deployment: Deployment, prompt: Prompt) -> ProviderError | None:
        """Count a request that arrives now, and return None; or return why it is refused."""
        now, counts = self._clock.time(), self.counts
        is_later = now >= self._second_day
        counts.sent += 1
        counts.sent_later += is_later
        failure = self._failure(deployment, now)
        if failure is not None:
            counts.failed += 1
            return failure
        buckets = self._buckets_of(deployment, now)
        for bucket, limits in buckets:
            for metric, limit in limits.items():
                free_at = bucket.windows[metric].free_at(now, limit, _amount(metric, prompt))
                if free_at > now:
                    counts.refused += 1
                    counts.refused_later += is_later
                    if bucket.is_spending:
                        return _spent()
                    scope = FaultScope.PROJECT if bucket is not buckets[0][0] else FaultScope.DEPLOYMENT
                    return self._refusal(deployment.model, metric, limit, free_at - now, scope)
        for bucket, _ in buckets:
            bucket.take(now, prompt.counted)
        counts.admitted += 1
        if counts.back is None:
            self._note_return(now)
        return None

    def limits(self, deployment: Deployment, now: float) -> Limits:
        """Return the limits of a deployment at a time."""
        limits, factor = self._world.hidden[deployment.model], 1.0
        for change in self._changes:
            if self._starts + change.at <= now:
                factor = change.factor
        return limits if factor == 1.0 else limits.scaled(factor)

    def free_at(self, deployment: Deployment, prompt: Prompt) -> float:
        """Return when it would admit a prompt if nothing else came or happened; infinity for never."""
        now = self._clock.time()
        ends = self._unusable_until(deployment, now)
        if ends > now:
            return ends
        return max(
            (
                bucket.windows[metric].free_at(now, limit, _amount(metric, prompt))
                for bucket, limits in self._buckets_of(deployment, now)
                for metric, limit in limits.items()
            ),
            default=now,
        )

    def has_room(self, deployment: Deployment, prompt: Prompt) -> bool:
        """Return whether it would admit a prompt now, after those that are on their way."""
        now = self._clock.time()
        if self._unusable_until(deployment, now) > now:
            return False
        for bucket, limits in self._buckets_of(deployment, now):
            for metric, limit in limits.items():
                before = sum(bucket.coming) if metric.counts_tokens else len(bucket.coming)
                if bucket.windows[metric].used(now) + before + _amount(metric, prompt) > limit:
                    return False
        return True

    def next_event(self) -> float:
        """Return when the next change of limits happens; infinity for never."""
        now = self._clock.time()
        times = (self._starts + change.at for change in self._changes)
        return min((at for at in times if at > now), default=math.inf)

    # --- inside ---------------------------------------------------------------------------------------

    def _buckets_of(self, deployment: Deployment, now: float) -> list[tuple[_Bucket, Limits]]:
        """Return what a request counts on, and the limits: the model, perhaps the project and its money."""
        found = [(self._bucket(deployment, now), self.limits(deployment, now))]
        if self._world.of_project.items():
            found.append((self._bucket(deployment, now, _EVERY_MODEL), self._world.of_project))
        if self._world.spending is not None:
            found.append((self._spending(deployment), Limits(tpm=self._world.spending)))
        return found

    def _bucket(self, deployment: Deployment, now: float, model: str = "") -> _Bucket:
        place = self._world.project_of(deployment.key.key_id), model or deployment.model
        bucket = self._buckets.get(place)
        if bucket is None:
            others = self._others(*place)
            bucket = self._buckets[place] = _Bucket(others, next(others))
        bucket.catch_up(now)
        return bucket

    def _spending(self, deployment: Deployment) -> _Bucket:
        """Return what a project has spent, a token of input each; the others spend nothing."""
        place = self._world.project_of(deployment.key.key_id), _SPENDING
        if place not in self._buckets:
            windows: dict[Metric, SlidingWindow | PacificDay] = {Metric.TPM: SlidingWindow(_SPENT_IN)}
            self._buckets[place] = _Bucket(iter(()), math.inf, windows=windows, is_spending=True)
        return self._buckets[place]

    def _others(self, project: str, model: str) -> Iterator[float]:
        """Yield when other programs use a (project, model): a Poisson process, the same for every subject."""
        own = random.Random(f"{self._seed} {project} {model}")
        for stream in self._world.events:
            if not isinstance(stream, Others) or stream.project != project:
                continue
            at = self._starts + stream.begins
            while (at := at + own.expovariate(stream.per_minute / 60.0)) < self._starts + stream.ends:
                yield at
        while True:
            yield math.inf

    def _unusable_until(self, deployment: Deployment, now: float) -> float:
        since = now - self._starts
        key_id, model = deployment.key.key_id, deployment.model
        if self._deaths.get(key_id, math.inf) <= since or self._retired.get(model, math.inf) <= since:
            return math.inf
        return max((self._starts + each.at + each.seconds for each in self._met(since)), default=now)

    def _met(self, since: float) -> list[Outage]:
        return [outage for outage in self._outages if outage.at <= since < outage.at + outage.seconds]

    def _failure(self, deployment: Deployment, now: float) -> ProviderError | None:
        since = now - self._starts
        if self._met(since):
            self.counts.in_outage += 1
            return ProviderError("The model is overloaded.", kind=FailureKind.SERVER, code=503)
        if self._deaths.get(deployment.key.key_id, math.inf) <= since:
            return ProviderError("API key not valid.", kind=FailureKind.KEY, code=400, charged=False)
        if self._retired.get(deployment.model, math.inf) <= since:
            return ProviderError("The model is not found.", kind=FailureKind.MODEL, code=404, charged=False)
        return None

    def _note_return(self, now: float) -> None:
        """Note how long after the last outage something was admitted again."""
        ends = max((self._starts + each.at + each.seconds for each in self._outages), default=math.inf)
        if now >= ends:
            self.counts.back = now - ends

    def _refusal(
        self, model: str, metric: Metric, limit: int, seconds: float, scope: FaultScope
    ) -> ProviderError:
        wording = self._world.wording_of(model)
        if wording is Wording.BARE:
            message = "Resource has been exhausted (e.g. check quota)."
            return ProviderError(message, kind=FailureKind.QUOTA, code=429, charged=False)
        return ProviderError(
            "You exceeded your current quota.",
            kind=FailureKind.QUOTA,
            scope=scope,
            code=429,
            charged=False,
            retry_delay=_DAY_DELAY if metric.is_daily else seconds,
            violations=(QuotaViolation(metric, limit if wording is Wording.STATED else None),),
        )


def _spent() -> ProviderError:
    message = "Your project has exceeded its spend-based rate limit."
    return ProviderError(
        message, kind=FailureKind.QUOTA, scope=FaultScope.PROJECT, code=429, charged=False, spending=True
    )


def _amount(metric: Metric, prompt: Prompt) -> int:
    return prompt.counted if metric.counts_tokens else 1


class Client:
    """The adapter of one process to a hidden provider.

    Args:
        provider: The provider.
    """

    def __init__(self, provider: HiddenProvider) -> None:
        self._provider = provider
        self._busy_until = 0.0

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        """Send a prompt."""
        prompt = Prompt.read(str(request.contents))
        with self._provider.coming(deployment, prompt):
            now = asyncio.get_running_loop().time()
            self._busy_until = max(now, self._busy_until) + _BUILDING
            await asyncio.sleep(self._busy_until - now)
            dispatched()
            await self._provider.travel()
        return await self._provider.receive(deployment, prompt)

    def validate(self, request: Request) -> None:
        """Accept every request."""

    def estimate_tokens(self, request: Request) -> int:
        """Return the estimate that the prompt names."""
        return Prompt.read(str(request.contents)).estimated

    async def aclose(self) -> None:
        """Do nothing."""

"""The real engine on virtual time: every request of the traffic, and what it met."""

from __future__ import annotations

import asyncio
import gc
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import attrs

from llm_router.domain.clock import Clock, sleep
from llm_router.domain.deployment import Deployment, plain_model
from llm_router.domain.kinds import Metric
from llm_router.domain.numbers import real, shown
from llm_router.domain.quota import Demand
from llm_router.domain.request import Fallback, Request
from llm_router.domain.response import Usage
from llm_router.errors import InvalidRequestError
from llm_router.planning.traffic import Arrival
from llm_router.providers.base import Reply
from llm_router.router import Router
from llm_router.stores.base import DeploymentSnapshot
from llm_router.stores.memory import MemoryStore
from llm_router.testing.virtual import VirtualClock, VirtualLoop, run

__all__ = ["Outcome", "Setting", "simulate"]

_LOOK = 60.0
"""Seconds between two looks at the quotas, at least."""

_LOOK_PER_DEPLOYMENT = 0.5
"""The same for each deployment, so that looking at a large pool takes no longer than the rest."""

_DAY = 86_400.0

_LATE_SHARE = 0.05
"""The share of requests that a 95th percentile leaves out."""


@attrs.frozen(kw_only=True)
class Setting:
    """What the traffic is sent through, and how.

    Attributes:
        deployments: The pool.
        workloads: From lightest to heaviest.
        max_wait: Most seconds that a request waits for quota.
        fallback: How far from its wish a request may go.
        answering: Seconds that an answer takes.
    """

    deployments: Sequence[Deployment]
    workloads: Sequence[str] = ("light", "medium", "heavy")
    max_wait: float = 600.0
    fallback: Fallback = "any"
    answering: float = 2.0


@attrs.define
class Outcome:
    """What became of the traffic.

    Attributes:
        waits: Seconds from the arrival of each request to its being sent, in the order of the traffic;
            infinity for one that was not.
        by_model: How many requests each model answered.
        full: Looks, while requests waited or were refused, at which a metric kept a model from admitting one
            more: the share of its projects, summed up.
        looks: How many such looks there were.
        spent_at: When the day's quota of every project of a model was spent for the first time.
        stopped: Whether the run was ended early, since too many requests were late.
    """

    waits: list[float]
    by_model: Counter[str] = attrs.field(factory=Counter)
    full: dict[tuple[str, Metric], float] = attrs.field(factory=dict)
    looks: int = 0
    spent_at: dict[str, float] = attrs.field(factory=dict)
    stopped: bool = False


class _Answers:
    """A provider that answers everything, and notes when it was asked."""

    def __init__(self, traffic: Sequence[Arrival], clock: Clock, answering: float, outcome: Outcome) -> None:
        self._traffic = traffic
        self._clock = clock
        self._answering = answering
        self._outcome = outcome

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        dispatched()
        number = int(request.contents)
        arrival = self._traffic[number]
        # Timers of the virtual loop are late by a microsecond, which is no wait.
        self._outcome.waits[number] = max(round(self._clock.time() - arrival.at, 3), 0.0)
        self._outcome.by_model[deployment.model] += 1
        await sleep(self._clock, self._answering)
        return Reply("answer", usage=Usage(input_tokens=arrival.tokens), model=deployment.model)

    def validate(self, request: Request) -> None:
        """Accept every request."""

    def estimate_tokens(self, request: Request) -> int:
        return self._traffic[int(request.contents)].tokens

    async def aclose(self) -> None:
        """Have nothing to close."""


class _Run:
    """One run of the traffic.

    Args:
        late_after: If given, seconds of waiting after which a request is late; the run ends as soon as more
            are than a 95th percentile leaves out.
    """

    def __init__(self, traffic: Sequence[Arrival], setting: Setting, late_after: float | None) -> None:
        self.outcome = Outcome([math.inf] * len(traffic))
        self._traffic = traffic
        self._setting = setting
        self._late_after = late_after
        self._may_be_late = int(len(traffic) * _LATE_SHARE)
        self._refused = 0  # since the last look
        self._stop = asyncio.Event()
        mean = sum(arrival.tokens for arrival in traffic) / max(len(traffic), 1)
        self._demand = Demand(1, round(mean))

    async def run(self, loop: VirtualLoop) -> Outcome:
        setting, clock = self._setting, VirtualClock(loop, start=self._traffic[0].at)
        answers = _Answers(self._traffic, clock, setting.answering, self.outcome)
        async with Router(
            setting.deployments,
            store=MemoryStore(clock=clock),
            provider=answers,
            clock=clock,
            workloads=setting.workloads,
            max_wait=setting.max_wait,
            totals=False,  # nothing reads them
        ) as router:
            sending = asyncio.ensure_future(self._send_all(router, clock))
            watching = asyncio.ensure_future(self._watch(router, clock))
            stopping = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait([sending, stopping], return_when=asyncio.FIRST_COMPLETED)
            self.outcome.stopped = not sending.done()
            for task in (sending, watching, stopping):
                task.cancel()
            await asyncio.gather(watching, stopping, return_exceptions=True)
            await asyncio.gather(sending, return_exceptions=self.outcome.stopped)
        return self.outcome

    async def _send_all(self, router: Router, clock: Clock) -> None:
        async with asyncio.TaskGroup() as group:
            for number, arrival in enumerate(self._traffic):
                pause = arrival.at - clock.time()
                if pause > 0:
                    await asyncio.sleep(pause)
                group.create_task(self._send(router, number, arrival))

    async def _send(self, router: Router, number: int, arrival: Arrival) -> None:
        response = await router.send(
            str(number),
            workload=arrival.workload,
            model=arrival.model,
            fallback=self._setting.fallback,
            timeout=None,
        )
        self._refused += not response.success
        if self._late_after is not None and self.outcome.waits[number] > self._late_after:
            self._may_be_late -= 1
            if self._may_be_late < 0:
                self._stop.set()

    async def _watch(self, router: Router, clock: Clock) -> None:
        """Look at the quotas now and then."""
        pause = max(_LOOK, _LOOK_PER_DEPLOYMENT * len(self._setting.deployments))
        while True:
            await asyncio.sleep(pause)
            snapshots = await router.keys.snapshots()
            is_short = bool(self._refused or router.keys.selector.waiting)
            self._refused = 0
            self._note(snapshots, clock.time(), is_short=is_short)

    def _note(self, snapshots: Sequence[DeploymentSnapshot], now: float, *, is_short: bool) -> None:
        models: Counter[str] = Counter()
        full: Counter[tuple[str, Metric]] = Counter()
        for snapshot in snapshots:
            model = snapshot.deployment.model
            models[model] += 1
            metric = _binding(snapshot, self._demand)
            if metric is not None:
                full[model, metric] += 1
        for (model, metric), count in full.items():
            if metric.is_daily and count == models[model]:
                self.outcome.spent_at.setdefault(model, now)
            if is_short:
                before = self.outcome.full.get((model, metric), 0.0)
                self.outcome.full[model, metric] = before + count / models[model]
        self.outcome.looks += is_short


def _binding(snapshot: DeploymentSnapshot, demand: Demand) -> Metric | None:
    """Return what keeps a deployment from admitting one more request, for the longest; or None."""
    full = [quota for quota in snapshot.quotas if quota.used + demand.amount(quota.metric) > quota.limit]
    return max(full, key=lambda quota: quota.resets_at).metric if full else None


def simulate(traffic: Sequence[Arrival], setting: Setting, *, late_after: float | None = None) -> Outcome:
    """Send traffic through the engine, without a network and without waiting.

    Args:
        traffic: At least one request, in the order of their times.
        setting: What it is sent through.
        late_after: If given, seconds after which a request is late; the run is ended as soon as it is certain
            that more than 5 % of the requests are.

    Raises:
        ConfigError: The pool or a number is wrong.
        InvalidRequestError: The traffic names a workload or model that there is not.
    """
    _check(traffic, setting)
    random.seed(0)  # the engine's own draws: the same plan twice says the same
    with _without_collecting():
        return run(_Run(traffic, setting, late_after).run)


def _check(traffic: Sequence[Arrival], setting: Setting) -> None:
    models = {each.model for each in setting.deployments}
    wished = {"workload": set(setting.workloads), "model": models}
    for name, known in wished.items():
        asked = {getattr(arrival, name) for arrival in traffic} - {None}
        for value in sorted(asked):
            if (plain_model(value) if name == "model" else value) not in known:
                listed = ", ".join(map(repr, sorted(known)))
                raise InvalidRequestError(f"the traffic wishes for {name} {value!r}: use one of {listed}")
    if setting.fallback not in get_args(Fallback):
        words = ", ".join(get_args(Fallback))
        raise InvalidRequestError(f"fallback must be one of {words}, not {setting.fallback!r}")
    if not 0 <= real(setting.answering) <= _DAY:
        raise InvalidRequestError(f"an answer takes 0 s to a day, not {shown(setting.answering)}")


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Keep the garbage collector from looking through what lives as long as the run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

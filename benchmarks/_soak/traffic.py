"""The callers: who sends what when, and what becomes of it."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress

import attrs

from _soak.provider import HiddenProvider
from _soak.subjects import Subject
from _soak.world import Bursts, Prompt, Steady, World
from llm_router import Clock

__all__ = ["Fates", "Traffic"]

_PAUSE = (1.0, 60.0)
"""Bounds of the seconds after which a caller comes back after an error: when it was told to, inside them."""


@attrs.define
class Fates:
    """What became of the callers.

    Attributes:
        answered: Prompts that were answered.
        failed: Sends that ended with an error.
        failed_with_room: Those of them at whose end the provider would have admitted the prompt.
        longest: Seconds from a caller's first send of a prompt to its answer, or to the end of the run.
        by_caller: Answers of each caller.
    """

    answered: int = 0
    failed: int = 0
    failed_with_room: int = 0
    longest: float = 0.0
    by_caller: dict[int, int] = attrs.field(factory=dict)


class Traffic:
    """Sends the prompts of a world through a subject.

    Args:
        world: Says who sends when.
        provider: Is asked whether it has room when a send fails.
        clock: Where time comes from.
        seed: The seed of the prompts.
    """

    def __init__(self, world: World, provider: HiddenProvider, clock: Clock, seed: int) -> None:
        self.fates = Fates()
        self._world = world
        self._provider = provider
        self._clock = clock
        self._random = random.Random(seed)
        self._ends = clock.time() + world.seconds
        self._number = 0
        self._began: dict[int, float] = {}
        self._deployments = world.deployments()

    async def run(self, subject: Subject) -> None:
        """Send until the time is over; what is still waiting then has no answer."""
        traffic = self._world.traffic
        work = (
            self._steady(subject, traffic) if isinstance(traffic, Steady) else self._bursts(subject, traffic)
        )
        main = asyncio.ensure_future(work)
        await asyncio.wait([main], timeout=self._ends - self._clock.time())
        main.cancel()
        with suppress(asyncio.CancelledError):  # whatever else it raised is a fault
            await main
        for began in self._began.values():
            self._note_wait(self._ends - began)

    async def _steady(self, subject: Subject, traffic: Steady) -> None:
        async with asyncio.TaskGroup() as group:
            for caller in range(traffic.callers):
                group.create_task(self._call_again_and_again(subject, caller, traffic.max_wait))

    async def _call_again_and_again(self, subject: Subject, caller: int, max_wait: float) -> None:
        while True:
            prompt, again = self._prompt(), True
            self._began[caller] = self._clock.time()
            while again:
                pause = await self._call(subject, prompt, caller, max_wait)
                again = pause is not None
                if pause is not None:
                    await asyncio.sleep(min(max(pause, _PAUSE[0]), _PAUSE[1]))

    async def _bursts(self, subject: Subject, traffic: Bursts) -> None:
        numbers = 0
        async with asyncio.TaskGroup() as group:
            while True:
                for caller in range(numbers, numbers + traffic.callers):
                    self._began[caller] = self._clock.time()
                    group.create_task(self._call(subject, self._prompt(), caller, traffic.max_wait))
                numbers += traffic.callers
                await asyncio.sleep(traffic.every)

    async def _call(self, subject: Subject, prompt: Prompt, caller: int, max_wait: float) -> float | None:
        """Send once; return None if it was answered, or in how many seconds to come back."""
        outcome = await subject.send(prompt, caller, max_wait)
        fates = self.fates
        if outcome.success:
            fates.answered += 1
            fates.by_caller[caller] = fates.by_caller.get(caller, 0) + 1
            self._note_wait(self._clock.time() - self._began.pop(caller))
            return None
        fates.failed += 1
        fates.failed_with_room += self._has_room(prompt)
        if isinstance(self._world.traffic, Bursts):
            self._note_wait(self._clock.time() - self._began.pop(caller))
        return math.inf if outcome.retry_after is None else outcome.retry_after

    def _has_room(self, prompt: Prompt) -> bool:
        return any(self._provider.has_room(each, prompt) for each in self._deployments)

    def _note_wait(self, seconds: float) -> None:
        self.fates.longest = max(self.fates.longest, seconds)

    def _prompt(self) -> Prompt:
        self._number += 1
        estimated = self._random.randint(*self._world.sizes)
        counted = max(1, round(estimated * self._random.uniform(*self._world.spread)))
        return Prompt(self._number, estimated, counted)

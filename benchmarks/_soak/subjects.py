"""What the traffic is sent through: the router, and an oracle that knows all limits."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import attrs

from _soak.provider import HiddenProvider
from _soak.world import Prompt, World
from llm_router import Clock, Deployment, Router

__all__ = ["Line", "Oracle", "Outcome", "Routers", "Subject"]


@attrs.frozen
class Outcome:
    """What came of a prompt.

    Attributes:
        success: Whether it was answered.
        retry_after: In how many seconds the caller is to try again, or None if it was not told.
    """

    success: bool
    retry_after: float | None = None


class Subject(Protocol):
    """Something to send prompts through."""

    async def send(self, prompt: Prompt, caller: int, max_wait: float) -> Outcome:
        """Send a prompt of a caller, who waits for quota for at most ``max_wait`` seconds."""
        ...

    async def aclose(self) -> None:
        """Stop."""
        ...


class Routers:
    """Routers that each see an equal part of the traffic.

    Args:
        routers: The routers.
    """

    def __init__(self, routers: Sequence[Router]) -> None:
        self._routers = routers

    async def send(self, prompt: Prompt, caller: int, max_wait: float) -> Outcome:
        """Send through the router of the caller."""
        router = self._routers[caller % len(self._routers)]
        response = await router.send(prompt.text(), max_wait=max_wait)
        return Outcome(response.success, response.retry_after)

    async def aclose(self) -> None:
        """Close the routers."""
        for router in self._routers:
            await router.aclose()


class Line(ABC):
    """One line of prompts for all deployments, first in, first out; a subclass decides which goes when.

    None is turned away: ``max_wait`` does not matter.

    Args:
        clock: Where time comes from.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._waiting: deque[tuple[Prompt, asyncio.Future[Deployment]]] = deque()
        self._news = asyncio.Event()
        self._server = asyncio.get_running_loop().create_task(self._serve())

    @abstractmethod
    def pick(self, prompt: Prompt) -> Deployment | float:
        """Return a deployment that takes the prompt now, or when to ask again; infinity: at the next news."""

    async def turn(self, prompt: Prompt, *, first: bool = False) -> Deployment:
        """Wait until it is the prompt's turn, in front of all others if ``first``."""
        entry = prompt, asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft(entry)
        else:
            self._waiting.append(entry)
        self.notify()
        return await entry[1]

    def notify(self) -> None:
        """Ask again now: something has changed."""
        self._news.set()

    async def aclose(self) -> None:
        """Stop serving."""
        self._server.cancel()

    async def _serve(self) -> None:
        while True:
            self._news.clear()
            again = math.inf
            while self._waiting:
                prompt, turn = self._waiting[0]
                if turn.done():  # its caller has gone
                    self._waiting.popleft()
                    continue
                picked = self.pick(prompt)
                if not isinstance(picked, Deployment):
                    again = picked
                    break
                self._waiting.popleft()
                turn.set_result(picked)
            await self._sleep(again)

    async def _sleep(self, until: float) -> None:
        if until == math.inf:
            await self._news.wait()
            return
        timer = self.clock.call_later(max(until - self.clock.time(), 0.0), self._news.set)
        try:
            await self._news.wait()
        finally:
            timer.cancel()


class Oracle(Line):
    """Sends each prompt at the first moment at which the provider admits it, and never earlier.

    Args:
        world: What is simulated.
        provider: The provider, which answers the oracle's questions.
        clock: Where time comes from.
    """

    def __init__(self, world: World, provider: HiddenProvider, clock: Clock) -> None:
        super().__init__(clock)
        self._deployments = world.deployments()
        self._provider = provider

    async def send(self, prompt: Prompt, caller: int, max_wait: float) -> Outcome:  # noqa: ARG002
        """Wait for room, and send."""
        deployment = await self.turn(prompt)
        await self._provider.answer(deployment, prompt)
        return Outcome(success=True)

    def pick(self, prompt: Prompt) -> Deployment | float:
        """Return the first deployment with room, or when one will have some."""
        now, soonest = self.clock.time(), self._provider.next_event()
        for deployment in self._deployments:
            free_at = self._provider.free_at(deployment, prompt)
            if free_at <= now:
                if self._provider.decide(deployment, prompt) is not None:
                    raise AssertionError("the oracle was refused")
                return deployment
            soonest = min(soonest, free_at)
        return soonest

"""One run: a world, a subject and a seed; and what came of it."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import attrs

from _soak.learner import Learner
from _soak.provider import Client, Counts, HiddenProvider
from _soak.stores import Shared, share
from _soak.subjects import Oracle, Routers, Subject
from _soak.traffic import Fates, Traffic
from _soak.world import World
from llm_router import Router
from llm_router.testing.virtual import VirtualClock, VirtualLoop, run

__all__ = ["LEARNER", "ORACLE", "ROUTER", "Outcome", "Setup", "simulate"]

ROUTER, LEARNER, ORACLE = "llm_router", "plain learner", "oracle"


@attrs.frozen
class Setup:
    """What the traffic of a world is sent through.

    Attributes:
        subject: One of the three above.
        store: The URL of the routers' store.
        routers: How many routers share it.
        seed: The seed of all randomness that can be seeded.
    """

    subject: str
    store: str = "memory://"
    routers: int = 1
    seed: int = 1


@attrs.frozen
class Outcome:
    """What came of a run.

    Attributes:
        counts: What reached the provider.
        fates: What became of the callers.
        asked: Reserves of the routers' store.
    """

    counts: Counts
    fates: Fates
    asked: int = 0

    @property
    def refused(self) -> float:
        """The share of 429s in what was sent."""
        return self.counts.refused / max(self.counts.sent, 1)


def simulate(world: World, setup: Setup) -> Outcome:
    """Run a world to its end, in virtual time."""
    random.seed(setup.seed)  # the library's own draws, but for the jitter of its retries

    async def main(loop: VirtualLoop) -> Outcome:
        clock = VirtualClock(loop)
        async with AsyncExitStack() as stack:
            shared = Shared()
            if setup.subject == ROUTER:
                shared = await stack.enter_async_context(share(setup.store, setup.routers, clock, loop))
            provider = HiddenProvider(world, clock, setup.seed)
            traffic = Traffic(world, provider, clock, setup.seed)
            subject = _subject(world, setup, shared, provider, clock)
            await traffic.run(subject)
            await subject.aclose()
        return Outcome(provider.counts, traffic.fates, shared.asked)

    return run(main)


def _subject(
    world: World, setup: Setup, shared: Shared, provider: HiddenProvider, clock: VirtualClock
) -> Subject:
    if setup.subject == ORACLE:
        return Oracle(world, provider, clock)
    if setup.subject == LEARNER:
        return Learner(world, Client(provider), clock)
    return Routers(
        [
            Router(world.deployments(), store=store, provider=Client(provider), clock=clock)
            for store in shared.stores
        ]
    )

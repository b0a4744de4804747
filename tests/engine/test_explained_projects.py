"""Explanations where models of a project share limits: they say what a send does, in random histories."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from llm_router import (
    Cooldown,
    Demand,
    Deployment,
    Explanation,
    Key,
    MemoryStore,
    Metric,
    ProviderError,
    Quota,
    Reply,
    Router,
    Secret,
    Usage,
)
from llm_router.domain.deployment import ProjectDeployment
from llm_router.domain.kinds import FaultScope
from llm_router.domain.limits import LearntLimit
from llm_router.errors import QuotaViolation
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]

PAUSE = 0.2
"""Seconds between two sends: for a tenth of a second a refusal is remembered, and nothing is asked anew."""

ROUNDING = 0.001


class History:
    """A router whose projects have limits, to which things happen at random."""

    def __init__(self, seed: int, clock: ManualClock, make_router: MakeRouter) -> None:
        random.seed(seed)  # where the rings of the local index start
        self.draw = random.Random(seed)
        self.clock = clock
        self.store = MemoryStore(clock=clock)
        self.provider = FakeProvider(clock=clock)
        self.deployments = self._deployments()
        self.began = clock.time()
        self.limits: dict[tuple[str, Metric], int] = {}
        self.models = sorted({each.model for each in self.deployments})
        self.router = make_router(self.deployments, store=self.store, provider=self.provider, max_retries=0)

    def _deployments(self) -> list[Deployment]:
        draw = self.draw
        models, projects = ["model-a", "model-b", "model-c"][: draw.randint(1, 3)], draw.randint(1, 4)
        quotas = {(model, number): self._quotas() for model in models for number in range(projects)}
        return [
            Deployment(
                Key(f"k{n}", Secret("x"), project=f"p{n % projects}"),
                model,
                "light",
                draw.choice([0, 1, 1]),
                quotas[model, n % projects],
            )
            for n in range(draw.choice([1, 2, 2, 3, 5, 9]))
            for model in models
        ]

    def _quotas(self) -> tuple[Quota, ...]:
        draw, found = self.draw, []
        if draw.random() < 0.8:
            found.append(Quota(Metric.RPM, draw.randint(1, 6), adaptive=draw.random() < 0.5))
        if draw.random() < 0.4:
            found.append(Quota(Metric.TPM, draw.randint(20, 80)))
        return tuple(found)

    async def teach(self, each: Deployment) -> None:
        """Have another process learn a limit of a project or a model, no higher than what was known of it.

        That one is higher by now a snapshot would know, and this process only when it asks.
        """
        draw = self.draw
        found = draw.choice([each, ProjectDeployment.of(each), ProjectDeployment.spending_of(each)])
        scope, metric = found.model_scope, draw.choice([Metric.RPM, Metric.RPM, Metric.TPM])
        if isinstance(found, ProjectDeployment) and found.is_spending:
            metric = Metric.RPM
        known = self.limits.get((scope, metric), 5 if metric is Metric.RPM else 90)
        limit = self.limits[scope, metric] = draw.randint(
            min(known, 1 if metric is Metric.RPM else 20), known
        )
        learnt = LearntLimit(metric, limit)
        if self.clock.time() == self.began and draw.random() < 0.5:
            learnt = LearntLimit(metric, limit, raised=limit + 1, raise_after=30.0)
        await self.store.cool_down(Cooldown.learn(scope, learnt))

    def wish(self) -> dict[str, Any]:
        model = self.draw.choice([None, None, *self.models])
        return {
            "model_preference": model,
            "fallback": "any" if model is None else self.draw.choice(["any", "none"]),
        }

    def answer(self) -> None:
        """Script what the provider answers next: tokens that it counted, or a refusal."""
        draw, chance = self.draw, self.draw.random()
        if chance < 0.3:
            self.provider.script(Reply("x", usage=Usage(input_tokens=draw.randint(1, 20))), times=1)
        elif chance < 0.4:
            scope = draw.choice([FaultScope.PROJECT, FaultScope.DEPLOYMENT])
            violation = QuotaViolation(Metric.RPM, draw.choice([None, 3]))
            error = ProviderError(
                "spent", kind="quota", scope=scope, code=429, violations=(violation,), charged=False
            )
            self.provider.script(error, times=1)

    async def hear_of_lifts(self) -> None:
        """Have the router hear of what was lifted, as with any reply of the store; snapshots do not say."""
        decision = await self.store.reserve("asking", self.deployments[:1], Demand(0, 0), 1.0)
        await self.store.release("asking")
        quarantines = self.router._sender.selector.quarantines
        if decision.lifts != quarantines.lifts:
            quarantines.notice_lifts(decision.lifts, self.clock.time())

    async def disturb(self) -> None:
        """Let time pass, or something happen to a deployment that has nothing to do with a send."""
        draw, each, now = self.draw, self.draw.choice(self.deployments), self.clock.time()
        until = now + draw.choice([0.5, 5.0, 20.0])
        match draw.randrange(9):
            case 0 | 1:
                await self.clock.advance(draw.choice([1.0, 20.0, 70.0]))
            case 2:
                await self.store.cool_down(
                    Cooldown(each.project_scope, until, "rpm spent, says the provider")
                )
            case 3:
                await self.store.cool_down(Cooldown(each.model_scope, until, "elsewhere"))
            case 4:
                cooldown = Cooldown(each.project_scope, until, "spent", half_open=True, strikes=1, since=now)
                await self.store.cool_down(cooldown)
            case 5 | 6:
                await self.teach(each)
            case 7 if draw.random() < 0.2:
                await self.router.keys.lift(each.key.key_id)
            case _:
                pass
        await self.clock.advance(PAUSE)


@pytest.mark.parametrize(
    "seed",
    [
        *(0, 1, 26, 60, 75, 93, 153),
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(100, 140)),
    ],
)
async def test_what_is_explained_of_projects_is_what_a_send_does(
    seed: int, clock: ManualClock, make_router: MakeRouter
) -> None:
    """It takes the deployment explained; or is told to retry no later, and after that time there is room."""
    history = History(seed, clock, make_router)
    for each in history.deployments:
        await history.teach(each)
    async with history.router as router:
        for _ in range(25):
            prompt, wish = "word " * history.draw.randint(1, 40), history.wish()
            await history.hear_of_lifts()
            explanation = await router.explain(prompt, **wish)
            history.answer()
            sent = len(history.provider.calls)
            response = await router.send(prompt, **wish)
            calls = [(call.key_id, call.model) for call in history.provider.calls[sent:]]
            chosen = explanation.taken
            assert calls == ([] if chosen is None else [(chosen.key_id, chosen.model)])
            if chosen is None:
                check_retry(explanation, response.retry_after)
            await history.disturb()


def check_retry(explanation: Explanation, told: float | None) -> None:
    """What is explained is at the latest: a snapshot says when all of a quota is back, not when enough is.

    And a send hears of a project that cools down only of that, until the project itself has refused it.
    """
    if explanation.retry_after is not None:
        assert told is not None
        assert told <= explanation.retry_after + ROUNDING

"""Who is served first where requests wait: interactive ones, and tenants by the tokens they really used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import (
    ConfigError,
    Deployment,
    InvalidRequestError,
    ProviderError,
    Reply,
    Request,
    Response,
    Router,
    Usage,
)
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


class Talkative(FakeProvider):
    """A provider that counts five times as many tokens as estimated where the prompt says so."""

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        await super().generate(deployment, request, dispatched)
        factor = 5 if "dense" in request.contents else 1
        return Reply("ok", usage=Usage(input_tokens=factor * self.estimate_tokens(request)))


class Crowd:
    """Callers that send all the time, and how much each tenant used.

    Attributes:
        tokens: The tokens that each tenant used.
        answers: How many requests of each urgency were answered.
    """

    def __init__(self, router: Router) -> None:
        self.tokens: dict[str, int] = {}
        self.answers: dict[str, int] = {}
        self._router = router
        self._tasks: list[asyncio.Task[None]] = []

    def join(self, name: str, prompt: str, count: int = 8, **options: Any) -> None:
        """Have callers of a tenant send a prompt again and again."""
        options = options or {"tenant": name}
        self._tasks += [asyncio.create_task(self._call(name, prompt, options)) for _ in range(count)]

    async def _call(self, name: str, prompt: str, options: Any) -> None:
        while True:
            response = await self._router.send(prompt, max_wait=600, **options)
            self.tokens[name] = self.tokens.get(name, 0) + response.usage.input_tokens
            urgency = options.get("urgency", "interactive")
            self.answers[urgency] = self.answers.get(urgency, 0) + response.success

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_tenants_get_tokens_by_weight_whatever_was_estimated(pools: Pools, clock: ManualClock) -> None:
    """Also one whose requests are larger than they look, or that is named by the metadata alone."""
    async with Router(
        [pools.one(rpm=20)], provider=Talkative(), clock=clock, tenant_weights={"heavy": 3}
    ) as router:
        crowd = Crowd(router)
        crowd.join("dense", "dense " * 2)
        crowd.join("small", "w " * 4, metadata={"tenant": "small"})
        crowd.join("heavy", "w " * 9)
        await clock.advance(1.0)
        crowd.tokens.clear()  # what was taken before anyone had to wait
        for _ in range(20):
            await clock.advance(60.5)
        await crowd.leave()
    mean = sum(crowd.tokens.values()) / 5
    assert crowd.tokens["dense"] == pytest.approx(mean, rel=0.1)
    assert crowd.tokens["small"] == pytest.approx(mean, rel=0.1)
    assert crowd.tokens["heavy"] == pytest.approx(3 * mean, rel=0.1)


async def test_batch_keeps_a_fifth(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """However many interactive requests come; without them it gets everything."""
    async with make_router([pools.one(rpm=20)]) as router:
        crowd = Crowd(router)
        crowd.join("a", "x", 50, urgency="batch")
        await clock.advance(61.0)
        assert crowd.answers == {"batch": 40}
        crowd.join("a", "x", 50)
        crowd.answers.clear()
        for _ in range(5):
            await clock.advance(60.5)
        await crowd.leave()
    assert sum(crowd.answers.values()) == 100
    assert crowd.answers["batch"] == 20


async def test_streams_and_conversations_wait_by_urgency(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, provider: FakeProvider
) -> None:
    """Whatever came first, what is interactive goes before what is not."""

    async def collect(router: Router) -> Response:
        async with router.stream("stream", max_wait=600, urgency="batch") as stream:
            return await stream.collect()

    async with make_router([pools.one(rpm=1)]) as router:
        await router.send("first")
        talk = router.conversation("c", urgency="batch", tenant="t")
        tasks = [
            asyncio.create_task(talk.send("talk", max_wait=600)),
            asyncio.create_task(collect(router)),
            asyncio.create_task(router.send("send", max_wait=600)),
        ]
        for _ in tasks:
            await clock.advance(60.5)
        assert all(task.result().success for task in tasks)
    sent = [str(call.request.contents) for call in provider.calls]
    assert sent[:2] == ["first", "send"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"urgency": "high"}, "urgency must be 'interactive' or 'batch', not 'high'"),
        ({"urgency": None}, "urgency must be"),
        ({"urgency": ["batch"]}, "urgency must be"),
        ({"tenant": 5}, "tenant must be a string of at most 256 characters, or None, not a int"),
        ({"tenant": "x" * 257}, "not 257 characters"),
    ],
)
async def test_options_that_cannot_be_meant(
    make_router: Callable[..., Router], pools: Pools, options: Any, words: str
) -> None:
    """They are refused by name before anything is sent."""
    async with make_router([pools.one()]) as router:
        with pytest.raises(InvalidRequestError, match=words):
            await router.send("x", **options)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 0}, r"tenant_weights\['a'\] must be above 0"),
        ({"a": float("nan")}, r"tenant_weights\['a'\]"),
        ({"a": float("inf")}, r"tenant_weights\['a'\]"),
        ({"a": True}, r"tenant_weights\['a'\]"),
        ({5: 1}, "tenant_weights must map strings to numbers: 5"),
        ([("a", 1)], "tenant_weights must be a mapping"),
    ],
)
def test_weights_that_cannot_be_meant(
    make_router: Callable[..., Router], pools: Pools, weights: Any, words: str
) -> None:
    """They are refused by name."""
    with pytest.raises(ConfigError, match=words):
        make_router([pools.one()], tenant_weights=weights)


@pytest.mark.parametrize("kind", ["quota", "server", "network"])
async def test_who_fails_on_its_turn_keeps_its_place(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, provider: FakeProvider, kind: str
) -> None:
    """A request that was refused once is served next, not after all who came later, when its time is over."""
    served: list[str] = []

    def answer(_: Deployment, request: Request) -> str:
        text = str(request.contents)
        if text == "first" and "failed" not in served:
            served.append("failed")
            raise ProviderError("once", kind=kind, code=429 if kind == "quota" else None, charged=False)
        served.append(text)
        return "ok"

    provider.script(answer, times=80)
    async with make_router([pools.one(rpm=10)]) as router:
        for _ in range(10):
            await router.send("before")
        first = asyncio.create_task(router.send("first", max_wait=150))
        others = [asyncio.create_task(router.send("other", max_wait=600)) for _ in range(40)]
        for _ in range(4):
            await clock.advance(60.5)
        assert first.done()
        assert first.result().success
        assert served.index("first") - served.index("failed") <= 20
        assert served.count("other") >= 20
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_who_always_fails_holds_up_nobody(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, provider: FakeProvider
) -> None:
    """After a few attempts a request that is refused each time goes behind the others again."""
    served: list[str] = []

    def answer(_: Deployment, request: Request) -> str:
        served.append(str(request.contents))
        if request.contents == "refused":
            raise ProviderError("spent", kind="quota", code=429, charged=False, retry_delay=1.0)
        return "ok"

    provider.script(answer, times=200)
    async with make_router([pools.one(rpm=10)]) as router:
        for _ in range(10):
            await router.send("before")
        tasks = [asyncio.create_task(router.send("refused", max_wait=3_000))]
        tasks += [asyncio.create_task(router.send("other", max_wait=3_000)) for _ in range(40)]
        for _ in range(12):
            await clock.advance(60.5)
        assert served.count("other") == 40
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

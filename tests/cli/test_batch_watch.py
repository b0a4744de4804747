from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_router import ProviderError, Router, UnknownModelError
from llm_router.cli.batch_eta import seconds_for
from llm_router.cli.batch_lines import Prompt
from llm_router.cli.batch_view import _Lines
from llm_router.cli.batch_watch import Follower, Progress, Watch, progress_record, progress_words
from llm_router.errors import LLMRouterError
from llm_router.observe import Waiting
from llm_router.testing import FakeProvider, ManualClock
from llm_router.testing.virtual import START, VirtualClock, VirtualLoop
from llm_router.testing.virtual import run as run_virtually
from tests.conftest import Pools

BEFORE_MIDNIGHT = START + 23.5 * 3600
"""A quarter of an hour before midnight in Los Angeles."""


async def batch_of(
    loop: VirtualLoop,
    pool: list[Any],
    lines: int,
    looks_at: list[float],
    provider: FakeProvider | None = None,
    prompt: Prompt | None = None,
    **options: Any,
) -> tuple[list[tuple[float, Progress]], float]:
    """Send equal lines on virtual time; return how it went at some times, and when it was done."""
    clock, watch = VirtualClock(loop, BEFORE_MIDNIGHT), Watch()
    prompt = prompt or Prompt("x")
    active = dict.fromkeys(range(lines), prompt)
    looks: list[tuple[float, Progress]] = []
    router = Router(
        pool, clock=clock, provider=provider or FakeProvider(clock=clock), observers=[watch], **options
    )
    async with router:
        follower = Follower(
            router,
            watch,
            "any",
            "light",
            active,
            lambda: (lines - len(active), len(active)),
            clock.time,
        )

        async def answer(number: int) -> None:
            await router.send(
                prompt.prompt,
                model_preference=prompt.model,
                max_wait=200_000.0,
                timeout=None,
                urgency="batch",
            )
            del active[number]

        began = clock.time()
        sends = [asyncio.create_task(answer(number)) for number in range(lines)]
        for at in looks_at:
            await asyncio.sleep(at - (clock.time() - began))
            looks.append((at, await follower.look()))
        await asyncio.gather(*sends)
        return looks, clock.time() - began


@pytest.mark.parametrize(
    ("limits", "lines", "near"),
    [
        ([{"rpm": 5}], 22, 2.0),  # four windows and a bit
        ([{"rpm": 5}, {"rpm": 3, "model": "model-b"}], 40, 2.0),
        ([{"rpm": 5, "project": "p"}, {"rpm": 5, "project": "p"}], 12, 2.0),  # two keys, one quota
        ([{"rpm": 5, "rpd": 12}], 20, 3.0),  # a midnight
        ([{"rpm": None, "tpm": 10}], 44, 2.0),  # a request takes a token or so
    ],
)
def test_the_eta_is_when_the_engine_is_done(
    pools: Pools, limits: list[dict[str, Any]], lines: int, near: float
) -> None:
    """What a batch foretells while it waits is what comes, on the real engine in virtual time."""
    pool = [pools.one(**each) for each in limits]
    looks, took = run_virtually(lambda loop: batch_of(loop, pool, lines, [5.0, 30.0, 65.0]))
    for at, progress in looks:
        assert progress.eta is not None
        assert at + progress.eta == pytest.approx(took, abs=near)
        assert progress.waiting == progress.left > 0
        assert progress.reason is not None
        assert progress.until is not None


def test_why_it_waits_and_what_was_refused(pools: Pools) -> None:
    """It names the quota or the cooldown, the model and the keys; 429s are counted; JSON has units."""
    pool = [pools.one(rpm=2, key_id="a"), pools.one(rpm=2, key_id="b")]
    pool.append(pools.one(rpm=None, key_id="c", model="model-b"))
    refusal = ProviderError("busy", kind="quota", code=429, retry_delay=300.0, charged=False)

    def main(loop: VirtualLoop) -> Any:
        provider = FakeProvider(clock=VirtualClock(loop))
        provider.script(refusal, key_id="c", times=1)
        return batch_of(loop, pool, 10, [3.0], provider)

    [(_, progress)], took = run_virtually(main)
    assert progress.rate_limited == 1
    assert (progress.done, progress.left, progress.waiting) == (4, 6, 6)
    assert progress.reason is not None
    assert progress.reason.startswith("rpm of model-a is used up on 2 keys, model-b is cooling down on c: ")
    assert progress.until is not None
    now = progress.until - 57.3
    words = progress_words(progress, now)
    assert words.startswith("ETA 118 s · 1x429 · 6 waiting until ")
    assert " (57 s): rpm of model-a" in words
    record = progress_record(progress, now)
    assert (record["wait_seconds"], record["rate_limited"], record["left"]) == (57.3, 1, 6)
    assert record["eta_seconds"] == pytest.approx(took - 3.0, abs=1.0)


def test_what_cannot_be_foretold(pools: Pools) -> None:
    """Without limits the pace counts, which is none at first."""
    looks, _ = run_virtually(lambda loop: batch_of(loop, [pools.one(rpm=None)], 5, [1.0]))
    assert looks[0][1] == Progress(5, 0, eta=0.0)


async def test_a_line_that_is_wrong_is_asked_about_only(pools: Pools, clock: ManualClock) -> None:
    """What cannot be explained is no reason to stop; where nothing will have room, there is no ETA."""
    watch = Watch()
    async with Router([pools.one()], provider=FakeProvider(), clock=clock, observers=[watch]) as router:
        active = {1: Prompt("x", model="none-such")}
        follower = Follower(router, watch, "any", None, active, lambda: (0, 1), clock.time)
        with pytest.raises(UnknownModelError):
            await router.explain("x", model="none-such")
        assert issubclass(UnknownModelError, LLMRouterError)
        assert await follower.look() == Progress(0, 1)
        active[2] = Prompt("y")
        clock.shift(6.0)
        watch.observe(Waiting(at=clock.time(), request_id="r", workload=None, metadata={}, reason="quota"))
        clock.shift(1.0)
        assert (await follower.look()).reason == "others that wait go first"
        watch.observe(Waiting(at=clock.time(), request_id="r", workload=None, metadata={}, reason="backoff"))
        clock.shift(1.0)
        assert (await follower.look()).reason == "a pause after a failure"
    async with Router([pools.one(rpm=0)], provider=FakeProvider(), clock=clock) as router:
        assert seconds_for([(await router.explain("x"), 5)]) is None


def test_lines_are_few() -> None:
    """A reason is told when it changes, ten seconds apart, and again after a while; nothing else is."""
    now, told = 0.0, []

    def tell(progress: Progress, _: float) -> bool:
        told.append((now, progress.reason))
        return progress.reason is not None

    lines = _Lines(tell, 600.0, lambda: now)
    for second in range(1_000):
        now = float(second)
        reason = None if second < 3 else "rpm" if second < 5 or second > 50 else "rpd"
        lines.show(Progress(0, 9, reason=reason))
    assert told == [
        (0.0, None),
        (1.0, None),
        (2.0, None),
        (3.0, "rpm"),
        (13.0, "rpd"),
        (51.0, "rpm"),
        (651.0, "rpm"),
    ]


async def test_what_begins_to_wait_is_asked_about_anew(pools: Pools, clock: ManualClock) -> None:
    """What was decided before it waited does not explain why it does, however short ago that was."""
    watch, active = Watch(), {1: Prompt("x")}
    async with Router([pools.one(rpm=1)], provider=FakeProvider(), clock=clock, observers=[watch]) as router:
        follower = Follower(router, watch, "any", None, active, lambda: (1, 1), clock.time)
        assert (await follower.look()).reason is None
        await router.send("x")
        clock.shift(0.5)
        watch.observe(Waiting(at=clock.time(), request_id="r", workload=None, metadata={}, reason="quota"))
        clock.shift(1.0)
        progress = await follower.look()
        assert (progress.reason, progress.until is not None) == ("rpm of model-a is used up on key-1", True)
        clock.shift(60.0)
        assert (await follower.look()).reason == "others that wait go first"

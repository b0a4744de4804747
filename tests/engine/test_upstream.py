"""A provider as the router sees it, and what it has to prepare once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from llm_router import Deployment, ProviderError, Reply, Request
from llm_router.engine.upstream import Preparation, Upstream
from llm_router.testing import FakeProvider, ManualClock

MakeDeployment = Callable[..., Deployment]


class Preparing(FakeProvider):
    """A provider whose preparation takes until ``may_end`` is set, and fails ``fails`` times."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.fails = fails
        self.begun = self.done = 0
        self.may_end = asyncio.Event()

    async def prepare(self) -> None:
        self.begun += 1
        await self.may_end.wait()
        if self.fails:
            self.fails -= 1
            raise ImportError("no such SDK")
        self.done += 1


class Whole:
    """A provider that cannot stream."""

    def __init__(self, *answers: Reply | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Deployment, Request]] = []

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        self.calls.append((deployment, request))
        dispatched()
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def validate(self, request: Request) -> None:
        """Accept everything."""

    def estimate_tokens(self, request: Request) -> int:
        return 1

    async def aclose(self) -> None:
        """Do nothing."""


def _ignore() -> None:
    """Do nothing."""


# --- preparation --------------------------------------------------------------------------------------


def test_only_providers_with_a_preparation_make_it_due() -> None:
    """A preparation is due only if a provider has something to prepare."""
    assert not Preparation([FakeProvider(), Whole()]).is_due
    assert Preparation([FakeProvider(), Preparing()]).is_due


async def test_concurrent_callers_wait_for_one_preparation(clock: ManualClock) -> None:
    """Five concurrent callers wait until the one preparation has ended."""
    provider = Preparing()
    preparation = Preparation([provider])
    callers = [asyncio.create_task(preparation.run()) for _ in range(5)]
    await clock.advance(0)
    assert (provider.begun, provider.done) == (1, 0)
    assert not any(caller.done() for caller in callers)
    assert preparation.is_due
    provider.may_end.set()
    await clock.advance(0)
    assert all(caller.done() and caller.exception() is None for caller in callers)
    assert (provider.begun, provider.done, preparation.is_due) == (1, 1, False)


def test_what_hangs_on_another_loop_is_not_waited_for() -> None:
    """The loop is closed, or that of a parent process."""
    provider = Preparing()
    preparation = Preparation([provider])
    loop = asyncio.new_event_loop()
    hanging = loop.create_task(preparation.run())
    loop.run_until_complete(asyncio.sleep(0))
    assert provider.begun == 1

    async def go_on() -> None:
        provider.may_end.set()
        await preparation.run()

    asyncio.run(go_on())
    assert not preparation.is_due
    hanging.cancel()
    loop.run_until_complete(asyncio.gather(hanging, return_exceptions=True))
    loop.close()


async def test_a_preparation_runs_once() -> None:
    """Running a finished preparation again does nothing."""
    provider = Preparing()
    provider.may_end.set()
    preparation = Preparation([provider])
    for _ in range(3):
        await preparation.run()
    assert provider.begun == 1


async def test_a_provider_with_two_names_is_prepared_once() -> None:
    """A provider that is listed twice is prepared once."""
    provider = Preparing()
    provider.may_end.set()
    await Preparation([provider, provider]).run()
    assert provider.begun == 1


async def test_a_failure_is_raised_and_the_next_caller_tries_again(clock: ManualClock) -> None:
    """The first caller gets the error, and the caller waiting behind it prepares again."""
    provider = Preparing(fails=1)
    preparation = Preparation([provider])
    first, second = asyncio.create_task(preparation.run()), asyncio.create_task(preparation.run())
    await clock.advance(0)
    provider.may_end.set()
    await clock.advance(0)
    assert isinstance(first.exception(), ImportError)
    assert second.exception() is None
    assert (provider.begun, provider.done, preparation.is_due) == (2, 1, False)


async def test_a_failure_leaves_the_preparation_due() -> None:
    """A preparation that failed is still due."""
    provider = Preparing(fails=1)
    provider.may_end.set()
    preparation = Preparation([provider])
    with pytest.raises(ImportError):
        await preparation.run()
    assert preparation.is_due


async def test_a_cancelled_caller_leaves_the_preparation_to_the_next(clock: ManualClock) -> None:
    """If the preparing caller is cancelled, the caller waiting behind it prepares."""
    provider = Preparing()
    preparation = Preparation([provider])
    first, second = asyncio.create_task(preparation.run()), asyncio.create_task(preparation.run())
    await clock.advance(0)
    first.cancel()
    await clock.advance(0)
    assert first.cancelled()
    assert preparation.is_due
    provider.may_end.set()
    await clock.advance(0)
    assert second.exception() is None
    assert (provider.done, preparation.is_due) == (1, False)


@pytest.mark.parametrize("failing", [0, 1])
async def test_a_failing_provider_does_not_undo_another(failing: int) -> None:
    """A provider that was prepared stays so if another one fails, in either order."""
    providers = [Preparing(), Preparing()]
    providers[failing].fails = 1
    for provider in providers:
        provider.may_end.set()
    preparation = Preparation(providers)
    with pytest.raises(ImportError):
        await preparation.run()
    await preparation.run()
    assert [provider.done for provider in providers] == [1, 1]
    assert [provider.begun for provider in providers] == [2 - failing, 1 + failing]


# --- streaming ----------------------------------------------------------------------------------------


async def test_a_provider_that_streams_is_streamed(make_deployment: MakeDeployment) -> None:
    """A streaming provider's pieces are passed on one by one."""
    upstream = Upstream("gemini", FakeProvider(["one two three"]))
    replies = upstream.stream(make_deployment(), Request(contents="x"), _ignore)
    assert [reply.text async for reply in replies] == ["one ", "two ", "three"]


async def test_the_answer_of_a_plain_provider_comes_as_one_piece(
    make_deployment: MakeDeployment,
) -> None:
    """A provider that cannot stream is called once, and its whole reply is the only piece."""
    provider, deployment, request = Whole(Reply("all of it")), make_deployment(), Request(contents="x")
    dispatched: list[bool] = []
    replies = Upstream("plain", provider).stream(deployment, request, lambda: dispatched.append(True))
    assert [reply async for reply in replies] == [Reply("all of it")]
    assert provider.calls == [(deployment, request)]
    assert dispatched == [True]


async def test_a_plain_provider_is_not_called_before_the_first_piece(
    make_deployment: MakeDeployment,
) -> None:
    """Nothing is sent if the stream is closed before its first piece is asked for."""
    provider = Whole(Reply("all of it"))
    replies = Upstream("plain", provider).stream(make_deployment(), Request(contents="x"), _ignore)
    await replies.aclose()
    assert provider.calls == []


async def test_the_error_of_a_plain_provider_is_raised(make_deployment: MakeDeployment) -> None:
    """A failing call raises in place of the first piece."""
    provider = Whole(ProviderError("broken", kind="server"))
    replies = Upstream("plain", provider).stream(make_deployment(), Request(contents="x"), _ignore)
    with pytest.raises(ProviderError, match="broken"):
        await anext(replies)


# --- what is learnt -----------------------------------------------------------------------------------


def test_each_model_has_one_correction() -> None:
    """All deployments of a provider's model share one correction, which no other model has."""
    upstream = Upstream("gemini", FakeProvider())
    assert upstream.corrections("flash") is upstream.corrections("flash")
    assert upstream.corrections("flash") is not upstream.corrections("pro")
    assert upstream.corrections("flash") is not Upstream("other", FakeProvider()).corrections("flash")

"""The waiting line: one request at a time asks, until the deadline of each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, cast

import pytest

from llm_router import Deployment, StoreUnavailableError
from llm_router.engine.fair_queue import Ticket
from llm_router.engine.timing import Deadlines
from llm_router.engine.waiting import Shortage, WaitingLine
from llm_router.stores.base import Refusal
from llm_router.testing import ManualClock

MakeDeployment = Callable[..., Deployment]
Attempt = Callable[[], Awaitable[str | Shortage]]


class Counter:
    """A line and the room its requests ask for; a shortage says to retry after ``every`` seconds.

    Attributes:
        room: The number of requests that there is room for.
        asked: The name of each request that asked, in order.
        line: The line.
    """

    def __init__(self, clock: ManualClock, every: float = 1.0) -> None:
        self.room = 0
        self.asked: list[str] = []
        self.line = WaitingLine(Shortage(clock.time() + every), clock, Deadlines(clock))
        self._clock = clock
        self._every = every

    def enter(
        self, name: str, max_wait: float = math.inf, ticket: Ticket | None = None
    ) -> asyncio.Task[str | Shortage]:
        """Wait in the line for at most ``max_wait`` seconds."""
        return asyncio.create_task(self.wait(name, max_wait, ticket))

    def wait(
        self, name: str, max_wait: float = math.inf, ticket: Ticket | None = None
    ) -> Coroutine[Any, Any, str | Shortage]:
        return self.line.wait(self._clock.time() + max_wait, self.attempt(name), ticket)

    def attempt(self, name: str) -> Attempt:
        async def ask() -> str | Shortage:
            self.asked.append(name)
            if not self.room:
                return Shortage(self._clock.time() + self._every)
            self.room -= 1
            return name

        return ask


@pytest.fixture
def counter(clock: ManualClock) -> Counter:
    return Counter(clock)


async def test_waiters_are_served_first_come_first_served(clock: ManualClock, counter: Counter) -> None:
    """Each time there is room for one request, the one that came first is served."""
    tasks = [counter.enter(name) for name in "abcd"]
    await clock.advance(0)
    served = []
    for _ in tasks:
        counter.room = 1
        await clock.advance(1.1)
        served.append("".join(str(task.result()) for task in tasks if task.done()))
    assert served == ["a", "ab", "abc", "abcd"]


async def test_only_the_head_of_the_line_asks(clock: ManualClock, counter: Counter) -> None:
    """Of a hundred waiters only the head asks for room."""
    tasks = [counter.enter(str(number)) for number in range(100)]
    await clock.advance(3.5)
    assert set(counter.asked) == {"0"}
    assert len(counter.asked) <= 5
    counter.room = 100
    await clock.advance(1.1)
    assert [task.result() for task in tasks] == [str(number) for number in range(100)]


async def test_room_for_several_serves_several_at_once(clock: ManualClock, counter: Counter) -> None:
    """As soon as one request is served, the next one asks."""
    tasks = [counter.enter(name) for name in "abc"]
    await clock.advance(0)
    counter.room = 2
    await clock.advance(1.1)
    assert [task.done() for task in tasks] == [True, True, False]
    tasks[2].cancel()
    await clock.advance(0)


async def test_the_head_sleeps_until_there_should_be_room(clock: ManualClock) -> None:
    """The head asks when it arrives, and next at the time the store named."""
    counter = Counter(clock, every=40.0)
    task = counter.enter("a")
    await clock.advance(39.9)
    assert counter.asked == ["a"]
    counter.room = 1
    await clock.advance(0.1)
    assert task.result() == "a"


# --- the deadline -------------------------------------------------------------------------------------


async def test_a_head_that_cannot_be_served_in_time_leaves_at_once(clock: ManualClock) -> None:
    """If there is no room before its deadline, the head gets the shortage and the next one asks."""
    counter = Counter(clock, every=40.0)
    hurried, patient = counter.enter("hurried", max_wait=39.0), counter.enter("patient", max_wait=41.0)
    await clock.advance(0)
    assert hurried.result() == Shortage(clock.time() + 40.0)
    assert counter.asked == ["hurried", "patient"]
    counter.room = 1
    await clock.advance(40.0)
    assert patient.result() == "patient"


async def test_behind_others_the_deadline_ends_the_wait(clock: ManualClock, counter: Counter) -> None:
    """A request behind the head leaves at its deadline with the head's last shortage, without asking."""
    head, behind = counter.enter("head"), counter.enter("behind", max_wait=2.5)
    await clock.advance(2.49)
    assert not behind.done()
    await clock.advance(0.01)
    assert behind.result() is counter.line.shortage
    assert "behind" not in counter.asked
    assert not head.done()
    head.cancel()
    await clock.advance(0)


async def test_the_deadline_interrupts_an_attempt(clock: ManualClock) -> None:
    """A head whose attempt hangs leaves at its deadline with the last known shortage."""
    shortage = Shortage(clock.time() + 1.0)
    line = WaitingLine(shortage, clock, Deadlines(clock))

    async def hang() -> str | Shortage:
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(line.wait(clock.time() + 5.0, hang))
    await clock.advance(4.9)
    assert not task.done()
    await clock.advance(0.1)
    assert task.result() is shortage
    assert line.members == 0


async def test_a_shortage_keeps_the_refusals_of_the_last_try(
    clock: ManualClock, make_deployment: MakeDeployment
) -> None:
    """The shortage includes the refusals of the last attempt."""
    refusal = Refusal(make_deployment(), "rpm", clock.time() + 90.0, clock.time() + 90.0)
    line = WaitingLine(Shortage(clock.time() + 1.0), clock, Deadlines(clock))

    async def refuse() -> str | Shortage:
        return Shortage(refusal.retry_at, (refusal,))

    outcome = await line.wait(clock.time() + 60.0, refuse)
    assert outcome == line.shortage == Shortage(refusal.retry_at, (refusal,))


# --- the alarm ----------------------------------------------------------------------------------------


async def test_an_alarm_wakes_the_head_before_its_time(clock: ManualClock) -> None:
    """Each alarm wakes the head at once, and no timer remains."""
    counter = Counter(clock, every=40.0)
    tasks = [counter.enter(name) for name in "ab"]
    await clock.advance(5.0)
    counter.room = 1
    counter.line.notify()
    await clock.advance(0)
    assert tasks[0].result() == "a"
    assert not tasks[1].done()
    counter.room = 1
    counter.line.notify()
    await clock.advance(0)
    assert tasks[1].result() == "b"
    assert clock.pending == 0


async def test_an_alarm_while_the_head_asks_is_not_missed(clock: ManualClock) -> None:
    """An alarm during an attempt makes the head ask again at once."""
    line = WaitingLine(Shortage(clock.time() + 40.0), clock, Deadlines(clock))
    answers = asyncio.Queue[str | Shortage]()
    task = asyncio.create_task(line.wait(math.inf, answers.get))
    await clock.advance(0)
    line.notify()
    answers.put_nowait(Shortage(clock.time() + 40.0))
    answers.put_nowait("room")
    await clock.advance(0)
    assert task.result() == "room"


async def test_after_a_vain_alarm_the_head_keeps_its_place(clock: ManualClock) -> None:
    """The head asks once per alarm, and stays the head if there is no room."""
    counter = Counter(clock, every=40.0)
    tasks = [counter.enter(name) for name in "ab"]
    await clock.advance(0)
    for _ in range(3):
        counter.line.notify()
        await clock.advance(1.0)
    assert counter.asked == ["a"] * 4
    counter.room = 2
    await clock.advance(40.0)
    assert [task.result() for task in tasks] == ["a", "b"]


def test_an_alarm_without_waiters_is_harmless(counter: Counter) -> None:
    """An alarm of an empty line does nothing."""
    counter.line.notify()
    assert counter.line.members == 0


# --- leaving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaving", [0, 1])
async def test_a_cancelled_request_leaves_the_line(
    clock: ManualClock, counter: Counter, leaving: int
) -> None:
    """When the head or another waiter is cancelled, the others keep their order and no timer remains."""
    tasks = [counter.enter(name) for name in "abc"]
    await clock.advance(0.5)
    assert counter.line.members == 3
    tasks.pop(leaving).cancel()
    await clock.advance(0)
    assert counter.line.members == 2
    counter.room = 1
    await clock.advance(1.1)
    assert [task.done() for task in tasks] == [True, False]
    counter.room = 1
    await clock.advance(1.1)
    assert tasks[1].done()
    assert (counter.line.members, clock.pending) == (0, 0)


async def test_an_error_of_the_head_does_not_stop_the_line(clock: ManualClock, counter: Counter) -> None:
    """The head gets the error of its attempt, and the next one asks."""

    async def fail() -> str | Shortage:
        raise StoreUnavailableError("no answer")

    failing = asyncio.create_task(counter.line.wait(math.inf, fail))
    await asyncio.sleep(0)
    counter.room = 1
    patient = counter.enter("patient")
    await clock.advance(0)
    assert isinstance(failing.exception(), StoreUnavailableError)
    assert patient.result() == "patient"
    assert counter.line.members == 0


# --- whose turn it is ---------------------------------------------------------------------------------


async def test_an_interactive_request_need_not_wait_for_a_sleeping_batch_head(
    clock: ManualClock, counter: Counter
) -> None:
    """The batch head gives way at once, and is the head again before the other batch requests."""
    batch = counter.enter("batch", ticket=Ticket("batch"))
    behind = counter.enter("behind", ticket=Ticket("batch"))
    await clock.advance(0.5)
    hurried = counter.enter("hurried", max_wait=0.8)
    await clock.advance(0)
    assert isinstance(hurried.result(), Shortage)
    assert counter.asked == ["batch", "hurried", "batch"]
    urgent = counter.enter("urgent")
    counter.room = 1
    await clock.advance(1.1)
    assert urgent.result() == "urgent"
    assert not batch.done()
    counter.room = 1
    await clock.advance(1.1)
    assert batch.result() == "batch"
    behind.cancel()
    await clock.advance(0)
    assert (counter.line.members, clock.pending) == (0, 0)


async def test_a_batch_request_that_gave_way_can_be_cancelled(clock: ManualClock, counter: Counter) -> None:
    """It leaves the line as any other does, and the turn stays where it is."""
    batch, urgent = counter.enter("batch", ticket=Ticket("batch")), counter.enter("urgent")
    await clock.advance(0.5)
    batch.cancel()
    await clock.advance(0)
    assert counter.line.members == 1
    counter.room = 1
    await clock.advance(1.1)
    assert urgent.result() == "urgent"
    assert counter.line.members == 0


class _Steps:
    """An awaitable that counts how often its task runs."""

    def __init__(self, wait: Coroutine[Any, Any, str | Shortage]) -> None:
        self._wait = wait
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, str | Shortage]:
        send: Callable[[], Any] = partial(self._wait.send, None)
        while True:
            self.steps += 1
            try:
                waits_for = send()
            except StopIteration as end:
                return cast("str | Shortage", end.value)
            send = partial(self._wait.send, None)
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - it is for what is awaited
                send = partial(self._wait.throw, error)


@pytest.mark.slow
async def test_of_ten_thousand_waiters_each_is_woken_once(clock: ManualClock) -> None:
    """While they wait none of them asks, and each runs twice: to take its place, and when it is its turn."""
    counter = Counter(clock, every=10.0)
    waits = [
        _Steps(counter.wait(str(number), ticket=Ticket(tenant=f"t{number % 500}")))
        for number in range(10_000)
    ]

    async def run(wait: _Steps) -> str | Shortage:
        return await wait

    tasks = [asyncio.create_task(run(wait)) for wait in waits]
    await clock.advance(9.0)
    assert counter.asked == ["0"]
    assert (counter.line.members, {wait.steps for wait in waits}) == (10_000, {1})
    for task in tasks[1:5_000:7]:
        task.cancel()
    counter.room = 10_000
    counter.line.notify()
    await clock.advance(0)
    served = [task for task in tasks if not task.cancelled()]
    assert all(isinstance(task.result(), str) for task in served)
    assert len(counter.asked) == len(served) + 1
    assert {wait.steps for wait in waits} == {2}
    assert (counter.line.members, clock.pending) == (0, 0)

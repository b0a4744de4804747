"""The fair queue: interactive before batch, tenants by the tokens they were served, each woken once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_router.domain.request import Urgency
from llm_router.engine.fair_queue import BATCH_SHARE, MAX_TENANTS, FairQueue, Tenants, Ticket


def _fill(tenants: Tenants, sizes: dict[str, float], count: int) -> None:
    for tenant, tokens in sizes.items():
        for _ in range(count):
            tenants.add(Ticket(tenant=tenant, tokens=tokens))


def _serve(tenants: Tenants, grants: int, real: dict[str, float] | None = None) -> dict[str, float]:
    """Serve requests, each of which is followed by another of its tenant; return tokens used by tenant."""
    served: dict[str, float] = defaultdict(float)
    for _ in range(grants):
        ticket = tenants.pop()
        assert ticket is not None
        tenants.charge(ticket.tenant, ticket.tokens)
        used = ticket.tokens * (real or {}).get(ticket.tenant, 1.0)
        tenants.charge(ticket.tenant, used - ticket.tokens)
        served[ticket.tenant] += used
        tenants.add(Ticket(tenant=ticket.tenant, tokens=ticket.tokens))
    return served


# --- tenants ------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(st.floats(1, 100), st.floats(1, 100)),
    real=st.tuples(st.floats(0.4, 2.4), st.floats(0.4, 2.4)),
    weight=st.sampled_from([1.0, 3.0]),
    waiters=st.integers(1, 3),
)
def test_tenants_get_tokens_by_their_weights(
    sizes: tuple[float, float], real: tuple[float, float], weight: float, waiters: int
) -> None:
    """Whatever the sizes of their requests, and however wrong the estimates, shares follow the weights."""
    tenants = Tenants({"b": weight})
    _fill(tenants, {"a": sizes[0], "b": sizes[1]}, waiters + 1)
    factors = {"a": real[0], "b": real[1]}
    largest = max(size * max(factor, 1.0) for size, factor in zip(sizes, real, strict=True))
    grants = 0
    served: dict[str, float] = {"a": 0.0, "b": 0.0}
    while min(served.values()) < 25 * largest and grants < 50_000:
        for tenant, tokens in _serve(tenants, 50, factors).items():
            served[tenant] += tokens
        grants += 50
    assert served["b"] / served["a"] == pytest.approx(weight, rel=0.1)


@pytest.mark.parametrize("others", [1, 7, 50])
def test_no_tenant_starves_however_many_new_ones_come(others: int) -> None:
    """A tenant that was served much is served again, although a new one comes after every grant."""
    tenants = Tenants({})
    _fill(tenants, {"old": 10.0}, 2)
    assert tenants.pop() is not None
    tenants.charge("old", 1_000.0)
    for number in range(others):
        tenants.add(Ticket(tenant=f"before-{number}", tokens=10.0))
    for number in range((others + 1) * 102):  # each of them gets as much as it was ahead
        ticket = tenants.pop()
        assert ticket is not None
        if ticket.tenant == "old":
            break
        tenants.charge(ticket.tenant, 10.0)
        tenants.add(Ticket(tenant=f"new-{number}", tokens=10.0))
    else:
        pytest.fail("it was passed over for ever")
    assert number > others * 90


def test_idle_time_is_not_saved_up() -> None:
    """A tenant that comes late, or comes back, shares from then on, and is owed nothing from before."""
    tenants = Tenants({})
    _fill(tenants, {"busy": 10.0}, 10)
    _serve(tenants, 1_000)
    _fill(tenants, {"late": 10.0}, 10)
    served = _serve(tenants, 100)
    assert served["late"] == pytest.approx(served["busy"], abs=20)


def test_also_after_a_time_in_which_none_waited_a_new_tenant_is_owed_nothing() -> None:
    """Who was served before an empty line does not have to wait until a new tenant has caught up."""
    tenants = Tenants({})
    for _ in range(100):
        tenants.add(Ticket(tenant="busy", tokens=10))
        assert tenants.pop() is not None
        tenants.charge("busy", 10)
    _fill(tenants, {"new": 10.0, "busy": 10.0}, 10)
    served = _serve(tenants, 100)
    assert served["new"] == pytest.approx(served["busy"], abs=30)


def test_requests_of_a_tenant_are_first_come_first_served() -> None:
    """What leaves, or is put back as the first, does not change the order of the others."""
    tenants = Tenants({})
    tickets = [Ticket(tenant="a", tokens=1.0 + number) for number in range(6)]
    for ticket in tickets:
        tenants.add(ticket)
    assert tenants.pop() is tickets[0]
    tenants.put_back(tickets[0])
    tenants.discard(tickets[0])
    tenants.discard(tickets[3])
    assert tenants.waiting("a") == 4
    assert [tenants.pop() for _ in range(5)] == [tickets[1], tickets[2], tickets[4], tickets[5], None]
    assert (len(tenants), tenants.waiting("a")) == (0, 0)


def test_a_request_that_is_put_back_costs_its_tenant_nothing() -> None:
    """Who was next and had to give way is still next."""
    tenants = Tenants({})
    _fill(tenants, {"a": 10.0, "b": 15.0}, 1)
    for _ in range(50):
        ticket = tenants.pop()
        assert ticket is not None
        assert ticket.tenant == "a"
        tenants.put_back(ticket)
    assert tenants.count("a") == 0.0


def test_who_failed_on_its_turn_brings_nothing_saved_up() -> None:
    """Its request keeps the place, but what others were served while its tenant did not wait is not owed."""
    tenants = Tenants({})
    for _ in range(100):
        tenants.add(Ticket(tenant="busy", tokens=10))
        assert tenants.pop() is not None
        tenants.charge("busy", 10)
    tenants.charge("seldom", -1000.0)  # as it was when it was served last
    _fill(tenants, {"busy": 10.0}, 20)
    failed = Ticket(tenant="seldom", tokens=10, again=True)
    tenants.put_back(failed)
    _fill(tenants, {"seldom": 10.0}, 20)
    assert tenants.pop() is failed
    tenants.charge("seldom", 10)
    served = _serve(tenants, 200)
    assert served["seldom"] == pytest.approx(served["busy"], abs=30)


def test_only_so_many_tenants_are_remembered() -> None:
    """Those charged longest ago are forgotten, but for those that wait; the heap does not grow either."""
    tenants = Tenants({})
    _fill(tenants, {"waiting": 5.0}, 2)
    tenants.charge("waiting", 7.0)
    for number in range(MAX_TENANTS + 500):
        tenants.charge(f"t{number}", 1.0)
        tenants.charge("waiting", 0.0)
    assert len(tenants._counts) == MAX_TENANTS
    assert tenants.count("t0") == 0.0
    assert tenants.count("waiting") == 7.0
    assert len(tenants._heap) < 100
    ticket = tenants.pop()
    assert ticket is not None
    assert ticket.tenant == "waiting"


# --- the queue ----------------------------------------------------------------------------------------


class _Line:
    """Requests that wait in a queue, and the names of those that became the head, in order."""

    def __init__(self) -> None:
        self.queue = FairQueue({})
        self.heads: list[str] = []
        self.tickets: dict[str, Ticket] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def enter(self, name: str, urgency: Urgency = "interactive", tenant: str = "") -> None:
        self.tickets[name] = Ticket(urgency, tenant)
        self.tasks[name] = asyncio.create_task(self._enter(name))

    async def _enter(self, name: str) -> None:
        await self.queue.enter(self.tickets[name])
        self.heads.append(name)

    async def serve(self, names: Iterable[str] = ()) -> None:
        """Serve the head, and let the next one become it."""
        self.queue.leave(self.tickets[self.heads[-1]], served=True)
        await _run()

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def _run() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_interactive_requests_go_first_and_batch_ones_keep_their_share() -> None:
    """Of each five grants one is for batch, while both wait; without the others each gets all."""
    line = _Line()
    for number in range(40):
        line.enter(f"b{number}", "batch")
        line.enter(f"i{number}")
    await _run()
    for _ in range(79):
        await line.serve()
    assert len(line.heads) == 80
    kinds = "".join(name[0] for name in line.heads)
    assert kinds[1:51] == "iiiib" * 10
    assert kinds[:50].count("b") / 50 >= BATCH_SHARE
    numbers = [int(name[1:]) for name in line.heads if name[0] == "i"]
    assert numbers == sorted(numbers)
    await line.serve()
    assert line.queue._head is None


async def test_a_batch_head_gives_way_unless_it_is_its_turn() -> None:
    """It becomes the head again before the other batch requests; its share lets it keep the turn."""
    line = _Line()
    line.enter("b0", "batch")
    line.enter("b1", "batch")
    await _run()
    head = line.tickets["b0"]
    assert not line.queue.must_give_way(head)
    assert line.queue.goes_before_head(Ticket())
    assert not line.queue.goes_before_head(Ticket("batch"))
    for number in range(5):
        line.enter(f"i{number}")
    await _run()
    assert line.queue.must_give_way(head)
    waiting = asyncio.create_task(line.queue.give_way(head))
    await _run()
    assert line.heads == ["b0", "i0"]
    for number in range(1, 4):
        await line.serve()
        assert line.heads[-1] == f"i{number}"
    line.queue.leave(line.tickets["i3"], served=True)  # the fourth that was served while batch ones waited
    await _run()
    assert waiting.done()
    assert not line.queue.must_give_way(head)
    assert not line.queue.goes_before_head(Ticket())
    line.queue.leave(head, served=True)
    await _run()
    assert line.heads[-1] == "i4"
    line.queue.leave(head, served=True)  # it is not the head any more
    assert line.queue._head is line.tickets["i4"]
    await line.end()


async def test_turns_that_are_not_used_are_not_counted() -> None:
    """A batch request that leaves without a grant leaves its turn to the next one."""
    line = _Line()
    for name in ("i0", "i1", "i2", "i3", "i4", "i5"):
        line.enter(name)
    for name in ("b0", "b1"):
        line.enter(name, "batch")
    await _run()
    for _ in range(4):
        await line.serve()
    assert line.heads[-1] == "b0"
    line.queue.leave(line.tickets["b0"], served=False)
    await _run()
    assert line.heads[-1] == "b1"
    await line.serve()
    assert line.heads[-1] == "i4"
    await line.end()


async def test_cancelled_requests_leave_at_once() -> None:
    """Also one that has just been woken: then the next becomes the head."""
    line = _Line()
    for name in "abcd":
        line.enter(name)
    await _run()
    assert line.queue.ahead(Ticket()) == 4
    assert line.queue.ahead(Ticket(tenant="other")) == 1
    line.tasks["b"].cancel()
    await _run()
    assert line.queue.ahead(Ticket()) == 3
    line.queue.leave(line.tickets["a"], served=True)  # wakes c
    line.tasks["c"].cancel()
    await _run()
    assert line.heads == ["a", "d"]
    assert line.queue.ahead(Ticket("batch")) == 1
    line.queue.leave(line.tickets["d"], served=True)
    assert line.queue.ahead(Ticket()) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=120))
def test_whatever_comes_and_goes_the_order_is_kept(moves: list[int]) -> None:
    """Requests enter, are cancelled, served, or give way at any time: none is lost or overtaken."""
    asyncio.run(_play(moves))


async def _play(moves: list[int]) -> None:
    line = _Line()
    for number, move in enumerate(moves):
        if move % 5 < 2:
            urgency: Urgency = "batch" if move % 2 else "interactive"
            line.enter(f"{number}", urgency, f"t{move % 3}")
        elif move % 5 == 2 and line.tasks:
            list(line.tasks.values())[move % len(line.tasks)].cancel()
        else:
            _move_on(line, move)
        if move % 7:
            await _run()
    await _run()
    while (head := line.queue._head) is not None:
        line.queue.leave(head, served=True)
        await _run()
    assert all(task.done() for task in line.tasks.values())
    assert line.queue.ahead(Ticket("batch")) == 0
    seen: dict[tuple[str, str], int] = {}
    for name in line.heads:
        ticket = line.tickets[name]
        assert seen.get((ticket.urgency, ticket.tenant), -1) < int(name)
        seen[ticket.urgency, ticket.tenant] = int(name)


def _move_on(line: _Line, move: int) -> None:
    """Have the head give way, if it has to, or leave."""
    for name, head in line.tickets.items():
        if head is line.queue._head and line.tasks[name].done():
            if move % 5 == 3 and line.queue.must_give_way(head):
                line.tasks[name] = asyncio.create_task(line.queue.give_way(head))
            else:
                line.queue.leave(head, served=bool(move % 2))
            return

"""The order in which the requests that wait in one line are served: by urgency, then fairly by tenant."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Mapping

import attrs

from llm_router.domain.request import Urgency

__all__ = ["BATCH_SHARE", "MAX_TENANTS", "FairQueue", "Tenants", "Ticket"]

BATCH_SHARE = 0.2
"""The share of the grants that batch requests get while some wait, however many interactive ones do."""

MAX_TENANTS = 10_000
"""Most tenants whose use is remembered; the one charged longest ago is forgotten first."""

_GAIN = BATCH_SHARE / (1 - BATCH_SHARE)
_A_TURN = 1.0 - 1e-9  # so that rounding does not cost one

_STALE_ENTRIES = 64
"""Outdated heap entries that are kept before the heap may be compacted."""


@attrs.define(eq=False)
class Ticket:
    """A request's place in line.

    Attributes:
        urgency: How urgent it is.
        tenant: The tenant that it is made for; empty if the caller did not say.
        tokens: How many it should need.
        counts: Whether it takes a request of a quota.
        again: Whether it has had its turn before, and failed: then it goes before the others of its tenant.
        turn: Set when it becomes the head; None while it does not wait for that.
    """

    urgency: Urgency = "interactive"
    tenant: str = ""
    tokens: float = 1.0
    counts: bool = True
    again: bool = False
    turn: asyncio.Future[None] | None = None


class Tenants:
    """The requests of one urgency that wait, by tenant, each of which gets a fair share of the tokens.

    These are virtual token counters (arXiv 2401.00588). The count of a tenant is the tokens that it was
    served, divided by its weight. Next is the tenant whose count would be the lowest with its next request
    served; the requests of one tenant go first come, first served. So the counts of two tenants that wait all
    the time differ by no more than their largest requests.

    A tenant that begins to wait starts where those that wait have come to: idle time is not saved up, and
    however many tenants come, none that waits is passed over for ever.

    Each step takes a logarithm of the number of tenants at most, however many requests wait.

    Args:
        weights: Of the tenants that are to get more or less than others, whose weight is 1; all above 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._counts: OrderedDict[str, float] = OrderedDict()  # the one charged last at the end
        self._reached = 0.0  # what the count of the last one that was next was to be
        # Any ticket can leave an OrderedDict in constant time, which a deque does not allow.
        self._lines: dict[str, OrderedDict[Ticket, None]] = {}
        self._heap: list[tuple[float, int, str]] = []  # count to be, number, tenant; outdated ones stay
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Return how many tenants wait."""
        return len(self._lines)

    def waiting(self, tenant: str) -> int:
        """Return how many requests of a tenant wait."""
        return len(self._lines.get(tenant, ()))

    def count(self, tenant: str) -> float:
        """Return how many tokens a tenant counts as having been served, divided by its weight."""
        return self._counts.get(tenant, self._reached)

    def charge(self, tenant: str, tokens: float) -> None:
        """Count tokens that a tenant was served; below 0 those that were charged and not used."""
        self._set(tenant, self.count(tenant) + tokens / self._weight(tenant))
        if tenant in self._lines:
            self._offer(tenant)

    def add(self, ticket: Ticket) -> None:
        """Add a request as the last one of its tenant."""
        line = self._lines.get(ticket.tenant)
        if line is None:
            self._set(ticket.tenant, max(self.count(ticket.tenant), self._reached))
            self._lines[ticket.tenant] = OrderedDict({ticket: None})
            self._offer(ticket.tenant)
        else:
            line[ticket] = None

    def put_back(self, ticket: Ticket) -> None:
        """Add a request that was next before, and was not served, as the first one of its tenant.

        The tenant is next, or soon; but one that did not wait meanwhile has saved up nothing.
        """
        count = self.count(ticket.tenant)
        line = self._lines.get(ticket.tenant)
        if line is None:
            line = self._lines[ticket.tenant] = OrderedDict()
            count = max(count, self._reached - ticket.tokens / self._weight(ticket.tenant))
        line[ticket] = None
        line.move_to_end(ticket, last=False)
        self._set(ticket.tenant, count)
        self._offer(ticket.tenant)

    def discard(self, ticket: Ticket) -> None:
        """Take out a request that waits no longer; harmless if it is out already."""
        line = self._lines.get(ticket.tenant)
        if line is None or ticket not in line:
            return
        was_first = next(iter(line)) is ticket
        del line[ticket]
        if not line:
            del self._lines[ticket.tenant]
        elif was_first:
            self._offer(ticket.tenant)

    def pop(self) -> Ticket | None:
        """Take out the request that is next, and return it; None if none waits."""
        while self._lines:
            reached, _, tenant = heapq.heappop(self._heap)
            line = self._lines.get(tenant)
            if line is None or reached != self._reach(tenant, next(iter(line))):
                continue
            self._reached = max(self._reached, reached)
            ticket, _ = line.popitem(last=False)
            if line:
                self._offer(tenant)
            else:
                del self._lines[tenant]
            return ticket
        self._heap.clear()
        return None

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def _reach(self, tenant: str, ticket: Ticket) -> float:
        """Return what the count of a tenant will be once a request was served."""
        return self._counts[tenant] + ticket.tokens / self._weight(tenant)

    def _offer(self, tenant: str) -> None:
        """Note what the count of a tenant that waits will be next."""
        if len(self._heap) > 2 * len(self._lines) + _STALE_ENTRIES:
            self._heap = [
                (self._reach(each, next(iter(line))), next(self._numbers), each)
                for each, line in self._lines.items()
            ]
            heapq.heapify(self._heap)
        else:
            reach = self._reach(tenant, next(iter(self._lines[tenant])))
            heapq.heappush(self._heap, (reach, next(self._numbers), tenant))

    def _set(self, tenant: str, count: float) -> None:
        self._counts[tenant] = count
        self._counts.move_to_end(tenant)
        for _ in range(2):  # more than are added, in case the oldest one is kept since it waits
            if len(self._counts) > MAX_TENANTS:
                oldest = next(iter(self._counts))
                if oldest in self._lines:
                    self._counts.move_to_end(oldest)
                else:
                    del self._counts[oldest]


class FairQueue:
    """The requests that wait, of which one at a time is the head.

    Interactive requests go before batch ones, which get :data:`BATCH_SHARE` of the grants while some wait.
    Among those of one urgency tenants get equal shares by weight, see :class:`Tenants`; each urgency has
    counts of its own. Each request is woken once, when it becomes the head. Only a batch request may have to
    give up its turn before it is served, to an interactive one that came while it was the head.

    Args:
        weights: Of the tenants that are to get more or less than others, whose weight is 1; all above 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._head: Ticket | None = None
        self._interactive = Tenants(weights)
        self._batch = Tenants(weights)
        self._owed = 0.0  # turns that batch requests have saved up

    async def enter(self, ticket: Ticket) -> None:
        """Wait to become the head; at once if there is none."""
        if self._head is None:
            self._head = ticket
            return
        tenants = self._tenants(ticket)
        if ticket.again:
            tenants.put_back(ticket)
        else:
            tenants.add(ticket)
        await self._turn(ticket)

    def leave(self, ticket: Ticket, *, served: bool) -> None:
        """Stop being the head, ``served`` or not: the next request becomes it. Harmless if it is not."""
        if self._head is not ticket:
            return
        if served and ticket.urgency == "batch":
            self._owed = max(self._owed - 1.0, 0.0)
        elif served and self._batch:
            self._owed = min(self._owed + _GAIN, 1.0)
        self._pass_on()

    def charge(self, ticket: Ticket, tokens: float) -> None:
        """Count tokens that the tenant of a request was served; below 0 those charged and not used."""
        self._tenants(ticket).charge(ticket.tenant, tokens)

    def goes_before_head(self, ticket: Ticket) -> bool:
        """Return whether the head must give way to a request that comes now."""
        head = self._head
        if head is None or head.urgency == ticket.urgency:
            return False
        return ticket.urgency == "interactive" and self._owed < _A_TURN

    def must_give_way(self, head: Ticket) -> bool:
        """Return whether the head must give way to an interactive request that waits."""
        return head.urgency == "batch" and bool(self._interactive) and self._owed < _A_TURN

    async def give_way(self, head: Ticket) -> None:
        """Stop being the head, and wait to become it again, as the first of its tenant."""
        self._tenants(head).put_back(head)
        self._pass_on()
        if self._head is not head:
            await self._turn(head)

    def ahead(self, ticket: Ticket) -> int:
        """Return how many requests will certainly be served before one that comes now, unless they leave.

        Whether another tenant's requests go first depends on what comes, so they do not count.
        """
        waiting = 0 if ticket.again else self._tenants(ticket).waiting(ticket.tenant)
        return waiting + (self._head is not None and not self.goes_before_head(ticket))

    def _tenants(self, ticket: Ticket) -> Tenants:
        return self._batch if ticket.urgency == "batch" else self._interactive

    def _pass_on(self) -> None:
        """Make the next request the head, and wake it."""
        while True:
            batch_first = self._owed >= _A_TURN or not self._interactive
            self._head = ticket = (self._batch if batch_first and self._batch else self._interactive).pop()
            if ticket is None or ticket.turn is None:
                return
            if not ticket.turn.done():  # else it was cancelled, and its task has not heard of it yet
                ticket.turn.set_result(None)
                return

    async def _turn(self, ticket: Ticket) -> None:
        ticket.turn = asyncio.get_running_loop().create_future()
        try:
            await ticket.turn
        except BaseException:
            if self._head is ticket:  # it was woken and cancelled at once
                self.leave(ticket, served=False)
            else:
                self._tenants(ticket).discard(ticket)
            raise
        finally:
            ticket.turn = None

"""How many requests wait for quota, by urgency and tenant: here, and in all that share the records."""

from __future__ import annotations

import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from llm_router.domain.request import Urgency
from llm_router.domain.status import LineStatus
from llm_router.engine.fair_queue import Ticket
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.reading import records_in

__all__ = ["LINES", "LINE_BOUNDS", "Queued", "SharedLines", "line_of"]

_log = logging.getLogger("llm_router")

LINES = "lines"
"""The space of the records: one for each process in which requests wait."""

LINE_BOUNDS = Bounds(records=1_000, size=4 * 2**20, largest=16 * 2**10)
"""How much of it there may be."""

_TTL = 15.0
"""Seconds after which what a process told is forgotten: it tells it again every five."""

_TENANTS = 20
"""Most tenants of a process that are told; the others count under no name."""

_LONGEST_TENANT = 100
_PROCESSES = 1_000

_Counts = Counter[tuple[Urgency, str]]


class Queued:
    """The requests of this process that wait.

    Attributes:
        counts: How many, by urgency and tenant.
        on_enter: Called when one begins to wait, or None.
    """

    def __init__(self) -> None:
        self.counts: _Counts = Counter()
        self.on_enter: Callable[[], None] | None = None

    @contextmanager
    def counted(self, ticket: Ticket) -> Generator[None]:
        """Count a request as one that waits, inside the block."""
        kind = ticket.urgency, ticket.tenant
        self.counts[kind] += 1
        if self.on_enter is not None:
            self.on_enter()
        try:
            yield
        finally:
            self.counts[kind] -= 1
            if not self.counts[kind]:
                del self.counts[kind]


def line_of(all_counts: Iterable[_Counts]) -> LineStatus:
    """Return how many requests wait, summed up."""
    total: _Counts = Counter()
    for counts in all_counts:
        total.update(counts)
    tenants: Counter[str] = Counter()
    urgencies: Counter[str] = Counter()
    for (urgency, tenant), number in total.items():
        urgencies[urgency] += number
        if tenant:
            tenants[tenant] += number
    return LineStatus(
        requests=total.total(),
        interactive=urgencies["interactive"],
        batch=urgencies["batch"],
        tenants=dict(tenants.most_common(_TENANTS)),
    )


class SharedLines:
    """Tells other processes how many requests wait here, and asks how many wait there.

    Args:
        queued: Those of this process.
        records: Where it is told.
    """

    def __init__(self, queued: Queued, records: RecordStore) -> None:
        self._queued = queued
        self._records = records
        self._name = secrets.token_hex(8)
        self._told = False

    @property
    def is_busy(self) -> bool:
        """Whether there is something to tell, or to take back."""
        return self._told or bool(self._queued.counts)

    async def publish(self) -> None:
        """Share what waits here with other processes. A failing store does no harm."""
        if not self.is_busy:
            return
        try:
            if self._queued.counts:
                self._told = True
                await self._records.put(LINES, self._name, _dump(self._queued.counts), ttl=_TTL)
            else:
                self._told = False
                await self._records.delete(LINES, self._name)
        except Exception as error:  # noqa: BLE001 - a record store of a user may raise anything
            _log.debug("what waits cannot be told: %s", type(error).__name__)

    async def known(self) -> LineStatus:
        """Return how many requests wait in all processes that tell it; in this one if that cannot be read."""
        own = self._queued.counts
        try:
            others = await records_in(self._records, LINES, _PROCESSES, lambda name: name != self._name)
            return line_of([own, *(_load(record.data) for record in others.values())])
        except Exception as error:  # noqa: BLE001 - likewise, or something else wrote it
            _log.debug("what waits elsewhere cannot be read: %s", type(error).__name__)
            return line_of([own])


def _dump(counts: _Counts) -> bytes:
    told: Counter[tuple[str, str]] = Counter()
    for place, ((urgency, tenant), number) in enumerate(counts.most_common()):
        named = place < _TENANTS and len(tenant) <= _LONGEST_TENANT
        told[urgency, tenant if named else ""] += number
    return json.dumps([[urgency, tenant, number] for (urgency, tenant), number in told.items()]).encode()


def _load(data: bytes) -> _Counts:
    """Return what another process wrote, perhaps one of another version."""
    counts: _Counts = Counter()
    for urgency, tenant, number in json.loads(data):
        counts["batch" if urgency == "batch" else "interactive", str(tenant)] += int(number)
    return counts

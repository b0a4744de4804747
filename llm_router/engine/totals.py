"""Count what each key did on each day: in memory, and in the background in the records."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date, timedelta
from weakref import WeakSet

import attrs

from llm_router.domain.calendar import day_of, microseconds, midnights, seconds
from llm_router.domain.clock import Clock, Timer
from llm_router.domain.deployment import Deployment
from llm_router.domain.kinds import FailureKind
from llm_router.domain.numbers import whole
from llm_router.domain.quota import PROVIDER_TIMEZONE
from llm_router.domain.status import DayTotals
from llm_router.errors import InvalidRequestError, ProviderError, RecordTooLargeError, SendError
from llm_router.providers.base import Reply
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.naming import key_name

__all__ = ["DAYS_KEPT", "TOTALS", "TOTALS_BOUNDS", "Tally", "Totals"]

_log = logging.getLogger("llm_router")

DAYS_KEPT = 35
"""Days after which the totals of a day are forgotten."""

TOTALS = "totals"
"""The space of the records."""

TOTALS_BOUNDS = Bounds(records=200_000, size=128 * 2**20, largest=2**20)
"""How much of it there may be: a name for each key and day."""

_FLUSH = 5.0
"""Seconds after which what was counted is added to the records."""

_RETRY = 30.0
"""The same after the records have failed."""

_CLOSING = 1.0
"""Seconds that closing waits for the records."""

_TTL = DAYS_KEPT * 86_400.0
_MOST_WAITING = 100_000
"""Days of models of keys that wait while the records fail; what is counted beyond them is lost."""

_FIELDS = ("requests", "input_tokens", "output_tokens", "rate_limited", "errors")


@attrs.define(eq=False)
class Tally:
    """What one key did with one model; made in every flush, and counted up in every send."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    rate_limited: int = 0
    errors: int = 0

    def amounts(self) -> dict[str, int]:
        """Return what is not 0, by field, and is a whole number: a provider of a user may count anything."""
        amounts = {field: whole(getattr(self, field)) for field in _FIELDS}
        return {field: amount for field, amount in amounts.items() if amount}


class Totals:
    """The requests, tokens, 429s and other errors of each key, by day.

    Counting costs a send a few additions. What was counted is added to the records every few seconds, with
    atomic additions, so that the totals of all processes come together. Records that fail are tried again;
    they never fail a send. What they did not answer in time may then be counted twice.

    Args:
        records: Where the totals are kept.
        clock: Where time comes from.
        also: What else is done in the background, given the deployments that were counted.
        is_busy: Whether there is more of that to do.
    """

    def __init__(
        self,
        records: RecordStore,
        clock: Clock,
        also: Callable[[Iterable[Deployment]], Awaitable[None]] | None = None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._records = records
        self._clock = clock
        self._also = also
        self._is_busy = is_busy
        self._tallies: dict[Deployment, Tally] = {}
        self._day = ""  # of the tallies
        self._waiting: dict[tuple[str, str], int] = {}  # what is to be added, by name and field
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock: asyncio.Lock | None = None
        self._closed = False
        _all.add(self)

    # --- counting -------------------------------------------------------------------------------------

    def count(self, deployment: Deployment, outcome: Reply | SendError) -> None:
        """Count a request that was sent, and what came of it. Never raises: quota is still to be settled."""
        try:
            try:
                tally = self._tallies[deployment]
            except KeyError:
                tally = self._begin(deployment)
            tally.requests += 1
            if outcome.__class__ is Reply:
                usage = outcome.usage
                if usage is not None:
                    tally.input_tokens += usage.input_tokens
                    tally.output_tokens += usage.output_tokens + usage.thinking_tokens
            elif isinstance(outcome, ProviderError) and outcome.kind is FailureKind.QUOTA:
                tally.rate_limited += 1
            elif isinstance(outcome, SendError):
                tally.errors += 1
        except Exception as error:  # noqa: BLE001 - what a provider of a user counts may be anything
            _log.debug("a request cannot be counted: %s", type(error).__name__)

    def _begin(self, deployment: Deployment) -> Tally:
        if not self._tallies:
            self._day = _day(self._clock.time())
            if self._timer is None:
                self._wait(_FLUSH)
        tally = self._tallies[deployment] = Tally()
        return tally

    # --- the background -------------------------------------------------------------------------------

    def enter_loop(self) -> None:
        """Go on in the background of the running loop; that of another one is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._task = self._lock = None
        if self._has_work():
            self._wait(_FLUSH)

    def _wait(self, most: float) -> None:
        """Flush in ``most`` seconds, or when the day ends, so that what was counted belongs to one day."""
        if self._closed:
            return
        self._timer = self._clock.call_later(min(most, _until_midnight(self._clock.time())), self._start)

    def _start(self) -> None:
        self._timer = None
        with suppress(RuntimeError):  # no loop runs: the next one goes on
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        is_done = await self.flush()
        if self._timer is None and self._has_work():
            self._wait(_FLUSH if is_done else _RETRY)

    def _has_work(self) -> bool:
        return bool(self._tallies or self._waiting) or self._is_busy()

    def wake(self) -> None:
        """See to it that something is done in the background within five seconds."""
        if self._timer is None:
            self._wait(_FLUSH)

    async def flush(self) -> bool:
        """Add what was counted to the records now; return whether all of it is there."""
        counted = self._collect()
        if self._also is not None:
            await self._also(counted)
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            by_name: defaultdict[str, dict[str, int]] = defaultdict(dict)
            for (name, field), amount in self._waiting.items():
                by_name[name][field] = amount
            for name, amounts in by_name.items():
                try:
                    await self._records.add(TOTALS, name, amounts, ttl=_TTL)
                except (InvalidRequestError, RecordTooLargeError) as error:  # it would be so again
                    _log.debug("some totals cannot be saved: %s", error)
                except Exception as error:  # noqa: BLE001 - a record store of a user may raise anything
                    _log.debug("totals cannot be saved, and are tried again: %s", type(error).__name__)
                    return False
                for field, amount in amounts.items():
                    left = self._waiting[name, field] - amount
                    if left:
                        self._waiting[name, field] = left
                    else:
                        del self._waiting[name, field]
        return True

    def _collect(self) -> Iterable[Deployment]:
        """Make what was counted wait to be added; return the deployments that it is of."""
        tallies, self._tallies = self._tallies, {}
        for deployment, tally in tallies.items():
            name = _name(self._day, deployment)
            for field, amount in tally.amounts().items():
                place = name, f"{field}:{deployment.model}"
                if place in self._waiting or len(self._waiting) < _MOST_WAITING:
                    self._waiting[place] = self._waiting.get(place, 0) + amount
        return tallies.keys()

    def forget(self) -> None:
        """Forget what was counted: it belongs to the parent of this process."""
        self._tallies, self._waiting = {}, {}
        self._timer = self._task = self._lock = None

    async def aclose(self) -> None:
        """Add what was counted to the records, unless these fail or take longer than a second."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._has_work():
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await self.flush()
        task, self._task = self._task, None
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=_CLOSING)

    # --- reading --------------------------------------------------------------------------------------

    async def of(
        self, deployments: Iterable[Deployment], days: int = 1
    ) -> dict[Deployment, list[DayTotals]] | None:
        """Return the totals of all processes, today's first, of each deployment; None if they are not known.

        Args:
            deployments: The deployments.
            days: How many days, today included.
        """
        await self.flush()
        today = date.fromisoformat(_day(self._clock.time()))
        names = [(today - timedelta(days=back)).isoformat() for back in range(days)]
        try:
            counts = await asyncio.gather(
                *(self._records.counts(TOTALS, f"{day} ", limit=_MOST_WAITING) for day in names)
            )
        except Exception as error:  # noqa: BLE001 - as above
            _log.debug("totals cannot be read: %s", type(error).__name__)
            return None
        return {
            each: [
                _totals(day, found.get(_name(day, each), {}), each.model)
                for day, found in zip(names, counts, strict=True)
            ]
            for each in deployments
        }


def _day(now: float) -> str:
    """Return the date at the provider; a clock that no calendar knows must not fail a send."""
    try:
        return day_of(now, PROVIDER_TIMEZONE)
    except (OverflowError, ValueError, OSError):
        return "9999-12-31"


def _until_midnight(now: float) -> float:
    """Return the seconds to the next midnight at the provider, more than none."""
    try:
        midnight = seconds(midnights(microseconds(now), PROVIDER_TIMEZONE)[1])
    except (OverflowError, ValueError, OSError):
        return math.inf
    return max(midnight - now, 0.001)


def _name(day: str, deployment: Deployment) -> str:
    """Return the name of the counts of a key on a day."""
    return f"{day} {key_name(deployment.key.provider, deployment.key.key_id)}"


def _totals(day: str, counts: Mapping[str, int], model: str) -> DayTotals:
    found = {field: counts.get(f"{field}:{model}", 0) for field in _FIELDS}
    return DayTotals(
        day=day,
        requests=found["requests"],
        input_tokens=found["input_tokens"],
        output_tokens=found["output_tokens"],
        rate_limited=found["rate_limited"],
        errors=found["errors"],
    )


_all: WeakSet[Totals] = WeakSet()


def _after_fork() -> None:
    for totals in tuple(_all):
        totals.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

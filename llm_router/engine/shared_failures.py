"""Share the last failures of each key with other processes, and with those that come later."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from operator import itemgetter

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Key
from llm_router.domain.status import FailureStatus
from llm_router.engine.failures import FAILURES_KEPT, FailureLog
from llm_router.errors import InvalidRequestError, RecordConflictError, RecordTooLargeError
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.naming import key_name
from llm_router.records.reading import records_in

__all__ = ["FAILURES", "FAILURE_BOUNDS", "SharedFailures"]

_log = logging.getLogger("llm_router")

FAILURES = "failures"
"""The space of the records: one for each key that has failed."""

FAILURE_BOUNDS = Bounds(records=10_000, size=32 * 2**20, largest=16 * 2**10)
"""How much of it there may be."""

_TTL = 35 * 86_400.0
"""Seconds for which a failure is shown."""

_AT_ONCE = 200
"""Most keys whose failures are told in one go."""

_TRIES = 5
"""How often it is tried to add to what other processes keep adding to."""

_SHOWN = 10_000
_LONGEST = 200
"""Characters of the longest text that is shared or believed."""


@attrs.frozen(eq=False)
class SharedFailures:
    """The last ten failures of each key, in all processes that share the records.

    Attributes:
        log: Those of this process.
        records: Where they are shared.
        clock: Where time comes from.
    """

    log: FailureLog
    records: RecordStore
    clock: Clock

    @property
    def is_busy(self) -> bool:
        """Whether there is something to tell."""
        return bool(self.log.untold)

    async def publish(self) -> None:
        """Tell others what failed here. What cannot be told now is told later."""
        for key in list(islice(self.log.untold, _AT_ONCE)):
            del self.log.untold[key]  # before anything is awaited: what fails meanwhile is told next
            try:
                await self._add(key)
            except (InvalidRequestError, RecordTooLargeError) as error:  # it would be so again
                _log.debug("some failures cannot be shared: %s", error)
            except BaseException as error:
                self.log.untold.setdefault(key)
                if not isinstance(error, Exception):
                    raise
                _log.debug("failures cannot be shared, and are tried again: %s", type(error).__name__)
                return

    async def _add(self, key: tuple[str, str]) -> None:
        """Merge the failures of a key into those that are kept."""
        name = key_name(*key)
        for tries_left in reversed(range(_TRIES)):
            record = await self.records.get(FAILURES, name)
            known = [] if record is None else _read(record.data, self.clock.time())
            merged = _merged(self.log.of_id(*key), known)
            if merged == known:
                return
            data = json.dumps(merged).encode()
            try:
                await self.records.put(
                    FAILURES, name, data, ttl=_TTL, version=0 if record is None else record.version
                )
            except RecordConflictError:  # another process was faster
                if not tries_left:
                    raise
            else:
                return

    async def known(self, keys: Iterable[Key]) -> dict[Key, list[FailureStatus]]:
        """Return what failed in all processes, the latest first; of keys without a failure nothing.

        Of records that cannot be read nothing is returned, and :class:`FailureLog` has those of this process.
        """
        wanted = {key_name(key.provider, key.key_id): key for key in keys}
        try:
            found = await records_in(self.records, FAILURES, _SHOWN, wanted.__contains__)
        except Exception as error:  # noqa: BLE001 - a record store of a user may raise anything
            _log.debug("failures of others cannot be read: %s", type(error).__name__)
            return {}
        now = self.clock.time()
        return {
            wanted[name]: _merged(self.log.of(wanted[name]), _read(record.data, now))
            for name, record in found.items()
        }


def _merged(own: Iterable[FailureStatus], others: Iterable[FailureStatus]) -> list[FailureStatus]:
    """Return the last ten of both, the latest first; ``others`` may contain some of ``own``."""
    merged = list(map(_shortened, own))
    there = Counter(map(_identity, merged))
    for each in others:
        identity = _identity(each)
        if there[identity]:
            there[identity] -= 1
        else:
            merged.append(each)
    return sorted(merged, key=itemgetter("at"), reverse=True)[:FAILURES_KEPT]


def _identity(failure: FailureStatus) -> tuple[object, ...]:
    return tuple(failure.values())


def _shortened(failure: FailureStatus) -> FailureStatus:
    return FailureStatus(
        at=failure["at"],
        model=failure["model"][:_LONGEST],
        kind=failure["kind"],
        code=failure["code"],
        words=failure["words"][:_LONGEST],
    )


def _read(data: bytes, now: float) -> list[FailureStatus]:
    """Return what was kept, perhaps by another version; nothing of what makes no sense or is too old."""
    try:
        found = [
            FailureStatus(
                at=float(each["at"]),
                model=str(each["model"])[:_LONGEST],
                kind=str(each["kind"])[:_LONGEST],
                code=None if each["code"] is None else int(each["code"]),
                words=str(each["words"])[:_LONGEST],
            )
            for each in json.loads(data)
        ]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return []
    return [each for each in found if now - _TTL < each["at"] < math.inf][:FAILURES_KEPT]

"""Say why a request cannot be sent: what refused it, candidate by candidate, and from when on to retry."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

from llm_router.domain.kinds import FailureKind
from llm_router.domain.wording import count, seconds_words
from llm_router.engine.breaker import PATH_FAILURES
from llm_router.engine.index import FallbackOrder
from llm_router.engine.search import available_at, soonest
from llm_router.engine.waiting import Shortage
from llm_router.errors import (
    ProviderError,
    QuotaExhaustedError,
    RefusedCandidate,
    SendError,
    StoreError,
    StoreTimeoutError,
)
from llm_router.stores.base import Refusal

__all__ = ["NAMED_CANDIDATES", "explain_shortage", "retry_after", "store_failure"]

NAMED_CANDIDATES = 64
"""Most candidates listed in one QuotaExhaustedError, those first that have room first."""

_TRANSIENT = (FailureKind.SERVER, *PATH_FAILURES)

_OVERLOAD = 1.0
"""Seconds after which to try again where the store was overloaded."""


def explain_shortage(
    order: FallbackOrder, failure: ProviderError | None, shortage: Shortage, now: float
) -> SendError:
    """Return the error of a send that found no room, with ``retry_after`` set.

    Args:
        order: Where it looked.
        failure: Its last failed attempt, or None. A transient failure says more than the lack of room that
            it caused, and is returned itself.
        shortage: What the selector found.
        now: Seconds since the epoch.
    """
    retry = _seconds_until(shortage.retry_at, now)
    if failure is not None and failure.kind in _TRANSIENT:
        failure.retry_after = retry
        return failure
    candidates = _candidates(order, shortage, now)
    when = "waiting does not help" if retry is None else f"retry in {seconds_words(retry)}"
    line = f"; {shortage.ahead} requests wait before this one" if shortage.ahead else ""
    return QuotaExhaustedError(
        f"none of {count(order.size, 'deployment')} has room: {_summary(candidates)}{line}; {when}",
        candidates=candidates,
        retry_after=retry,
    )


def store_failure(error: StoreError) -> SendError:
    """Return the error of a send whose quota could not be reserved, since the store failed."""
    overloaded = isinstance(error, StoreTimeoutError)  # one that is down does not come back so soon
    failure = SendError(
        f"the state store failed, so no quota could be reserved: {error}",
        retry_after=_OVERLOAD if overloaded else None,
    )
    failure.__cause__ = error
    return failure


def retry_after(order: FallbackOrder, now: float) -> float | None:
    """Return in how many seconds another send may find a deployment; None if waiting does not help."""
    return _seconds_until(available_at(order), now)


def _candidates(order: FallbackOrder, shortage: Shortage, now: float) -> tuple[RefusedCandidate, ...]:
    asked = {refusal.deployment: refusal for refusal in shortage.refusals}
    known = [*asked.values(), *_unreachable(order, now)]
    known += [
        state.refusal
        for state in soonest(order, NAMED_CANDIDATES)
        if state.refusal is not None and state.deployment not in asked
    ]
    first = heapq.nsmallest(NAMED_CANDIDATES, known, key=lambda refusal: refusal.retry_at)
    return tuple(
        RefusedCandidate(
            refusal.deployment.key.key_id,
            refusal.deployment.model,
            refusal.reason,
            _seconds_until(refusal.retry_at, now),
        )
        for refusal in first
    )


def _unreachable(order: FallbackOrder, now: float) -> Iterator[Refusal]:
    """Yield a refusal of each ready deployment whose provider cannot be reached."""
    for group in order.groups:
        until = group.breaker.open_until
        if until > now:
            ready = (state for state in group.states if not state.is_parked)
            for state in itertools.islice(ready, NAMED_CANDIDATES):
                yield Refusal(state.deployment, group.breaker.reason, until, until)


def _seconds_until(moment: float, now: float) -> float | None:
    return None if moment == math.inf else max(moment - now, 0.0)


def _summary(candidates: tuple[RefusedCandidate, ...]) -> str:
    """Say in a few words what most candidates lack."""
    counts: dict[str, int] = {}
    for candidate in candidates:
        counts[candidate.reason] = counts.get(candidate.reason, 0) + 1
    most = heapq.nlargest(3, counts.items(), key=lambda item: item[1])
    return ", ".join(f"{reason} ({count})" for reason, count in most) or "nothing is ready"

"""The reply of the script, read back into the results of the operations; see ``lua/batch.lua``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llm_router.domain.calendar import NEVER, seconds
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.limits import LimitRecord
from llm_router.stores.base import RECOUNT, Decision, DeploymentSnapshot, QuotaSnapshot, Refusal, Standing
from llm_router.stores.redis.descriptions import read_description
from llm_router.stores.redis.wire import (
    METRICS,
    SOURCES,
    Announce,
    Charge,
    CoolDown,
    Operation,
    Reserve,
    Snapshot,
)

__all__ = ["decode"]

_log = logging.getLogger("llm_router")

_PROBING = 2
"""The outcome of a reserve that probes cooldowns."""

_THE_SAME = 8
"""Says in the code of a refusal that both of its times are the same."""

_IS_LEARNT = 8
"""Says in the number of a metric that what was learnt of its limit follows."""

_RECOUNT, _LOST, _FOREIGN = 5, 6, 7
"""The numbers of the reasons that are not metrics."""

_MAX_WARNED = 1_000

_SHARE = 2.0**-53
"""The unit of headroom in replies: as fine as a double between 0.5 and 1."""


def decode(
    operations: Sequence[Operation],
    descriptions: Sequence[str | bytes],
    numbers: list[int],
    lifts: int,
    reset_at: float,
    ahead: int,
) -> list[Any]:
    """Return the results of ``operations``, in order, from the parts of an ``"ok"`` reply.

    The times in the reply are on the server's clock, which is ``ahead`` microseconds ahead of the callers'
    clock; those in the results are on the callers' clock, as is ``reset_at`` (seconds).
    """
    pairs = zip(descriptions[::2], descriptions[1::2], strict=True)
    cooldowns = [read_description(text, until, ahead) for text, until in pairs]
    reader = _Reader(numbers, cooldowns, lifts, reset_at, ahead)
    return [reader.read(operation) for operation in operations]


_warned: set[str] = set()


def _unreadable(deployment: Deployment, found: Cooldown) -> Cooldown:
    return Cooldown.unreadable(found.scope, found.until, deployment.key.key_id, deployment.model)


def _warn_of(deployment: Deployment, cooldown: Cooldown) -> None:
    if deployment.model_scope not in _warned and len(_warned) < _MAX_WARNED:
        _warned.add(deployment.model_scope)
        _log.warning(
            "%s cannot be used: %s, delete the key with 'scope:%s' in its name, or use another namespace",
            deployment.id,
            cooldown.reason,
            cooldown.scope,
        )


class _Reader:
    """Reads the numbers of a reply, one result after the other."""

    __slots__ = ("_ahead", "_at", "_cooldowns", "_lifts", "_numbers", "_reset_at")

    def __init__(
        self,
        numbers: list[int],
        cooldowns: list[Cooldown],
        lifts: int,
        reset_at: float,
        ahead: int,
    ) -> None:
        self._ahead = ahead
        self._reset_at = reset_at
        self._numbers = numbers
        self._cooldowns: list[Cooldown | None] = [None, *cooldowns]
        self._lifts = lifts
        self._at = 0

    def read(self, operation: Operation) -> Decision | list[DeploymentSnapshot] | Standing | float | None:
        """Read the next result, which is that of ``operation``."""
        if isinstance(operation, Reserve):
            return self._decision(operation.candidates)
        if isinstance(operation, Snapshot):
            return [self._snapshot(deployment) for deployment in operation.deployments]
        if isinstance(operation, Charge):
            return seconds(self._take(1)[0])
        if isinstance(operation, Announce):
            count, rank = self._take(2)
            return Standing(count, rank if rank >= 0 else None)
        return self._lifts if isinstance(operation, CoolDown) else None

    def _take(self, count: int) -> list[int]:
        at = self._at
        self._at = at + count
        return self._numbers[at : at + count]

    def _decision(self, candidates: Sequence[Deployment]) -> Decision:
        refused, granted = divmod(self._numbers[self._at], 4)
        self._at += 1
        refusals, lost = self._refusals(candidates, refused) if refused else ((), ())
        if not granted:
            return Decision(None, 0.0, 0.0, refusals, (), self._lifts, 0.0, lost, self._reset_at)
        at = self._at
        self._at = at + 3
        numbers = self._numbers
        headroom, daily_headroom = numbers[at] * _SHARE, numbers[at + 1] * _SHARE
        since = numbers[at + 2] / 1e6
        probes = self._probes() if granted == _PROBING else ()
        granted_to, lifts = candidates[refused], self._lifts
        return Decision(
            granted_to, headroom, daily_headroom, refusals, probes, lifts, since, lost, self._reset_at
        )

    def _probes(self) -> tuple[Cooldown, ...]:
        [count] = self._take(1)
        found = (self._cooldowns[number] for number in self._take(count))
        return tuple(cooldown for cooldown in found if cooldown is not None)

    def _refusals(
        self, candidates: Sequence[Deployment], count: int
    ) -> tuple[tuple[Refusal, ...], tuple[Deployment, ...]]:
        refusals, lost = [], []
        for deployment in candidates[:count]:
            code, retry_at = self._take(2)
            [wake_at] = [retry_at] if code & _THE_SAME else self._take(1)
            cooldown, metric = self._cooldowns[code >> 4], code & 7
            if metric == _FOREIGN and cooldown is not None:
                cooldown = _unreadable(deployment, cooldown)
                reason = cooldown.reason
                _warn_of(deployment, cooldown)
            elif metric in (_RECOUNT, _LOST):
                reason = RECOUNT
                if metric == _LOST:
                    lost.append(deployment)
            else:
                reason = METRICS[metric - 1].value if metric or cooldown is None else cooldown.reason
            moments = self._moment(retry_at), self._moment(wake_at)
            refusals.append(Refusal(deployment, reason, *moments, cooldown))
        return tuple(refusals), tuple(lost)

    def _moment(self, moment: int) -> float:
        return seconds(moment if moment >= NEVER else moment - self._ahead)

    def _snapshot(self, deployment: Deployment) -> DeploymentSnapshot:
        count, number = self._take(2)
        quotas = []
        for _ in range(count):
            code, limit, used, resets_at = self._take(4)
            learnt = self._limit() if code & _IS_LEARNT else None
            metric = METRICS[(code & 7) - 1]
            quotas.append(QuotaSnapshot(metric, limit, used, self._moment(resets_at), learnt))
        cooldown = self._cooldowns[abs(number)]
        if number < 0 and cooldown is not None:
            cooldown = _unreadable(deployment, cooldown)
        return DeploymentSnapshot(deployment, tuple(quotas), cooldown)

    def _limit(self) -> LimitRecord:
        # The time at which it was learnt says which one it is, so it is not shifted: by the time it is sent
        # back, the clocks may be found to differ by something else.
        limit, source, learnt_at, raised, raise_at = self._take(5)
        return LimitRecord(limit, SOURCES[source - 1], seconds(learnt_at), raised, self._moment(raise_at))

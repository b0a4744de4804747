"""The reply of the script, read back into the results of the operations; see ``lua/batch.lua``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_router.domain.calendar import NEVER, seconds
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.stores.base import Decision, DeploymentSnapshot, QuotaSnapshot, Refusal
from llm_router.stores.redis.descriptions import read_description
from llm_router.stores.redis.wire import METRICS, CoolDown, Operation, Reserve, Snapshot

__all__ = ["decode"]

_PROBING = 2
"""The outcome of a reserve that probes cooldowns."""

_THE_SAME = 8
"""Says in the code of a refusal that both of its times are the same."""

_SHARE = 2.0**-53
"""The unit of headroom in replies: as fine as a double between 0.5 and 1."""


def decode(
    operations: Sequence[Operation],
    descriptions: Sequence[str | bytes],
    numbers: list[int],
    lifts: int,
    ahead: int,
) -> list[Any]:
    """Return the results of ``operations``, in order, from the parts of an ``"ok"`` reply.

    The times in the reply are on the server's clock, which is ``ahead`` microseconds ahead of the callers'
    clock; those in the results are on the callers' clock.
    """
    pairs = zip(descriptions[::2], descriptions[1::2], strict=True)
    cooldowns = [read_description(text, until, ahead) for text, until in pairs]
    reader = _Reader(numbers, cooldowns, lifts, ahead)
    return [reader.read(operation) for operation in operations]


class _Reader:
    """Reads the numbers of a reply, one result after the other."""

    __slots__ = ("_ahead", "_at", "_cooldowns", "_lifts", "_numbers")

    def __init__(self, numbers: list[int], cooldowns: list[Cooldown], lifts: int, ahead: int) -> None:
        self._ahead = ahead
        self._numbers = numbers
        self._cooldowns: list[Cooldown | None] = [None, *cooldowns]
        self._lifts = lifts
        self._at = 0

    def read(self, operation: Operation) -> Decision | list[DeploymentSnapshot] | int | None:
        """Read the next result, which is that of ``operation``."""
        if isinstance(operation, Reserve):
            return self._decision(operation.candidates)
        if isinstance(operation, Snapshot):
            return [self._snapshot(deployment) for deployment in operation.deployments]
        return self._lifts if isinstance(operation, CoolDown) else None

    def _take(self, count: int) -> list[int]:
        at = self._at
        self._at = at + count
        return self._numbers[at : at + count]

    def _decision(self, candidates: Sequence[Deployment]) -> Decision:
        refused, granted = divmod(self._numbers[self._at], 4)
        self._at += 1
        refusals = self._refusals(candidates, refused) if refused else ()
        if not granted:
            return Decision(None, 0.0, 0.0, refusals, (), self._lifts)
        at = self._at
        self._at = at + 2
        numbers = self._numbers
        headroom, daily_headroom = numbers[at] * _SHARE, numbers[at + 1] * _SHARE
        probes = self._probes() if granted == _PROBING else ()
        return Decision(candidates[refused], headroom, daily_headroom, refusals, probes, self._lifts)

    def _probes(self) -> tuple[Cooldown, ...]:
        [count] = self._take(1)
        found = (self._cooldowns[number] for number in self._take(count))
        return tuple(cooldown for cooldown in found if cooldown is not None)

    def _refusals(self, candidates: Sequence[Deployment], count: int) -> tuple[Refusal, ...]:
        refusals = []
        for deployment in candidates[:count]:
            code, retry_at = self._take(2)
            [wake_at] = [retry_at] if code & _THE_SAME else self._take(1)
            cooldown, metric = self._cooldowns[code >> 4], code & 7
            reason = METRICS[metric - 1].value if metric or cooldown is None else cooldown.reason
            moments = self._moment(retry_at), self._moment(wake_at)
            refusals.append(Refusal(deployment, reason, *moments, cooldown))
        return tuple(refusals)

    def _moment(self, moment: int) -> float:
        return seconds(moment if moment >= NEVER else moment - self._ahead)

    def _snapshot(self, deployment: Deployment) -> DeploymentSnapshot:
        count, cooldown = self._take(2)
        quotas = []
        for _ in range(count):
            metric, limit, used, resets_at = self._take(4)
            quotas.append(QuotaSnapshot(METRICS[metric - 1], limit, used, self._moment(resets_at)))
        return DeploymentSnapshot(deployment, tuple(quotas), self._cooldowns[cooldown])

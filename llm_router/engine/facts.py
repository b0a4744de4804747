"""Share what refusals suggest with other processes: found by one, it is in the statuses of all."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.status import FactStatus
from llm_router.engine.suspicions import REMEMBERED, Suspicions
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.reading import records_in

__all__ = ["FACTS", "FACT_BOUNDS", "SharedFacts"]

_log = logging.getLogger("llm_router")

FACTS = "facts"
"""The space of the records: one for each (project, model) of which there is something to say."""

FACT_BOUNDS = Bounds(records=1_000, size=2 * 2**20, largest=64 * 2**10)
"""How much of it there may be."""

_SHOWN = 1_000
_LONGEST_NAME = 512


@attrs.define(eq=False)
class SharedFacts:
    """What this process suspects, and what others do.

    Attributes:
        suspicions: What this process suspects.
        records: Where it is shared.
        clock: Where time comes from.
    """

    suspicions: Suspicions
    records: RecordStore
    clock: Clock
    _told: dict[Scope, float] = attrs.field(factory=dict, init=False)

    async def publish(self, deployments: Iterable[Deployment]) -> None:
        """Share what is suspected of deployments with other processes. A failing store does no harm."""
        now = self.clock.time()
        for deployment in deployments:
            for fact in self.suspicions.about(deployment, now):
                scope = deployment.model_scope
                if self._told.get(scope) == fact["at"] or len(scope) > _LONGEST_NAME:
                    continue
                try:
                    await self.records.put(FACTS, scope, json.dumps(fact).encode(), ttl=REMEMBERED)
                except Exception as error:  # noqa: BLE001 - a record store of a user may raise anything
                    _log.debug("a suspicion cannot be shared: %s", type(error).__name__)
                    return
                if len(self._told) > _SHOWN:
                    self._told.clear()
                self._told[scope] = fact["at"]

    async def known(self) -> dict[str, FactStatus]:
        """Return what others suspect, by the scope of the (project, model); nothing if it cannot be read."""
        try:
            found = await records_in(self.records, FACTS, _SHOWN)
            return {name: _fact(record.data) for name, record in found.items()}
        except Exception as error:  # noqa: BLE001 - likewise, or something else wrote it
            _log.debug("suspicions of others cannot be read: %s", type(error).__name__)
            return {}


def _fact(data: bytes) -> FactStatus:
    """Return a fact that another process wrote, perhaps one of another version."""
    found = json.loads(data)
    return FactStatus(
        kind=str(found["kind"]),
        at=float(found["at"]),
        words=str(found["words"]),
        keys=[str(key) for key in found["keys"]],
    )

"""Spreads the projects of one store over several shards, each with batches of its own."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import groupby

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.quota import Demand
from llm_router.errors import ConfigError, StoreTimeoutError
from llm_router.stores.base import Decision, DeploymentSnapshot
from llm_router.stores.redis.batch import Batcher, decide
from llm_router.stores.redis.wire import CoolDown, Reserve, Settle, Snapshot

__all__ = ["MAX_SHARDS", "Lanes", "Sharding", "lane_of", "requested_shards", "shard_of", "take_snapshot"]

Lanes = tuple[tuple[Batcher, ...], ...]
"""The batchers of one event loop: those of each shard, in order."""

MAX_SHARDS = 256
"""A limit because a key's cooldown goes to every shard, and a process has a batch under way for each."""

_NUMBER = re.compile("[0-9]{1,9}")

_MAX_REMEMBERED = 100_000
"""Reservations made here whose shard is remembered; for all others every shard is asked."""

_SNAPSHOT_SIZE = 128
"""Deployments in one snapshot operation: longer lists are split, so that other operations run in between."""


def requested_shards(argument: int | None, in_url: str | None) -> int:
    """Return the number of shards that an argument or a URL asks for; 1 if neither does.

    Raises:
        ConfigError: It is not such a number, or the two differ.
    """
    requested = [str(number) for number in (argument, in_url) if number is not None]
    wrong = [text for text in requested if not (_NUMBER.fullmatch(text) and 1 <= int(text) <= MAX_SHARDS)]
    if wrong:
        raise ConfigError(f"shards must be a whole number from 1 to {MAX_SHARDS}, not {wrong[0]!r}")
    if len({int(text) for text in requested}) > 1:
        raise ConfigError(f"shards={argument} was given, but the URL says shards={in_url}: give one of them")
    return int(requested[0]) if requested else 1


@lru_cache(maxsize=1 << 16)
def shard_of(scope: Scope, shards: int) -> int | None:
    """Return the shard of a project or one of its models; None for a scope that goes to all shards.

    It is the same on every machine and in every version: a hash of provider and project decides.
    """
    kind, *names = scope.split(":")
    if kind not in ("model", "project"):
        return None
    digest = blake2b(":".join(names[:2]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


def lane_of(lanes: tuple[Batcher, ...], reservation_id: str) -> Batcher:
    """Return the lane of a shard that a reservation always takes, so that its operations keep their order."""
    return lanes[hash(reservation_id) % len(lanes)]


async def take_snapshot(lane: Batcher, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
    """Return the state of ``deployments``, all of one shard; an empty list only checks that it answers."""
    loop = asyncio.get_running_loop()
    snapshots: list[DeploymentSnapshot] = []
    for start in range(0, len(deployments) or 1, _SNAPSHOT_SIZE):
        operation = Snapshot(loop.create_future(), deployments[start : start + _SNAPSHOT_SIZE])
        lane.add(operation)
        snapshots += await operation.future
    return snapshots


class Sharding:
    """Sends each operation to the shards that it concerns.

    ``lanes`` are always those of the running loop.

    Args:
        shards: How many there are.
        timeout: Seconds after which a reserve asks no further shard.
        address: What to call the server in messages.
    """

    def __init__(self, shards: int, timeout: float, address: str) -> None:
        self.shards = shards
        self._timeout = timeout
        self._address = address
        self._made: OrderedDict[str, int] = OrderedDict()  # the shard of a reservation, or the last one asked
        self._lifts = [0] * shards  # what each last reported

    async def reserve(
        self,
        lanes: Lanes,
        reservation_id: str,
        candidates: Sequence[Deployment],
        demand: Demand,
        ttl: float,
    ) -> Decision:
        """Ask the shards of the candidates in turn, once for each run of candidates in the same shard."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._timeout
        decision, first_reset = Decision(None, 0.0, 0.0), None
        for shard, run in self._runs(candidates):
            if loop.time() > give_up:
                raise StoreTimeoutError(
                    f"the Redis server at {self._address} did not answer within {self._timeout:g} s",
                    shard=shard,
                )
            self._remember(reservation_id, shard)
            before, lost = decision.refusals, decision.lost
            operation = Reserve(loop.create_future(), reservation_id, run, demand, ttl)
            decision = await decide(lane_of(lanes[shard], reservation_id), operation)
            decision.refusals = before + decision.refusals
            decision.lost = lost + decision.lost
            self._lifts[shard] = decision.lifts
            decision.lifts = sum(self._lifts)
            first_reset = decision.reset_at if first_reset is None else first_reset
            if decision.deployment is not None:
                await self._spread(lanes, shard, decision.probes)
                break
            if self._made.pop(reservation_id, None) is None:
                break  # settled or released meanwhile: the next run must not take anything
        if decision.deployment is None and first_reset is not None:
            decision.reset_at = first_reset
        return decision

    async def settle(self, lanes: Lanes, reservation_id: str, used: Demand) -> None:
        """Settle a reservation in its shard, or in every shard if it was made by another store."""
        loop = asyncio.get_running_loop()
        shard = self._made.pop(reservation_id, None)
        operations = []
        for concerned in lanes if shard is None else (lanes[shard],):
            operations.append(Settle(loop.create_future(), reservation_id, used))
            lane_of(concerned, reservation_id).add(operations[-1])
        await asyncio.gather(*(operation.future for operation in operations))

    async def cool_down(self, lanes: Lanes, cooldown: Cooldown) -> None:
        """Cool a scope down in its shard; a key or provider in every shard, since each reads only its own."""
        loop = asyncio.get_running_loop()
        shard = shard_of(cooldown.scope, self.shards)
        concerned = range(self.shards) if shard is None else (shard,)
        operations = [CoolDown(loop.create_future(), cooldown) for _ in concerned]
        for place, operation in zip(concerned, operations, strict=True):
            lanes[place][0].add(operation)
        lifts = await asyncio.gather(*(operation.future for operation in operations))
        for place, count in zip(concerned, lifts, strict=True):
            self._lifts[place] = count

    async def _spread(self, lanes: Lanes, shard: int, probes: Sequence[Cooldown]) -> None:
        """Keep the other shards from letting a second request probe what one in ``shard`` probes.

        Only a provider has deployments in several shards. Until they know, each may still grant one.
        """
        loop = asyncio.get_running_loop()
        operations = []
        for probe in probes:
            if probe.scope.startswith("provider:"):
                for lane in lanes[:shard] + lanes[shard + 1 :]:
                    operations.append(CoolDown(loop.create_future(), probe, "probe"))
                    lane[0].add(operations[-1])
        # The reservation counts, whatever becomes of these.
        try:
            await asyncio.gather(*(operation.future for operation in operations), return_exceptions=True)
        except asyncio.CancelledError:
            for lane in lanes:
                lane[0].pass_on(probes)
            raise

    async def snapshot(self, lanes: Lanes, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Ask all shards concerned at once, or every shard if there are no deployments."""
        parts: list[list[Deployment]] = [[] for _ in lanes]
        for deployment in deployments:
            parts[self.of(deployment)].append(deployment)
        asked = [shard for shard, part in enumerate(parts) if part or not deployments]
        answers = await asyncio.gather(*(take_snapshot(lanes[shard][0], parts[shard]) for shard in asked))
        snapshots = dict(zip(asked, map(iter, answers), strict=True))
        return [next(snapshots[self.of(deployment)]) for deployment in deployments]

    def of(self, deployment: Deployment) -> int:
        """Return the shard of a deployment."""
        return shard_of(deployment.model_scope, self.shards) or 0

    def _runs(self, candidates: Sequence[Deployment]) -> Iterator[tuple[int, tuple[Deployment, ...]]]:
        for shard, run in groupby(candidates, self.of):
            yield shard, tuple(run)

    def _remember(self, reservation_id: str, shard: int) -> None:
        self._made[reservation_id] = shard
        if len(self._made) > _MAX_REMEMBERED:
            self._made.popitem(last=False)

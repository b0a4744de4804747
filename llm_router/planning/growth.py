"""How many more projects a pool needs so that requests wait no longer than a target."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from llm_router.domain.calendar import microseconds, midnights
from llm_router.domain.deployment import Deployment
from llm_router.domain.kinds import Metric
from llm_router.domain.numbers import real, shown
from llm_router.domain.quota import PROVIDER_TIMEZONE
from llm_router.domain.secret import Secret
from llm_router.errors import InvalidRequestError
from llm_router.planning.figures import percentile
from llm_router.planning.simulation import Setting, simulate
from llm_router.planning.traffic import Arrival

__all__ = ["Growth", "projects_needed"]

_MOST = 1024
"""Most projects that are added."""

_SHARE = 0.95


@attrs.frozen
class Growth:
    """What a pool needs for a target.

    Attributes:
        target: Seconds that 95 % of all requests are to wait at most.
        more: How many projects it takes in addition; None if no number that was tried is enough.
        like: The key whose project, with all its models, they are like.
    """

    target: float
    more: int | None
    like: str


def projects_needed(traffic: Sequence[Arrival], setting: Setting, target: float) -> Growth:
    """Find the smallest number of further projects with which 95 % of the requests wait ``target`` at most.

    It takes a run of the traffic for each number that is tried: about twice the logarithm of the answer.
    Those in which too many are late end early.

    Raises:
        InvalidRequestError: The target is not a number of seconds; or as for :func:`simulate`.
    """
    if not 0 <= real(target) < math.inf:
        raise InvalidRequestError(f"the target must be a number of seconds, 0 or more, not {shown(target)}")
    template = _template(setting.deployments)

    def is_enough(more: int) -> bool:
        pool = [*setting.deployments, *_copies(template, more)]
        outcome = simulate(traffic, attrs.evolve(setting, deployments=pool), late_after=target)
        return not outcome.stopped and percentile(sorted(outcome.waits), _SHARE) <= target

    return Growth(target, _search(is_enough, _at_least(traffic, setting, template)), template[0].key.key_id)


def _search(is_enough: Callable[[int], bool], at_least: int) -> int | None:
    """Return the smallest number that is enough; all below ``at_least`` are known not to be."""
    low, high, step = at_least - 1, at_least, 1
    while not is_enough(high):
        if high == _MOST:
            return None
        low, high, step = high, min(high + step, _MOST), step * 2
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def _template(deployments: Sequence[Deployment]) -> list[Deployment]:
    """Return the deployments of one key of the project that has most of them, the first such."""
    keys = Counter(each.key.key_id for each in deployments)
    key_id = keys.most_common(1)[0][0]
    return [each for each in deployments if each.key.key_id == key_id]


def _copies(template: Sequence[Deployment], count: int) -> Iterator[Deployment]:
    for number in range(1, count + 1):
        for each in template:
            name = f"{each.key.key_id}\0{number}"  # what no key is called
            yield attrs.evolve(each, key=attrs.evolve(each.key, key_id=name, secret=Secret(""), project=name))


def _at_least(traffic: Sequence[Arrival], setting: Setting, template: Sequence[Deployment]) -> int:
    """Return how many more it takes at least, by the requests of a single day; 0 if that does not say."""
    has = _a_day({(each.key.project, each.model): each for each in setting.deployments}.values())
    each_adds = _a_day(template)
    if math.isinf(has) or math.isinf(each_adds) or not each_adds:
        return 0
    days = Counter(midnights(microseconds(each.at), PROVIDER_TIMEZONE)[0] for each in traffic)
    if len(days) > 1:  # what came late on one day may be sent on the next
        return 0
    needed = len(traffic) * _SHARE - has
    return min(max(math.ceil(needed / each_adds), 0), _MOST)


def _a_day(deployments: Iterable[Deployment]) -> float:
    """Return how many requests deployments admit on a day; infinity if one has no such limit."""
    limits = [
        [quota.limit for quota in each.quotas if quota.metric is Metric.RPD and not quota.adaptive]
        for each in deployments
    ]
    return sum(min(found) if found else math.inf for found in limits)

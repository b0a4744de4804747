"""The traffic of a plan: read from a file, or made of a few numbers."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from llm_router.domain.calendar import next_midnight
from llm_router.domain.numbers import real, shown, whole
from llm_router.domain.quota import PROVIDER_TIMEZONE
from llm_router.errors import InvalidRequestError

__all__ = ["MIDNIGHT", "Arrival", "make_traffic", "read_traffic"]

MIDNIGHT = next_midnight(1_800_000_000.0, PROVIDER_TIMEZONE)
"""When traffic begins whose times are not dates: as a day's quota does."""

_EPOCH = 1e9
"""Seconds from which on a time is one since the Unix epoch, and no longer one since the beginning."""

_MAX_TOKENS = 10**9

_LONGEST_TRAFFIC = 35 * 86_400.0
"""Most seconds from the first arrival to the last."""

_MOST = 5_000_000
"""Most arrivals of a plan."""


@attrs.frozen(slots=True)
class Arrival:
    """One request of the traffic.

    Attributes:
        at: When it comes, in seconds since the Unix epoch.
        tokens: Its input tokens.
        workload: The workload wished for, or None.
        model: The model wished for, or None.
    """

    at: float
    tokens: int = 500
    workload: str | None = None
    model: str | None = None


def make_traffic(
    rpm: float,
    *,
    hours: float = 24.0,
    tokens: int = 500,
    workloads: Mapping[str, float] | None = None,
    seed: int = 1,
) -> list[Arrival]:
    """Return a Poisson process from midnight in Los Angeles on.

    Args:
        rpm: Requests a minute, on average.
        hours: How long.
        tokens: Input tokens of each request.
        workloads: Workload → its share of the requests, in any unit; None for no workload.
        seed: The seed of all randomness.

    Raises:
        InvalidRequestError: A number cannot be meant, or there would be too many requests.
    """
    shares = _shares(workloads)
    for name, value in (("rpm", rpm), ("hours", hours)):
        if not 0 < real(value) <= _EPOCH:
            raise InvalidRequestError(f"{name} must be a number above 0, not {shown(value)}")
    if whole(tokens) is None or not 0 <= tokens <= _MAX_TOKENS:
        raise InvalidRequestError(f"tokens must be a whole number, 0 or more, not {shown(tokens)}")
    if rpm * hours * 60 > _MOST or hours * 3600 > _LONGEST_TRAFFIC:
        raise InvalidRequestError(f"that is more than {_MOST:,} requests or 35 days: plan fewer hours")
    draw = random.Random(seed)  # noqa: S311 - traffic, not a secret
    names, weights = list(shares), list(itertools.accumulate(shares.values()))
    arrivals, at, ends = [], MIDNIGHT, MIDNIGHT + hours * 3600
    while (at := at + draw.expovariate(rpm / 60)) < ends:
        arrivals.append(Arrival(at, tokens, draw.choices(names, cum_weights=weights)[0]))
    return arrivals


def _shares(workloads: Mapping[str, float] | None) -> Mapping[str | None, float]:
    if not workloads:
        return {None: 1.0}
    for name, share in workloads.items():
        if not 0 <= real(share) <= _EPOCH:
            raise InvalidRequestError(
                f"the share of {name!r} must be a number, 0 or more, not {shown(share)}"
            )
    if not sum(workloads.values()):
        raise InvalidRequestError("one workload at least must have a share above 0")
    return dict(workloads.items())


def read_traffic(path: Path) -> list[Arrival]:
    """Return the requests of a file with one JSON object per line, in the order of their times.

    Each has ``at``: seconds since the beginning, seconds since the Unix epoch, or an ISO 8601 time (UTC
    unless it says otherwise). It may have ``tokens`` (500), ``workload`` and ``model``; others are ignored.

    Raises:
        InvalidRequestError: A line is wrong; the message says which, why and what to do.
        OSError: The file cannot be read.
    """
    arrivals: list[Arrival] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                arrivals.append(_parse(line))
            except InvalidRequestError as error:
                problem = str(error)
            else:
                if len(arrivals) > _MOST:
                    raise InvalidRequestError(f"{path} has more than {_MOST:,} lines: plan a part of it")
                continue
            raise InvalidRequestError(f"line {number} of {path}: {problem}")
    if not arrivals:
        raise InvalidRequestError(f'{path} has no requests: write lines such as {{"at": 0.5, "tokens": 900}}')
    return _ordered(arrivals)


def _ordered(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return the arrivals by their times; those that are not dates begin at midnight."""
    dated = sum(arrival.at >= _EPOCH for arrival in arrivals)
    if 0 < dated < len(arrivals):
        raise InvalidRequestError("some times are dates, others seconds since the beginning: use one of them")
    shift = 0.0 if dated else MIDNIGHT
    found = sorted((attrs.evolve(each, at=each.at + shift) for each in arrivals), key=lambda each: each.at)
    if found[-1].at - found[0].at > _LONGEST_TRAFFIC:
        raise InvalidRequestError("the requests come over more than 35 days: plan a part of them")
    return found


def _parse(line: bytes) -> Arrival:
    try:
        value = json.loads(line)
    except ValueError:
        raise InvalidRequestError("is not JSON") from None
    if not isinstance(value, dict) or "at" not in value:
        raise InvalidRequestError('must be an object with a time, such as {"at": 0.5}')
    tokens = value.get("tokens", 500)
    if whole(tokens) is None or not 0 <= tokens <= _MAX_TOKENS:
        raise InvalidRequestError(f"tokens must be a whole number, 0 or more, not {shown(tokens)}")
    return Arrival(_time(value["at"]), int(tokens), **dict(_words(value)))


def _words(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("workload", "model"):
        word = value.get(name)
        if word is not None:
            if not isinstance(word, str):
                raise InvalidRequestError(f"{name} must be a string, not {shown(word)}")
            yield name, word


def _time(value: object) -> float:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidRequestError(
                f"at must be a time such as 2026-11-26T09:30:00, not {value!r}"
            ) from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 <= real(value) < _EPOCH * 100:
        raise InvalidRequestError(f"at must be a number of seconds, 0 or more, or a time, not {shown(value)}")
    return real(value)

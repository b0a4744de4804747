"""The traffic of a plan."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_router import InvalidRequestError
from llm_router.planning.traffic import MIDNIGHT, Arrival, make_traffic, read_traffic


def test_made_up_traffic() -> None:
    """It has the rate and the shares that were asked for, from midnight on, and the seed decides it."""
    traffic = make_traffic(100, hours=2, tokens=7, workloads={"light": 3, "heavy": 1})
    assert len(traffic) == pytest.approx(12_000, rel=0.02)
    shares = Counter(arrival.workload for arrival in traffic)
    assert shares["light"] / shares["heavy"] == pytest.approx(3, rel=0.05)
    assert MIDNIGHT < traffic[0].at < traffic[-1].at < MIDNIGHT + 7_200
    assert {arrival.tokens for arrival in traffic} == {7}
    assert make_traffic(5, seed=2) == make_traffic(5, seed=2) != make_traffic(5, seed=3)
    assert {arrival.workload for arrival in make_traffic(5)} == {None}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rpm": 0}, "rpm"),
        ({"rpm": math.nan}, "rpm"),
        ({"rpm": 1e6}, "fewer hours"),
        ({"hours": -1}, "hours"),
        ({"hours": 1000}, "35 days"),
        ({"tokens": 2.5}, "tokens"),
        ({"workloads": {"light": -1}}, "'light'"),
        ({"workloads": {"light": 0}}, "above 0"),
    ],
)
def test_numbers_that_cannot_be_meant(wrong: dict[str, Any], named: str) -> None:
    """They are refused by name."""
    with pytest.raises(InvalidRequestError, match=named):
        make_traffic(**{"rpm": 5, **wrong})


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "traffic.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_file_of_traffic(tmp_path: Path) -> None:
    """Its lines are sorted by time; times are seconds since the beginning, or dates in one of two forms."""
    path = _file(
        tmp_path, '{"at": 2, "tokens": 9, "model": "m", "more": 1}', "", '{"at": 0.5, "workload": "heavy"}'
    )
    assert read_traffic(path) == [
        Arrival(MIDNIGHT + 0.5, workload="heavy"),
        Arrival(MIDNIGHT + 2, 9, model="m"),
    ]
    path = _file(
        tmp_path, '{"at": "2026-11-26T10:00:01+01:00"}', '{"at": "2026-11-26T09:00"}', '{"at": 1795683602}'
    )
    assert [arrival.at for arrival in read_traffic(path)] == [1795683600, 1795683601, 1795683602]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2 of .*: is not JSON"),
        ("[1]", "line 2 of .*: must be an object with a time"),
        ('{"tokens": 5}', "must be an object with a time"),
        ('{"at": "yesterday"}', "'yesterday'"),
        ('{"at": NaN}', "not nan"),
        ('{"at": true}', "not True"),
        ('{"at": 1, "tokens": -1}', "tokens .* not -1"),
        ('{"at": 1, "model": 5}', "model must be a string"),
        ('{"at": 1795683602}', "use one of them"),
        ('{"at": 9e6}', "35 days"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path: Path, line: str, named: str) -> None:
    """The message says which line, why and what to write."""
    with pytest.raises(InvalidRequestError, match=named):
        read_traffic(_file(tmp_path, '{"at": 1}', line))
    with pytest.raises(InvalidRequestError, match="has no requests"):
        read_traffic(_file(tmp_path, ""))

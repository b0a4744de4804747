"""Cutting a history to a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from llm_router.conversations.base import Turn

__all__ = ["truncate"]


def truncate(turns: Sequence[Turn], budget: int, *, answering: bool = False) -> tuple[Turn, ...]:
    """Return the newest of ``turns`` that fit into ``budget`` tokens together.

    Turns are dropped whole and oldest first; a function call goes together with its answer.

    Args:
        turns: Oldest first.
        budget: Tokens that they may have together.
        answering: Whether the request to come answers a function call of the last turn, which is then kept
            whatever its size.
    """
    kept = 0
    start = len(turns)
    for first, last in reversed(list(_groups(turns))):
        size = sum(turn.tokens for turn in turns[first:last])
        needed = answering and last == len(turns)
        if kept + size > budget and not needed:
            break
        kept += size
        start = first
    return tuple(turns[start:])


def _groups(turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """Return the (first, past-the-last) of each run of turns that must stay together."""
    starts = [place for place, turn in enumerate(turns) if place == 0 or not turn.answers_call]
    return list(pairwise([*starts, len(turns)]))

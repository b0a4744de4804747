"""Cutting a history to whole exchanges, and to a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from llm_router.conversations.base import Turn
from llm_router.conversations.contents import ends_with_call

__all__ = ["complete", "truncate"]


def complete(turns: Sequence[Turn], *, answering: bool = False) -> tuple[Turn, ...]:
    """Return ``turns`` without function calls that were never answered, and answers to unknown calls.

    The Gemini API refuses both. Turns that belong to the same calls are dropped together.

    Args:
        turns: The turns, oldest first.
        answering: Whether the next request answers a function call of the last turn.
    """
    kept: list[Turn] = []
    for first, last in _groups(turns):
        is_open = ends_with_call(turns[last - 1]) and not (answering and last == len(turns))
        if not is_open and not turns[first].answers_call:
            kept += turns[first:last]
    return tuple(kept)


def truncate(turns: Sequence[Turn], budget: int, *, answering: bool = False) -> tuple[Turn, ...]:
    """Return the newest of ``turns`` that together fit into ``budget`` tokens.

    Turns are dropped whole, oldest first; a function call and its answer stay together.

    Args:
        turns: The turns, oldest first.
        budget: The most tokens that the kept turns may have together.
        answering: Whether the next request answers a function call of the last turn, which is then kept
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
    """Return the start and the end (exclusive) of each run of turns that must stay together."""
    starts = [index for index, turn in enumerate(turns) if index == 0 or not turn.answers_call]
    return list(pairwise([*starts, len(turns)]))

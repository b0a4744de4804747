"""What the user of ``llm-router top`` chose to see, and how the keys that are pressed change that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from llm_router.domain.status import KeyStatus, LimitStatus

__all__ = ["SORTS", "View", "chosen", "press", "share_of"]


def share_of(limit: LimitStatus) -> float:
    """Return how much of a limit is used: from 0 to 1."""
    if limit["full_until"] is not None:
        return 1.0
    if limit["limit"] is None:
        return 0.0
    return min(limit["used"] / limit["limit"], 1.0) if limit["limit"] else 1.0


_Key = Callable[[KeyStatus], object]


def _fullest(row: KeyStatus) -> float:
    return max((share_of(limit) for limit in row["limits"].values()), default=0.0)


def _requests(row: KeyStatus) -> int:
    return 0 if row["today"] is None else row["today"]["requests"]


def _refused(row: KeyStatus) -> int:
    return 0 if row["today"] is None else row["today"]["rate_limited"]


_SORT_KEYS: dict[str, tuple[_Key, bool]] = {
    "file": (lambda _row: 0, False),
    "key": (lambda row: (row["key_id"], row["model"]), False),
    "model": (lambda row: (row["model"], row["key_id"]), False),
    "use": (_fullest, True),
    "requests": (_requests, True),
    "429s": (_refused, True),
    "state": (lambda row: row["state"] == "ready", False),
}
SORTS = tuple(_SORT_KEYS)
"""By what the deployments can be sorted; ``file`` is the order of the keys file."""


@attrs.frozen
class View:
    """What the user chose to see.

    Attributes:
        sort: By what the deployments are sorted, of :data:`SORTS`.
        reverse: Whether the order is turned round.
        wanted: What is shown: deployments with this text in key, model, project, workload or state.
        typing: Whether that text is being typed.
        paused: Whether the picture stands still.
        skipped: How many deployments are scrolled out at the top.
        left: Whether the user has had enough.
    """

    sort: str = "file"
    reverse: bool = False
    wanted: str = ""
    typing: bool = False
    paused: bool = False
    skipped: int = 0
    left: bool = False


_CHANGES: dict[str, Callable[[View], View]] = {
    "q": lambda view: attrs.evolve(view, left=True),
    "p": lambda view: attrs.evolve(view, paused=not view.paused),
    "s": lambda view: attrs.evolve(view, sort=SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)], skipped=0),
    "r": lambda view: attrs.evolve(view, reverse=not view.reverse, skipped=0),
    "/": lambda view: attrs.evolve(view, typing=True),
    "escape": lambda view: attrs.evolve(view, wanted="", skipped=0),
    "down": lambda view: attrs.evolve(view, skipped=view.skipped + 1),
    "up": lambda view: attrs.evolve(view, skipped=max(view.skipped - 1, 0)),
}
_SAME = {" ": "p", "f": "/", "j": "down", "k": "up"}


def press(view: View, key: str, shown: int | None = None) -> View:
    """Return the view after a key was pressed.

    Args:
        view: The view before.
        key: A character, or ``up``, ``down``, ``enter``, ``escape`` or ``back``.
        shown: How many deployments there are, so that one cannot scroll beyond; None for any number.
    """
    if view.typing:
        return _type(view, key)
    change = _CHANGES.get(_SAME.get(key, key))
    view = view if change is None else change(view)
    return view if shown is None else attrs.evolve(view, skipped=min(view.skipped, max(shown - 1, 0)))


def _type(view: View, key: str) -> View:
    match key:
        case "enter":
            return attrs.evolve(view, typing=False)
        case "escape":
            return attrs.evolve(view, typing=False, wanted="", skipped=0)
        case "back":
            return attrs.evolve(view, wanted=view.wanted[:-1], skipped=0)
    if len(key) == 1 and key.isprintable():
        return attrs.evolve(view, wanted=view.wanted + key, skipped=0)
    return view


def chosen(statuses: Iterable[KeyStatus], view: View) -> list[KeyStatus]:
    """Return the deployments that are to be seen, in their order."""
    wanted = view.wanted.casefold()
    rows = [
        row
        for row in statuses
        if not wanted
        or any(
            wanted in text.casefold()
            for text in (row["key_id"], row["model"], row["project"], row["workload"], row["state"])
        )
    ]
    key, descending = _SORT_KEYS[view.sort]
    rows.sort(key=key, reverse=descending)  # type: ignore[arg-type]  # each sort compares one kind of thing
    if view.reverse:
        rows.reverse()
    return rows

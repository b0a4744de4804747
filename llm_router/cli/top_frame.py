"""One frame of ``llm-router top``: a pure function of the statuses, the time and the size of the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from llm_router.cli.output import printable
from llm_router.cli.words import ago, amount, fraction, health_words, moment, state_of, today_words
from llm_router.domain.status import KeyStatus, LimitStatus
from llm_router.engine.keys import Report

__all__ = ["SORTS", "Line", "View", "frame", "press"]

_BAR = 10
"""Characters of a bar."""

_EIGHTHS = " ▏▎▍▌▋▊▉"
_NUMBERS = 10
_CELL = 4 + _BAR + 1 + _NUMBERS + 1
_STATE = 28
"""Characters that the state has at least, where there is one line for each deployment."""

_FULL, _ALMOST = 1.0, 0.8

_STYLES = {
    "ready": "green",
    "spent": "yellow",
    "cooling_down": "yellow",
    "unreachable": "red",
    "quarantined": "red",
    "disabled": "dim",
    "inactive": "dim",
}
_METRICS = ("rpm", "tpm", "rpd", "tpd")
_LEGEND = "limits: 9 configured, 9! stated by the provider, 9~ inferred, 9? unknown"
_HELP = "q quit  p pause  s sort  r reverse  / filter  ↑↓"

Line = tuple[tuple[str, str], ...]
"""A line as pieces of text, each with the name of its style ("" for none)."""

_Key = Callable[[KeyStatus], object]


def _fullest(row: KeyStatus) -> float:
    return max((_share(limit) for limit in row["limits"].values()), default=0.0)


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


_EVERYTHING = View()

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


def frame(
    report: Report,
    now: float,
    width: int,
    height: int | None = None,
    view: View = _EVERYTHING,
    *,
    plain: bool = False,
) -> list[Line]:
    """Return the lines of a frame, none longer than ``width``.

    Args:
        report: The health and the statuses.
        now: Seconds since the Unix epoch.
        width: Columns of the screen; at least 20.
        height: Lines of the screen; None for as many as there are.
        view: What the user chose.
        plain: Whether it is printed, and so without the keys to press.
    """
    rows = _chosen(report.keys, view)
    head = [*_head(report, rows, now, width), *_problems(report, width)]
    foot = [_line(_LEGEND, "dim")]
    if not plain:
        foot.append(_line(_status_line(view), "bold" if view.typing or view.paused else "dim"))
    blocks = _wide(rows, now, width) or [[*_block(row, now, width)] for row in rows]
    body = _fitting(blocks, None if height is None else height - len(head) - len(foot), view.skipped)
    return [_cut(line, width) for line in (*head, *body, *foot)]


def _chosen(statuses: Iterable[KeyStatus], view: View) -> list[KeyStatus]:
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


def _fitting(blocks: Sequence[list[Line]], room: int | None, skipped: int) -> list[Line]:
    """Return the lines of whole deployments that fit, and how many do not."""
    if room is None or sum(map(len, blocks)) <= room:
        return [line for block in blocks for line in block]
    start = min(skipped, len(blocks) - 1)
    lines: list[Line] = []
    shown = 0
    for block in blocks[start:]:
        if len(lines) + len(block) > room - 1:
            break
        lines += block
        shown += 1
    return [*lines, _line(f"… {len(blocks) - shown} more, {start} of them above", "dim")]


def _head(report: Report, rows: Sequence[KeyStatus], now: float, width: int) -> Iterator[Line]:
    health = report.health
    good = health["state"] == "healthy"
    usable = sum(row["state"] == "ready" for row in report.keys)
    shown = "" if len(rows) == len(report.keys) else f", {len(rows)} shown"
    state = health_words(health, now)
    clock = moment(now, now)
    yield (
        ("llm-router top ", "bold"),
        (f"{clock}  ", ""),
        (state, "green" if good else "red"),
        (f"  {usable} of {len(report.keys)} ready{shown}", ""),
        (f"  {health['store']}" if width >= 100 else "", "dim"),  # noqa: PLR2004 - wide enough for luxury
    )
    minute, today = _last_minute(rows), _today(rows)
    both = "; ".join(words for words in (minute, today) if words)
    for words in (both,) if len(both) <= width else (minute, today):
        yield _line(words)


def _last_minute(rows: Iterable[KeyStatus]) -> str:
    """Return how much of the quotas of a minute is used; keys of one project share them."""
    used: dict[str, int] = {}
    seen = set()
    for row in rows:
        for metric, name in (("rpm", "requests"), ("tpm", "input tokens")):
            limit, place = row["limits"].get(metric), (row["provider"], row["project"], row["model"], metric)
            if limit is not None and place not in seen:
                seen.add(place)
                used[name] = used.get(name, 0) + limit["used"]
    words = ", ".join(f"{amount(number)} {name}" for name, number in used.items())
    return f"last minute {words}" if words else ""


def _today(rows: Iterable[KeyStatus]) -> str:
    """Return what all that is shown did today."""
    days = [row["today"] for row in rows if row["today"] is not None]
    if not days:
        return ""

    def total(field: str) -> str:
        return amount(sum(day[field] for day in days))  # type: ignore[literal-required]  # a field of numbers

    return (
        f"today {total('requests')} requests, {total('input_tokens')} → {total('output_tokens')} tokens, "
        f"{total('rate_limited')} 429s, {total('errors')} failed"
    )


def _problems(report: Report, width: int) -> list[Line]:
    shown = report.health["problems"][:3]
    return [_line(f"{printable(problem)[:width]}", "red") for problem in shown]


def _wide(rows: Sequence[KeyStatus], now: float, width: int) -> list[list[Line]] | None:
    """Return one line for each deployment; None if not all of them fit."""
    metrics = [metric for metric in _METRICS if any(metric in row["limits"] for row in rows)]
    titles, states, rests = (
        zip(*((_title(row), state_of(row, now), _rest(row, now)) for row in rows), strict=True)
        if rows
        else ((), (), ())
    )
    before, after, end = (max(map(len, texts), default=0) for texts in (titles, states, rests))
    room = width - before - len(metrics) * _CELL - end - 4
    if room < min(after, _STATE):
        return None
    after = min(after, room)
    return [
        [
            (
                (f"{title:{before}}  ", "bold"),
                (f"{_shortened(state, after):{after}}  ", _STYLES[row["state"]]),
                *(piece for metric in metrics for piece in _cell(metric, row["limits"].get(metric))),
                (rest, ""),
            )
        ]
        for row, title, state, rest in zip(rows, titles, states, rests, strict=True)
    ]


def _block(row: KeyStatus, now: float, width: int) -> Iterator[Line]:
    """Yield a few lines for a deployment."""
    yield ((f"{_title(row)}  ", "bold"), (state_of(row, now), _STYLES[row["state"]]))
    bars = (_cell(metric, limit) for metric in _METRICS if (limit := row["limits"].get(metric)) is not None)
    yield from _rows_of_bars([piece for cell in bars for piece in cell], width)
    if rest := _rest(row, now):
        yield _line(f"  {rest}")


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _title(row: KeyStatus) -> str:
    return f"{printable(row['key_id'])}  {printable(row['model'])}"


def _rows_of_bars(pieces: Sequence[tuple[str, str]], width: int) -> Iterator[Line]:
    """Yield the bars, as many in a line as fit."""
    line: list[tuple[str, str]] = [("  ", "")]
    taken = 2
    for start in range(0, len(pieces), 3):
        cell = pieces[start : start + 3]
        size = sum(len(text) for text, _ in cell)
        if taken + len("".join(text for text, _ in cell).rstrip()) > width and taken > 2:  # noqa: PLR2004
            yield tuple(line)
            line, taken = [("  ", "")], 2
        line += cell
        taken += size
    if taken > 2:  # noqa: PLR2004 - more than the indent
        yield tuple(line)


def _cell(metric: str, limit: LimitStatus | None) -> tuple[tuple[str, str], ...]:
    """Return name, bar and numbers of a quota; spaces for one that is not limited."""
    if limit is None:
        return ((" " * _CELL, ""), ("", ""), ("", ""))
    share = _share(limit)
    style = "red" if share >= _FULL else "yellow" if share >= _ALMOST else "green"
    return (f"{metric} ", "dim"), (_bar(share), style), (f" {fraction(limit):{_NUMBERS}} ", "")


def _rest(row: KeyStatus, now: float) -> str:
    """Return what a deployment did today, and when its day ends."""
    words = []
    today = row["today"]
    if today is not None and today["requests"]:
        tokens = f"{amount(today['input_tokens'])} → {amount(today['output_tokens'])} tokens"
        words.append(f"today {today_words(today)}, {tokens}")
    ends = [limit["used_up_at"] for limit in row["limits"].values() if limit["used_up_at"] is not None]
    if ends:
        at = min(ends)
        words.append("day spent" if at <= now else f"day ends {moment(at, now)} ({ago(at - now)})")
    if row["facts"]:
        words.append(row["facts"][0]["kind"].replace("_", " ") + " suspected")
    return "; ".join(words)


def _share(limit: LimitStatus) -> float:
    if limit["limit"] is None:
        return 0.0
    return min(limit["used"] / limit["limit"], _FULL) if limit["limit"] else _FULL


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    if share > 0.0:
        eighths = max(eighths, 1)
    if share < _FULL:
        eighths = min(eighths, _BAR * 8 - 1)
    whole, part = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[part] if part else "")).ljust(_BAR, "·")


def _status_line(view: View) -> str:
    if view.typing:
        return f"filter: {printable(view.wanted)}▏ (enter to keep, esc to clear)"
    words = f"sort {view.sort}{' reversed' if view.reverse else ''}"
    if view.wanted:
        words += f"  filter {printable(view.wanted)!r}"
    return f"{'PAUSED  ' if view.paused else ''}{words}  {_HELP}"


def _line(text: str, style: str = "") -> Line:
    return ((text, style),)


def _cut(line: Line, width: int) -> Line:
    """Return a line without what does not fit."""
    kept: list[tuple[str, str]] = []
    ends = len("".join(text for text, _ in line).rstrip())
    for piece, style in line:
        text = piece[:ends]
        ends -= len(text)
        if len(text) >= width:
            kept.append((_shortened(text, width), style))
            break
        kept.append((text, style))
        width -= len(text)
    return tuple(kept)

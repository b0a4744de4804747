"""One frame of ``llm-router top``: a pure function of the statuses, the time and the size of the screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llm_router.cli.output import printable
from llm_router.cli.top_rates import Rates
from llm_router.cli.top_view import View, chosen, share_of
from llm_router.cli.words import (
    amount,
    fraction,
    health_words,
    line_words,
    moment,
    saved_words,
    state_of,
    today_words,
)
from llm_router.domain.status import KeyStatus, LimitStatus
from llm_router.domain.wording import span
from llm_router.engine.overview import Report

__all__ = ["Line", "frame"]

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
    "paced": "yellow",
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

_EVERYTHING = View()


def frame(
    report: Report,
    now: float,
    width: int,
    height: int | None = None,
    view: View = _EVERYTHING,
    rates: Rates | None = None,
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
        rates: How much is sent at present; None if that is not known.
        plain: Whether it is printed, and so without the keys to press.
    """
    rows = chosen(report.keys, view)
    head = [*_head(report, rows, now, width, rates), *_problems(report, width)]
    foot = [_line(_LEGEND, "dim")]
    if not plain:
        foot.append(_line(_status_line(view), "bold" if view.typing or view.paused else "dim"))
    room = None if height is None else max(height - len(head) - len(foot), 1)
    body = _fitting(rows, now, width, room, view.skipped)
    return [_cut(line, width) for line in (*head, *body, *foot)]


def _fitting(rows: Sequence[KeyStatus], now: float, width: int, room: int | None, skipped: int) -> list[Line]:
    """Return the lines of whole deployments, as many as fit, and how many do not; only these are made."""
    start = min(skipped, max(len(rows) - 1, 0))
    near = rows if room is None else rows[start : start + room]
    blocks = _wide(near, now, width) or [[*_block(row, now, width)] for row in near]
    if room is None or (len(near) == len(rows) and sum(map(len, blocks)) <= room):
        return [line for block in blocks for line in block]
    lines: list[Line] = []
    shown = 0
    for block in blocks:
        if len(lines) + len(block) > room - 1:
            break
        lines += block
        shown += 1
    return [*lines, _line(f"… {len(rows) - shown} more, {start} of them above", "dim")]


def _head(
    report: Report, rows: Sequence[KeyStatus], now: float, width: int, rates: Rates | None
) -> Iterator[Line]:
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
    present = "" if rates is None else f"now {rates.in_words()}"
    line = ""
    for words in (minute, present, today):
        if line and words and len(line) + 2 + len(words) > width:
            yield _line(line)
            line = ""
        line += f"{'; ' if line and words else ''}{words}"
    yield _line(line)
    if waiting := line_words(health["line"]):
        yield _line(waiting, "yellow")
    if saved := saved_words(health["cache"]):
        yield _line(saved)


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
    share = share_of(limit)
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
        words.append("day spent" if at <= now else f"day ends {moment(at, now)} ({span(at - now)})")
    if row["facts"]:
        words.append(row["facts"][0]["kind"].replace("_", " ") + " suspected")
    return "; ".join(words)


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

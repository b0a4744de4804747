"""How the commands print, and the exit codes that they end with."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import NoReturn

import typer

from llm_router.domain.wording import count, printable, shortened
from llm_router.errors import ConfigError, InvalidRequestError, LLMRouterError

__all__ = [
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "WRONG",
    "complain",
    "count",
    "exit_codes",
    "fail",
    "in_lines",
    "is_terminal",
    "print_json",
    "printable",
    "say",
    "shortened",
    "show_table",
    "table_width",
]

DONE, FAILED, WRONG = 0, 1, 2
INTERRUPTED = 130
"""The exit code that shells show for a program ended by Ctrl-C."""

_WRONG_PATH = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What the operating system says where another path is needed; the rest may pass."""
_LAST, _FRAME, _NARROWEST = 24, 3, 20
"""Characters that the last column of a drawn table has at least, if it is longer than that: its words are
wrapped; what each column takes besides its words; how narrow lines become."""


def is_terminal() -> bool:
    """Return whether standard output is a terminal; only then is anything coloured or drawn."""
    return sys.stdout.isatty()


def say(text: str = "") -> None:
    """Print a line on standard output."""
    typer.echo(text)


def complain(text: str) -> None:
    """Print a line on standard error."""
    typer.echo(text, err=True)


def fail(text: str, code: int) -> NoReturn:
    """End the command with a message on standard error.

    Raises:
        typer.Exit: Always.
    """
    complain(f"llm-router: {text}")
    raise typer.Exit(code)


def print_json(value: object) -> None:
    """Print ``value`` as one JSON document."""
    # Characters that the encoding of the output may lack are escaped.
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, indent=2, ensure_ascii=not unicode)
    say(text.encode(errors="backslashreplace").decode())


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, or in a few lines a row if it is too narrow; columns elsewhere."""
    if not is_terminal():
        widths = _widths(columns, rows)
        for line in (columns, *rows):
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            say("  ".join(cells).rstrip())
        return
    terminal = shutil.get_terminal_size().columns
    if table_width(columns, rows) < terminal:
        _draw(columns, rows)
        return
    for row in rows:
        for line in _packed(columns, row, terminal):
            say(line)


def table_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how many columns of a terminal a drawn table takes; words in its last one are wrapped."""
    widths = _widths(columns, rows)
    return sum(widths[:-1]) + min(widths[-1], _LAST) + _FRAME * len(columns)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(columns, *rows, strict=True)]


def in_lines(text: str, width: int, first: str, further: str) -> list[str]:
    """Return a text in lines of at most ``width`` characters (20 at least), with what each begins with."""
    return textwrap.wrap(
        text,
        max(width, _NARROWEST),
        initial_indent=first,
        subsequent_indent=further,
        break_on_hyphens=False,
    )


def _packed(columns: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    """Yield a row as lines no longer than ``width``, its cells named and as few of them broken as can be."""
    line = ""
    for column, cell in zip(columns, row, strict=True):
        words = f"{column} {cell}" if cell else ""
        if line and words and len(line) + len(words) + 2 > width:
            yield line
            line = ""
            words = f"  {words}"
        line += f"  {words}" if line and words else words
        if len(line) > width:
            *full, line = in_lines(line, width, "", "    ")
            yield from full
    yield line


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box  # noqa: PLC0415 - only for a terminal
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns, 1):  # only the last one is wrapped
        table.add_column(column, no_wrap=place < len(columns), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))  # a name that is cut is of no use
    Console().print(table)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what a command raises into a message on standard error and an exit code.

    Raises:
        typer.Exit: This library or the operating system raised an error, or Ctrl-C was pressed.
    """
    try:
        yield
    except (ConfigError, InvalidRequestError) as error:
        fail(str(error), WRONG)
    except LLMRouterError as error:
        fail(str(error), FAILED)
    except BrokenPipeError:  # the reader of the output has closed it, and needs no message
        raise
    except OSError as error:
        if error.errno in _WRONG_PATH:
            fail(f"{_reason(error)}: check the path and its permissions", WRONG)
        fail(_reason(error), FAILED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)


def _reason(error: OSError) -> str:
    """Return the file, if there is one, and the reason."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"

"""The commands under one name."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from llm_router.cli import batch, check, compare, demo, emulator, send, status
from llm_router.cli.output import exit_codes

__all__ = ["app"]


class _Commands(TyperGroup):
    """Runs a command, and turns what it raises into words on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with exit_codes():
            return super().invoke(ctx)


app = typer.Typer(
    name="llm-router",
    cls=_Commands,
    help="Send prompts through a pool of LLM API keys and models, within every quota.\n\n"
    "Exit codes: 0 done, 1 something failed, 2 wrong usage or configuration, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help reads the same on a terminal and in a file; and a traceback must not print locals.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


for _command in (
    demo.demo,
    send.send,
    batch.batch,
    compare.compare,
    status.status,
    check.check,
    emulator.emulator,
):
    app.command()(_command)

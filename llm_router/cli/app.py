"""The program ``llm-router``: its commands and the options before them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llm_router.cli import (
    batch,
    check,
    compare,
    demo,
    emulator,
    explain,
    init,
    keys,
    plan,
    send,
    serve,
    status,
    tokens,
    top,
)
from llm_router.cli.output import exit_codes, say
from llm_router.domain.version import installed_version

__all__ = ["app"]


class _Commands(TyperGroup):
    """The group of commands; what a command raises becomes a message on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # the type of a context differs between versions of typer
        with exit_codes():
            return super().invoke(ctx)


app = typer.Typer(
    name="llm-router",
    cls=_Commands,
    help="Send prompts through a pool of LLM API keys and models without exceeding a quota.\n\n"
    "Start with `llm-router demo`, which needs no API key, or with `llm-router init`, if you have some.\n\n"
    "Exit codes: 0 done, 1 something failed, 2 wrong usage or configuration, 130 interrupted.",
    no_args_is_help=True,
    # Plain help is the same on a terminal and in a file. A traceback must not print locals.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        say(f"llm-router {installed_version()}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Accept the options before a command; the help text of the program is given above."""


for _command in (
    demo.demo,
    init.init,
    send.send,
    batch.batch,
    compare.compare,
    explain.explain,
    status.status,
    top.top,
    check.check,
    plan.plan,
    serve.serve,
    emulator.emulator,
):
    app.command()(_command)

app.add_typer(keys.keys, name="keys")
app.add_typer(tokens.tokens, name="tokens")

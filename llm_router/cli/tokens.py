"""``llm-router tokens``: the tokens of the gateway's callers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_router.cli.output import complain, say, show_table
from llm_router.gateway.tokens import TokenFile, default_token_file

__all__ = ["TokenFileOption", "tokens"]

tokens = typer.Typer(
    help="Add, list or remove the tokens of the gateway's callers.\n\n"
    "Gateways that run notice it within a second, at their next call.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="LLM_ROUTER_TOKEN_FILE",
        help="The file of the tokens.  [default: one in your state directory]",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the token.")]


@tokens.command()
def add(
    name: Name,
    *,
    rpm: Annotated[int | None, typer.Option("--rpm", help="Most requests to models within a minute.")] = None,
    workload: Annotated[
        list[str] | None, typer.Option("--workload", help="A workload that it may use; may be repeated.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A model that it may use; may be repeated.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="The tenant that its requests are reported for.")
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="It opens the gateway's page and /metrics, too.")
    ] = False,
    token_file: TokenFileOption = None,
) -> None:
    """Make a token, and print it: it is shown only now.

    Without limits it may use whatever the gateway serves.
    """
    file = TokenFile(token_file or default_token_file())
    allowed = {"rpm": rpm, "workloads": workload or (), "models": model or (), "tenant": tenant}
    say(file.add(name, **allowed, admin=admin))
    complain("It is shown only now: what is kept does not tell it.")


@tokens.command("list")
def show(*, token_file: TokenFileOption = None) -> None:
    """List the tokens by their names, with what they allow."""
    grants = TokenFile(token_file or default_token_file()).read().grants
    rows = [
        (
            grant.name,
            "any" if grant.rpm is None else str(grant.rpm),
            ", ".join(grant.workloads) or "all",
            ", ".join(grant.models) or "all",
            grant.tenant or "",
            "yes" if grant.admin else "",
        )
        for grant in grants
    ]
    show_table(("name", "rpm", "workloads", "models", "tenant", "admin"), rows)


@tokens.command()
def remove(name: Name, *, token_file: TokenFileOption = None) -> None:
    """Remove a token: it is refused from now on."""
    TokenFile(token_file or default_token_file()).remove(name)

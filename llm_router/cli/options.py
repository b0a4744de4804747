"""The arguments and options that several commands take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "KEYS",
    "AsJson",
    "Keys",
    "MaxOutputTokens",
    "Prompt",
    "Store",
    "System",
    "Timeout",
    "prompt_text",
]

KEYS = Path("keys.json")
"""The keys file unless an option or ``LLM_ROUTER_KEYS`` names another."""

Keys = Annotated[Path, typer.Option("--keys", envvar="LLM_ROUTER_KEYS", help="The keys file.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="URL of the store of the quotas; by default the environment's, else a file of this user.",
    ),
]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from standard input.")]
MaxOutputTokens = Annotated[
    int | None, typer.Option("--max-output-tokens", min=1, help="Upper bound of the answer, in tokens.")
]
System = Annotated[str | None, typer.Option("--system", help="The system instruction.")]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.001, help="Seconds for all attempts together, waiting for quota not counted."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on standard output.")]


def prompt_text(prompt: str) -> str:
    """Return the prompt that an argument gives, reading standard input for ``-``."""
    return sys.stdin.read() if prompt == "-" else prompt

"""The arguments and options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from llm_router.domain.request import Fallback
from llm_router.errors import InvalidRequestError

__all__ = [
    "KEYS",
    "AsJson",
    "KeyId",
    "Keys",
    "MaxOutputTokens",
    "OneModel",
    "Prompt",
    "Store",
    "System",
    "Timeout",
    "Verbose",
    "WithinFallback",
    "fallback_named",
    "prompt_text",
]

_FALLBACKS: tuple[Fallback, ...] = get_args(Fallback)

KEYS = Path("keys.json")
"""The keys file, unless an option or ``LLM_ROUTER_KEYS`` names another."""

Keys = Annotated[Path, typer.Option("--keys", envvar="LLM_ROUTER_KEYS", help="The keys file.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="URL of the store that keeps the quotas.  [default: LLM_ROUTER_STORE or REDIS_URL, "
        "else an SQLite file in your state directory]",
    ),
]
WithinFallback = Annotated[
    str, typer.Option("--fallback", help="How far from these it may go: any, model or none.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show each attempt, on standard error: key, model, outcome.")
]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key_id of the key.")]
OneModel = Annotated[
    str | None,
    typer.Option("--model", help="Only this model, on all keys that share the project of the key."),
]
Prompt = Annotated[
    str, typer.Argument(metavar="PROMPT", help="The prompt, or - to read it from standard input.")
]
MaxOutputTokens = Annotated[
    int | None, typer.Option("--max-output-tokens", min=1, help="Longest answer allowed, in tokens.")
]
System = Annotated[str | None, typer.Option("--system", help="The system instruction.")]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.001, help="Seconds for all attempts together, not counting the wait for quota."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def fallback_named(word: str) -> Fallback:
    """Return the fallback that an option names.

    Raises:
        InvalidRequestError: There is no such fallback.
    """
    found = next((known for known in _FALLBACKS if known == word), None)
    if found is None:
        raise InvalidRequestError(f"unknown fallback {word!r}: use one of {', '.join(_FALLBACKS)}")
    return found


def prompt_text(prompt: str) -> str:
    """Return the prompt that an argument gives; ``-`` reads it from standard input."""
    return sys.stdin.read() if prompt == "-" else prompt

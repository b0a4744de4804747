"""``llm-router send``: one prompt, one answer."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from llm_router.cli.options import (
    KEYS,
    AsJson,
    Keys,
    MaxOutputTokens,
    Prompt,
    Store,
    System,
    Timeout,
    Verbose,
    WithinFallback,
    fallback_named,
    prompt_text,
)
from llm_router.cli.output import FAILED, complain, is_terminal, print_json, printable, say
from llm_router.cli.records import attempt_lines, describe, record
from llm_router.cli.routers import open_router
from llm_router.config import load_settings
from llm_router.domain.response import Response

__all__ = ["send"]


def send(
    prompt: Prompt,
    *,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Preferred workload, such as light, medium or heavy.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Preferred model.")] = None,
    fallback: WithinFallback = "any",
    max_output_tokens: MaxOutputTokens = None,
    system: System = None,
    max_wait: Annotated[
        float | None,
        typer.Option(
            "--max-wait", min=0, help="Longest wait for quota, in seconds.  [default: LLM_MAX_WAIT_S, else 0]"
        ),
    ] = None,
    timeout: Timeout = 60.0,
    verbose: Verbose = False,
    as_json: AsJson = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Send one prompt and print the answer.

    On a terminal the answer is followed by the model, the key, the time and the tokens.
    """
    within = fallback_named(fallback)
    text = prompt_text(prompt)
    settings = load_settings(keys, store_needed=store is None)

    async def ask() -> Response:
        async with open_router(settings, store) as router:
            return await router.send(
                text,
                workload=workload,
                model_preference=model,
                fallback=within,
                max_output_tokens=max_output_tokens,
                system_instruction=system,
                timeout=timeout,
                max_wait=max_wait,
            )

    response = asyncio.run(ask())
    if verbose:
        for line in attempt_lines(response):
            complain(line)
    if as_json:
        print_json(record(response))
    else:
        _show(response)
    if not response.success:
        raise typer.Exit(FAILED)


def _show(response: Response) -> None:
    if response.error is not None:
        complain(f"llm-router: {printable(str(response.error))}")
        return
    say(printable(response.answer))
    if is_terminal():
        typer.secho(describe(response), dim=True)

"""``llm-router compare``: the answers of all workloads to one prompt."""

from __future__ import annotations

import asyncio

import typer

from llm_router.cli.attempts import Attempts
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
    prompt_text,
)
from llm_router.cli.output import FAILED, complain, is_terminal, print_json, printable, say
from llm_router.cli.records import describe, record
from llm_router.cli.routers import open_router
from llm_router.config import load_settings
from llm_router.domain.response import Response

__all__ = ["compare"]


def compare(
    prompt: Prompt,
    *,
    max_output_tokens: MaxOutputTokens = None,
    system: System = None,
    timeout: Timeout = 60.0,
    verbose: Verbose = False,
    as_json: AsJson = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Compare the answers of all workloads to one prompt.

    Workloads without an active key are left out, and no workload answers for another.
    """
    settings = load_settings(keys, store_needed=store is None)
    served = {deployment.workload for deployment in settings.deployments}
    workloads = [workload for workload in settings.workloads if workload in served]
    text = prompt_text(prompt)

    async def ask() -> list[Response]:
        attempts = [Attempts(complain, lambda event: event.workload or "")] if verbose else []
        async with open_router(settings, store, observers=attempts) as router:
            sends = (
                router.send(
                    text,
                    workload=workload,
                    max_output_tokens=max_output_tokens,
                    system_instruction=system,
                    timeout=timeout,
                    # With a fallback, a workload might be compared with itself.
                    fallback="none",
                )
                for workload in workloads
            )
            return await asyncio.gather(*sends)

    answers = dict(zip(workloads, asyncio.run(ask()), strict=True))
    if as_json:
        print_json({workload: record(response) for workload, response in answers.items()})
    elif is_terminal():
        _draw(answers)
    else:
        _list(answers)
    if not all(response.success for response in answers.values()):
        raise typer.Exit(FAILED)


def _answer(response: Response) -> str:
    return printable(response.answer if response.error is None else f"failed: {response.error}")


def _list(answers: dict[str, Response]) -> None:
    """Print the answers below each other."""
    for workload, response in answers.items():
        say(f"== {workload}: {describe(response)}")
        say(_answer(response))
        say()


def _draw(answers: dict[str, Response]) -> None:
    from rich import box  # noqa: PLC0415 - only for a terminal
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.ROUNDED, expand=True, show_footer=True)
    for workload, response in answers.items():
        footer = Text(describe(response), style="dim")
        table.add_column(workload, footer=footer, ratio=1, overflow="fold")
    texts = (
        Text(_answer(response), style="" if response.success else "red") for response in answers.values()
    )
    table.add_row(*texts)
    Console().print(table)

"""``llm-router send``: one prompt, one answer."""

from __future__ import annotations

import asyncio
from typing import Annotated

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
    WithinFallback,
    fallback_named,
    prompt_text,
)
from llm_router.cli.output import FAILED, complain, is_terminal, print_json, printable, say
from llm_router.cli.records import describe, record
from llm_router.cli.routers import open_router
from llm_router.config import load_settings
from llm_router.domain.options import SendOptions
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

    On a terminal the answer is followed by the model, the key, the time and the tokens. With -v the answer is
    printed as it comes; what breaks off in its midst is not tried again.
    """
    within = fallback_named(fallback)
    text = prompt_text(prompt)
    settings = load_settings(keys, store_needed=store is None)

    printer = _Printer()
    options = SendOptions(
        workload=workload,
        model_preference=model,
        fallback=within,
        max_output_tokens=max_output_tokens,
        system_instruction=system,
        timeout=timeout,
        max_wait=max_wait,
    )

    async def ask() -> Response:
        observers = [Attempts(printer.note)] if verbose else []
        async with open_router(settings, store, observers=observers) as router:
            if as_json or not verbose:
                return await router.send(text, **options)
            async with router.stream(text, **options) as stream:
                while (chunk := await stream.read()) is not None:
                    printer.show(chunk.text)
            return stream.response

    try:
        response = asyncio.run(ask())
    finally:
        printer.end()
    if as_json:
        print_json(record(response))
    else:
        _show(response, shown=printer.shown)
    if not response.success:
        raise typer.Exit(FAILED)


class _Printer:
    """Prints an answer piece by piece, and notes on standard error: none in the midst of a line.

    Attributes:
        shown: Whether a piece of the answer was printed.
    """

    def __init__(self) -> None:
        self.shown = False
        self._is_open = False  # whether the last line has no end yet
        self._notes: list[str] = []

    def show(self, text: str) -> None:
        """Print a piece of the answer."""
        text = printable(text)
        if text:
            typer.echo(text, nl=False)
            self.shown, self._is_open = True, not text.endswith("\n")

    def note(self, line: str) -> None:
        """Print a note; once the line that is being printed has ended."""
        self._notes.append(line)
        if not self._is_open:
            self._flush()

    def end(self) -> None:
        """End the last line, and print the notes that are left."""
        if self._is_open:
            say()
            self._is_open = False
        self._flush()

    def _flush(self) -> None:
        notes, self._notes = self._notes, []
        for line in notes:
            complain(line)


def _show(response: Response, *, shown: bool) -> None:
    if response.error is not None:
        complain(f"llm-router: {printable(str(response.error))}")
        return
    if not shown:
        say(printable(response.answer))
    if is_terminal():
        typer.secho(describe(response), dim=True)

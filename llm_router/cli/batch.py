"""``llm-router batch``: a file of prompts becomes a file of results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import attrs
import typer

from llm_router.cli.batch_lines import Prompt, digest_of, parse, read_lines
from llm_router.cli.batch_results import Earlier, Results, read_earlier
from llm_router.cli.options import KEYS, Keys, Store, Timeout, Verbose, WithinFallback, fallback_named
from llm_router.cli.output import FAILED, INTERRUPTED, complain, is_terminal, say
from llm_router.cli.records import attempt_lines, error_record, record
from llm_router.cli.routers import choose_store, open_router
from llm_router.config import load_settings
from llm_router.domain.request import Fallback, Urgency
from llm_router.domain.response import Response
from llm_router.errors import ConfigError, InvalidRequestError, UnknownWorkloadError
from llm_router.router import Router

__all__ = ["batch"]

_MAX_WAIT = 25 * 3600.0
"""Seconds of the longest possible day, so that a prompt waits for a spent daily quota."""


@attrs.frozen
class _Task:
    """The part of a batch that is the same for all lines."""

    router: Router
    results: Results
    workload: str | None
    fallback: Fallback
    max_wait: float
    timeout: float
    urgency: Urgency
    verbose: bool


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN.jsonl", help="The prompts, one JSON object per line.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The results, one JSON object per line.")],
    workload: Annotated[
        str | None, typer.Option("--workload", help="Preferred workload of lines that name none.")
    ] = None,
    fallback: WithinFallback = "any",
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Most prompts sent at once.")] = 32,
    max_wait: Annotated[
        float,
        typer.Option(
            "--max-wait", min=0, help="Longest wait of a prompt for quota, in seconds; 25 hours unless given."
        ),
    ] = _MAX_WAIT,
    timeout: Timeout = 60.0,
    urgency: Annotated[
        Urgency, typer.Option("--urgency", help="Whether the prompts wait behind interactive requests.")
    ] = "batch",
    verbose: Verbose = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Send every prompt of a file, waiting for quota.

    A line of the input is {"prompt": …}. It may also have the fields id, workload, model, max_output_tokens,
    system_instruction and temperature.

    Each result is written as soon as it is there, and Ctrl-C loses none. To continue, or to retry the lines
    that failed, run the same command again.
    """
    if source.resolve() == output.resolve():
        raise ConfigError(f"{output} is the input: choose another file for the results")
    within = fallback_named(fallback)
    settings = load_settings(keys, store_needed=store is None)
    if workload is not None and workload not in settings.workloads:
        known = ", ".join(map(repr, settings.workloads))
        raise UnknownWorkloadError(f"unknown workload {workload!r}: use one of {known}")
    url = choose_store(settings, store)
    earlier = read_earlier(output)
    todo = _survey(source, output, earlier)

    async def run(results: Results) -> None:
        async with open_router(settings, url, on_store_failure="local") as router:
            task = _Task(router, results, workload, within, max_wait, timeout, urgency, verbose)
            with _progress(todo) as advance:
                await _work(task, _remaining(source, earlier), concurrency, advance)

    with Results(output, earlier) as results:
        try:
            asyncio.run(run(results))
        except KeyboardInterrupt:
            left = todo - results.answered - results.failed
            complain(
                f"llm-router: interrupted: {results.answered} answered, {results.failed} failed, "
                f"{left} left; run the same command again to continue"
            )
            raise typer.Exit(INTERRUPTED) from None
    say(
        f"{results.answered} answered, {results.failed} failed, "
        f"{len(earlier.answered)} answered before: {output}"
    )
    if results.failed:
        complain(f"llm-router: some lines failed, see {output}; run the same command again to retry them")
        raise typer.Exit(FAILED)


def _survey(source: Path, output: Path, earlier: Earlier) -> int:
    """Return how many lines are left to do.

    Raises:
        ConfigError: The results belong to another input.
    """
    todo = 0
    for number, line in read_lines(source):
        known = earlier.answered.get(number)
        if known is None:
            todo += 1
        elif known != digest_of(line):
            raise ConfigError(
                f"{source}: line {number} has changed since {output} was written: "
                f"choose another file for the results, or remove that one"
            )
    return todo


def _remaining(source: Path, earlier: Earlier) -> Iterator[tuple[int, bytes]]:
    return (line for line in read_lines(source) if line[0] not in earlier.answered)


async def _work(
    task: _Task, lines: Iterator[tuple[int, bytes]], concurrency: int, advance: Callable[[], object]
) -> None:
    """Answer all lines, with as many workers as ``concurrency``."""

    async def worker() -> None:
        for number, line in lines:
            outcome, success, attempts = await _answer(task, number, line)
            # No await between here and the write, so that a cancellation cannot lose a result.
            task.results.write(number, digest_of(line), outcome, success=success)
            advance()
            for attempt in attempts:
                complain(f"line {number}: {attempt}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as failures:  # results cannot be written; the failure of a line is a result
        raise failures.exceptions[0] from None


async def _answer(task: _Task, number: int, line: bytes) -> tuple[dict[str, object], bool, list[str]]:
    """Return the outcome of a line, whether it has an answer, and what is to be said of its attempts."""
    try:
        prompt = parse(line)
    except InvalidRequestError as error:
        return _problem(InvalidRequestError(f"line {number}: {error}")), False, []
    name: dict[str, object] = {} if prompt.id is None else {"id": prompt.id}
    try:
        response = await _send(task, prompt)
        outcome = record(response)
    except Exception as error:  # noqa: BLE001 - no failure of one line may stop the others
        return name | _problem(error), False, []
    lines = list(attempt_lines(response)) if task.verbose else []
    return (
        name | {key: value for key, value in outcome.items() if key != "success"},
        outcome["success"],
        lines,
    )


async def _send(task: _Task, prompt: Prompt) -> Response:
    return await task.router.send(
        prompt.prompt,
        workload=prompt.workload or task.workload,
        model_preference=prompt.model,
        fallback=task.fallback,
        max_output_tokens=prompt.max_output_tokens,
        system_instruction=prompt.system_instruction,
        temperature=prompt.temperature,
        max_wait=task.max_wait,
        timeout=task.timeout,
        urgency=task.urgency,
    )


def _problem(error: Exception) -> dict[str, object]:
    return {"error": error_record(error)}


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """Draw a progress bar if the output is a terminal; yield the function that advances it."""
    if not is_terminal():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn  # noqa: PLC0415

    with Progress(BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("prompts", total=total)
        yield lambda: progress.advance(bar)

"""``llm-router batch``: a file of prompts becomes a file of results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypedDict

import attrs
import typer

from llm_router.cli.attempts import Attempts
from llm_router.cli.batch_lines import Prompt, digest_of, parse, read_lines
from llm_router.cli.batch_results import Earlier, Results, read_earlier
from llm_router.cli.batch_view import View, json_line, shown
from llm_router.cli.batch_watch import Follower, Watch, follow
from llm_router.cli.options import (
    KEYS,
    AsJson,
    Keys,
    Store,
    Timeout,
    Verbose,
    WithinFallback,
    fallback_named,
)
from llm_router.cli.output import FAILED, INTERRUPTED, complain, say
from llm_router.cli.records import error_record, record
from llm_router.cli.routers import choose_store, open_router
from llm_router.config import load_settings
from llm_router.domain.request import Fallback, Urgency
from llm_router.domain.response import Response
from llm_router.errors import ConfigError, InvalidRequestError, UnknownWorkloadError
from llm_router.observe.base import RouterObserver
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
    active: dict[int, Prompt] = attrs.field(factory=dict)
    """The lines that are being sent, by number."""


class EndRecord(TypedDict):
    """How a batch ended, in the form of JSON."""

    event: str
    interrupted: bool
    answered: int
    failed: int
    answered_before: int
    left: int
    rate_limited: int
    """Requests that the provider refused for want of quota (429)."""
    waited_seconds: float
    """How long the prompts waited for quota, all together."""
    elapsed_seconds: float
    output: str


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
    as_json: AsJson = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Send every prompt of a file, waiting for quota.

    A line of the input is {"prompt": …}. It may also have the fields id, workload, model, max_output_tokens,
    system_instruction and temperature.

    Each result is written as soon as it is there, and Ctrl-C loses none. To continue, or to retry the lines
    that failed, run the same command again.

    While prompts wait it says why, until when, and when the batch may be done: under the progress bar, in a
    line on standard error when the reason changes (without a terminal), or in lines of JSON (with --json).
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

    watch, began = Watch(), time.monotonic()

    async def run(results: Results) -> None:
        observers: list[RouterObserver] = [watch]
        if verbose:
            observers.append(Attempts(complain, lambda event: event.metadata["line"]))
        async with open_router(settings, url, on_store_failure="local", observers=observers) as router:
            task = _Task(router, results, workload, within, max_wait, timeout, urgency)
            with shown(todo, as_json=as_json) as view:
                await _followed(task, _remaining(source, earlier), concurrency, view, watch, todo)

    interrupted = False
    with Results(output, earlier) as results:
        try:
            asyncio.run(run(results))
        except KeyboardInterrupt:
            interrupted = True
    left = todo - results.answered - results.failed
    end = EndRecord(
        event="end",
        interrupted=interrupted,
        answered=results.answered,
        failed=results.failed,
        answered_before=len(earlier.answered),
        left=left,
        rate_limited=watch.rate_limited,
        waited_seconds=round(watch.waited, 3),
        elapsed_seconds=round(time.monotonic() - began, 3),
        output=str(output),
    )
    _report_end(end, as_json=as_json)


def _report_end(end: EndRecord, *, as_json: bool) -> None:
    """Say how a batch ended.

    Raises:
        typer.Exit: It was interrupted, or some lines failed.
    """
    done = f"{end['answered']} answered, {end['failed']} failed"
    refused = f" ({end['rate_limited']}x429)" if end["rate_limited"] else ""
    if as_json:
        say(json_line(end))
    elif not end["interrupted"]:
        say(f"{done}, {end['answered_before']} answered before: {end['output']}{refused}")
    if end["interrupted"]:
        complain(
            f"llm-router: interrupted: {done}, {end['left']} left; run the same command again to continue"
        )
        raise typer.Exit(INTERRUPTED)
    if end["failed"]:
        output = end["output"]
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


async def _followed(
    task: _Task, lines: Iterator[tuple[int, bytes]], concurrency: int, view: View, watch: Watch, todo: int
) -> None:
    """Answer all lines, and show meanwhile how that goes."""

    def counts() -> tuple[int, int]:
        done = task.results.answered + task.results.failed
        return done, todo - done

    follower = Follower(task.router, watch, task.fallback, task.workload, task.active, counts)
    following = asyncio.create_task(follow(follower, view.show))
    try:
        await _work(task, lines, concurrency, view)
    finally:
        following.cancel()
        await asyncio.wait([following])
    if not following.cancelled():  # it only ends by itself if nothing can be shown any more
        following.result()


async def _work(task: _Task, lines: Iterator[tuple[int, bytes]], concurrency: int, view: View) -> None:
    """Answer all lines, with as many workers as ``concurrency``."""

    async def worker() -> None:
        for number, line in lines:
            outcome, success = await _answer(task, number, line)
            # No await between here and the write, so that a cancellation cannot lose a result.
            task.results.write(number, digest_of(line), outcome, success=success)
            view.advance()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as failures:  # results cannot be written; the failure of a line is a result
        raise failures.exceptions[0] from None


async def _answer(task: _Task, number: int, line: bytes) -> tuple[dict[str, object], bool]:
    """Return the outcome of a line, and whether it has an answer."""
    try:
        prompt = parse(line)
    except InvalidRequestError as error:
        return _problem(InvalidRequestError(f"line {number}: {error}")), False
    name: dict[str, object] = {} if prompt.id is None else {"id": prompt.id}
    task.active[number] = prompt
    try:
        outcome = record(await _send(task, number, prompt))
    except Exception as error:  # noqa: BLE001 - no failure of one line may stop the others
        return name | _problem(error), False
    finally:
        del task.active[number]
    return name | {key: value for key, value in outcome.items() if key != "success"}, outcome["success"]


async def _send(task: _Task, number: int, prompt: Prompt) -> Response:
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
        metadata={"line": f"line {number}"},
    )


def _problem(error: Exception) -> dict[str, object]:
    return {"error": error_record(error)}

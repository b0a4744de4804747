from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import Any

import pytest
from click.testing import Result

from llm_router import Response, Router, SendError
from llm_router.cli import batch_view, batch_watch
from llm_router.cli.batch_results import Results
from llm_router.emulator import Fault
from llm_router.testing import GeminiEmulator

PROMPTS = [{"prompt": f"number {place}", "workload": "light", "id": f"id-{place}"} for place in range(1, 6)]


@pytest.fixture
def lines(home: Path) -> Callable[..., None]:
    """Write the input of a batch: objects, or lines as they are."""

    def lines(*given: Any) -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in given)
        (home / "in.jsonl").write_text("".join(f"{text}\n" for text in texts))

    return lines


@pytest.fixture
def results(home: Path) -> Callable[..., Any]:
    """Read the results, by line; there is one for each line at most."""

    def results() -> dict[str, Any]:
        found = [json.loads(line) for line in (home / "out.jsonl").read_text().splitlines()]
        by_line = {result["line"]: result for result in found}
        assert len(by_line) == len(found)
        return by_line

    return results


BATCH = ("batch", "in.jsonl", "-o", "out.jsonl")


@pytest.mark.slow
def test_every_line_has_a_result(
    run: Callable[..., Result], lines: Callable[..., None], results: Callable[..., Any]
) -> None:
    """Each prompt is answered by the workload that it names, and its result repeats its id."""
    lines(*PROMPTS, {"prompt": "deep", "workload": "heavy"}, "", {"prompt": "by model", "model": "model-m"})
    result = run(*BATCH)
    assert result.exit_code == 0
    assert result.stdout == "7 answered, 0 failed, 0 answered before: out.jsonl\n"
    found = results()
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 8]
    assert found[1]["text"] == "[model-l] echo: number 1"
    assert (found[1]["id"], found[1]["status"], found[1]["key_id"]) == ("id-1", "ok", "key-light")
    assert found[6]["model"] == "model-h"
    assert "id" not in found[6]
    assert found[8]["model"] == "model-m"


@pytest.mark.slow
def test_the_option_gives_the_workload_of_other_lines(
    run: Callable[..., Result], lines: Callable[..., None], results: Callable[..., Any]
) -> None:
    """--workload applies to lines that name no workload."""
    lines({"prompt": "a"}, {"prompt": "b", "workload": "light"})
    assert run(*BATCH, "--workload", "heavy", "--concurrency", 1).exit_code == 0
    assert [result["workload"] for result in results().values()] == ["heavy", "light"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 2: not JSON"),
        ('{"prompt": "cut', "line 2: not JSON"),
        ("[1]", "line 2: not an object"),
        ('{"workload": "light"}', "line 2: no prompt"),
        ('{"prompt": 7}', "line 2: prompt must be a string, not a number"),
        (
            '{"prompt": "x", "max_output_tokens": true}',
            "line 2: max_output_tokens must be a whole number, not true or false",
        ),
        ('{"prompt": "x", "max_tokens": 5}', "line 2: unknown field 'max_tokens'"),
        ('{"prompt": "\\ud800"}', "line 2: prompt contains half a character"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"prompt": "x", "workload": "nope"}', "unknown workload 'nope'"),
        ('{"prompt": "x", "model": "nope"}', "'nope'"),
        ('{"prompt": "x", "max_output_tokens": -1}', "max_output_tokens"),
    ],
)
def test_a_bad_line_is_a_result_and_stops_nothing(
    run: Callable[..., Result], lines: Callable[..., None], results: Callable[..., Any], line: str, words: str
) -> None:
    """A wrong line becomes a failed result that says why; the other lines are answered."""
    lines(PROMPTS[0], line, PROMPTS[1])
    result = run(*BATCH)
    assert result.exit_code == 1
    assert "1 failed" in result.stdout
    found = results()
    assert [found[place]["status"] for place in (1, 2, 3)] == ["ok", "failed", "ok"]
    assert words in found[2]["error"]["message"]


def test_bytes_that_are_not_text_are_a_result(
    run: Callable[..., Result], home: Path, results: Callable[..., Any]
) -> None:
    """A line in another encoding becomes a failed result."""
    (home / "in.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    assert run(*BATCH).exit_code == 1
    assert "line 1: not UTF-8" in results()[1]["error"]["message"]


@pytest.mark.slow
def test_run_again_it_sends_only_what_is_left(
    run: Callable[..., Result],
    lines: Callable[..., None],
    results: Callable[..., Any],
    emulator: GeminiEmulator,
) -> None:
    """Answers are kept, failures are retried, and each line ends with one result."""
    lines(*PROMPTS, "not json")
    emulator.inject(Fault.status(400), times=2)
    assert run(*BATCH, "--concurrency", 1).exit_code == 1
    assert sum(result["status"] == "failed" for result in results().values()) == 3
    kept = {place: result for place, result in results().items() if result["status"] == "ok"}
    emulator.reset()
    lines(*PROMPTS, {"prompt": "now it is"})
    result = run(*BATCH)
    assert (result.exit_code, emulator.requests) == (0, 3)
    assert result.stdout == "3 answered, 0 failed, 3 answered before: out.jsonl\n"
    assert results().keys() == {1, 2, 3, 4, 5, 6}
    assert {place: results()[place] for place in kept} == kept
    assert run(*BATCH).stdout == "0 answered, 0 failed, 6 answered before: out.jsonl\n"


@pytest.mark.slow
@pytest.mark.parametrize("left", [1, 9, 40, -1])
def test_half_a_line_of_a_killed_run_is_repaired(
    run: Callable[..., Result],
    lines: Callable[..., None],
    results: Callable[..., Any],
    home: Path,
    emulator: GeminiEmulator,
    left: int,
) -> None:
    """Half a line at the end of the results is dropped, and its prompt is sent again."""
    lines(*PROMPTS)
    run(*BATCH, "--concurrency", 1)
    before = (home / "out.jsonl").read_bytes().splitlines(keepends=True)
    (home / "out.jsonl").write_bytes(b"".join(before[:-1]) + before[-1][:left])
    emulator.reset()
    assert run(*BATCH).exit_code == 0
    assert emulator.requests == 1
    assert sorted(results()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("content", ["notes", "notes\n", '{"line": 1}\n', '{"prompt": "x"}\n'])
def test_an_unrelated_file_is_not_touched(
    run: Callable[..., Result], lines: Callable[..., None], home: Path, content: str
) -> None:
    """A file that does not contain results is neither overwritten nor appended to."""
    lines(*PROMPTS)
    (home / "out.jsonl").write_text(content)
    result = run(*BATCH)
    assert result.exit_code == 2
    assert "not a result of a batch" in result.stderr
    assert (home / "out.jsonl").read_text() == content


def test_results_of_another_input_are_not_mixed(
    run: Callable[..., Result], lines: Callable[..., None], home: Path, emulator: GeminiEmulator
) -> None:
    """If an answered line has changed, nothing is sent and no result is lost."""
    lines(*PROMPTS)
    run(*BATCH)
    before = (home / "out.jsonl").read_text()
    lines({"prompt": "another"}, *PROMPTS[1:])
    result = run(*BATCH)
    assert result.exit_code == 2
    assert "line 1 has changed" in result.stderr
    assert (home / "out.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("batch", "nowhere.jsonl", "-o", "out.jsonl"), "nowhere.jsonl"),
        (("batch", "in.jsonl", "-o", "in.jsonl"), "is the input"),
        (("batch", "in.jsonl", "-o", "."), "not a regular file"),
        (("batch", "in.jsonl", "-o", "no/such/out.jsonl"), "no/such"),
        (("batch", "in.jsonl"), "--output"),
        ((*BATCH, "--workload", "nope"), "unknown workload 'nope'"),
        ((*BATCH, "--concurrency", 0), "--concurrency"),
        ((*BATCH, "--keys", "nowhere.json"), "nowhere.json"),
    ],
)
def test_wrong_usage_is_2(
    run: Callable[..., Result],
    lines: Callable[..., None],
    home: Path,
    emulator: GeminiEmulator,
    args: tuple[Any, ...],
    words: str,
) -> None:
    """Wrong usage is reported before anything is sent, and no file is written."""
    lines(*PROMPTS)
    result = run(*args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert emulator.requests == 0
    assert not (home / "out.jsonl").exists()


def test_results_that_cannot_be_written_end_the_batch(
    run: Callable[..., Result], lines: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is reported in one line, with exit code 1."""

    def write(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Results, "write", write)
    lines(*PROMPTS)
    result = run(*BATCH)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_keeps_what_was_answered(
    start: Callable[..., subprocess.Popen[str]],
    run: Callable[..., Result],
    lines: Callable[..., None],
    results: Callable[..., Any],
    home: Path,
    emulator: GeminiEmulator,
    how: Signals,
) -> None:
    """A batch that is stopped while requests hang has written every answer, and can be continued."""
    lines(*PROMPTS)
    emulator.inject(Fault.hang(), times=2)
    child = start(*BATCH, "--concurrency", 5)
    deadline = time.monotonic() + 20
    while not (home / "out.jsonl").exists() or (home / "out.jsonl").read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(how)
    out, err = child.communicate(timeout=20)
    assert len(results()) == 3
    assert out == ""
    if how is signal.SIGINT:
        assert child.returncode == 130
        assert err == (
            "llm-router: interrupted: 3 answered, 0 failed, 2 left; run the same command again to continue\n"
        )
    emulator.release()
    emulator.reset()
    assert run(*BATCH).exit_code == 0
    assert emulator.requests == 2
    assert all(result["status"] == "ok" for result in results().values())


FRESH = ("--store", "memory://")


@pytest.mark.slow
def test_waits_for_quota(
    start: Callable[..., subprocess.Popen[str]],
    run: Callable[..., Result],
    lines: Callable[..., None],
    home: Path,
    emulator: GeminiEmulator,
) -> None:
    """Without quota, a line waits instead of failing, unless --max-wait is 0."""
    keys = json.loads((home / "keys.json").read_text())
    for key in keys["keys"]:
        key["limits"]["rpm"] = 1
    (home / "keys.json").write_text(json.dumps(keys))
    lines(*PROMPTS)
    assert run(*BATCH, *FRESH, "--max-wait", 0).stdout.startswith("3 answered, 2 failed")
    (home / "out.jsonl").unlink()
    child = start(*BATCH, *FRESH)
    assert child.stderr is not None
    told = child.stderr.readline()
    assert re.match(r"\d of 5 done · ETA \d+ s · \d waiting until ", told)
    assert "rpm of model-l is used up on key-light" in told
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert "3 answered, 0 failed, 2 left" in err


@pytest.mark.slow
def test_json_says_how_it_goes(
    run: Callable[..., Result],
    lines: Callable[..., None],
    home: Path,
    emulator: GeminiEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each line is an object whose times have units: why and how long it waits, at the end what was done."""
    keys = json.loads((home / "keys.json").read_text())
    for key in keys["keys"]:
        key["limits"]["rpm"] = 120
    keys["models"] = {model: {"refill": "steady", "burst": 1} for model in ("model-l", "model-m", "model-h")}
    (home / "keys.json").write_text(json.dumps(keys))
    lines(*PROMPTS)
    emulator.inject(Fault.bare_429(), times=1, model="model-h")
    monkeypatch.setattr(batch_watch, "TICK", 0.01)
    monkeypatch.setattr(batch_watch, "_WORTH_SAYING", 0.0)
    monkeypatch.setattr(batch_view, "_SELDOM", 0.0)
    result = run(*BATCH, *FRESH, "--json")
    *found, end = map(json.loads, result.stdout.splitlines())
    told = next(each for each in found if each["wait_seconds"] is not None)
    assert (told["event"], told["done"] + told["left"], told["waiting"] > 0) == ("progress", 5, True)
    assert 0 <= told["wait_seconds"] < 1
    assert abs(told["wait_until"] - time.time()) < 5
    assert 0 < told["eta_seconds"] < 5
    assert result.stderr == ""
    assert {name: end[name] for name in ("event", "interrupted", "answered", "failed", "left")} == {
        "event": "end",
        "interrupted": False,
        "answered": 5,
        "failed": 0,
        "left": 0,
    }
    assert end["rate_limited"] == 1
    assert end["waited_seconds"] > 0.5


@pytest.mark.slow
def test_a_terminal_sees_a_progress_bar(
    watch: Callable[..., tuple[Any, str]], lines: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, a progress bar is drawn, and below it how it goes."""
    lines(*PROMPTS)
    monkeypatch.setattr(batch_watch, "TICK", 0.001)
    code, text = watch(*BATCH)
    assert code == 0
    assert "5/5" in text
    assert "ETA " in text
    assert "5 answered, 0 failed" in text


@pytest.mark.slow
def test_a_batch_stays_where_it_belongs(
    run: Callable[..., Result],
    lines: Callable[..., None],
    results: Callable[..., Any],
    emulator: GeminiEmulator,
) -> None:
    """Without a fallback no line of a light batch goes to a heavier model; -v tells what became of each."""
    lines(*PROMPTS)
    emulator.inject(Fault.status(404), model="model-l")
    options = ("--workload", "light", "--fallback", "none", "--max-wait", 0, "-v")
    result = run(*BATCH, *options)
    assert result.exit_code == 1
    assert emulator.requests == len([line for line in result.stderr.splitlines() if "1. model-l" in line])
    assert "line 1: 1. model-l · key-light · " in result.stderr
    assert {each["status"] for each in results().values()} == {"failed"}
    assert results()[1]["attempt_log"][0]["error"]["type"] == "ProviderError"
    result = run(*BATCH, "--fallback", "far")
    assert (result.exit_code, "unknown fallback 'far'" in result.stderr) == (2, True)
    assert run(*BATCH, "--workload", "light").exit_code == 0


def test_urgency_and_fallback_reach_every_send(
    run: Callable[..., Result], lines: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts wait behind interactive requests, on any model, unless the options say otherwise."""
    sent: list[tuple[Any, ...]] = []

    async def send(_: Router, prompt: str, **options: Any) -> Response:
        sent.append((prompt, options["urgency"], options["fallback"], options["max_wait"]))
        return Response(success=False, error=SendError("not sent"))

    monkeypatch.setattr(Router, "send", send)
    lines({"prompt": "x"})
    run(*BATCH)
    run(*BATCH, "--urgency", "interactive", "--fallback", "model", "--max-wait", 5)
    assert sent == [("x", "batch", "any", 90_000.0), ("x", "interactive", "model", 5.0)]
    result = run(*BATCH, "--urgency", "soon")
    assert (result.exit_code, "'soon'" in result.stderr) == (2, True)

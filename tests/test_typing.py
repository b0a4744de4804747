"""What a type checker says of programs that use the library."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llm_router

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed (extra lint)"),
]

PROGRAM = """\
import asyncio
from llm_router import Request, Router, get_request_router

async def main() -> None:
    async with Router.from_config("keys.json", max_wait=5) as router:
        response = await router.send("x", workload="heavy", max_wait=60, timeout=None)
        print(response.text, (await router.send(Request(contents="x"))).success)
        async with router.stream("x", model_preference="m") as stream:
            async for chunk in stream:
                print(chunk.text)
        await router.conversation("c", workload="light").send("x", temperature=0.5)
        await get_request_router().send_chat(conv_id="c", prompt="x", fallback="none")
        {line}

asyncio.run(main())
"""

MISTAKES = (
    ('await router.send("x", wrokload="heavy")', "wrokload"),
    ('await router.send("x", max_wiat=60)', "max_wiat"),
    ('await router.send("x", workload=5)', "workload"),
    ('await router.send("x", timeout="60")', "timeout"),
    ('await router.send("x", fallback="nowhere")', "fallback"),
    ('router.stream("x", wrokload="heavy")', "wrokload"),
    ('router.conversation("c", wrokload="heavy")', "wrokload"),
    ('await router.conversation("c").send("x", wrokload="heavy")', "wrokload"),
    ('await router.send_chat(conv_id="c", prompt="x", tempreature=1)', "tempreature"),
    ('Router.from_config("keys.json", max_wiat=5)', "max_wiat"),
    ('Router.from_config("keys.json", max_retries="3")', "max_retries"),
)


def check(tmp_path: Any, *lines: Any) -> list[Any]:
    """Return what ``mypy --strict`` reports for a program with each of these lines, by its line."""
    files = []
    for number, line in enumerate(lines):
        files.append(tmp_path / f"program_{number}.py")
        files[-1].write_text(PROGRAM.format(line=line))
    root = Path(llm_router.__file__).parents[1]
    # An installed package is found by itself, and must not be named.
    environment = {} if root.name == "site-packages" else {"MYPYPATH": str(root)}
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [*command, *map(str, files)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [[said for said in done.stdout.splitlines() if said.startswith(path.name)] for path in files]


def test_misspelt_options_are_reported(tmp_path: Path) -> None:
    """A correct program passes ``mypy --strict``; each misspelt or ill-typed option is one error."""
    correct, *wrong = check(tmp_path, "pass", *(line for line, _ in MISTAKES))
    assert correct == []
    for (line, word), said in zip(MISTAKES, wrong, strict=True):
        errors = [each for each in said if ": error: " in each]
        assert len(errors) == 1, line
        assert word in "".join(said), line

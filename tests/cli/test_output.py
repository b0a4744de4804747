from __future__ import annotations

import errno

import pytest
import typer

from llm_router.cli.output import exit_codes, printable
from llm_router.errors import ConfigError, InvalidRequestError, StoreUnavailableError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong"), 2),
        (InvalidRequestError("wrong"), 2),
        (FileNotFoundError(errno.ENOENT, "gone"), 2),
        (FileExistsError(errno.EEXIST, "a file"), 2),
        (OSError(errno.EROFS, "read-only"), 2),
        (OSError(errno.ENAMETOOLONG, "too long"), 2),
        (StoreUnavailableError("away"), 1),
        (OSError(errno.ENOSPC, "full"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of a command becomes one line on stderr and an exit code."""
    with pytest.raises(typer.Exit) as ended, exit_codes():
        raise error
    assert ended.value.exit_code == code
    captured = capsys.readouterr()
    assert captured.err.startswith("llm-router: ")
    assert captured.out == ""


def test_the_message_about_a_path_names_it_and_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """An error about a path becomes a message with the path, the reason and the remedy."""
    with pytest.raises(typer.Exit), exit_codes():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "in.jsonl")
    words = "llm-router: in.jsonl: No such file or directory: check the path and its permissions\n"
    assert capsys.readouterr().err == words


def test_a_closed_pipe_is_left_to_the_caller() -> None:
    """An error about a closed pipe is raised, since its reader is gone."""
    with pytest.raises(BrokenPipeError), exit_codes():
        raise BrokenPipeError


def test_printable_keeps_text_and_drops_commands() -> None:
    """Lines, tabs and letters stay; control characters are removed."""
    assert printable("a\tb\nü\x1b[31m\x07\r\x9b") == "a\tb\nü[31m"

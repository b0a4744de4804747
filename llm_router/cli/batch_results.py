"""The output of a batch: a file with one result per line, intact even if the process is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from llm_router.errors import ConfigError

__all__ = ["Earlier", "Results", "read_earlier"]

_OK = "ok"
_BEGINNING = b'{"line": '
"""The beginning of every result, by which half a result differs from the line of an unrelated file."""


@attrs.frozen
class Earlier:
    """The results of an earlier run.

    Attributes:
        answered: The lines that have an answer: their digests by number.
        untidy: Whether the file also contains failures, or half a line from a run that was killed.
    """

    answered: Mapping[int, str] = attrs.field(factory=dict)
    untidy: bool = False


class Results:
    """The open file of results. When :meth:`write` returns, the operating system has the result.

    Opening the file keeps the answers of an earlier run and drops its failures, whose lines are sent again,
    so that no line of the input ever has two results.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, earlier: Earlier) -> None:
        if earlier.untidy:
            _tidy(path.resolve())
        self._file = path.open("ab", buffering=0)
        self.answered = self.failed = 0

    def write(self, line: int, digest: str, outcome: Mapping[str, object], *, success: bool) -> None:
        """Append the result of a line.

        Raises:
            OSError: The file cannot be written.
        """
        status = _OK if success else "failed"
        result = {"line": line, "status": status, **outcome, "digest": digest}
        data = json.dumps(result, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        while data:
            data = data[self._file.write(data) :]
        self.answered += success
        self.failed += not success

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_earlier(path: Path) -> Earlier:
    """Return the results of an earlier run; the file is not changed.

    Raises:
        ConfigError: The file contains something else than results.
        OSError: The file cannot be read.
    """
    if not path.exists():
        return Earlier()
    if not path.is_file():
        raise ConfigError(f"{path} is not a regular file: choose another file for the results")
    answered: dict[int, str] = {}
    untidy = False
    for result in _results(path):
        if result is None or result["status"] != _OK:
            untidy = True
        else:
            answered[result["line"]] = result["digest"]
    return Earlier(answered, untidy)


def _results(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the results in a file, and None for half a line at its end."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            result = _result(line)
            half = not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
            if result is None and not half:
                raise ConfigError(
                    f"{path}: line {number} is not a result of a batch: choose another file for the results, "
                    "or remove this one"
                )
            yield None if half else result


def _result(line: bytes) -> dict[str, Any] | None:
    try:
        result = json.loads(line)
    except ValueError:
        return None
    wanted = {"line": int, "status": str, "digest": str}
    if not isinstance(result, dict) or not all(isinstance(result.get(k), t) for k, t in wanted.items()):
        return None
    return result


def _tidy(path: Path) -> None:
    """Remove everything but the answers. If the process is killed, the old or the new file is left."""
    new = path.with_name(f"{path.name}.new")
    with path.open("rb") as old, new.open("wb") as file:
        file.writelines(
            line for line in old if (_result(line) or {}).get("status") == _OK and line.endswith(b"\n")
        )
        file.flush()
        os.fsync(file.fileno())
    shutil.copymode(path, new)
    new.replace(path)

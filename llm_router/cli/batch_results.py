"""The file that a batch writes: one result a line, safe against being stopped at any moment."""

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
"""How every result begins, so that half a result can be told from somebody else's file."""


@attrs.frozen
class Earlier:
    """What an earlier run left behind.

    Attributes:
        answered: Digest by number of the lines that have an answer.
        untidy: Whether the file holds failures, or half a line of a run that was killed.
    """

    answered: Mapping[int, str] = attrs.field(factory=dict)
    untidy: bool = False


class Results:
    """The open file. A result is one line, in the hands of the operating system when :meth:`write` returns.

    When opened, it keeps the answers of an earlier run and drops its failures, which are to be tried again:
    every line of the input has one result at most.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, earlier: Earlier) -> None:
        if earlier.untidy:
            _tidy(path.resolve())
        self._file = path.open("ab", buffering=0)
        self.answered = self.failed = 0

    def write(self, line: int, digest: str, outcome: Mapping[str, Any], *, success: bool) -> None:
        """Append the result of a line.

        Raises:
            OSError: It could not be written.
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
    """Read what an earlier run left in the output file; change nothing.

    Raises:
        ConfigError: The file is not one of results.
        OSError: It cannot be read.
    """
    if not path.exists():
        return Earlier()
    if not path.is_file():
        raise ConfigError(f"{path} is no regular file: name another for the results")
    answered: dict[int, str] = {}
    untidy = False
    for result in _results(path):
        if result is None or result["status"] != _OK:
            untidy = True
        else:
            answered[result["line"]] = result["digest"]
    return Earlier(answered, untidy)


def _results(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the results in a file; None for half a line at its end."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            result = _result(line)
            half = not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
            if result is None and not half:
                raise ConfigError(
                    f"{path}: line {number} is no result of a batch: name another file, or remove this one"
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
    """Keep the answers only. Stopped at any moment, it leaves the old file or the new one."""
    new = path.with_name(f"{path.name}.new")
    with path.open("rb") as old, new.open("wb") as file:
        file.writelines(
            line for line in old if (_result(line) or {}).get("status") == _OK and line.endswith(b"\n")
        )
        file.flush()
        os.fsync(file.fileno())
    shutil.copymode(path, new)
    new.replace(path)

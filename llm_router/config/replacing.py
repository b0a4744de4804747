"""Replacing files that belong together: all of them or none, and each in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs

from llm_router.domain.secret import Secret

__all__ = ["NewContent", "content_of", "replace_files"]

_PRIVATE, _PUBLIC = 0o600, 0o644


@attrs.frozen
class NewContent:
    """What a file is to contain.

    Attributes:
        path: The file; where a link leads is replaced, not the link.
        content: The text; no traceback shows it.
        private: Whether only its owner may read it from now on. Otherwise its permissions stay.
    """

    path: Path
    content: Secret
    private: bool = False


def content_of(path: Path) -> Secret | None:
    """Return what a file contains, or None if there is no such file.

    Raises:
        OSError: It cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        return Secret(path.read_bytes().decode("utf-8", "surrogateescape"))
    return None


def replace_files(*files: NewContent) -> None:
    """Replace files, in their order; if it fails or is interrupted, all are as they were.

    Raises:
        OSError: One of them cannot be written.
    """
    with contextlib.ExitStack() as undo:
        staged = [undo.enter_context(_staged(file)) for file in files]
        for file, new in zip(files, staged, strict=True):
            target = file.path.resolve()
            before = content_of(target)
            undo.push(partial(_restore, file, before))
            new.replace(target)


@contextlib.contextmanager
def _staged(file: NewContent) -> Iterator[Path]:
    """Write the content beside the file; remove it at the end unless it has taken its place."""
    target = file.path.resolve()
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
        with os.fdopen(handle, "wb") as stream:
            stream.write(file.content.reveal().encode("utf-8", "surrogateescape"))
            stream.flush()
            os.fsync(stream.fileno())
        _permit(new, target, private=file.private)
        yield new
    finally:
        new.unlink(missing_ok=True)


def _permit(new: Path, target: Path, *, private: bool) -> None:
    """Give a new file the owner of that which it replaces, and its permissions unless it is private."""
    try:
        present = target.stat()
    except FileNotFoundError:
        new.chmod(_PRIVATE if private else _PUBLIC)
        return
    if (present.st_uid, present.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError):
            os.chown(new, present.st_uid, present.st_gid)
    new.chmod(_PRIVATE if private else present.st_mode & 0o777)


def _restore(file: NewContent, before: Secret | None, failure: object, *_: object) -> None:
    """Give a file its content back if there was a failure."""
    if failure is None:
        return
    if before is None:
        file.path.unlink(missing_ok=True)
        return
    with _staged(attrs.evolve(file, content=before)) as old:
        old.replace(file.path.resolve())

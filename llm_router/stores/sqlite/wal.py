"""What a write-ahead log should hold, read without SQLite, which silently goes on without what is damaged.

The formats are those of https://sqlite.org/fileformat2.html#walformat and https://sqlite.org/walformat.html.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Salts", "commits_in_wal", "frames_missing", "salts_of_wal", "size_of_wal"]

_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">4I")
_FRAME_BYTES = 24
_PAGE_SIZES = range(512, 65536 + 1)
_LITTLE, _BIG = 0x377F0682, 0x377F0683
_INDEX = struct.Struct("=5I")
"""The start of the index (``-shm``), which is there twice: from the version to the last frame."""

_SALTS, _COPY, _BACKFILLED = slice(32, 40), slice(48, 96), slice(96, 100)
_VERSION = 3007000
_WORD = 0xFFFF_FFFF

Salts = tuple[int, int]
"""What tells a log from those that were in its file before."""


def commits_in_wal(path: Path) -> int:
    """Return the number of the last frame that was committed and is not in the database, as far as is known.

    Call it before SQLite recovers the log of the database at ``path``. 0 means that there is none. The log
    says so itself where frames in its middle are damaged, and its index where the end is missing.

    Must not be called while this process has the database open: see :func:`check_header`.
    """
    salts, frames, moved = _in_index(path)
    expected = frames if moved < frames else 0
    with contextlib.suppress(FileNotFoundError), _beside(path, "-wal").open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return expected
        page_size = _HEADER.unpack(head)[2]
        if _is_sound(head):
            present = _HEADER.unpack(head)[4:6]
            # It starts again when all of it is in the database: the index may not have been told yet.
            frames, expected = (frames, expected) if salts == present else (0, 0)
            salts = present
        last = _last_commit(file, page_size, salts)
        return last if last > frames else expected
    return expected


def frames_missing(path: Path) -> tuple[bool, bool]:
    """Return whether the log at ``path`` ends before its index says, and even before what was moved from it.

    SQLite does not notice either while another process has the index open: it writes beyond the end, so that
    what lies between is zeros. Nor later: of a log that ends before what was moved into the database, it
    would take older pages in the place of newer ones there.

    Must not be called while this process has the database open: see :func:`check_header`.
    """
    salts, frames, moved = _in_index(path)
    if not frames:
        return False, False
    present = 0
    with contextlib.suppress(FileNotFoundError), _beside(path, "-wal").open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) == _HEADER.size:
            page_size = _HEADER.unpack(head)[2]
            if _HEADER.unpack(head)[4:6] != salts:
                return False, False  # the index of another log
            present = (size_of_wal(path) - _HEADER.size) // (page_size + _FRAME_BYTES)
    return present < frames, present < moved


def size_of_wal(path: Path) -> int:
    """Return the bytes of the log of the database at ``path``; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return _beside(path, "-wal").stat().st_size
    return 0


def salts_of_wal(path: Path) -> Salts | None:
    """Return the salts of the log of the database at ``path``; None if it has no beginning, or a damaged one.

    It may be called while the database is open: no locks are on the log.
    """
    with contextlib.suppress(FileNotFoundError), _beside(path, "-wal").open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) == _HEADER.size and _is_sound(head):
            salt1, salt2 = _HEADER.unpack(head)[4:6]
            return salt1, salt2
    return None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _in_index(path: Path) -> tuple[Salts | None, int, int]:
    """Return what the index says: whose it is, the last frame, and the last one that is in the database."""
    with contextlib.suppress(FileNotFoundError), _beside(path, "-shm").open("rb") as file:
        head = file.read(_BACKFILLED.stop)
        if len(head) < _BACKFILLED.stop:
            return None, 0, 0
        version, *_, frames = _INDEX.unpack(head[: _INDEX.size])
        if version != _VERSION or head[:48] != head[_COPY]:
            return None, 0, 0
        salts = struct.unpack(">2I", head[_SALTS])  # as in the log, whatever the byte order of the machine
        (moved,) = struct.unpack("=I", head[_BACKFILLED])
        return (salts[0], salts[1]), frames, moved
    return None, 0, 0


def _is_sound(head: bytes) -> bool:
    """Return whether the header of a log is as SQLite wrote it."""
    magic, *_, sum1, sum2 = _HEADER.unpack(head)
    if magic not in (_LITTLE, _BIG):
        return False
    words = struct.unpack("<6I" if magic == _LITTLE else ">6I", head[:24])
    one = two = 0
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & _WORD
        two = (two + second + one) & _WORD
    return (one, two) == (sum1, sum2)


def _last_commit(file: BinaryIO, page_size: int, salts: Salts | None) -> int:
    """Return the number of the last frame with these salts (without any: those of the first) that commits."""
    if page_size not in _PAGE_SIZES:
        return 0
    last = number = 0
    while True:
        file.seek(_HEADER.size + number * (page_size + _FRAME_BYTES))
        head = file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return last
        number += 1
        _, pages, salt1, salt2 = _FRAME.unpack(head)
        salts = (salt1, salt2) if salts is None else salts
        if pages and (salt1, salt2) == salts:
            last = number

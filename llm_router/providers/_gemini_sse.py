"""Server-sent events as the SDK can read them: it knows only lines that begin with ``data:`` and a space."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

__all__ = ["EventContent", "event_bytes"]

_DATA = b"data:"
_FRAMING = (b":", b"event:", b"id:", b"retry:")
"""How lines begin that are not part of an answer: comments, such as those that keep a connection alive, and
other fields. Proxies add them."""


def _readable(line: bytes) -> bytes:
    """Return a line as the SDK can read it; nothing if it has no part of an answer."""
    if line.startswith(_DATA):
        data = line[len(_DATA) :]
        return b"data: " + data.lstrip(b" ") if data.strip() else b""
    return b"" if line.startswith(_FRAMING) else line


async def event_bytes(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines in ``chunks`` as the SDK can read them."""
    begun: list[
        bytes
    ] = []  # of a line; joined once, since a line with an image may come in hundreds of pieces
    async for chunk in chunks:
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            begun.append(chunk)
            continue
        whole = b"".join((*begun, head))
        begun = [tail]
        if readable := b"".join([_readable(line + b"\n") for line in whole.split(b"\n")]):
            yield readable
    if last := _readable(b"".join(begun)):
        yield last


class EventContent:
    """The content of an aiohttp response, of which the SDK reads events line by line or chunk by chunk.

    Args:
        content: The content itself, which answers everything else.
    """

    def __init__(self, content: Any) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    def iter_any(self) -> AsyncIterator[bytes]:
        """Yield what has come, in whole lines."""
        return event_bytes(self._content.iter_any())

    async def readline(self, **options: Any) -> bytes:
        """Return the next line; nothing at the end."""
        while line := await self._content.readline(**options):
            if readable := _readable(line):
                return readable
        return b""

"""An HTTP exchange: a request that belongs to no key yet, and how its answer begins."""

from __future__ import annotations

import attrs

__all__ = ["PAGES", "Exchange", "Head", "Headers"]

Headers = tuple[tuple[str, str], ...]
"""Headers in order, with names in lower case."""

PAGES = "pages/"
"""What the names begin with under which the further pages of lists are known."""


@attrs.frozen(kw_only=True)
class Exchange:
    """An HTTP request without credentials, which a router sends with the key that it chooses.

    Attributes:
        verb: The HTTP method, in upper case.
        path: The path as the client wrote it, such as ``/v1beta/models/gemini-3.8-flash:generateContent``.
        query: The query string without the question mark; a ``key`` in it is not sent.
        headers: The headers, with names in lower case. Only those that the provider needs are sent on, and
            never a credential.
        body: The body; it is sent as it is.
        openai: Whether ``/v1/models`` is meant in OpenAI's protocol: its path does not say.
        reading: What was read of it on the way, which a provider that reads the same need not read again;
            None if nothing was.
    """

    verb: str = "POST"
    path: str
    query: str = attrs.field(default="", repr=False)
    headers: Headers = attrs.field(default=(), repr=False)
    body: bytes = attrs.field(default=b"", repr=False)
    openai: bool = False
    reading: object = attrs.field(default=None, repr=False, eq=False)


@attrs.frozen
class Head:
    """How an answer begins.

    Attributes:
        status: The HTTP status.
        headers: Its headers, with names in lower case; without those that concern the connection. The URL of
            an upload has neither scheme nor host: these are the client's own.
        created: The name of what was made for the project of the key, such as ``files/abc``, or empty.
        deleted: The name of what was deleted, or empty.
        body: The whole body, if it came before the head was passed on; None if it comes after it.
        further: Names of what else only that project has, such as a file with the results of a batch.
    """

    status: int
    headers: Headers = ()
    created: str = ""
    deleted: str = ""
    body: bytes | None = attrs.field(default=None, repr=False)
    further: tuple[str, ...] = attrs.field(default=(), repr=False)

"""One request to the emulator, and the protocols in which a generated answer is sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

import attrs

from llm_router.emulator import replies
from llm_router.emulator.refusals import RefusalError
from llm_router.emulator.responding import Responder, echo
from llm_router.gemini_http.api_errors import not_json
from llm_router.gemini_http.framing import Body

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_router.emulator.answers import Answer
    from llm_router.emulator.exchange import Exchange
    from llm_router.gemini_http.api_errors import ApiError
    from llm_router.gemini_http.targets import Operation

__all__ = ["Call", "Dialect", "Settings", "parsed"]


class Dialect(Protocol):
    """How generated answers look in one protocol. The module ``replies`` is Gemini's own."""

    @property
    def END(self) -> bytes:  # noqa: N802 - a module has it as a constant
        """What follows the last event of a stream that is sent whole."""

    def generated(self, answer: Answer) -> Body:
        """Return the answer as one body."""

    def chunks(self, answer: Answer, count: int) -> list[Body]:
        """Return the answer as the bodies of a stream, its text in at most ``count`` pieces."""

    def without_content(self, answer: Answer, finish_reason: str) -> Body:
        """Return the body of an answer without content."""

    def prompt_blocked(self, answer: Answer, reason: str) -> Body:
        """Return the body for a prompt that was blocked for ``reason``."""

    def failed(self, error: ApiError) -> Body:
        """Return ``error`` as it comes in the place of a piece of a stream."""

    def event(self, body: Body) -> bytes:
        """Return a body of a stream as a server-sent event."""


@attrs.frozen
class Settings:
    """How the emulated models behave.

    Attributes:
        models: The models that exist; None is any.
        listed: The models that are listed if any exists.
        input_token_limit: Tokens of the largest prompt.
        thought_tokens: Thought tokens reported with each answer.
        stream_chunks: The most chunks in which an answer is streamed.
        responder: Makes each answer.
    """

    models: tuple[str, ...] | None = None
    listed: tuple[str, ...] = ()
    input_token_limit: int = 1_048_576
    thought_tokens: int = 0
    stream_chunks: int = 4
    responder: Responder = echo


@attrs.frozen
class Call:
    """A request, with the HTTP exchange to answer it on.

    Attributes:
        exchange: The exchange.
        method: What it asks for, such as ``generateContent``.
        model: The model; empty if the path names none.
        resource: What it is about, such as ``files/abc``; empty if the path names nothing.
        project: The project of its key.
        key: Its API key.
        query: The query string.
        headers: The headers, names in lower case.
        raw: The body as it was sent.
        body: The body in the form of ``generateContent`` for what generates, else as it was sent.
        openai: Whether it came on one of OpenAI's paths.
        streams: Whether the answer is to be streamed.
        sse: Whether a stream is to be sent as server-sent events.
        dialect: How a generated answer looks.
    """

    exchange: Exchange
    method: Operation
    model: str
    resource: str
    project: str
    key: str = attrs.field(repr=False)
    query: str = attrs.field(repr=False)
    headers: Iterable[tuple[bytes, bytes]] = attrs.field(repr=False)
    raw: bytes = attrs.field(repr=False)
    body: dict[str, Any] = attrs.field(repr=False)
    openai: bool = False
    streams: bool = False
    sse: bool = False
    dialect: Dialect = attrs.field(default=replies, repr=False)

    def parameter(self, name: str) -> str:
        """Return a parameter of the query; empty if it is absent."""
        return parse_qs(self.query).get(name, [""])[0]

    def header(self, name: str) -> str:
        """Return a header of the request, given its name in lower case; empty if it is absent."""
        wanted = name.encode()
        return next((value.decode("latin-1") for one, value in self.headers if one == wanted), "")

    def page(self, items: Sequence[Body], size: int, most: int) -> tuple[list[Body], str]:
        """Return the page of ``items`` that the query asks for, and the token of the next; empty for none.

        Args:
            items: All items.
            size: Items of a page unless ``pageSize`` says otherwise.
            most: Items of the largest page.

        Raises:
            RefusalError: ``pageSize`` or ``pageToken`` is not a number.
        """
        start, wanted = self._number("pageToken", 0), self._number("pageSize", size) or size
        end = start + min(wanted, most)
        return list(items[start:end]), str(end) if end < len(items) else ""

    def _number(self, name: str, default: int) -> int:
        text = self.parameter(name)
        if text and not text.isdecimal():
            raise RefusalError.invalid(f"Invalid value at '{name}': {text[:40]!r}")
        return int(text) if text else default


def parsed(raw: bytes) -> dict[str, Any]:
    """Return the JSON object ``raw``.

    Raises:
        RefusalError: It is not a JSON object.
    """
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise RefusalError.of(not_json())
    return body

"""Reading one streamed answer from the SDK, and releasing its connection."""

from __future__ import annotations

import json
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llm_router.providers._gemini_reply import ReplyReader
from llm_router.providers._gemini_transport import OPEN_STREAM, HttpFailure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from llm_router.providers._gemini_session import LoopSession
    from llm_router.providers.base import Reply

__all__ = ["StreamedCall"]


class StreamedCall:
    """One streamed call. Nothing is sent before the first :meth:`read`.

    Args:
        begin: Returns the session used, and the SDK's generator of responses.
        limited: Whether the request limits the tokens of its answer.
    """

    def __init__(
        self, begin: Callable[[], Awaitable[tuple[LoopSession, AsyncGenerator[Any]]]], *, limited: bool
    ) -> None:
        self._begin = begin
        self._session: LoopSession | None = None
        self._responses: AsyncGenerator[Any] | None = None
        self._reader = ReplyReader(limited=limited)
        self._close: Callable[[], Awaitable[None]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the server has begun to answer."""
        return self._close is not None

    @property
    def is_complete(self) -> bool:
        """Whether the answer has ended."""
        return self._reader.is_complete

    async def read(self) -> Reply | None:
        """Return the next piece of the answer, or None at its end.

        What comes after the reason why the answer ended, and cannot be read, is not part of the answer.

        Raises:
            HttpFailure, PathFailure: The call failed.
            Exception: The SDK cannot read what the server sent.
        """
        failure: Exception | None = None
        try:
            response = await self._next()
            return self._end() if response is None else self._reader.read(response)
        except Exception as error:
            if self.is_complete:
                return None
            failure = self._failure(error)
            if failure is None:
                raise
        raise failure

    def _end(self) -> Reply | None:
        return None if self.is_complete else self._reader.end()

    async def aclose(self) -> None:
        """Release the connection, which the SDK keeps if an answer is not read to its end."""
        if self._responses is not None:
            with suppress(Exception):  # the call is over: its errors no longer matter
                await self._responses.aclose()
        if self._close is not None:
            with suppress(Exception):
                await self._close()

    async def _next(self) -> Any:
        if self._responses is not None:
            return await anext(self._responses, None)
        OPEN_STREAM.set(None)
        self._session, self._responses = await self._begin()
        try:
            return await anext(self._responses, None)
        finally:
            self._close = OPEN_STREAM.get()

    def _failure(self, error: Exception) -> Exception | None:
        """Return the failure of the server or the path that an SDK error stands for, or None."""
        from google.genai.errors import APIError  # noqa: PLC0415 - heavy, and already imported

        if isinstance(error, APIError):  # an error in place of a piece: the status was 200
            code = error.code if isinstance(error.code, int) else HTTPStatus.INTERNAL_SERVER_ERROR
            return HttpFailure(code, json.dumps(error.details).encode(), None)
        return None if self._session is None else self._session.path_failure(error)

"""A conversation: sends that remember what was said."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Unpack
from weakref import WeakValueDictionary

import attrs

from llm_router.conversations.base import HistoryStore, Turn
from llm_router.conversations.contents import (
    answers_call,
    history_of,
    request_of,
    said_in,
    turns_in,
    turns_of,
)
from llm_router.conversations.history import History
from llm_router.conversations.truncation import complete, truncate
from llm_router.domain.options import SendOptions
from llm_router.domain.request import Request
from llm_router.domain.response import Chunk, Response
from llm_router.engine.requests import unalias
from llm_router.engine.streaming import Stream
from llm_router.errors import HistoryConflictError, InvalidRequestError

__all__ = ["HISTORY_TOKENS", "Conversation", "Conversations"]

_log = logging.getLogger("llm_router")

HISTORY_TOKENS: Mapping[str, int] = {"light": 8_000, "medium": 16_000, "heavy": 24_000}
"""Tokens of history sent along, per workload."""

_OTHER_TOKENS = 16_000


@attrs.frozen(eq=False)
class Conversations:
    """Every conversation of a router.

    Attributes:
        send: The router's send.
        stream: The router's stream.
        estimate: Estimates the tokens of a request.
        histories: Keeps the histories.
        budgets: Tokens of history sent along, per workload.
        enter: Raises if the router is closed, or works on another event loop than the running one.
    """

    send: Callable[..., Awaitable[Response]]
    stream: Callable[..., Stream]
    estimate: Callable[[Request], int]
    histories: HistoryStore
    budgets: Mapping[str, int]
    enter: Callable[[], None]
    _open: WeakValueDictionary[str, History] = attrs.field(factory=WeakValueDictionary, init=False)

    def history(self, conversation_id: str) -> History:
        """Return the history that all handles on one conversation share."""
        history = self._open.get(conversation_id)
        if history is None:
            history = self._open[conversation_id] = History(self.histories, conversation_id)
        return history

    def budget(self, workload: str | None) -> int:
        """Return the tokens of history to send along for ``workload``."""
        return self.budgets.get(workload or "", _OTHER_TOKENS)


class Conversation:
    """A handle on one conversation; any number of handles on the same id share its history.

    The history is independent of keys and models, so each turn may run on another one. It is cut to a token
    budget that depends on the workload: whole turns, oldest first, and never a function call without its
    answer. The system instruction is always sent. Sends on one conversation take turns.

    A turn that fails leaves the history unchanged. So does one whose answer has no content (no text, function
    call or data), as when a model spends all of ``max_output_tokens`` on thoughts: the response is a success
    with its ``finish_reason``, but neither prompt nor answer is remembered. Thoughts never are.

    A model's signatures are sent back to that model only: ``Request.origins`` has them, and the provider uses
    them once it knows the deployment. Another model gets the same contents without them. Gemini 3 refuses a
    function call without one while its answer is awaited; there the Gemini adapter uses the placeholder that
    Google documents for a change of model.

    An answer is never lost to a history store that fails, or to a cancellation, while it is saved: the
    response is returned unless the caller was cancelled, and the turn is remembered by this process as long
    as there is a handle on the conversation; the next turn saves it again. A handle logs one warning. Where
    the store has versions, as SQLite and Redis have, a turn that another process has overtaken is not
    remembered: the error says so, and has the response.

    Args:
        conversations: The router's conversations.
        conversation_id: Names the history.
        options: Defaults for every send.
        history: The contents to begin with where nothing is remembered.

    Raises:
        InvalidRequestError: The id is no string, or empty: then all who have none would share a history.
    """

    def __init__(
        self, conversations: Conversations, conversation_id: str, options: SendOptions, history: Any = None
    ) -> None:
        if not isinstance(conversation_id, str) or not conversation_id:
            found = (
                "an empty one" if isinstance(conversation_id, str) else f"a {type(conversation_id).__name__}"
            )
            raise InvalidRequestError(f"conversation_id must be a string that names a history, not {found}")
        self.id = conversation_id
        self._conversations = conversations
        _, self._options = unalias(None, options)
        self._beginning = turns_in(history) if history else ()
        self._history = conversations.history(conversation_id)
        self._has_warned = False

    async def send(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Response:
        """Send ``prompt`` after the history; remember prompt and answer if the send succeeds.

        Args:
            prompt: A string, a part, or contents of one user turn. Empty parts are left out.
            options: As for ``Router.send``; they win over those of the conversation.

        Raises:
            InvalidRequestError: An argument is wrong; the history is unchanged.
            HistoryError: The history could not be loaded; nothing was sent.
            HistoryConflictError: Another process has changed the conversation meanwhile; the error has the
                response.
            RouterLoopError: The router works on another event loop, which is still open.
        """
        prompt, options = unalias(prompt, options)
        self._conversations.enter()
        async with self._history.lock:
            return await self._send(said_in(prompt), {**self._options, **options})

    async def send_message(self, message: Any, **options: Unpack[SendOptions]) -> Response:
        """Send the next message; the same as :meth:`send`, under the name that chats of google-genai use."""
        return await self.send(message, **options)

    def stream(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Stream:
        """Send ``prompt`` as :meth:`send` does, and read the answer while it comes.

        Prompt and answer are remembered once the answer was read to its end and is a success. The next turn
        of the conversation waits until the stream is left.

        Args:
            prompt: As for :meth:`send`.
            options: As for ``Router.stream``; they win over those of the conversation.

        Raises, when the stream is entered:
            InvalidRequestError: An argument is wrong.
            HistoryError: The history could not be loaded; nothing was sent.

        Raises, when it has been read to its end:
            HistoryConflictError: As for :meth:`send`.
        """
        prompt, options = unalias(prompt, options)
        return Stream(self._events(said_in(prompt), {**self._options, **options}))

    async def _send(self, said: tuple[Any, ...], options: SendOptions) -> Response:
        turns = await self._recall(said, options)
        response = await self._conversations.send(request_of(turns, said), **options)
        await self._remember(turns, said, response)
        return response

    async def _events(self, said: tuple[Any, ...], options: SendOptions) -> AsyncGenerator[Chunk | Response]:
        self._conversations.enter()
        async with self._history.lock:
            turns = await self._recall(said, options)
            async with self._conversations.stream(request_of(turns, said), **options) as stream:
                while (chunk := await stream.read()) is not None:
                    yield chunk
            await self._remember(turns, said, stream.response)
            yield stream.response

    async def _recall(self, said: tuple[Any, ...], options: SendOptions) -> tuple[Turn, ...]:
        """Return the earlier turns that are to be sent along."""
        if not said:
            raise InvalidRequestError("the prompt is empty: pass a string or contents")
        answering = answers_call(said)
        turns = complete(await self._history.load() or self._begun(), answering=answering)
        return truncate(turns, self._conversations.budget(options.get("workload")), answering=answering)

    def _begun(self) -> tuple[Turn, ...]:
        """Return what the conversation is to begin with where nothing is remembered."""
        return tuple(self._sized(turn) for turn in self._beginning)

    async def _remember(self, turns: tuple[Turn, ...], said: tuple[Any, ...], response: Response) -> None:
        """Add the turn to the history if it succeeded and has content; a store that fails does no harm.

        Raises:
            HistoryConflictError: Another process has changed the history meanwhile.
        """
        try:
            new = turns_of(said, response)
            if new:
                await self._history.save(turns, tuple(self._sized(turn) for turn in new))
        except HistoryConflictError as conflict:
            conflict.response = response
            raise
        except Exception as error:  # noqa: BLE001 - the answer is paid for: it is returned all the same
            self._warn(error)

    def _sized(self, turn: Turn) -> Turn:
        return attrs.evolve(turn, tokens=self._conversations.estimate(request_of([turn], ())))

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            # Only its name: its message may quote what was said.
            _log.warning(
                "a turn of conversation %r could not be saved (%s); it is kept in this process's memory",
                self.id,
                type(error).__name__,
            )

    async def history(self) -> tuple[Any, ...]:
        """Return the contents of the conversation so far, oldest first, without signatures.

        Raises:
            HistoryError: The history could not be loaded.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        self._conversations.enter()
        return history_of(await self._history.look() or self._begun())

    async def clear(self) -> None:
        """Forget the history, also what this handle was to begin with.

        Raises:
            HistoryError: The history store failed.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        self._conversations.enter()
        async with self._history.lock:
            self._beginning = ()
            await self._history.delete()

    def __repr__(self) -> str:
        return f"Conversation({self.id!r})"

"""A conversation: sends that remember what was said."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack
from weakref import WeakValueDictionary

import anyio
import attrs

from llm_router.conversations.base import HistoryStore, Turn
from llm_router.conversations.truncation import truncate
from llm_router.domain.options import SendOptions
from llm_router.domain.request import Request
from llm_router.domain.response import Chunk, Response
from llm_router.engine.streaming import Stream

__all__ = ["HISTORY_TOKENS", "Conversation", "Conversations"]

HISTORY_TOKENS: Mapping[str, int] = {"light": 8_000, "medium": 16_000, "heavy": 24_000}
"""Tokens of history sent along, per workload."""

_OTHER_TOKENS = 16_000


class _TurnLock:
    """Makes the sends of one conversation take turns."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = anyio.Lock()


@attrs.frozen(eq=False)
class Conversations:
    """Every conversation of a router.

    Attributes:
        send: The router's send.
        stream: The router's stream.
        estimate: Estimates the tokens of a request.
        histories: Keeps the histories.
        budgets: Tokens of history sent along, per workload.
    """

    send: Callable[..., Awaitable[Response]]
    stream: Callable[..., Stream]
    estimate: Callable[[Request], int]
    histories: HistoryStore
    budgets: Mapping[str, int]
    # Weak: a lock lives as long as a handle on its conversation does.
    _locks: WeakValueDictionary[str, _TurnLock] = attrs.field(factory=WeakValueDictionary, init=False)

    def turn_lock(self, conversation_id: str) -> _TurnLock:
        """Return the lock that all handles on one conversation share."""
        return self._locks.get(conversation_id) or self._locks.setdefault(conversation_id, _TurnLock())

    def budget(self, workload: str | None) -> int:
        """Return the tokens of history to send along for ``workload``."""
        return self.budgets.get(workload or "", _OTHER_TOKENS)


class Conversation:
    """A handle on one conversation; any number of handles on the same id share its history.

    The history is independent of keys and models, so each turn may run on another one. It is cut to a token
    budget that depends on the workload: whole turns, oldest first, and never a function call without its
    answer. The system instruction is always sent. A turn that fails leaves the history unchanged. Sends on
    one conversation take turns.

    Args:
        conversations: The router's conversations.
        conversation_id: Names the history.
        options: Defaults for every send.
    """

    def __init__(self, conversations: Conversations, conversation_id: str, options: SendOptions) -> None:
        self.id = conversation_id
        self._conversations = conversations
        self._options = options
        self._turn = conversations.turn_lock(conversation_id)

    async def send(self, prompt: Any, **options: Unpack[SendOptions]) -> Response:
        """Send ``prompt`` after the history; remember prompt and answer if the send succeeds.

        Args:
            prompt: A string, a part, or contents of one user turn.
            options: As for ``Router.send``; they win over those of the conversation.

        Raises:
            InvalidRequestError: An argument is wrong; the history is unchanged.
        """
        async with self._turn.lock:
            return await self._send(_contents(prompt), {**self._options, **options})

    def stream(self, prompt: Any, **options: Unpack[SendOptions]) -> Stream:
        """Send ``prompt`` as :meth:`send` does, and read the answer while it comes.

        Prompt and answer are remembered once the answer was read to its end and is a success. The next turn
        of the conversation waits until the stream is left.

        Args:
            prompt: As for :meth:`send`.
            options: As for ``Router.stream``; they win over those of the conversation.

        Raises:
            InvalidRequestError: Raised when the stream is entered: an argument is wrong.
        """
        return Stream(self._events(_contents(prompt), {**self._options, **options}))

    async def _send(self, said: tuple[Any, ...], options: SendOptions) -> Response:
        turns = await self._recall(said, options)
        response = await self._conversations.send(_request(turns, said), **options)
        await self._remember(turns, said, response)
        return response

    async def _events(self, said: tuple[Any, ...], options: SendOptions) -> AsyncGenerator[Chunk | Response]:
        async with self._turn.lock:
            turns = await self._recall(said, options)
            async with self._conversations.stream(_request(turns, said), **options) as stream:
                while (chunk := await stream.read()) is not None:
                    yield chunk
            await self._remember(turns, said, stream.response)
            yield stream.response

    async def _recall(self, said: tuple[Any, ...], options: SendOptions) -> tuple[Turn, ...]:
        """Return the earlier turns that are to be sent along."""
        conversations = self._conversations
        turns = await conversations.histories.load(self.id)
        budget = conversations.budget(options.get("workload"))
        return truncate(turns, budget, answering=_answers_call(said))

    async def _remember(self, turns: tuple[Turn, ...], said: tuple[Any, ...], response: Response) -> None:
        """Add the turn to the history if it succeeded."""
        if not response.success:
            return
        conversations = self._conversations
        contents = (*said, _answer(response))
        tokens = conversations.estimate(Request(contents=list(contents)))
        turn = Turn(contents, tokens, _answers_call(said))
        await conversations.histories.save(self.id, (*turns, turn))

    async def history(self) -> tuple[Any, ...]:
        """Return the contents of the conversation so far, oldest first."""
        turns = await self._conversations.histories.load(self.id)
        return tuple(content for turn in turns for content in turn.contents)

    async def clear(self) -> None:
        """Forget the history."""
        async with self._turn.lock:
            await self._conversations.histories.delete(self.id)

    def __repr__(self) -> str:
        return f"Conversation({self.id!r})"


def _request(turns: Iterable[Turn], said: tuple[Any, ...]) -> Request:
    history = [content for turn in turns for content in turn.contents]
    return Request(contents=[*history, *said])


def _contents(prompt: Any) -> tuple[Any, ...]:
    """Return a prompt as contents with a role."""
    if isinstance(prompt, str):
        return ({"role": "user", "parts": [{"text": prompt}]},)
    if isinstance(prompt, Sequence):
        return tuple(content for item in prompt for content in _contents(item))
    if _get(prompt, "parts") is not None:
        return (prompt,)
    return ({"role": "user", "parts": [prompt]},)


def _answers_call(contents: tuple[Any, ...]) -> bool:
    parts = _get(contents[0], "parts") if contents else None
    return any(_get(part, "function_response") or _get(part, "functionResponse") for part in parts or ())


def _answer(response: Response) -> Any:
    return response.content or {"role": "model", "parts": [{"text": response.text}]}


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)

"""A conversation: sends that remember."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import anyio
import attrs

from llm_router.conversations.base import HistoryStore, Turn
from llm_router.conversations.truncation import truncate
from llm_router.domain.request import Request
from llm_router.domain.response import Chunk, Response
from llm_router.engine.streaming import Stream

__all__ = ["HISTORY_TOKENS", "Conversation", "Conversations"]

HISTORY_TOKENS: Mapping[str, int] = {"light": 8_000, "medium": 16_000, "heavy": 24_000}
"""Tokens of history sent along, per workload."""

_OTHER_TOKENS = 16_000


class _Turns:
    """The lock that makes the sends of one conversation take turns."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = anyio.Lock()


@attrs.frozen(eq=False)
class Conversations:
    """Every conversation of a router.

    Attributes:
        send: The router's send.
        stream: The router's stream.
        estimate: Tokens of a request.
        histories: Where histories are kept.
        budgets: Tokens of history per workload.
    """

    send: Callable[..., Awaitable[Response]]
    stream: Callable[..., Stream]
    estimate: Callable[[Request], int]
    histories: HistoryStore
    budgets: Mapping[str, int]
    # Weak: a lock lives as long as a handle on its conversation does.
    _turns: WeakValueDictionary[str, _Turns] = attrs.field(factory=WeakValueDictionary, init=False)

    def turns(self, conversation_id: str) -> _Turns:
        """Return the lock that all handles on one conversation share."""
        return self._turns.get(conversation_id) or self._turns.setdefault(conversation_id, _Turns())

    def budget(self, workload: str | None) -> int:
        """Return the tokens of history to send along for ``workload``."""
        return self.budgets.get(workload or "", _OTHER_TOKENS)


class Conversation:
    """A handle on one conversation; any number of handles on the same id share its history.

    The history belongs to no key and no model, so that each turn may run on another. It is cut to a budget
    of tokens that depends on the workload: whole turns, oldest first, never a function call without its
    answer. The system instruction is always sent. A turn that fails leaves the history as it was. Sends on
    one conversation take turns.

    Args:
        conversations: The router's conversations.
        conversation_id: Names the history.
        options: Defaults for every send: ``workload``, ``system_instruction`` and whatever else
            ``Router.send`` takes.
    """

    def __init__(
        self, conversations: Conversations, conversation_id: str, options: Mapping[str, Any]
    ) -> None:
        self.id = conversation_id
        self._conversations = conversations
        self._options = options
        self._turns = conversations.turns(conversation_id)

    async def send(self, prompt: Any, **options: Any) -> Response:
        """Send ``prompt`` with the history before it; remember both prompt and answer if it succeeds.

        Args:
            prompt: A string, a part, or contents of one user turn.
            options: As for ``Router.send``; they win over those of the conversation.

        Raises:
            InvalidRequestError: An argument is wrong; the history is as it was.
        """
        merged = {**self._options, **options}
        async with self._turns.lock:
            return await self._send(_contents(prompt), merged)

    def stream(self, prompt: Any, **options: Any) -> Stream:
        """Send ``prompt`` as :meth:`send` does, and read the answer while it comes.

        Both are remembered when the answer was read to its end and succeeded. The next turn of the
        conversation waits until the stream is left.

        Args:
            prompt: As for :meth:`send`.
            options: As for ``Router.stream``; they win over those of the conversation.

        Raises:
            InvalidRequestError: From the stream, when it is entered: an argument is wrong.
        """
        return Stream(self._events(_contents(prompt), {**self._options, **options}))

    async def _send(self, said: tuple[Any, ...], options: dict[str, Any]) -> Response:
        turns = await self._recall(said, options)
        response = await self._conversations.send(_request(turns, said), **options)
        await self._remember(turns, said, response)
        return response

    async def _events(
        self, said: tuple[Any, ...], options: dict[str, Any]
    ) -> AsyncGenerator[Chunk | Response]:
        async with self._turns.lock:
            turns = await self._recall(said, options)
            async with self._conversations.stream(_request(turns, said), **options) as stream:
                while (chunk := await stream.read()) is not None:
                    yield chunk
            await self._remember(turns, said, stream.response)
            yield stream.response

    async def _recall(self, said: tuple[Any, ...], options: dict[str, Any]) -> tuple[Turn, ...]:
        """Return as many of the turns before this one as are to be sent along."""
        conversations = self._conversations
        turns = await conversations.histories.load(self.id)
        budget = conversations.budget(options.get("workload"))
        return truncate(turns, budget, answering=_answers_call(said))

    async def _remember(self, turns: tuple[Turn, ...], said: tuple[Any, ...], response: Response) -> None:
        """Add what was said, and the answer if there is one."""
        if not response.success:
            return
        conversations = self._conversations
        contents = (*said, _answer(response))
        tokens = conversations.estimate(Request(contents=list(contents)))
        turn = Turn(contents, tokens, _answers_call(said))
        await conversations.histories.save(self.id, (*turns, turn))

    async def history(self) -> tuple[Any, ...]:
        """Return the contents said so far, oldest first."""
        turns = await self._conversations.histories.load(self.id)
        return tuple(content for turn in turns for content in turn.contents)

    async def clear(self) -> None:
        """Forget what was said."""
        async with self._turns.lock:
            await self._conversations.histories.delete(self.id)

    def __repr__(self) -> str:
        return f"Conversation({self.id!r})"


def _request(turns: Iterable[Turn], said: tuple[Any, ...]) -> Request:
    history = [content for turn in turns for content in turn.contents]
    return Request(contents=[*history, *said])


def _contents(prompt: Any) -> tuple[Any, ...]:
    """Bring a prompt into the form of contents with a role."""
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

"""One call: relayed on the router's loop, its answer taken piece by piece by a caller elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import deque
from collections.abc import Generator

import attrs

from llm_router.bridge import Home
from llm_router.domain.exchange import Exchange, Head
from llm_router.domain.options import RelayOptions
from llm_router.engine.relaying import Relay
from llm_router.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    LLMRouterError,
    RouterClosedError,
    StoreError,
)
from llm_router.gemini_http.answers import answer_for
from llm_router.gemini_http.wishes import trace_headers

__all__ = ["AsyncPassage", "Begun", "BlockingPassage", "Call"]

_AHEAD = 1 << 20
"""Bytes of an answer that are read before the caller takes them: most answers fit, and so are read to their
end whatever the caller does."""

_IDLE = 60.0
"""Seconds after which a caller that takes nothing more of so much is given up."""


@attrs.frozen(kw_only=True)
class Call:
    """What to relay.

    Attributes:
        exchange: The request.
        options: How.
        seconds: The caller's own timeout; None if it has none.
    """

    exchange: Exchange
    options: RelayOptions
    seconds: float | None


@attrs.frozen
class Begun:
    """How an answer begins: its head, and the whole body unless that comes in pieces."""

    head: Head
    body: bytes | None


class _End:
    """There are no more pieces."""


_END = _End()
_Event = Begun | bytes | BaseException | _End


class _Passage:
    """What comes of a call, in order, from the router's loop to the caller's thread or loop."""

    def __init__(self, home: Home, call: Call) -> None:
        self._home = home
        self._call = call
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self._room: asyncio.Event | None = None
        self._put_bytes = 0  # written by the loop only
        self._taken_bytes = 0  # written by the caller only
        self._is_taken = False

    # --- on the loop of the router --------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._is_over:
            self._task = self._home.begin(self._serve())

    async def _serve(self) -> None:
        try:
            outcome: _Event = await self._relay()
        except asyncio.CancelledError:
            outcome = RouterClosedError("this client was closed before the answer was complete")
        except TimeoutError:
            outcome = DeadlineExceededError("no answer within the timeout of the call")
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
            outcome = error
        self._is_over = True
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            self._deliver(outcome)

    async def _relay(self) -> _Event:
        """Relay the call; return what the caller is to get last."""
        call, has_begun = self._call, False
        try:
            relay = self._home.router.relay(call.exchange, **call.options)
            async with asyncio.timeout(call.seconds) as limit, relay as answer:
                if not _comes_in_pieces(answer.head):
                    body = b"".join([piece async for piece in answer])
                    _raise_if_late(answer)
                    return Begun(_traced(answer), body)
                limit.reschedule(None)  # from here on, the router limits each piece
                has_begun = True
                self._deliver(Begun(_traced(answer), None))
                async for piece in answer:
                    await self._wait_for_room()
                    self._put_bytes += len(piece)
                    self._deliver(piece)
        except (InvalidRequestError, StoreError) as error:
            if has_begun:
                raise
            return Begun(*answer_for(call.exchange, error))
        return _END

    async def _wait_for_room(self) -> None:
        if self._put_bytes - self._taken_bytes <= _AHEAD:
            return
        self._room = asyncio.Event()
        try:
            async with asyncio.timeout(_IDLE):
                while self._put_bytes - self._taken_bytes > _AHEAD:
                    await self._room.wait()
                    self._room.clear()
        except TimeoutError:
            raise DeadlineExceededError(f"nothing of the answer was read for {_IDLE:g} s") from None
        finally:
            self._room = None

    def _deliver(self, event: _Event) -> None:
        """Hand an event to the caller.

        Raises:
            RuntimeError: It is gone.
        """
        raise NotImplementedError

    def _cancel(self) -> None:
        self._is_over = True
        if self._task is not None:
            self._task.cancel()

    # --- where the caller is --------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            self._home.loop.call_soon_threadsafe(self._begin)
        except RuntimeError:
            raise RouterClosedError("this client is closed: make a new one") from None

    def abandon(self) -> None:
        """End the call, unless it is over. Any thread may call it, and a finaliser."""
        if not self._is_over:
            self._home.post(self._cancel)

    def _accept(self, event: _Event) -> bytes:
        """Return the bytes of an event, empty after the last ones; raise what it failed with."""
        if isinstance(event, bytes):
            self._taken_bytes += len(event)
            if (room := self._room) is not None:
                self._home.post(room.set)
            return event
        self._is_taken = True
        if isinstance(event, BaseException):
            raise event
        return b""

    @contextlib.contextmanager
    def _abandoned_on_error(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.abandon()
            raise


class BlockingPassage(_Passage):
    """A call whose caller is a thread that waits."""

    def __init__(self, home: Home, call: Call) -> None:
        super().__init__(home, call)
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()

    def _deliver(self, event: _Event) -> None:
        self._events.put(event)

    def begin(self) -> Begun:
        """Make the call; return how its answer begins.

        Raises:
            LLMRouterError: There is no answer.
        """
        self._start()
        with self._abandoned_on_error():
            event = self._events.get()
            if isinstance(event, Begun):
                return event
            self._accept(event)
        raise AssertionError("pieces came before the head")

    def take(self) -> bytes:
        """Return the next bytes of the body; empty if there are no more.

        Raises:
            LLMRouterError: The answer broke off.
        """
        return b"" if self._is_taken else self._accept(self._events.get())


class AsyncPassage(_Passage):
    """A call whose caller is a task of an event loop."""

    def __init__(self, home: Home, call: Call) -> None:
        super().__init__(home, call)
        self._caller = asyncio.get_running_loop()
        self._events: deque[_Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_asleep = False

    def _deliver(self, event: _Event) -> None:
        self._events.append(event)
        if self._is_asleep:
            self._is_asleep = False
            self._caller.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next(self) -> _Event:
        while not self._events:
            self._waiter = self._caller.create_future()
            self._is_asleep = True
            if not self._events:  # it may have come meanwhile
                await self._waiter
        return self._events.popleft()

    async def begin(self) -> Begun:
        """As for a caller that blocks."""
        self._start()
        with self._abandoned_on_error():
            event = await self._next()
            if isinstance(event, Begun):
                return event
            self._accept(event)
        raise AssertionError("pieces came before the head")

    async def take(self) -> bytes:
        """As for a caller that blocks."""
        return b"" if self._is_taken else self._accept(await self._next())


def _comes_in_pieces(head: Head) -> bool:
    kind = next((value for name, value in head.headers if name == "content-type"), "")
    return not kind.startswith("application/json")


def _raise_if_late(answer: Relay) -> None:
    """Raise the timeout of the caller or of the router; the provider's own is an answer."""
    error: LLMRouterError | None = answer.response.error
    if isinstance(error, DeadlineExceededError):
        raise error


def _traced(answer: Relay) -> Head:
    told = trace_headers(answer.key_id, answer.model, answer.attempts, answer.waited)
    return attrs.evolve(answer.head, headers=(*answer.head.headers, *told))

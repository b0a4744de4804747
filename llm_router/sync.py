"""The router for callers without an event loop: scripts, Flask and Django, Celery, notebooks.

::

    from llm_router.sync import SyncRouter

    with SyncRouter.from_config("keys.json") as router:
        print(router.send("Design a trading system", workload="heavy", max_wait=60).text)

A :class:`SyncRouter` has the methods of :class:`~llm_router.Router`, with the same arguments, results and
errors; they return when the answer is there. Behind them is one asynchronous router, on an event loop in a
thread of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from llm_router.bridge import Bridge, Home, RouterSource
from llm_router.building.options import RouterOptions
from llm_router.conversations.conversation import Conversation
from llm_router.domain.deployment import Deployment
from llm_router.domain.explanation import Explanation
from llm_router.domain.numbers import shown, whole
from llm_router.domain.options import QueryOptions, SendOptions
from llm_router.domain.queries import Embeddings, ModelList
from llm_router.domain.quota import GUARD
from llm_router.domain.reload import ReloadReport
from llm_router.domain.response import Chunk, Response
from llm_router.domain.status import CacheSavings, Health, KeyStatus
from llm_router.engine.keys import KeyManager
from llm_router.engine.streaming import Stream
from llm_router.errors import InvalidRequestError, RouterClosedError
from llm_router.providers.base import Provider
from llm_router.router import Router
from llm_router.stores.base import RateLimitStore

__all__ = ["SyncConversation", "SyncKeys", "SyncRouter", "SyncStream"]

_T = TypeVar("_T")

_ENDING = 10.0
"""Most seconds that an interrupted call waits until its quota is settled."""


class SyncRouter:
    """A :class:`~llm_router.Router` whose methods block, for callers without an event loop.

    Any number of threads may use it at once. It may be used where an event loop runs, as in a notebook, but
    blocks it meanwhile. Ctrl-C ends the call that waits, and settles or frees its quota. A forked child that
    inherits one made by :meth:`from_config` gets a router of its own at its first call, on the same store; so
    Celery and gunicorn may fork after it was made. It closes itself when the interpreter exits.

    Args:
        router: What makes the asynchronous router, which this one closes; or a router that exists, which
            stays the caller's, and goes on to work on the loop that it works on.
    """

    def __init__(self, router: RouterSource) -> None:
        self._bridge = Bridge(router, "router", "the methods of Router")

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str] = "keys.json",
        *,
        env: Mapping[str, str] | None = None,
        env_file: str | os.PathLike[str] | None = ".env",
        guard: float = GUARD,
        store: RateLimitStore | str | None = None,
        provider: Provider | Mapping[str, Provider] | None = None,
        watch: bool = False,
        **options: Unpack[RouterOptions],
    ) -> Self:
        """Make a router from keys.json, ``.env`` and the environment, as :meth:`Router.from_config` does.

        Raises:
            ConfigError: Something is wrong; the message names the file, the entry and the remedy.
        """
        return cls(
            partial(
                Router.from_config,
                path,
                env=env,
                env_file=env_file,
                guard=guard,
                store=store,
                provider=provider,
                watch=watch,
                **options,
            )
        )

    def send(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Response:
        """Send a prompt, and return the response; see :meth:`Router.send`."""
        return self._run(lambda router: router.send(prompt, **options))

    def send_one_shot(self, *, prompt: Any, **options: Unpack[SendOptions]) -> Response:
        """Send one prompt; the same as :meth:`send`."""
        return self.send(prompt, **options)

    def send_chat(self, *, conv_id: str, prompt: Any, **options: Unpack[SendOptions]) -> Response:
        """Send the next turn of a conversation; see :meth:`Router.send_chat`."""
        return self._run(lambda router: router.send_chat(conv_id=conv_id, prompt=prompt, **options))

    def stream(self, prompt: Any = None, **options: Unpack[SendOptions]) -> SyncStream:
        """Send a prompt, and read the answer while it comes; see :meth:`Router.stream`.

        ::

            with router.stream("Tell me a story") as stream:
                for chunk in stream:
                    print(chunk.text, end="")
        """
        home = self._bridge.home_of_blocking_call()
        return SyncStream(home, lambda: home.router.stream(prompt, **options))

    def batch(
        self, prompts: Iterable[Any], *, concurrency: int = 32, **options: Unpack[SendOptions]
    ) -> list[Response]:
        """Send many prompts, and return their responses in order, successful or not.

        Args:
            prompts: As for :meth:`send`.
            concurrency: Most prompts that are under way at once.
            options: Of every send; pass ``max_wait``, so that each waits for its turn.

        Raises:
            InvalidRequestError: An argument is wrong. The sends that had begun were ended.
        """
        if (whole(concurrency) or 0) < 1:
            raise InvalidRequestError(f"concurrency must be a whole number above 0, not {shown(concurrency)}")
        return self._run(lambda router: _send_all(router, list(prompts), concurrency, options))

    def conversation(
        self, conversation_id: str, *, history: Any = None, **options: Unpack[SendOptions]
    ) -> SyncConversation:
        """Return a handle on a conversation, new or known; see :meth:`Router.conversation`."""
        return SyncConversation(
            self._bridge, conversation_id, partial(_converse, conversation_id, history, options)
        )

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str | None = None,
        task_type: str | None = None,
        title: str | None = None,
        output_dimensionality: int | None = None,
        **options: Unpack[QueryOptions],
    ) -> Embeddings:
        """Embed texts; see :meth:`Router.embed`."""
        return self._run(
            lambda router: router.embed(
                texts,
                model=model,
                task_type=task_type,
                title=title,
                output_dimensionality=output_dimensionality,
                **options,
            )
        )

    def count_tokens(
        self,
        prompt: Any,
        *,
        model: str | None = None,
        workload: str | None = None,
        system_instruction: Any = None,
        **options: Unpack[QueryOptions],
    ) -> int:
        """Have the provider count the tokens of a prompt; see :meth:`Router.count_tokens`."""
        return self._run(
            lambda router: router.count_tokens(
                prompt, model=model, workload=workload, system_instruction=system_instruction, **options
            )
        )

    def models(self, **options: Unpack[QueryOptions]) -> ModelList:
        """Ask the provider which models it serves; see :meth:`Router.models`."""
        return self._run(lambda router: router.models(**options))

    def explain(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Explanation:
        """Explain what :meth:`send` would decide now; see :meth:`Router.explain`."""
        return self._run(lambda router: router.explain(prompt, **options))

    def health_check(self) -> Health:
        """Return the state of the router as a whole; see :meth:`Router.health_check`."""
        return self._run(lambda router: router.health_check())

    def get_all_key_statuses(self, *, days: int = 1) -> list[KeyStatus]:
        """Return the status of every deployment; see :meth:`Router.get_all_key_statuses`."""
        return self._run(lambda router: router.get_all_key_statuses(days=days))

    def cache_savings(self) -> CacheSavings:
        """Return what answers from the cache have saved; see :meth:`Router.cache_savings`."""
        return self._run(lambda router: router.cache_savings())

    def reload(
        self,
        deployments: Iterable[Deployment] | None = None,
        *,
        inactive: Iterable[Deployment] | None = None,
        workloads: Sequence[str] | None = None,
    ) -> ReloadReport:
        """Go by a configuration that has changed; see :meth:`Router.reload`."""
        return self._run(lambda router: router.reload(deployments, inactive=inactive, workloads=workloads))

    @property
    def keys(self) -> SyncKeys:
        """Lifts, disables and enables keys."""
        return SyncKeys(self._bridge)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._bridge.closed

    def close(self) -> None:
        """End the calls that are under way, and close the router if this one made it. May be called twice."""
        self._bridge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, work: Callable[[Router], Coroutine[Any, Any, _T]]) -> _T:
        home = self._bridge.home_of_blocking_call()
        return _wait(home, lambda: work(home.router))

    def __repr__(self) -> str:
        return f"SyncRouter({self._bridge.router!r})"


class SyncStream:
    """An answer that is read while it comes: a context manager, and inside it an iterator.

    It does what :class:`~llm_router.engine.streaming.Stream` does. It can be iterated over without the block,
    too; then it is closed once it is collected. One thread at a time may read it.
    """

    def __init__(self, home: Home, make: Callable[[], Stream]) -> None:
        self._home = home
        self._stream = make()
        self._is_open = False
        self._finalizer = weakref.finalize(self, _leave, home, self._stream)
        self._finalizer.atexit = False  # the thread ends its calls by itself

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """Return the next piece.

        Raises:
            StopIteration: There are no more: the answer is complete.
            SendError: There is no answer, or it broke off: the ``error`` of the :attr:`response`.
        """
        chunk = self.read()
        if chunk is not None:
            return chunk
        self.response.raise_for_error()
        raise StopIteration

    def read(self) -> Chunk | None:
        """Return the next piece, or None when there are no more, also after a failure."""
        self._open()
        return _wait(self._home, self._stream.read)

    def collect(self) -> Response:
        """Read what is left, and return the response, successful or not."""
        self._open()
        return _wait(self._home, self._stream.collect)

    @property
    def response(self) -> Response:
        """The response with the whole text, once the last piece was read.

        Raises:
            RuntimeError: The last piece was not read yet.
        """
        return self._stream.response

    def close(self) -> None:
        """End the call, and settle the quota that it took. May be called twice."""
        if self._finalizer.detach() is not None and self._is_open:
            _wait(self._home, partial(self._stream.__aexit__, None, None, None))

    def _open(self) -> None:
        if not self._is_open:
            self._is_open = True
            _wait(self._home, self._stream.__aenter__)

    def __repr__(self) -> str:
        return f"Sync{self._stream!r}"


class SyncConversation:
    """A handle on one conversation; see :class:`~llm_router.conversations.conversation.Conversation`."""

    def __init__(self, bridge: Bridge, conversation_id: str, make: Callable[[Router], Conversation]) -> None:
        self.id = conversation_id
        self._bridge = bridge
        self._make = make
        self._handle: tuple[Router, Conversation] | None = None

    def send(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Response:
        """Send ``prompt`` after the history; remember prompt and answer if the send succeeds."""
        return self._run(lambda conversation: conversation.send(prompt, **options))

    def send_message(self, message: Any, **options: Unpack[SendOptions]) -> Response:
        """Send the next message; the same as :meth:`send`, under the name that chats of google-genai use."""
        return self.send(message, **options)

    def stream(self, prompt: Any = None, **options: Unpack[SendOptions]) -> SyncStream:
        """Send ``prompt`` after the history, and read the answer while it comes."""
        home, conversation = self._at_home()
        return SyncStream(home, lambda: conversation.stream(prompt, **options))

    def history(self) -> tuple[Any, ...]:
        """Return the contents of the conversation so far, oldest first, without signatures."""
        return self._run(lambda conversation: conversation.history())

    def clear(self) -> None:
        """Forget the history, also what this handle was to begin with."""
        self._run(lambda conversation: conversation.clear())

    def _run(self, work: Callable[[Conversation], Coroutine[Any, Any, _T]]) -> _T:
        home, conversation = self._at_home()
        return _wait(home, lambda: work(conversation))

    def _at_home(self) -> tuple[Home, Conversation]:
        home = self._bridge.home_of_blocking_call()
        if self._handle is None or self._handle[0] is not home.router:  # a forked child has another router
            self._handle = home.router, self._make(home.router)
        return home, self._handle[1]

    def __repr__(self) -> str:
        return f"SyncConversation({self.id!r})"


class SyncKeys:
    """Lifts, disables and enables keys; see :class:`~llm_router.engine.keys.KeyManager`."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def statuses_of(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """Return the status of each deployment of a key, or of one of its models."""
        return self._run(lambda keys: keys.statuses_of(key_id, model))

    def lift(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """End the cooldowns and quarantines of a key."""
        return self._run(lambda keys: keys.lift(key_id, model))

    def disable(self, key_id: str, model: str | None = None, *, reason: str = "") -> list[KeyStatus]:
        """Keep a key out of use until it is enabled again."""
        return self._run(lambda keys: keys.disable(key_id, model, reason=reason))

    def enable(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """Use a key again that was disabled."""
        return self._run(lambda keys: keys.enable(key_id, model))

    def forget_limits(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """Forget the limits that were learnt for the models of a key."""
        return self._run(lambda keys: keys.forget_limits(key_id, model))

    def _run(self, work: Callable[[KeyManager], Coroutine[Any, Any, _T]]) -> _T:
        home = self._bridge.home_of_blocking_call()
        return _wait(home, lambda: work(home.router.keys))


def _converse(conversation_id: str, history: Any, options: SendOptions, router: Router) -> Conversation:
    return router.conversation(conversation_id, history=history, **options)


async def _send_all(
    router: Router, prompts: Sequence[Any], concurrency: int, options: SendOptions
) -> list[Response]:
    """Send prompts in order, so many at once."""
    responses: dict[int, Response] = {}
    numbered = iter(enumerate(prompts))

    async def work() -> None:
        for number, prompt in numbered:
            responses[number] = await router.send(prompt, **options)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(prompts))):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [responses[number] for number in range(len(prompts))]


def _leave(home: Home, stream: Stream) -> None:
    """Have a stream closed that nothing reads any more."""
    home.post(lambda: home.begin(stream.__aexit__(None, None, None)))


def _wait(home: Home, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Do something on the loop of the router, and wait until it is done.

    Raises:
        RouterClosedError: The router was closed meanwhile.
        KeyboardInterrupt: The user does not want to wait; what was under way has been ended.
    """
    done: concurrent.futures.Future[_T] = concurrent.futures.Future()
    tasks: list[asyncio.Task[None]] = []

    async def finish() -> None:
        try:
            result = await work()
        except asyncio.CancelledError:
            done.set_exception(RouterClosedError("this router was closed before the answer came"))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)
        else:
            done.set_result(result)

    try:
        home.loop.call_soon_threadsafe(lambda: tasks.append(home.begin(finish())))
        return done.result()
    except (KeyboardInterrupt, SystemExit):
        if not done.done():
            home.post(lambda: [task.cancel() for task in tasks])
            concurrent.futures.wait([done], timeout=_ENDING)
        raise

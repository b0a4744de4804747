"""The Gemini adapter: google-genai with one client per key on one HTTP session, and plain text without it."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from llm_router.errors import ConfigError, InvalidRequestError, ProviderError
from llm_router.gemini_http.answers import answer_for
from llm_router.providers._gemini_answers import can_read
from llm_router.providers._gemini_config import (
    DEFAULT_SAFETY,
    build_config,
    safety_thresholds,
    validate_request,
)
from llm_router.providers._gemini_contents import estimate_request
from llm_router.providers._gemini_direct import ask, ask_in_pieces
from llm_router.providers._gemini_failures import (
    from_http,
    from_path,
    not_a_key,
    not_an_answer,
    not_sent,
)
from llm_router.providers._gemini_history import contents_for
from llm_router.providers._gemini_plain import is_plain, plain_body
from llm_router.providers._gemini_queries import GeminiQueries
from llm_router.providers._gemini_relay import (
    comes_in_pieces,
    read_exchange,
    relayed_pieces,
    relayed_whole,
)
from llm_router.providers._gemini_reply import read_reply
from llm_router.providers._gemini_request import limits_output, metered_tools
from llm_router.providers._gemini_schema import AnswerForm
from llm_router.providers._gemini_session import (
    HttpBackend,
    LoopSession,
    check_backend,
    check_base_url,
    prepare,
    server_url,
)
from llm_router.providers._gemini_stream import StreamedCall
from llm_router.providers._gemini_transport import ON_DISPATCH, REQUEST_BEGUN, HttpFailure, PathFailure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from llm_router.domain.deployment import Deployment
    from llm_router.domain.exchange import Exchange, Head
    from llm_router.domain.request import Request
    from llm_router.domain.secret import Secret
    from llm_router.errors import LLMRouterError
    from llm_router.providers.base import RelayRequest, Reply

__all__ = ["GeminiProvider", "HttpBackend"]

_T = TypeVar("_T")

_UNSUPPORTED = re.compile(r"(\w+) parameter is (?:only|not) supported in ")
"""How the SDK begins to say that a field is for Vertex only; nothing of the request is in it."""

_KEY = re.compile(r"[\x20-\x7e]+")


def _ignore() -> None:
    """Do nothing when the request is on the wire: nothing waits for it."""


class GeminiProvider:
    """Sends requests to the Gemini API through google-genai.

    A request of text and numbers alone, and an answer of text, go without the SDK's models, which would take
    most of the time: the bytes sent are the same, and the SDK's response is made when ``raw`` is asked for.

    Making one costs nothing: :meth:`prepare`, or else the first :meth:`validate` or :meth:`generate`,
    imports the SDK; the first :meth:`generate` opens the HTTP session; the first request of a key makes its
    client. One call of :meth:`generate` or :meth:`stream` is one HTTP request: retries, redirects, automatic
    function calling and automatic continuation are off. Each event loop has its own session, which closes
    with the loop, so a provider can be used over several ``asyncio.run()`` calls.

    Args:
        base_url: The server; None means ``GOOGLE_GEMINI_BASE_URL`` from the environment, or Google's.
        api_version: The version of the API.
        safety_settings: Category (such as ``HARASSMENT``) → threshold (such as ``BLOCK_ONLY_HIGH``). It
            overrides single categories of the default, which is ``BLOCK_NONE`` for harassment, hate speech,
            sexually explicit and dangerous content; ``{}`` leaves all of them to Google's own defaults.
        http_backend: ``aiohttp``, ``httpx`` (httpx2 if it is installed), or ``auto``: aiohttp if it is
            installed, else httpx.
        direct: Whether plain text may go without the SDK's models. False has the SDK make every request and
            read every answer, which is for programs that patch or instrument the SDK.

    Raises:
        ConfigError: A safety setting or the backend is unknown, the backend is not installed, or the URL of
            the server is malformed.
    """

    reports_dispatch = True

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_version: str = "v1beta",
        safety_settings: Mapping[str, str] | None = None,
        http_backend: HttpBackend = "auto",
        direct: bool = True,
    ) -> None:
        check_backend(http_backend)
        check_base_url(base_url)
        own = safety_thresholds({} if safety_settings is None else safety_settings, error=ConfigError)
        self._safety = {**DEFAULT_SAFETY, **own} if safety_settings is None or own else {}
        self._base_url = base_url
        self._api_version = api_version
        self._http_backend: HttpBackend = http_backend
        self._direct = direct
        self._sessions: dict[asyncio.AbstractEventLoop, LoopSession] = {}
        self.queries = GeminiQueries(api_version)
        """Forms the exchanges for embeddings, counts of tokens and lists of models."""

    def __repr__(self) -> str:
        return f"GeminiProvider(base_url={self._base_url!r}, api_version={self._api_version!r})"

    @property
    def place(self) -> str:
        """What its answers depend on besides the requests: the server and the default thresholds."""
        return f"{server_url(self._base_url)} {self._api_version} {sorted(self._safety.items())}"

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None] = _ignore
    ) -> Reply:
        """Send ``request`` once through ``deployment``.

        It waits for the answer as long as it takes (30 s for a connection). Bound it by cancelling, which
        aborts the HTTP request and leaves nothing running.

        Raises:
            ProviderError: The call failed; the error says how. Neither it nor its traceback contains the key.
        """
        _begin(deployment, dispatched)
        outcome = await _outcome(self._send(deployment, request), deployment, request)
        if isinstance(outcome, BaseException):
            # Raised from here, so that the traceback has no frame of the SDK, with the key among its locals.
            raise outcome
        if outcome is None:
            raise _unreadable("no candidate")
        return outcome

    async def stream(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None] = _ignore
    ) -> AsyncGenerator[Reply]:
        """Send ``request`` once through ``deployment`` and yield its answer in pieces.

        An answer that ends without a finish reason has broken off, which is an error; so is no answer at
        all. Closing the generator closes the connection.

        Raises:
            ProviderError: The call failed; the error says how. Neither it nor its traceback contains the key.
        """
        _begin(deployment, dispatched)
        call = StreamedCall(
            functools.partial(self._open, deployment, request), limited=limits_output(request)
        )
        form, last, texts = AnswerForm.of(request), None, []
        try:
            while True:
                outcome = await _outcome(call.read(), deployment, request)
                if isinstance(outcome, ProviderError) and call.is_open:
                    outcome.charged = True  # it was accepted: a limiter refuses before any answer begins
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is None:
                    break
                if form is not None:
                    last = outcome
                    texts.append(outcome.text)
                yield outcome
        finally:
            await call.aclose()
        if not call.is_complete:
            raise not_an_answer("it broke off")
        if form is not None and last is not None:
            yield form.fit(attrs.evolve(last, text=""), "".join(texts))

    def read_exchange(self, exchange: Exchange) -> RelayRequest:
        """Read what an HTTP exchange asks for, without I/O.

        Raises:
            InvalidRequestError: The API has no such path, or the body is not what it needs.
        """
        return read_exchange(exchange)

    async def relay(
        self, deployment: Deployment, request: RelayRequest, dispatched: Callable[[], None] = _ignore
    ) -> AsyncGenerator[Reply]:
        """Send an exchange once through ``deployment``, and yield its answer as it comes.

        Its bytes are passed on as they are. Of an answer that is not read while it comes nothing is yielded
        before it has come whole; of another one, not before its first bytes.

        Raises:
            ProviderError: As for :meth:`stream`.
        """
        _begin(deployment, dispatched)
        session = await self._session()
        if not comes_in_pieces(request):
            whole = await _outcome(relayed_whole(session, deployment, request), deployment, request.request)
            if isinstance(whole, BaseException):
                raise whole
            yield whole
            return
        replies = relayed_pieces(session, deployment, request)
        try:
            while True:
                outcome = await _outcome(anext(replies, None), deployment, request.request)
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is None:
                    break
                yield outcome
        finally:
            await replies.aclose()

    def answer(self, exchange: Exchange, error: LLMRouterError) -> tuple[Head, bytes]:
        """Return the answer that says why the provider has given none, in the protocol of ``exchange``."""
        return answer_for(exchange, error)

    async def prepare(self) -> None:
        """Import the SDK and read the certificates in a thread, so that the event loop is not blocked.

        It takes more than half a second, once in a process. A router calls it; without a router, the first
        :meth:`validate` does the same, but blocks.
        """
        await asyncio.to_thread(prepare, self._http_backend)

    def validate(self, request: Request) -> None:
        """Check ``request`` as far as possible without sending it.

        Unless :meth:`prepare` was called, the first call imports the SDK, which blocks for a second or so:
        here, before quota is taken, and not between a reservation and its request.

        Raises:
            InvalidRequestError: The request is wrong, and no key or model would make it right.
        """
        prepare(self._http_backend)
        validate_request(request, self._safety, plain=is_plain(request))

    def estimate_tokens(self, request: Request) -> int:
        """Estimate the input tokens of ``request``, at least 1, without the SDK and without I/O."""
        return estimate_request(request)

    def features(self, request: Request) -> tuple[str, ...]:
        """Return the tools of ``request`` that have quotas of their own, such as ``google_search``."""
        return metered_tools(request)

    async def aclose(self) -> None:
        """Close the connections of this event loop. May be called twice; a later request opens new ones.

        The session of another loop closes with that loop.
        """
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.aclose()

    async def _send(self, deployment: Deployment, request: Request) -> Reply | None:
        session, contents = await self._session(), contents_for(request, deployment.model)
        body = self._plain_body(request, contents, deployment.model)
        if body is not None:
            response = await ask(session, deployment, self._api_version, body)
        else:
            config = build_config(request, self._safety)
            models = session.client(deployment.key).aio.models
            response = await models.generate_content(model=deployment.model, contents=contents, config=config)
        reply = read_reply(response, limited=limits_output(request))
        form = AnswerForm.of(request)
        return reply if reply is None or form is None else form.fit(reply)

    async def _open(
        self, deployment: Deployment, request: Request
    ) -> tuple[LoopSession, AsyncGenerator[Any]]:
        """Return the session used, and a generator of responses; its first step sends the request."""
        session, contents = await self._session(), contents_for(request, deployment.model)
        body = self._plain_body(request, contents, deployment.model)
        if body is not None:
            return session, ask_in_pieces(session, deployment, self._api_version, body)
        config = build_config(request, self._safety)
        models = session.client(deployment.key).aio.models
        return session, await models.generate_content_stream(
            model=deployment.model, contents=contents, config=config
        )

    def _plain_body(self, request: Request, contents: Any, model: str) -> bytes | None:
        """Return the body of a request that needs no SDK to make it, or None."""
        if not self._direct or not can_read():
            return None
        return plain_body(request, contents, model, self._safety)

    async def _session(self) -> LoopSession:
        """Return the session of the running loop, and forget those of closed loops."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            self._sessions = {other: kept for other, kept in self._sessions.items() if not other.is_closed()}
            session = self._sessions[loop] = LoopSession(
                base_url=self._base_url, api_version=self._api_version, backend=self._http_backend
            )
            await session.attach()
        return session


def _begin(deployment: Deployment, dispatched: Callable[[], None]) -> None:
    """Begin a call, of which nothing has been sent yet."""
    problem = _problem(deployment.key.secret)
    if problem is not None:
        raise not_a_key(problem)
    ON_DISPATCH.set(dispatched)
    REQUEST_BEGUN.set(False)


def _problem(secret: Secret) -> str | None:
    """Return why no request can be made with a key, or None.

    It does not raise: the traceback would show the key among the locals.
    """
    value = secret.reveal().strip()  # as the SDK does
    if not value:
        return "it is empty"  # the SDK would use another key instead, from GOOGLE_API_KEY
    if not _KEY.fullmatch(value):
        return "it has a character that a header cannot have, such as a newline"
    return None


async def _outcome(work: Awaitable[_T], deployment: Deployment, request: Request) -> _T | BaseException:
    """Await ``work``; return its result, or the translated exception for the caller to raise."""
    try:
        return await work
    except HttpFailure as failure:
        return from_http(failure, deployment.key.secret, request)
    except PathFailure as failure:
        return from_path(failure, deployment.key.secret)
    except InvalidRequestError as error:
        return not_sent(str(error))
    except Exception as error:  # noqa: BLE001 - no error of the SDK may escape
        return _failed(error)
    except BaseException as error:  # noqa: BLE001 - a cancellation: the caller raises it
        # The same object, since the canceller may look for it, but without the SDK's frames.
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)


def _failed(error: Exception) -> ProviderError:
    """Translate an error of the SDK's own."""
    unsupported = _UNSUPPORTED.match(str(error)) if isinstance(error, ValueError) else None
    if unsupported is not None:
        return not_sent(f"the Gemini API does not take {unsupported[1]}: leave it out")
    # Only its name: its message may quote the data that it failed on.
    return _unreadable(type(error).__name__)


def _unreadable(why: str) -> ProviderError:
    return not_an_answer(why) if REQUEST_BEGUN.get() else not_sent(why)

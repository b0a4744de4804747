"""The gateway as an ASGI application: a request becomes an exchange, and its answer goes back as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from contextlib import nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llm_router.domain.clock import SystemClock
from llm_router.domain.exchange import Head
from llm_router.domain.status import without_deprecated
from llm_router.engine.timing import Deadlines
from llm_router.errors import LLMRouterError
from llm_router.gateway.answers import READ_ONLY, Answer, RefusedError
from llm_router.gateway.hangups import reloading_on_hangup
from llm_router.gateway.page import Page
from llm_router.gateway.requests import GoneError, Incoming, check_local
from llm_router.gemini_http.answers import answer_for, protocol_of, write_answer
from llm_router.gemini_http.api_errors import usual_error
from llm_router.gemini_http.framing import JSON_TYPE, dump
from llm_router.gemini_http.resources import UPLOAD_URL, with_origin
from llm_router.gemini_http.wishes import read_wishes, trace_headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_router.domain.exchange import Exchange, Headers
    from llm_router.domain.options import RelayOptions
    from llm_router.engine.relaying import Relay
    from llm_router.gateway.activity import Activity
    from llm_router.gateway.callers import Caller, Callers
    from llm_router.gateway.metrics import Metrics
    from llm_router.router import Router

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]

__all__ = ["Gateway"]

_log = logging.getLogger("llm_router")

_PATIENCE = 1.0
"""Seconds that a report waits for the store, so that the gateway is not taken for one that hangs."""

_OF_CLIENTS = ("x-server-timeout", "x-stainless-timeout")
"""Headers in which SDKs say for how many seconds they wait."""


class Gateway:
    """Serves the paths of Gemini and of OpenAI over a router.

    An answer that breaks off ends the connection, so that no client takes it for a whole one. A client that
    goes away ends its call, whose quota is settled at once.

    Args:
        router: Where the calls go. The gateway closes it when its server ends.
        callers: Who may call; None for programs of this machine.
        max_wait: Most seconds that a call waits for quota; a client's own timeout, and its header
            ``x-llm-router-max-wait``, may say less.
        trusts_proxy: Whether the headers ``X-Forwarded-For``, ``-Host`` and ``-Proto`` are true.
        metrics: What ``/metrics`` says to an admin token; its observers must be the router's. None for no
            such path.
        activity: What the page at ``/`` shows of the calls; it must observe the router. None for no page.
        heeds_hangups: Whether SIGHUP has the router :meth:`~llm_router.Router.reload`.
    """

    def __init__(
        self,
        router: Router,
        *,
        callers: Callers | None = None,
        max_wait: float = 60.0,
        trusts_proxy: bool = False,
        metrics: Metrics | None = None,
        activity: Activity | None = None,
        heeds_hangups: bool = False,
    ) -> None:
        self.router = router
        self.heeds_hangups = heeds_hangups
        self.callers = callers
        self.trusts_proxy = trusts_proxy
        self.max_wait = max_wait
        self.metrics = metrics
        self._deadlines = Deadlines(SystemClock())
        self.page = None if activity is None else Page(router.keys, activity, callers)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve a request, as ASGI servers ask for it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = Answer(send, self._deadlines)
        incoming = Incoming.of(scope, receive, self._deadlines, trusts_proxy=self.trusts_proxy)
        exchange = incoming.exchange
        try:
            await self._serve(incoming, answer)
        except GoneError:
            pass
        except TimeoutError:
            _abort(scope)  # to close it would wait for the client to read what it was sent
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            if not answer.is_begun:
                await self._tell(answer, exchange, *_answer_for(exchange, error))
            elif scope.get("http_version") == "1.0":
                _abort(scope)  # there, a connection that is closed is a whole answer
            # Else to return without an end makes the server close the connection in the middle of a piece.

    async def _serve(self, incoming: Incoming, answer: Answer) -> None:
        exchange = incoming.exchange
        if exchange.path in {"/healthz", "/readyz"}:
            await self._report(exchange, answer, show_keys=await self._may_see(incoming))
            return
        if self.callers is None:
            check_local(incoming.headers)
        if exchange.path == "/metrics" and self.metrics is not None:
            await self._measure(self.metrics, incoming, answer)
            return
        if self.page is not None and self.page.has(exchange.path):
            await self.page.serve(incoming, answer)
            return
        caller = None
        if self.callers is not None:
            caller = await self.callers.identify(exchange, incoming.credentials, incoming.address)
        options = self._options(incoming.headers)
        body = await incoming.body()
        reading = None if caller is None else caller.read(body)
        exchange = incoming.whole_exchange(body, reading)
        if caller is not None:
            await caller.confine(exchange, options, self.router.keys.pool.states)
        relay = self.router.relay(exchange, **options)
        await incoming.while_there(self._relay(relay, incoming, exchange, answer, caller))

    async def _relay(
        self, relay: Relay, incoming: Incoming, exchange: Exchange, answer: Answer, caller: Caller | None
    ) -> None:
        async with relay as found:
            head = _traced(found, incoming)
            if caller is not None:
                await caller.note(head)
            if not _comes_in_pieces(exchange, head):
                body = b"".join([piece async for piece in found])
                if caller is not None and head.status == HTTPStatus.OK:
                    body = await caller.own_only(body)
                await answer.whole(head, body)
                return
            await answer.begin(head)
            async for piece in found:
                await answer.write(piece)
        await answer.end()

    def _options(self, headers: Headers) -> RelayOptions:
        options = read_wishes(headers)
        wished = options.get("max_wait")
        most = min([self.max_wait, *_client_timeouts(headers)])
        # Not a number is greater than nothing: the router refuses it.
        options["max_wait"] = most if wished is None or wished > most else wished
        return options

    async def _report(self, exchange: Exchange, answer: Answer, *, show_keys: bool) -> None:
        """Answer whether the gateway lives, with what there is to know, or whether a call has a chance."""
        body: dict[str, Any] = {"status": "ok"}
        status = HTTPStatus.OK
        if exchange.path == "/healthz" and exchange.verb != "HEAD":
            body |= await self._health(show_keys=show_keys)
        elif exchange.path == "/readyz":
            is_ready = (await self.router.health_check())["healthy"]
            status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
            body = {"status": "ok" if is_ready else "unavailable"}
        await self._tell(answer, exchange, Head(int(status), (("content-type", JSON_TYPE),)), dump(body))

    async def _health(self, *, show_keys: bool) -> dict[str, Any]:
        """Return the health, and the keys for those who may see them, unless the store takes too long."""
        try:
            async with asyncio.timeout(_PATIENCE):
                report = await self.router.keys.report()
        except TimeoutError:
            return {"state": "store_lost"}
        health = report.health
        if not show_keys:
            return {"state": health["state"], "usable_in_seconds": health["usable_in_seconds"]}
        return {"state": health["state"], "health": health, "keys": [*map(without_deprecated, report.keys)]}

    async def _may_see(self, incoming: Incoming) -> bool:
        """Return whether a client may see the keys: one of this machine, or with a token for all."""
        try:
            if self.callers is None:
                check_local(incoming.headers)
                return True
            if not incoming.credentials:
                return False  # a probe, and no wrong token
            caller = await self.callers.identify(incoming.exchange, incoming.credentials, incoming.address)
        except RefusedError:
            return False
        return caller.is_free

    async def _measure(self, metrics: Metrics, incoming: Incoming, answer: Answer) -> None:
        if self.callers is not None:
            self.callers.administrator(incoming.credentials, incoming.address)
        if incoming.exchange.verb not in {"GET", "HEAD"}:
            raise RefusedError(READ_ONLY)
        found = await metrics.read(self.router.keys, incoming.header("accept"))
        await self._tell(answer, incoming.exchange, *found)

    async def _tell(self, answer: Answer, exchange: Exchange, head: Head, body: bytes) -> None:
        if not answer.is_begun:
            await answer.whole(head, body, without_body=exchange.verb == "HEAD")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.router, reloading_on_hangup(self.router) if self.heeds_hangups else nullcontext():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _answer_for(exchange: Exchange, error: Exception) -> tuple[Head, bytes]:
    if isinstance(error, RefusedError):
        return error.answer(exchange)
    if isinstance(error, LLMRouterError):
        return answer_for(exchange, error)
    # Without the traceback: whatever shows the locals of its frames would show a token.
    _log.error("the gateway failed at %s: %s", exchange.path[:200], type(error).__name__)
    return write_answer(protocol_of(exchange), usual_error(HTTPStatus.INTERNAL_SERVER_ERROR))


def _abort(scope: Mapping[str, Any]) -> None:
    """Drop the connection of a request, with all that was not sent yet."""
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()


def _client_timeouts(headers: Headers) -> list[float]:
    found = []
    for name, value in headers:
        if name in _OF_CLIENTS:
            with contextlib.suppress(ValueError):
                seconds = float(value)
                if math.isfinite(seconds) and seconds > 0:
                    found.append(seconds)
    return found


def _comes_in_pieces(exchange: Exchange, head: Head) -> bool:
    if exchange.path.endswith((":streamGenerateContent", ":download")):
        return True
    kind = next((value for name, value in head.headers if name == "content-type"), "")
    return kind.startswith("text/event-stream")


def _traced(found: Relay, incoming: Incoming) -> Head:
    """Return the head of an answer, with how it was found, and with uploads going on at the gateway."""
    head, headers = found.head, found.head.headers
    if UPLOAD_URL in [name for name, _ in headers]:
        headers = with_origin(headers, incoming.origin)
    told = trace_headers(found.key_id, found.model, found.attempts, found.waited)
    return Head(head.status, (*headers, *told), head.created, head.deleted, further=head.further)

"""The emulator as an ASGI application: from an HTTP request to the call it stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import Route as StarletteRoute

from llm_router.emulator import replies
from llm_router.emulator.exchange import ConnectionGoneError, Exchange
from llm_router.emulator.refusals import RefusalError
from llm_router.emulator.service import Call
from llm_router.gemini_http.api_errors import invalid_key, missing_key, model_not_found, not_found, not_json
from llm_router.gemini_http.routes import API_VERSIONS, Method, Route, parse_path, read_key, wants_sse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from llm_router.emulator.connections import Connections
    from llm_router.emulator.keyring import Keyring
    from llm_router.emulator.service import GeminiService, Settings

__all__ = ["GeminiApp"]

_STATS = "/__emulator__/stats"


class GeminiApp:
    """An ASGI application with the paths of the Gemini API.

    Args:
        settings: How the models behave.
        service: The models.
        keyring: The known keys.
        connections: The server's connections.
        stats: Returns what ``/__emulator__/stats`` shows.
    """

    def __init__(
        self,
        settings: Settings,
        service: GeminiService,
        keyring: Keyring,
        connections: Connections,
        stats: Callable[[], object],
    ) -> None:
        self.requests = 0
        self._settings = settings
        self._service = service
        self._keyring = keyring
        self._stats = stats
        # An endpoint that is an object gets the bare ASGI call: starlette makes no Request and no Response.
        self._starlette = Starlette(
            routes=[StarletteRoute("/{path:path}", _Endpoint(connections, self._serve))]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._starlette(scope, receive, send)

    async def _serve(self, scope: Scope, exchange: Exchange) -> None:
        verb, path = scope["method"], scope["path"]
        route = parse_path(path)
        if route is None:
            if (verb, path) != ("GET", _STATS):
                raise RefusalError.of(not_found())
            await exchange.reply_json(200, self._stats())
        elif verb == "POST" and route.model:
            await self._call(route, scope, exchange)
        elif verb == "GET" and not route.model:
            await self._list_models(scope, exchange)
        elif verb == "GET" and not route.method:
            await self._get_model(route, scope, exchange)
        else:
            raise RefusalError.of(not_found())

    async def _list_models(self, scope: Scope, exchange: Exchange) -> None:
        self._authorize(scope)
        limit = self._settings.input_token_limit
        models = [replies.model_resource(model, limit) for model in self._settings.models or ()]
        await exchange.reply_json(200, {"models": models})

    async def _get_model(self, route: Route, scope: Scope, exchange: Exchange) -> None:
        self._authorize(scope)
        self._require_model(route, "GetModel")
        await exchange.reply_json(200, replies.model_resource(route.model, self._settings.input_token_limit))

    async def _call(self, route: Route, scope: Scope, exchange: Exchange) -> None:
        raw = await exchange.read()
        serve = self._service.methods.get(route.method)
        if serve is None or route.version not in API_VERSIONS:
            raise RefusalError.of(not_found())
        self.requests += route.method != Method.COUNT_TOKENS
        key, project = self._authorize(scope)
        self._require_model(route, route.method)
        sse = wants_sse(_query(scope))
        await serve(Call(exchange, route.model, route.method, sse, project, key, _parsed(raw)))

    def _authorize(self, scope: Scope) -> tuple[str, str]:
        """Return the key of a request and its project."""
        key = read_key(scope["headers"], _query(scope))
        if not key:
            raise RefusalError.of(missing_key())
        project = self._keyring.project_of(key)
        if project is None:
            raise RefusalError.of(invalid_key())
        return key, project

    def _require_model(self, route: Route, method: str) -> None:
        if self._settings.models is not None and route.model not in self._settings.models:
            raise RefusalError.of(model_not_found(route.model, route.version, method))


class _Endpoint:
    """Hands requests to a handler, and turns its refusals into answers."""

    def __init__(
        self, connections: Connections, handler: Callable[[Scope, Exchange], Awaitable[None]]
    ) -> None:
        self._connections = connections
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._connections)
        try:
            await self._handler(scope, exchange)
        except RefusalError as refusal:
            await exchange.reply(refusal.code, refusal.body, headers=refusal.headers)
        except ConnectionGoneError:
            pass


def _query(scope: Scope) -> str:
    return bytes(scope["query_string"]).decode("latin-1")


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise RefusalError.of(not_json())
    return body

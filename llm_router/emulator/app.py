"""The routes of the emulator: from an HTTP request to the call it stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.routing import Route

from llm_router.emulator import refusals, replies
from llm_router.emulator.exchange import ConnectionGoneError, Exchange
from llm_router.emulator.service import Call, RefusalError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from llm_router.emulator.exchange import Wire
    from llm_router.emulator.keyring import Keyring
    from llm_router.emulator.service import GeminiService, Settings

__all__ = ["GeminiApp"]

_VERSIONS = frozenset({"v1", "v1alpha", "v1beta"})


class GeminiApp:
    """An ASGI application with the paths of the Gemini API.

    Args:
        settings: How the models behave.
        service: The models.
        keyring: The keys that are known.
        wire: The connections.
        stats: Returns what ``/__emulator__/stats`` shows.
    """

    def __init__(
        self,
        settings: Settings,
        service: GeminiService,
        keyring: Keyring,
        wire: Wire,
        stats: Callable[[], object],
    ) -> None:
        self.requests = 0
        self._settings = settings
        self._service = service
        self._keyring = keyring
        self._stats = stats
        # Endpoints that are objects get the bare ASGI call: starlette then makes no Request and no Response.
        self._routes = Starlette(
            routes=[
                Route("/{version}/models/{call:path}", _Endpoint(wire, post=self._call, get=self._get_model)),
                Route("/{version}/models", _Endpoint(wire, get=self._list_models)),
                Route("/__emulator__/stats", _Endpoint(wire, get=self._show_stats)),
                Route("/{path:path}", _Endpoint(wire)),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._routes(scope, receive, send)

    async def _show_stats(self, _scope: Scope, exchange: Exchange) -> None:
        await exchange.reply_json(200, self._stats())

    async def _list_models(self, scope: Scope, exchange: Exchange) -> None:
        self._authorize(scope)
        limit = self._settings.input_token_limit
        models = [replies.model_resource(model, limit) for model in self._settings.models or ()]
        await exchange.reply_json(200, {"models": models})

    async def _get_model(self, scope: Scope, exchange: Exchange) -> None:
        self._authorize(scope)
        version, model = scope["path_params"]["version"], scope["path_params"]["call"]
        self._require_model(model, version, "GetModel")
        await exchange.reply_json(200, replies.model_resource(model, self._settings.input_token_limit))

    async def _call(self, scope: Scope, exchange: Exchange) -> None:
        raw = await exchange.read()
        version = scope["path_params"]["version"]
        model, _, method = scope["path_params"]["call"].rpartition(":")
        serve = self._service.methods.get(method)
        if serve is None or version not in _VERSIONS:
            raise RefusalError(404, refusals.not_found())
        self.requests += method != "countTokens"
        key, project = self._authorize(scope)
        self._require_model(model, version, method)
        sse = b"alt=sse" in scope["query_string"]
        await serve(Call(exchange, model, method, sse, project, key, _parsed(raw)))

    def _authorize(self, scope: Scope) -> tuple[str, str]:
        """Return the key of a request and its project."""
        key = _key_of(scope)
        if not key:
            raise RefusalError(403, refusals.missing_key())
        project = self._keyring.project_of(key)
        if project is None:
            raise RefusalError(400, refusals.invalid_key())
        return key, project

    def _require_model(self, model: str, version: str, method: str) -> None:
        if self._settings.models is not None and model not in self._settings.models:
            raise RefusalError(404, refusals.model_not_found(model, version, method))


class _Endpoint:
    """One path: hands a request to the handler of its verb, and turns refusals into answers."""

    def __init__(
        self,
        wire: Wire,
        *,
        get: Callable[[Scope, Exchange], Awaitable[None]] | None = None,
        post: Callable[[Scope, Exchange], Awaitable[None]] | None = None,
    ) -> None:
        self._wire = wire
        self._handlers = {"GET": get, "POST": post}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._wire)
        handler = self._handlers.get(scope["method"]) or _lead_nowhere
        try:
            await handler(scope, exchange)
        except RefusalError as refusal:
            await exchange.reply_json(refusal.code, refusal.body)
        except ConnectionGoneError:
            pass


async def _lead_nowhere(_scope: Scope, _exchange: Exchange) -> None:
    raise RefusalError(404, refusals.not_found())


def _key_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-goog-api-key":
            return bytes(value).decode("latin-1")
    return parse_qs(bytes(scope["query_string"]).decode("latin-1")).get("key", [""])[0]


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise RefusalError(400, refusals.not_json())
    return body

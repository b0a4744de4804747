"""The page at ``/``: its files, who may see it, the frames that it shows, and the changes that it makes."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import attrs

from llm_router.domain.exchange import Head
from llm_router.errors import StoreError, UnknownKeyError, UnknownModelError
from llm_router.gateway.answers import READ_ONLY, RefusedError
from llm_router.gateway.live import LiveView, TooManyViewersError
from llm_router.gateway.sessions import LASTS, Sessions, cookie_header, read_cookie
from llm_router.gemini_http.api_errors import ApiError, not_found, not_json
from llm_router.gemini_http.framing import JSON_TYPE, SSE_TYPE, dump, sse_event

if TYPE_CHECKING:
    from llm_router.domain.exchange import Headers
    from llm_router.engine.keys import KeyManager
    from llm_router.gateway.activity import Activity
    from llm_router.gateway.answers import Answer
    from llm_router.gateway.callers import Callers
    from llm_router.gateway.requests import Incoming
    from llm_router.gateway.tokens import Grant

__all__ = ["Page"]

_log = logging.getLogger("llm_router")

_CHANGES = ("disable", "enable", "lift")
_MARK = "x-llm-router-page"
"""A header that the page sends with what changes something, and that no form of another page can send."""

_MOST_BODY = 4096
_LONGEST_REASON = 200

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'none'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
)
_GUARDS: Headers = (
    ("content-security-policy", "; ".join(_POLICY)),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)
_NO_SESSION = ApiError(
    int(HTTPStatus.UNAUTHORIZED),
    "UNAUTHENTICATED",
    "Sign in on the page with a token of `llm-router tokens add NAME --admin`.",
)
_NOT_FROM_PAGE = ApiError(
    int(HTTPStatus.FORBIDDEN),
    "PERMISSION_DENIED",
    "This does not come from the gateway's own page. Behind a proxy that ends TLS, start the gateway with "
    "--trust-proxy.",
)
_FULL = ApiError(int(HTTPStatus.SERVICE_UNAVAILABLE), "UNAVAILABLE", "Too many look at the page: close one.")
_ODD = ApiError(
    int(HTTPStatus.BAD_REQUEST),
    "INVALID_ARGUMENT",
    f"Expected a key_id, perhaps a model, and a reason of at most {_LONGEST_REASON} characters.",
)


@attrs.frozen
class _Change:
    """A change of a key, or of a model on the project of a key."""

    key_id: str
    model: str | None
    reason: str

    @classmethod
    def read(cls, body: bytes) -> _Change:
        """Return the change that a body asks for."""
        found = _read_object(body)
        key_id, model, reason = found.get("key_id"), found.get("model"), found.get("reason", "")
        if not isinstance(key_id, str) or not isinstance(model, str | None) or not isinstance(reason, str):
            raise RefusedError(_ODD)
        if len(reason) > _LONGEST_REASON:
            raise RefusedError(_ODD)
        return cls(key_id, model, reason)


class Page:
    """Serves the page: to the holder of an admin token or, where there are no tokens, to this machine.

    Its files, which have nothing of the pool in them, are open to all. Everything else needs the cookie that
    one gets for an admin token; what changes something must come from the page itself, too.

    Args:
        keys: What it shows and changes.
        activity: What has happened.
        callers: Who knows the tokens; None where there are none.
    """

    def __init__(self, keys: KeyManager, activity: Activity, callers: Callers | None = None) -> None:
        self._keys = keys
        self._callers = callers
        self._sessions = None if callers is None else Sessions(callers)
        self._live = LiveView(keys, activity)
        folder = files("llm_router.gateway") / "static"
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    @staticmethod
    def has(path: str) -> bool:
        """Return whether a path belongs to the page."""
        return path == "/" or path.startswith("/page/")

    async def serve(self, incoming: Incoming, answer: Answer) -> None:
        """Answer a request for the page."""
        is_head = incoming.exchange.verb == "HEAD"
        try:
            if incoming.exchange.path == "/page/events" and incoming.exchange.verb == "GET":
                await incoming.while_there(self._show(incoming, answer))
                return
            head, body = await self._answer(incoming)
        except RefusedError as error:
            head, body = error.answer(incoming.exchange)
        await answer.whole(_guarded(head), body, without_body=is_head)

    async def _answer(self, incoming: Incoming) -> tuple[Head, bytes]:
        path, verb = incoming.exchange.path, incoming.exchange.verb
        if path in self._files:
            if verb not in {"GET", "HEAD"}:
                raise RefusedError(READ_ONLY)
            content, kind = self._files[path]
            return Head(int(HTTPStatus.OK), (("content-type", kind), ("cache-control", "no-cache"))), content
        _check_site(incoming)
        if path == "/page/session":
            return await self._session(incoming)
        change = path.removeprefix("/page/keys/")
        if change in _CHANGES and verb == "POST":
            return await self._change(incoming, change)
        raise RefusedError(not_found())

    async def _session(self, incoming: Incoming) -> tuple[Head, bytes]:
        """Say who is signed in, sign in, or sign out."""
        verb = incoming.exchange.verb
        if verb in {"GET", "HEAD"}:
            grant = self._grant(incoming)
            name = None if grant is None else grant.name
            needed = self._callers is not None
            return _json({"needs_token": needed, "signed_in": not needed or name is not None, "name": name})
        _check_page(incoming)
        secure = incoming.origin.startswith("https:")
        if verb == "DELETE":
            return _json({}, cookie_header("", 0, is_secure=secure))
        if verb != "POST" or self._callers is None or self._sessions is None:
            raise RefusedError(not_found())
        token = _read_object(await incoming.body(_MOST_BODY)).get("token")
        given = [token] if isinstance(token, str) and token else []
        grant = self._callers.administrator(given, incoming.address)
        _log.info("the page: %s has signed in", grant.name)
        cookie = cookie_header(self._sessions.begin(grant), LASTS, is_secure=secure)
        return _json({"needs_token": True, "signed_in": True, "name": grant.name}, cookie)

    async def _change(self, incoming: Incoming, change: str) -> tuple[Head, bytes]:
        grant = self._admit(incoming)
        _check_page(incoming)
        asked = _Change.read(await incoming.body(_MOST_BODY))
        who = "a user of this machine" if grant is None else grant.name
        try:
            if change == "disable":
                reason = asked.reason or ("" if grant is None else f"by {grant.name}")
                await self._keys.disable(asked.key_id, asked.model, reason=reason)
            elif change == "enable":
                await self._keys.enable(asked.key_id, asked.model)
            else:
                await self._keys.lift(asked.key_id, asked.model)
        except (UnknownKeyError, UnknownModelError) as error:
            raise RefusedError(attrs.evolve(not_found(), message=str(error))) from None
        except StoreError as error:
            status = int(HTTPStatus.SERVICE_UNAVAILABLE)
            raise RefusedError(ApiError(status, "UNAVAILABLE", f"The store failed: {error}")) from None
        _log.info("the page: %s asked to %s %s %s", who, change, asked.key_id, asked.model or "")
        return _json({})

    async def _show(self, incoming: Incoming, answer: Answer) -> None:
        """Send frames for as long as the viewer may look."""
        _check_site(incoming)
        self._admit(incoming)
        try:
            async with self._live.watch() as viewer:
                incoming.at_exit(viewer.leave)
                headers = (("content-type", SSE_TYPE), ("cache-control", "no-store"))
                await answer.begin(_guarded(Head(int(HTTPStatus.OK), headers)))
                async for frame in viewer:
                    if self._callers is not None and self._grant(incoming) is None:
                        break
                    await answer.write(sse_event(frame))
        except TooManyViewersError:
            raise RefusedError(_FULL) from None
        await answer.end()

    def _admit(self, incoming: Incoming) -> Grant | None:
        """Return who is signed in; None where there are no tokens.

        Raises:
            RefusedError: No one is.
        """
        grant = self._grant(incoming)
        if grant is None and self._callers is not None:
            raise RefusedError(_NO_SESSION)
        return grant

    def _grant(self, incoming: Incoming) -> Grant | None:
        if self._sessions is None:
            return None
        return self._sessions.find(read_cookie(incoming.header("cookie")))


def _check_site(incoming: Incoming) -> None:
    """Refuse what a browser says comes from elsewhere."""
    if incoming.header("sec-fetch-site") not in {"", "none", "same-origin"}:
        raise RefusedError(_NOT_FROM_PAGE)


def _check_page(incoming: Incoming) -> None:
    """Refuse what does not come from the page itself: browsers name the origin of what changes something."""
    if incoming.header(_MARK) != "1" or incoming.header("origin") != incoming.origin:
        raise RefusedError(_NOT_FROM_PAGE)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(not_json()) from None
    if not isinstance(found, dict):
        raise RefusedError(not_json())
    return found


def _json(body: dict[str, Any], *headers: tuple[str, str]) -> tuple[Head, bytes]:
    named = (("content-type", JSON_TYPE), ("cache-control", "no-store"), *headers)
    return Head(int(HTTPStatus.OK), named), dump(body)


def _guarded(head: Head) -> Head:
    return attrs.evolve(head, headers=(*head.headers, *_GUARDS))
